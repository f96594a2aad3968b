"""The loop over epochs: what happens in one, and all that it leaves to the next.

Belongs here: steps, validation, and the state that a checkpoint keeps. Does not belong here: what is refused before the
first step, and what comes of the last (`trainer`).
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from mlops_assets.training.augmentation import Augmenter
from mlops_assets.training.checkpoint import Checkpoint
from mlops_assets.training.config import Augmentation, TrainingConfig
from mlops_assets.training.determinism import put_back_random_states, random_states
from mlops_assets.training.predict import pass_rows
from mlops_assets.training.rows import TrainingError
from mlops_assets.training.schedule import learning_rate

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric
    from torch import Tensor, nn


class TrainingDiverged(TrainingError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows.

    Attributes:
        number: From 1.
        train_loss: Mean cross-entropy in nats, as trained: with dropout, augmentation and smoothed labels.
        validation_loss: Mean cross-entropy in nats.
        validation_accuracy: Share of the validation rows whose class is found.
        learning_rate: Of the last step.
        seconds: Training and validation.
        validation_recall: The same share of each class's rows, one for each logit; None for a class without a row.
        peak_memory_bytes: The most that this process ever held; on cuda, that torch held on the device.
    """

    number: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float
    validation_recall: tuple[float | None, ...]
    peak_memory_bytes: int


