"""`mlops new NAME --data DIRECTORY`: a pipeline for images, one directory per class.

Belongs here: what the images say about the pipeline that fits them. Does not: writing the folder and importing the data
(`new.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mlops_assets.cli.console import out
from mlops_assets.cli.derive import VALIDATION, first_split
from mlops_assets.cli.sources import margin, spec_text, steps
from mlops_assets.errors import MlopsError
from mlops_assets.spec import PipelineSpec

PATH: Final = "images"
TEST: Final = 0.2
LARGEST: Final = 128
"""Pixels of a side up to which images that agree are taken as they are."""
RESIZED: Final = 64
"""Pixels of a side otherwise; a beginning, for the user to change."""

SCHEMA: Final = '''\
"""What a row of the dataset must look like."""

import pandera.polars as pa
import polars as pl


def schema() -> pa.DataFrameSchema:
    """One row per image: its size in pixels as it is stored, and its mean brightness from 0 to 255."""
    return pa.DataFrameSchema(
        {
            "key": pa.Column(pl.String),
            "label": pa.Column(pl.String),
            "height": pa.Column(pl.Int32, pa.Check.ge(1)),
            "width": pa.Column(pl.Int32, pa.Check.ge(1)),
            "mean": pa.Column(pl.Float32, pa.Check.in_range(0, 255)),  # blank images: a narrower range finds them
        }
    )
'''


class ImagesError(MlopsError):
    """No pipeline can be written for these images."""


@dataclass(frozen=True)
class Looked:
    """What a directory of images holds.

    Attributes:
        classes: Names of the classes, sorted.
        rows: How many images there are.
        commonest: Share of the images in the largest class.
        images: How they are laid out and decoded, as `defs.yaml` says it.
        split: Salt, and column or share of the test images.
    """

    classes: list[str]
    rows: int
    commonest: float
    images: Mapping[str, Any]
    split: Mapping[str, Any]

    @property
    def test_rows(self) -> float:
        """About how many images are for testing."""
        return self.rows * float(self.split.get("test", TEST))


def look(place: Path, files: Mapping[str, Path], name: str) -> Looked:
    """Decode every image once and see what a pipeline for them needs.

    Args:
        place: What the user named.
        files: The images, by their path in the repository to be.
        name: The pipeline's.

    Raises:
        ReadError: Some cannot be decoded, or lie in no class's directory.
        ImagesError: They teach nothing: one class, or a split of their own that leaves a class out of a part.
        DeriveError: A class has too few images.
    """
    import numpy as np

    from mlops_assets.data.config import ImagesConfig
    from mlops_assets.data.images import read_images
    from mlops_assets.data.validation import check_target, class_counts

    config = ImagesConfig(layout="folder", size=(RESIZED, RESIZED))
    with out.status(f"looking at the images in {place} ...") as status:
        found = read_images(
            _sources(files), config, on_progress=lambda done, all_: status.update(f"{done} of {all_} images read")
        ).images
    counts = class_counts(found.table, "label")
    if len(counts) < 2:
        raise ImagesError(f"{place} has images of one class only ({', '.join(counts)}); a classifier needs two or more")
    split: dict[str, Any] = {"salt": f"{name}-1", "validation": VALIDATION}
    if "part" in found.table.columns:
        split["column"] = "part"
        report = check_target(found.table, key="key", target="label", classes=sorted(counts), **split, test=TEST)
        if not report.passed:
            raise ImagesError(f"no pipeline can be written for the images in {place} as they are: {report.sentence()}")
    else:
        split["test"] = TEST
        split["salt"], _ = first_split(name, found.table["key"], found.table["label"], TEST)
    sides = found.table.select("height", "width").unique().rows()
    as_they_are = len(sides) == 1 and max(sides[0]) <= LARGEST
    grey = bool((found.pixels == found.pixels[..., :1]).all())
    images: dict[str, Any] = {"layout": "folder", "mode": "L" if grey else "RGB"}
    if not as_they_are:
        images["size"] = [RESIZED, RESIZED]
    return Looked(
        sorted(counts), found.table.height, float(np.max([*counts.values()]) / found.table.height), images, split
    )


def spec_source(looked: Looked, like: PipelineSpec, *, description: str) -> str:
    """`defs.yaml`, with the parameters, the training and the reliability of another pipeline of images."""
    narrow = margin(looked.test_rows, like.gate.model_copy(update={"steps": steps(looked.test_rows)}), clauses=2)
    threshold = min(0.99, math.floor(looked.commonest * 100) / 100)
    return spec_text(
        like,
        description=description,
        data={"path": PATH, "images": looked.images, "classes": looked.classes},
        split=looked.split,
        training=like.training.model_dump(exclude_unset=True),
        gate=(narrow, threshold, round(looked.test_rows)),
    )


def _sources(files: Mapping[str, Path]) -> list[Any]:
    import xxhash

    from mlops_assets.data.images import SourceFile

    found = []
    for path, file in files.items():
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ImagesError(f"{file} cannot be read ({error.strerror}); make it readable, or remove it") from None
        relative = path.removeprefix(f"{PATH}/")
        found.append(SourceFile(relative, xxhash.xxh3_128_hexdigest(content), len(content), file.read_bytes))
    return found
