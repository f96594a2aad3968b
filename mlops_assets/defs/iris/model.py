"""The network that is trained."""

from collections.abc import Sequence

from torch import nn

from mlops_assets.training.architectures import MLP


def model(n_features: int, n_classes: int, hidden: Sequence[int] = (32,)) -> nn.Module:
    """A small perceptron; its first layer standardizes the features by the training rows."""
    return MLP(n_features, n_classes, hidden=tuple(hidden))