class Loop:
    """A training under way: what each epoch changes, and what it reads."""

    def __init__(
        self,
        fabric: Fabric,
        module: nn.Module,
        rows: tuple[Tensor, Tensor],
        judged: tuple[Tensor, Tensor],
        config: TrainingConfig,
        *,
        on_step: Callable[[int, int, int], None] = lambda _epoch, _step, _steps: None,
    ) -> None:
        """Place a module that fits the rows, with an optimizer.

        Args:
            fabric: Device and precision.
            module: Fitted to the features.
            rows: Features and classes to learn from.
            judged: Features and classes to validate on.
            config: How to train.
            on_step: Told after each step: which epoch, how many of its steps are done, and how many it has.
        """
        import torch

        self.module = module
        self._optimizer = torch.optim.AdamW(
            _trained(module),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            # Fabric cannot clip what a fused optimizer unscales itself
            fused=config.gradient_clip is None or config.precision != "16-mixed",
        )
        called = cast("nn.Module", torch.compile(module)) if config.compile else module
        self._model, self._stepper = fabric.setup(called, self._optimizer)
        self._rows = fabric.to_device(rows)
        self._judged = fabric.to_device(judged)
        self._order = torch.Generator().manual_seed(config.seed)
        self._augmenter = None
        if config.augmentation != Augmentation():
            self._augmenter = Augmenter.fitted(config.augmentation, rows[0], fabric.device)
        self._fabric = fabric
        self._config = config
        self._on_step = on_step
        self.history: list[Epoch] = []
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] = {}

    @property
    def ended(self) -> bool:
        """Whether no further epoch is wanted."""
        done, patience = len(self.history), self._config.patience
        return done == self._config.epochs or (patience is not None and done - self.best_epoch >= patience)

    def epoch(self) -> Epoch:
        """Pass once over the training rows, and judge."""
        began = time.perf_counter()
        number = len(self.history) + 1
        train_loss = self._learn()
        validation_loss, accuracy, recall = _score(self._model, *self._judged)
        if not (math.isfinite(train_loss) and math.isfinite(validation_loss)):
            raise TrainingDiverged(
                f"the loss is not finite in epoch {number} (training {train_loss}, validation {validation_loss}): "
                f"lower learning_rate, now {self._config.learning_rate}, or scale the features."
            )
        rate = self._optimizer.param_groups[0]["lr"]
        seconds = time.perf_counter() - began
        memory = _peak_memory(self._fabric.device)
        epoch = Epoch(number, train_loss, validation_loss, accuracy, rate, seconds, recall, memory)
        if not self.history or validation_loss < self.history[self.best_epoch - 1].validation_loss:
            self.best_epoch = number
            self.best_weights = {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}
        self.history.append(epoch)
        return epoch

    def _learn(self) -> float:
        """Step once over all batches and give the mean loss of a row."""
        import torch

        config, (x, y) = self._config, self._rows
        batches = self._fabric.to_device(_batches(len(y), config.batch_size, self._order))
        chances = self._fabric.to_device(self._augmenter.draw(len(y), self._order)) if self._augmenter else None
        self._model.train()
        losses = []
        for step, batch in enumerate(batches, start=len(self.history) * len(batches)):
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate(config, step, len(batches))
            self._stepper.zero_grad()
            features = x.index_select(0, batch)
            if self._augmenter is not None and chances is not None:
                features = self._augmenter(features, chances.index_select(0, batch))
            loss = torch.nn.functional.cross_entropy(
                self._model(features), y.index_select(0, batch), label_smoothing=config.label_smoothing
            )
            self._fabric.backward(loss)
            if config.gradient_clip is not None:
                # a norm that is not finite shows in the loss, or is the gradient scaler's to handle
                self._fabric.clip_gradients(
                    self._model, self._stepper, max_norm=config.gradient_clip, error_if_nonfinite=False
                )
            self._stepper.step()
            losses.append(loss.detach())
            self._on_step(len(self.history) + 1, len(losses), len(batches))
        # read together at the end: reading each would make a GPU wait
        means: list[float] = torch.stack(losses).tolist()
        return sum(mean * len(batch) for mean, batch in zip(means, batches, strict=True)) / len(y)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next epoch starts from: tensors, and facts that JSON can hold."""
        moments = {
            f"{index}.{name}": value
            for index, each in self._optimizer.state_dict()["state"].items()
            for name, value in each.items()
        }
        generators, facts = random_states(self._fabric.device.type, self._order)
        parts = {
            "module": self.module.state_dict(),
            "best": {} if self.best_epoch == len(self.history) else self.best_weights,
            "optimizer": moments,
            "generator": generators,
        }
        tensors = {f"{part}.{name}": value for part, named in parts.items() for name, value in named.items()}
        return tensors, {
            "history": [asdict(epoch) for epoch in self.history],
            "best epoch": self.best_epoch,
            "precision": self._fabric.strategy.precision.state_dict(),
            "generators": facts,
        }

    def resume(self, file: Checkpoint) -> None:
        """Take on the state that a file holds, if it can be used."""
        found = file.read()
        if found is None:
            return
        tensors, facts = found
        parts = _grouped(tensors)
        trained = _trained(self.module)
        moments = {
            int(index): {name: _laid_out_as(trained[int(index)], value) for name, value in named.items()}
            for index, named in _grouped(parts["optimizer"]).items()
        }
        groups = self._optimizer.state_dict()["param_groups"]
        self.module.load_state_dict(parts["module"])
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self._fabric.strategy.precision.load_state_dict(facts["precision"])
        put_back_random_states(self._fabric.device.type, self._order, parts["generator"], facts["generators"])
        self.history = [
            Epoch(**{**each, "validation_recall": tuple(each["validation_recall"])}) for each in facts["history"]
        ]
        self.best_epoch = facts["best epoch"]
        self.best_weights = parts.get("best", parts["module"])


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [each for each in module.parameters() if each.requires_grad]


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Bring a parameter's moment into its memory format: a fused optimizer goes through both as they lie in memory."""
    import torch

    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def _grouped(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group tensors by their names' first part."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first, {})[rest] = value
    return groups


def _batches(n: int, size: int, shuffle: torch.Generator) -> list[Tensor]:
    import torch

    batches = list(torch.split(torch.randperm(n, generator=shuffle), size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _score(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float, tuple[float | None, ...]]:
    """Give the mean loss of a row, the accuracy, and the recall of each class."""
    import torch

    model.eval()
    losses, predicted = [], []
    size = pass_rows(x.shape[1:])
    with torch.no_grad():
        for part_x, part_y in zip(torch.split(x, size), torch.split(y, size), strict=True):
            logits = model(part_x)
            losses.append(torch.nn.functional.cross_entropy(logits, part_y, reduction="sum"))
            predicted.append(logits.argmax(dim=1))
    labels, found = y.cpu(), torch.cat(predicted).cpu()
    classes = logits.shape[1]
    rows: list[int] = torch.bincount(labels, minlength=classes).tolist()
    hits: list[int] = torch.bincount(labels[found == labels], minlength=classes).tolist()
    recall = tuple(hit / n if n else None for hit, n in zip(hits, rows, strict=True))
    return sum(torch.stack(losses).tolist()) / len(y), sum(hits) / len(y), recall


def _peak_memory(device: torch.device) -> int:
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
