"""Training a classifier: from arrays to the best weights.

Belongs here: the loop, and all that makes it give the same weights again. Does not belong here: its configuration
(`config`), what the network is (`architectures`, or a pipeline's own), how weights are stored and served (`export`,
`predict`), or where progress is logged.

Lightning Fabric places module and optimizer and does mixed precision. The data lie on the device as two tensors and
are batched by index: for tables that fit into memory a `DataLoader` only costs time.
"""

from __future__ import annotations

import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from mlops_assets.errors import MlopsError
from mlops_assets.training.config import TrainingConfig, environment

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric
    from numpy.typing import NDArray
    from torch import Tensor, nn

_SCORED_ROWS: Final = 1024  # rows of one forward pass without gradients


class TrainingError(MlopsError):
    """The training cannot be done as asked."""


class TrainingDiverged(TrainingError):
    """The loss is no longer a finite number."""


class ModelMismatch(TrainingError):
    """The module does not fit the data."""


@dataclass(frozen=True)
class Rows:
    """What a model learns from or is judged on.

    Attributes:
        x: Features, float32 (n, ...), finite.
        y: Class numbers from 0, int64 (n,).
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.x.dtype != np.float32 or self.y.dtype != np.int64:
            raise TrainingError(f"features must be float32 and classes int64, not {self.x.dtype} and {self.y.dtype}.")
        if self.x.ndim < 2 or self.y.shape != self.x.shape[:1] or not len(self.y):
            raise TrainingError(
                f"features of shape {self.x.shape} and classes of shape {self.y.shape} do not pair up: "
                "give (n, ...) and (n,) with n of at least 1."
            )
        if not np.isfinite(self.x).all():
            row = int(np.argwhere(~np.isfinite(self.x))[0][0]) + 1
            raise TrainingError(f"row {row} has a feature that is not finite: mend it in the features function.")
        if self.y.min() < 0:
            raise TrainingError(f"class numbers must start at 0, but there is a {self.y.min()}.")


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows; losses are mean cross-entropy in nats, `number` starts at 1."""

    number: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """The outcome of a training.

    Attributes:
        weights: State of the module after the epoch with the lowest validation loss, on the CPU; no two share memory.
        history: Every epoch, in order.
        best_epoch: Number of the epoch that `weights` are from.
        stopped_early: Whether `patience` ended the training.
        seconds: From the first line to the last.
        environment: What `environment` said.
    """

    weights: dict[str, Tensor]
    history: tuple[Epoch, ...]
    best_epoch: int
    stopped_early: bool
    seconds: float
    environment: dict[str, str]


