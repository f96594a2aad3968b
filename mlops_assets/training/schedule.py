"""Learning rates over a training.

Belongs here: the rate of a step as a formula of its number alone, so that a resumed training needs no scheduler's
state. Does not belong here: who steps.
"""

from __future__ import annotations

import math
from typing import Final

from mlops_assets.training.config import TrainingConfig

RISE: Final = 0.3
"""Share of a one-cycle training in which the rate rises; this and the next two are PyTorch's defaults."""

START: Final = 1 / 25
"""A one-cycle training's first rate, as a share of the highest."""

END: Final = START / 1e4
"""Its last rate."""


def learning_rate(config: TrainingConfig, step: int, epoch_steps: int) -> float:
    """Give the learning rate of one step.

    `cosine` is the annealing of Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR
    2017, without restarts; `one-cycle` is Smith & Topin, "Super-Convergence", 2018, with a cosine in both phases, and
    leaves AdamW's momentum alone.

    Args:
        config: The schedule, its highest rate, and the number of epochs.
        step: Number of the step since the training began, from 0.
        epoch_steps: Steps of one epoch.

    Returns:
        The rate; a warm-up longer than the training is all of the training.
    """
    steps = config.epochs * epoch_steps
    warmup = config.warmup_epochs * epoch_steps
    highest = config.learning_rate
    if config.learning_rate_schedule == "one-cycle":
        top = max((warmup or RISE * steps) - 1, 0)  # the step of the highest rate
        if step < top:
            return _cosine(START * highest, highest, step / top)
        return _cosine(highest, END * highest, (step - top) / max(steps - 1 - top, 1))
    if step < warmup:
        return highest * min((step + 1) / warmup, 1)
    if config.learning_rate_schedule == "cosine":
        return _cosine(highest, 0.0, (step - warmup) / max(steps - warmup, 1))
    return highest


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
