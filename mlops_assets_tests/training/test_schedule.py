import warnings
from itertools import pairwise

import pytest
import torch

from mlops_assets.training.config import TrainingConfig
from mlops_assets.training.schedule import learning_rate

EPOCHS, STEPS = 4, 5


def rates(**options: object) -> list[float]:
    config = TrainingConfig(epochs=EPOCHS, learning_rate=0.1, **options)
    return [learning_rate(config, step, STEPS) for step in range(EPOCHS * STEPS)]


def torch_rates(schedule: type, **options: object) -> list[float]:
    """What PyTorch's own scheduler gives, step by step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = schedule(optimizer, **options)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would have us step an optimizer that has nothing to do
        for step in range(EPOCHS * STEPS):
            found.append(optimizer.param_groups[0]["lr"])
            if step < EPOCHS * STEPS - 1:
                scheduler.step()
    return found


def test_the_rate_is_constant_unless_a_schedule_is_asked_for() -> None:
    assert rates() == [0.1] * 20


def test_cosine_is_that_of_pytorch() -> None:
    expected = torch_rates(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=EPOCHS * STEPS)
    assert rates(learning_rate_schedule="cosine") == pytest.approx(expected, rel=1e-9)


def test_one_cycle_is_that_of_pytorch() -> None:
    cycle = torch.optim.lr_scheduler.OneCycleLR
    expected = torch_rates(cycle, max_lr=0.1, total_steps=EPOCHS * STEPS, cycle_momentum=False)
    assert rates(learning_rate_schedule="one-cycle") == pytest.approx(expected, rel=1e-9)
    expected = torch_rates(cycle, max_lr=0.1, total_steps=EPOCHS * STEPS, cycle_momentum=False, pct_start=0.5)
    assert rates(learning_rate_schedule="one-cycle", warmup_epochs=2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warm_up_rises_in_equal_steps_to_the_highest_rate(schedule: str) -> None:
    found = rates(learning_rate_schedule=schedule, warmup_epochs=1)
    assert found[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    if schedule == "constant":
        assert found[5:] == [0.1] * 15
    else:
        assert found[5] == 0.1
        assert all(later < earlier for earlier, later in pairwise(found[5:]))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
@pytest.mark.parametrize("warmup", [0, 0.1, 4, 100])
@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (3, 1)])
def test_rates_are_usable_in_the_shortest_training_and_the_longest_warm_up(
    schedule: str, warmup: float, epochs: int, steps: int
) -> None:
    config = TrainingConfig(epochs=epochs, learning_rate=0.1, learning_rate_schedule=schedule, warmup_epochs=warmup)
    found = [learning_rate(config, step, steps) for step in range(epochs * steps)]
    assert all(0 < rate <= 0.1 for rate in found)