def train(
    build: Callable[[], nn.Module],
    train: Rows,
    validation: Rows,
    config: TrainingConfig,
    *,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Trained:
    """Train a classifier with AdamW on cross-entropy and keep the epoch with the lowest validation loss.

    The same build, rows, configuration and environment give the same weights, bit for bit on the CPU; on a GPU as far
    as its operations have deterministic versions (torch warns of one that has not). Seeds, threads and the caller's
    random states are put back afterwards.

    Args:
        build: Makes the module: x (batch, ...) to logits (batch, classes). Called after seeding. Every submodule with
            an `adapt` method is given the training features once, before the first epoch.
        train: Rows to learn from, at least 2.
        validation: Rows that choose the epoch.
        config: How to train.
        on_epoch: Called after each epoch; an exception from it ends the training.

    Raises:
        ModelMismatch: The module does not take these features or give logits for these classes.
        TrainingDiverged: A loss is not finite.
        TrainingError: The rows do not fit together, or the device is not the one that `environment` names.
    """
    started = time.perf_counter()
    if len(train.y) < 2 or train.x.shape[1:] != validation.x.shape[1:]:
        raise TrainingError(
            f"training features of shape {train.x.shape} and validation features of shape {validation.x.shape} cannot "
            "be used together: give at least 2 training rows, and rows of one shape."
        )
    names = environment(config)
    with _reproducible(config, names["device"]):
        history, best, weights = _train(build, train, validation, config, on_epoch)
    return Trained(
        weights=weights,
        history=tuple(history),
        best_epoch=best.number,
        stopped_early=len(history) < config.epochs,
        seconds=time.perf_counter() - started,
        environment=names,
    )


def _train(
    build: Callable[[], nn.Module],
    train: Rows,
    validation: Rows,
    config: TrainingConfig,
    on_epoch: Callable[[Epoch], None] | None,
) -> tuple[list[Epoch], Epoch, dict[str, Tensor]]:
    import torch

    fabric = _fabric(config, environment(config)["device"])
    # torch.tensor copies, so that neither a read-only array nor a module that writes into its input is trouble
    train_x, train_y, validation_x, validation_y = (
        torch.tensor(each) for each in (train.x, train.y, validation.x, validation.y)
    )
    module = _fitted(build(), train_x, classes=int(max(train.y.max(), validation.y.max())) + 1)
    optimizer = torch.optim.AdamW(
        [each for each in module.parameters() if each.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    model, stepper = fabric.setup(module, optimizer)
    rows = fabric.to_device((train_x, train_y))
    judged = fabric.to_device((validation_x, validation_y))
    shuffle = torch.Generator().manual_seed(config.seed)

    history: list[Epoch] = []
    best: Epoch | None = None
    weights: dict[str, Tensor] = {}
    for number in range(1, config.epochs + 1):
        began = time.perf_counter()
        batches = fabric.to_device(_batches(len(train.y), config.batch_size, shuffle))
        train_loss = _learn(fabric, model, stepper, rows, batches)
        validation_loss, accuracy = _score(model, *judged)
        if not (math.isfinite(train_loss) and math.isfinite(validation_loss)):
            raise TrainingDiverged(
                f"the loss is not finite in epoch {number} (training {train_loss}, validation {validation_loss}): "
                f"lower learning_rate, now {config.learning_rate}, or scale the features."
            )
        seconds = time.perf_counter() - began
        epoch = Epoch(number, train_loss, validation_loss, accuracy, config.learning_rate, seconds)
        history.append(epoch)
        if on_epoch is not None:
            on_epoch(epoch)
        if best is None or validation_loss < best.validation_loss:
            best = epoch
            weights = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
        if config.patience is not None and number - best.number >= config.patience:
            break
    assert best is not None
    return history, best, weights


def _fabric(config: TrainingConfig, device: str) -> Fabric:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces a precision that was asked for
    if config.precision == "16-mixed" and device != "cuda":
        # Fabric would train in bfloat16 instead and only warn
        raise TrainingError(f"precision 16-mixed needs a CUDA device, not {device}: take bf16-mixed or 32-true.")
    try:
        # one process, also inside a SLURM or torchrun job, where Fabric would look for its companions
        fabric = Fabric(accelerator=device, devices=1, precision=config.precision, plugins=LightningEnvironment())
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"torch cannot use {device} on this machine: set accelerator to cpu.") from error
    if fabric.device.type != device:
        raise TrainingError(f"the training would run on {fabric.device.type}, not on {device}: set accelerator.")
    return fabric


def _fitted(module: nn.Module, x: Tensor, classes: int) -> nn.Module:
    """Adapt a module to the training features and prove on two rows that it fits them."""
    import torch
    from torch import nn

    if not isinstance(module, nn.Module):
        raise ModelMismatch(f"the model function gave a {type(module).__name__}, not a torch.nn.Module.")
    name = type(module).__name__
    try:
        for each in module.modules():
            if callable(adapt := getattr(each, "adapt", None)):
                adapt(x)
        module.eval()
        with torch.no_grad():
            logits = module(x[:2])
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ModelMismatch(
            f"{name} does not take features of shape {tuple(x.shape[1:])}: {type(error).__name__}: {reason}"
        ) from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[0] != 2 or logits.shape[1] < classes:
        raise ModelMismatch(f"{name} gave {shape} for 2 rows of {classes} classes: it must give logits (2, {classes}).")
    if not any(each.requires_grad for each in module.parameters()):
        raise ModelMismatch(f"{name} has no parameters to train.")
    return module


def _batches(n: int, size: int, shuffle: torch.Generator) -> list[Tensor]:
    import torch

    batches = list(torch.split(torch.randperm(n, generator=shuffle), size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _learn(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: tuple[Tensor, Tensor],
    batches: list[Tensor],
) -> float:
    """Step once over all batches and give the mean loss of a row."""
    import torch

    x, y = rows
    model.train()
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
        fabric.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
    # read together at the end: reading each would make a GPU wait
    means: list[float] = torch.stack(losses).tolist()
    return sum(mean * len(batch) for mean, batch in zip(means, batches, strict=True)) / len(y)


def _score(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Give the mean loss of a row, and the accuracy."""
    import torch

    model.eval()
    losses, hits = [], []
    with torch.no_grad():
        for part_x, part_y in zip(torch.split(x, _SCORED_ROWS), torch.split(y, _SCORED_ROWS), strict=True):
            logits = model(part_x)
            losses.append(torch.nn.functional.cross_entropy(logits, part_y, reduction="sum"))
            hits.append((logits.argmax(dim=1) == part_y).sum())
    return sum(torch.stack(losses).tolist()) / len(y), sum(torch.stack(hits).tolist()) / len(y)


@contextmanager
def _reproducible(config: TrainingConfig, device: str) -> Iterator[None]:
    """Fix seeds, threads and algorithms, and put back what the caller had."""
    import torch

    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    python_state, numpy_state = random.getstate(), np.random.get_state()
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    with torch.random.fork_rng(devices=range(min(torch.cuda.device_count(), 1)) if device == "cuda" else ()):
        try:
            torch.set_num_threads(config.threads)
            # an operation without a deterministic version should warn, not make a model untrainable on a GPU
            torch.use_deterministic_algorithms(mode=True, warn_only=True)
            torch.backends.cudnn.benchmark = False
            random.seed(config.seed)
            np.random.seed(config.seed)
            torch.manual_seed(config.seed)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.backends.cudnn.benchmark = benchmark
            random.setstate(python_state)
            np.random.set_state(numpy_state)
