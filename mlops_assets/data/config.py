"""How image data are laid out and where data come from: the parts of a `defs.yaml` that the readers obey.

Belongs here: the configuration. Does not belong here: reading (`images`) and fetching (`origin`). A light module on
purpose: the definitions read it, so it imports neither Polars nor Pillow.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mlops_assets.strict import StrictModel


class ImagesConfig(StrictModel):
    """How images lie in the repository, and as what they are decoded."""

    layout: Literal["folder", "idx", "cifar"] = Field(
        description="`folder`: one directory per class with image files in it; `idx`: MNIST's files, gzipped or not; "
        "`cifar`: CIFAR's batches, pickled or binary."
    )
    # a list, because Dagster's reader of components does not know tuples
    size: list[int] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        description="Height and width in pixels that every image is resized to; without, all must agree.",
    )
    mode: Literal["RGB", "L"] = Field(default="RGB", description="Colour (3 channels) or grey (1 channel).")

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.size is not None and not all(1 <= side <= 4096 for side in self.size):
            raise ValueError(f"size must be [height, width], each from 1 to 4096 (got {list(self.size)})")
        if self.layout != "folder" and self.size is not None:
            raise ValueError(f"size is for layout `folder`; {self.layout} images have one size of their own")
        return self


class OriginConfig(StrictModel):
    """Where `mlops data import` takes the data from when no file is given: the first of the three that there is."""

    variable: str = Field(
        default="", pattern=r"^[A-Z][A-Z0-9_]*$|^$", description="Environment variable that may name a local path."
    )
    sample: Literal["", "iris", "digits"] = Field(default="", description="Data that ship inside scikit-learn.")
    url: str = Field(default="", pattern=r"^https?://.+|^$", description="Address of a file to download.")
    sha256: str = Field(default="", pattern=r"^[0-9a-f]{64}$|^$", description="The download's SHA-256; with `url`.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.url) != bool(self.sha256):
            raise ValueError("url and sha256 belong together: a download is checked")
        return self
