"""Small networks that a pipeline's own model function may build on.

Belongs here: modules that fit many pipelines. Does not belong here: how they are trained. This module imports torch
when it is loaded, so only a pipeline's model function imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Scales each feature to mean 0 and standard deviation 1, by numbers that travel with the weights.

    The trainer calls `adapt` on the training rows only, before the first step; so what is served scales as it was
    trained, and nothing of the validation or test rows leaks in.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("std", torch.ones(n_features))

    @torch.no_grad()
    def adapt(self, x: Tensor) -> None:
        """Take mean and standard deviation from `x` (rows, n_features); a constant column gets deviation 1.

        The name is Keras' term for fitting a preprocessing layer.
        """
        exact = x.double()
        constant = exact.amax(dim=0) == exact.amin(dim=0)
        self.mean.copy_(exact.mean(dim=0))
        self.std.copy_(torch.where(constant, 1.0, exact.std(dim=0, correction=0)))

    def forward(self, x: Tensor) -> Tensor:
        """Scale `x` (batch, n_features)."""
        return (x - self.mean) / self.std


class MLP(nn.Module):
    """A multilayer perceptron over standardized features: (batch, n_features) to logits (batch, n_classes)."""

    def __init__(self, n_features: int, n_classes: int, hidden: Sequence[int] = (32,), dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = [Standardize(n_features)]
        width = n_features
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(dropout)]
            width = units
        self.layers = nn.Sequential(*layers, nn.Linear(width, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Give logits (batch, n_classes) for `x` (batch, n_features)."""
        return cast("Tensor", self.layers(x))
