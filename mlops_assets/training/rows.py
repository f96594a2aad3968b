"""What a model is trained and validated on, and the root of what a training refuses.

Belongs here: rows as arrays, and what is wrong with them. Does not belong here: reading and splitting data, and how
rows are batched (`loop`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TrainingError(MlopsError):
    """The training cannot be done as asked."""


@dataclass(frozen=True)
class Rows:
    """What a model learns from or is judged on.

    Attributes:
        x: Features, float32 (n, ...), finite; or images, uint8 (n, height, width, channels).
        y: Class numbers from 0, int64 (n,).
    """

    x: NDArray[np.float32 | np.uint8]
    y: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.x.dtype not in (np.float32, np.uint8) or self.y.dtype != np.int64:
            raise TrainingError(
                "features must be float32, or uint8 if they are images, and classes int64, not "
                f"{self.x.dtype} and {self.y.dtype}."
            )
        if self.x.ndim < 2 or self.y.shape != self.x.shape[:1] or not len(self.y):
            raise TrainingError(
                f"features of shape {self.x.shape} and classes of shape {self.y.shape} do not pair up: "
                "give (n, ...) and (n,) with n of at least 1."
            )
        if self.images and self.x.ndim != 4:
            raise TrainingError(f"uint8 images must be (n, height, width, channels), not {self.x.shape}.")
        if not self.images and not np.isfinite(self.x).all():
            row = int(np.argwhere(~np.isfinite(self.x))[0][0]) + 1
            raise TrainingError(f"row {row} has a feature that is not finite: mend it in the features function.")
        if self.y.min() < 0:
            raise TrainingError(f"class numbers must start at 0, but there is a {self.y.min()}.")

    @property
    def images(self) -> bool:
        """Whether the features are images."""
        return self.x.dtype == np.uint8
