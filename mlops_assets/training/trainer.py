"""Training a classifier: from arrays to the best weights.

Belongs here: what is refused before the first step, and what comes of the last. Does not belong here: the configuration
(`config`), the epochs between (`loop`), what makes them repeatable (`determinism`), the file to go on from after a kill
(`checkpoint`), what the network is (`architectures`, or a pipeline's own), how weights are stored and served (`export`,
`predict`), or where progress is logged.

Lightning Fabric places module and optimizer and does mixed precision. The data lie on the device as two tensors and
are batched by index, images as bytes: for what fits into memory a `DataLoader` only costs time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlops_assets.fingerprint import digest
from mlops_assets.training.checkpoint import Checkpoint
from mlops_assets.training.config import Augmentation, TrainingConfig, environment
from mlops_assets.training.determinism import promise, reproducible, unfilled_memory
from mlops_assets.training.loop import Epoch, Loop, TrainingDiverged
from mlops_assets.training.rows import Rows, TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor, nn

__all__ = ["Epoch", "ModelMismatch", "Rows", "Trained", "TrainingDiverged", "TrainingError", "train"]

WRITING_SHARE: Final = 0.02
"""Of the time of a training, the most that goes into checkpoints; a large network on a slow disk gets fewer."""


class ModelMismatch(TrainingError):
    """The module does not fit the data."""


@dataclass(frozen=True)
class Trained:
    """The outcome of a training.

    Attributes:
        weights: State of the module after the epoch with the lowest validation loss, on the CPU; no two share memory.
        history: Every epoch, in order, those before a kill too.
        best_epoch: Number of the epoch that `weights` are from.
        stopped_early: Whether `patience` ended the training.
        seconds: From the first line to the last.
        environment: What `environment` said.
        reproducible: How far the same recipe gives the same weights again, as a phrase for people.
        resumed_from: Number of the epoch after which a checkpoint let the training go on; 0 is the beginning.
    """

    weights: dict[str, Tensor]
    history: tuple[Epoch, ...]
    best_epoch: int
    stopped_early: bool
    seconds: float
    environment: dict[str, str]
    reproducible: str
    resumed_from: int


def train(
    build: Callable[[], nn.Module],
    train: Rows,
    validation: Rows,
    config: TrainingConfig,
    *,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_step: Callable[[int, int, int], None] = lambda _epoch, _step, _steps: None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 10.0,
    identity: str = "",
) -> Trained:
    """Train a classifier with AdamW on cross-entropy and keep the epoch with the lowest validation loss.

    The same build, rows, configuration and environment give the same weights, bit for bit on the CPU; on a GPU as far
    as its operations have deterministic versions (torch warns of one that has not). Seeds, threads and the caller's
    random states are put back afterwards. A training that goes on from a checkpoint gives the weights of one that was
    never interrupted, if all that its module remembers is in its `state_dict`.

    Args:
        build: Makes the module: x (batch, ...), of the type of the rows, to logits (batch, classes). Called after
            seeding. Every submodule with an `adapt` method is given the training features once, before the first epoch.
        train: Rows to learn from, at least 2.
        validation: Rows that choose the epoch.
        config: How to train.
        on_epoch: Called after each epoch that is trained here; an exception from it ends the training.
        on_step: Called after each step with the epoch, the steps of it that are done, and the steps that it has.
        checkpoint: File to go on from, and to write after an epoch; the caller removes it. One that cannot be used or
            written is a warning.
        checkpoint_seconds: Time between two writings, at least, and so long that they take 2 % of the time at most; 0
            writes after every epoch.
        identity: Names the rows and the network, such as the recipe's key: what was written under another name,
            configuration or environment is not gone on from.

    Raises:
        ModelMismatch: The module does not take these features or give logits for these classes.
        TrainingDiverged: A loss is not finite.
        TrainingError: The rows do not fit together or to the augmentation, the device is not the one that
            `environment` names, or the module cannot be compiled.
    """
    started = time.perf_counter()
    _check(train, validation, config)
    names = environment(config)
    device = names["device"]
    with reproducible(config, device):
        loop = _prepared(build, train, validation, config, device, on_step=on_step)
        said = promise(config, device)
        file = None
        if checkpoint is not None:
            shapes = {name: [str(value.dtype), *value.shape] for name, value in loop.module.state_dict().items()}
            file = Checkpoint(checkpoint, digest([identity, config.model_dump(mode="json"), names, said, shapes]))
            file.discard_unfinished()
            loop.resume(file)
        resumed_from = len(loop.history)
        due = time.monotonic() + checkpoint_seconds
        with unfilled_memory(), _compile_errors(config, type(loop.module).__name__):
            while not loop.ended:
                epoch = loop.epoch()
                if on_epoch is not None:
                    on_epoch(epoch)
                if file is not None and (began := time.monotonic()) >= due:
                    file.write(*loop.state())
                    due = time.monotonic()
                    if checkpoint_seconds:
                        due += max(checkpoint_seconds, (due - began) / WRITING_SHARE)
    return Trained(
        weights=loop.best_weights,
        history=tuple(loop.history),
        best_epoch=loop.best_epoch,
        stopped_early=len(loop.history) < config.epochs,
        seconds=time.perf_counter() - started,
        environment=names,
        reproducible=said,
        resumed_from=resumed_from,
    )


def _check(train: Rows, validation: Rows, config: TrainingConfig) -> None:
    if len(train.y) < 2 or train.x.shape[1:] != validation.x.shape[1:] or train.x.dtype != validation.x.dtype:
        raise TrainingError(
            f"training features {train.x.dtype} {train.x.shape} and validation features {validation.x.dtype} "
            f"{validation.x.shape} cannot be used together: give at least 2 training rows, and rows of one shape."
        )
    if config.augmentation == Augmentation():
        return
    if not train.images:
        raise TrainingError(
            f"augmentation is for images, uint8 (n, height, width, channels), and these rows are {train.x.dtype} "
            f"{train.x.shape}: take it out of the training's configuration."
        )
    side = min(train.x.shape[1:3])
    if max(config.augmentation.crop, config.augmentation.erase) >= side:
        raise TrainingError(
            f"augmentation needs crop and erase below {side}, the shorter side of these images in pixels, not "
            f"{config.augmentation.crop} and {config.augmentation.erase}."
        )


def _prepared(
    build: Callable[[], nn.Module],
    train: Rows,
    validation: Rows,
    config: TrainingConfig,
    device: str,
    *,
    on_step: Callable[[int, int, int], None],
) -> Loop:
    import torch

    fabric = _fabric(config, device)
    # torch.tensor copies, so that neither a read-only array nor a module that writes into its input is trouble
    x, y, validation_x, validation_y = (torch.tensor(each) for each in (train.x, train.y, validation.x, validation.y))
    module = _fitted(build(), x, classes=int(max(train.y.max(), validation.y.max())) + 1)
    return Loop(fabric, module, (x, y), (validation_x, validation_y), config, on_step=on_step)


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


@contextmanager
def _compile_errors(config: TrainingConfig, name: str) -> Iterator[None]:
    """Say in one sentence what hindered torch.compile, which compiles when the module is first called."""
    try:
        yield
    except RuntimeError as error:
        if not config.compile:
            raise
        from torch._dynamo.exc import TorchDynamoException

        if not isinstance(error, TorchDynamoException):
            raise
        cause = getattr(error, "inner_exception", error)
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)
        raise TrainingError(
            f"torch.compile cannot compile {name} ({reason}): install a C++ compiler, such as g++, or set compile to "
            "false."
        ) from error
