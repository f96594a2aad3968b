"""The network that is trained."""

from collections.abc import Sequence

from torch import nn

from mlops_assets.training.architectures import SmallCNN


def model(
    shape: tuple[int, int, int], n_classes: int, channels: Sequence[int] = (32, 64), dropout: float = 0.0
) -> nn.Module:
    """A small convolutional network; its first layer standardizes the pixels by the training images."""
    return SmallCNN(shape, n_classes, channels=tuple(channels), dropout=dropout)
