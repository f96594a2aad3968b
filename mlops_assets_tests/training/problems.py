"""Real data in the shape that training takes, and small networks over it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits, load_iris
from torch import Tensor, nn

from mlops_assets.training.architectures import MLP, SmallCNN
from mlops_assets.training.config import Augmentation, TrainingConfig
from mlops_assets.training.trainer import Rows, Trained, train

ROOT = Path(__file__).parents[2]  # where a child process finds the tests' problems
SHORT = TrainingConfig(epochs=5, patience=None, accelerator="cpu")
LONGER = TrainingConfig(
    epochs=40,
    learning_rate=0.03,
    learning_rate_schedule="one-cycle",
    patience=2,
    accelerator="cpu",
    batch_size=64,
    augmentation=Augmentation(flip=True, crop=1, erase=2),
)
"""Stops early."""


def iris_rows() -> tuple[Rows, Rows]:
    """120 rows to train on and 30 to validate on."""
    return _parts(*load_iris(return_X_y=True), n=120)


def digits_rows() -> tuple[Rows, Rows]:
    """500 images of 8 x 8 to train on and 200 to validate on."""
    x, y = load_digits(return_X_y=True)
    return _parts(x[:700] / 16, y[:700], n=500)


def digits_images() -> tuple[Rows, Rows]:
    """The same as uint8 images of (8, 8, 1)."""
    return tuple(Rows(np.rint(part.x * 255).astype(np.uint8).reshape(-1, 8, 8, 1), part.y) for part in digits_rows())


def _parts(x: np.ndarray, y: np.ndarray, n: int) -> tuple[Rows, Rows]:
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order].astype(np.float32), y[order].astype(np.int64)
    return Rows(x[:n], y[:n]), Rows(x[n:], y[n:])


class Digits(nn.Module):
    """A small convolutional network with batch normalization and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(128, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """Gives a module weights that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    return module


def small(dropout: float = 0.0) -> nn.Module:
    return SmallCNN((8, 8, 1), 10, channels=(8,), dropout=dropout)


def dropping() -> nn.Module:
    return small(dropout=0.2)


def trained(build=lambda: MLP(4, 3), rows=None, on_epoch=None, **changes: object) -> Trained:
    return train(build, *(rows or iris_rows()), SHORT.model_copy(update=changes), on_epoch=on_epoch)


def child(program: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
