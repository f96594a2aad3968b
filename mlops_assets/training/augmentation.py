"""Variations of training images, a batch at a time.

Belongs here: what `Augmentation` asks for, on uint8 tensors (batch, height, width, channels). Does not belong here:
what the network itself does with pixels (`architectures`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlops_assets.training.config import Augmentation

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Augmenter:
    """Varies batches of images of one shape.

    Attributes:
        config: What is varied.
        height: Rows of pixels.
        width: Columns of pixels.
        fill: Colour of an erased square, uint8 (channels,).
    """

    config: Augmentation
    height: int
    width: int
    fill: Tensor

    @classmethod
    def fitted(cls, config: Augmentation, x: Tensor, device: torch.device) -> Augmenter:
        """Make the augmenter of training images `x`, uint8 (images, height, width, channels) on the CPU."""
        import torch

        # over the images first: the other way round a sum over few channels takes twenty times as long
        mean = x.numpy().sum(axis=0, dtype=np.int64).mean(axis=(0, 1)) / len(x)
        return cls(config, x.shape[1], x.shape[2], torch.from_numpy(mean.round().astype(np.uint8)).to(device))

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw the chances of `n` images, int64 (n, 5): mirrored, shift in height and width, centre of the square."""
        import torch

        crop = self.config.crop
        ranges = ((0, 2), (-crop, crop + 1), (-crop, crop + 1), (0, self.height), (0, self.width))
        return torch.stack([torch.randint(*each, (n,), generator=generator) for each in ranges], dim=1)

    def __call__(self, x: Tensor, chances: Tensor) -> Tensor:
        """Vary images.

        The shift is the random crop from a padded image (He et al., "Deep Residual Learning for Image Recognition",
        CVPR 2016), padded by reflection; the square is cutout (DeVries & Taylor, "Improved Regularization of
        Convolutional Neural Networks with Cutout", 2017).

        Args:
            x: uint8 (batch, height, width, channels); is not changed.
            chances: What `draw` gave for these images, on their device.

        Returns:
            uint8, of the shape of `x`.
        """
        import torch

        mirrored, down, right, centre_row, centre_column = chances.unbind(dim=1)
        rows = torch.arange(self.height, device=x.device)
        columns = torch.arange(self.width, device=x.device)
        if self.config.flip or self.config.crop:
            from_row = _reflected(rows + down[:, None], self.height)
            from_column = _reflected(columns + right[:, None], self.width)
            if self.config.flip:
                from_column = torch.where(mirrored[:, None] == 1, self.width - 1 - from_column, from_column)
            first = torch.arange(len(x), device=x.device)[:, None] * self.height
            pixels = (first + from_row)[:, :, None] * self.width + from_column[:, None, :]
            # one gather of whole pixels: four times as fast as indexing by image, row and column
            x = x.reshape(-1, x.shape[3]).index_select(0, pixels.reshape(-1)).view(x.shape)
        if self.config.erase:
            erased = _within(rows, centre_row, self.config.erase)[:, :, None]
            erased = erased & _within(columns, centre_column, self.config.erase)[:, None, :]
            x = torch.where(erased[..., None], self.fill, x)
        return x


def _reflected(index: Tensor, size: int) -> Tensor:
    """Bring indices that lie up to size - 1 outside of 0 .. size - 1 back, as a mirror at the outermost pixel does."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


def _within(index: Tensor, centre: Tensor, side: int) -> Tensor:
    """Tell for each image which indices lie in a span of `side` around its centre: bool (batch, indices)."""
    start = centre[:, None] - side // 2
    return (index >= start) & (index < start + side)
