"""Small networks that a pipeline's own model function may build on.

Belongs here: modules that fit many pipelines. Does not belong here: how they are trained. This module imports torch
when it is loaded, so only a pipeline's model function imports it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, cast

import torch
from torch import Tensor, nn

_COUNTED_IMAGES: Final = 1024  # at a time: a channel of them is copied


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


class Pixels(nn.Module):
    """Makes network input of raw images: uint8 (batch, height, width, channels) to float (batch, channels, ...).

    Each channel is scaled to mean 0 and standard deviation 1, by numbers that travel with the weights; so what is
    served gets the pixels as they are. The result lies in channels_last memory, in which convolutions are faster.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.full((channels,), 255.0))

    @torch.no_grad()
    def adapt(self, x: Tensor) -> None:
        """Take mean and standard deviation, in 0 to 255, from `x`, uint8 (images, height, width, channels).

        They come from integer counts, so neither threads nor the order of images matter; a channel of one value gets
        deviation 1.
        """
        for channel, counts in enumerate(_counts(x)):
            n = sum(counts)
            total = sum(value * count for value, count in enumerate(counts))
            squares = sum(value * value * count for value, count in enumerate(counts))
            self.mean[channel] = total / n
            self.std[channel] = math.sqrt((n * squares - total * total) / (n * n)) or 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Scale `x`, uint8 (batch, height, width, channels)."""
        return ((x.float() - self.mean) / self.std).permute(0, 3, 1, 2)


def _counts(x: Tensor) -> list[list[int]]:
    """Count per channel how often each of the 256 values occurs."""
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise TypeError(f"Pixels takes uint8 (images, height, width, channels), not {x.dtype} {tuple(x.shape)}")
    counts = torch.zeros(x.shape[3], 256, dtype=torch.int64)
    for part in torch.split(x, _COUNTED_IMAGES):
        for channel in range(x.shape[3]):
            counts[channel] += torch.bincount(part[..., channel].reshape(-1), minlength=256)
    return cast("list[list[int]]", counts.tolist())


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


class SmallCNN(nn.Module):
    """Convolutions for small images, such as digits: uint8 (batch, height, width, channels) to logits.

    Each of `channels` is a block of a 3 x 3 convolution, batch normalization, ReLU and a halving of height and width;
    one linear layer follows.
    """

    def __init__(
        self, shape: tuple[int, int, int], n_classes: int, channels: Sequence[int] = (32, 64), dropout: float = 0.0
    ) -> None:
        super().__init__()
        height, width, before = shape
        layers: list[nn.Module] = [Pixels(before)]
        for after in channels:
            layers += [_convolution(before, after), nn.MaxPool2d(2, ceil_mode=True)]
            height, width, before = _half(height), _half(width), after
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(before * height * width, n_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Give logits (batch, n_classes) for images."""
        return cast("Tensor", self.layers(x))


class AlexNet(nn.Module):
    """AlexNet for small photographs such as CIFAR's: uint8 (batch, height, width, channels) to logits.

    Krizhevsky, Sutskever & Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012: five
    convolutions, overlapping max pooling after the first, second and fifth, two hidden linear layers with dropout. For
    32 x 32 pixels the kernels are 3 x 3 without stride (64, 192, 384, 256, 256 channels, as in torchvision) and the
    hidden layers have 1,024 units over 256 x 4 x 4 features: 7.5 million parameters. Local response normalization is
    left out. Another shape changes the first linear layer's width alone.
    """

    def __init__(self, shape: tuple[int, int, int], n_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        height, width, before = shape
        layers: list[nn.Module] = [Pixels(before)]
        for after, pooled in ((64, True), (192, True), (384, False), (256, False), (256, True)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]
            before = after
            if pooled:
                layers.append(nn.MaxPool2d(3, stride=2, padding=1))
                height, width = _half(height), _half(width)
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(before * height * width, 1024),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(1024, 1024),
            nn.ReLU(inplace=True),
            nn.Linear(1024, n_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Give logits (batch, n_classes) for images."""
        return cast("Tensor", self.classifier(self.layers(x)))


class ResNet9(nn.Module):
    """A small residual network for 32 x 32 pixels: uint8 (batch, height, width, channels) to logits.

    Residual blocks and batch normalization are of He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition",
    CVPR 2016; the layout of eight convolutions and a linear layer is Page's, "How to Train Your ResNet", 2018, with
    half its channels by default: 1.6 million parameters. Any shape of at least 8 x 8 pixels will do.
    """

    def __init__(self, shape: tuple[int, int, int], n_classes: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Pixels(shape[2]),
            _convolution(shape[2], width),
            _convolution(width, 2 * width),
            nn.MaxPool2d(2),
            _Residual(2 * width),
            _convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),
            _convolution(4 * width, 8 * width),
            nn.MaxPool2d(2),
            _Residual(8 * width),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(8 * width, n_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Give logits (batch, n_classes) for images."""
        return cast("Tensor", self.layers(x))


class _Residual(nn.Module):
    """Two convolutions whose result is added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + cast("Tensor", self.layers(x))


def _convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


def _half(side: int) -> int:
    return (side + 1) // 2
