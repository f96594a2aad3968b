"""How a model is trained, and on what kind of machine: all that enters a recipe beside code and data.

Belongs here: the configuration and the names of the environment. Does not belong here: the training itself. A light
module on purpose: the definitions read it, so it imports neither torch nor numpy.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import Field

from mlops_assets.fingerprint import digest
from mlops_assets.strict import StrictModel


class Augmentation(StrictModel):
    """How training images are varied, each anew in every epoch; what is validated and served stays as it is."""

    flip: bool = Field(default=False, description="Mirror each image left to right, or leave it, by a fair coin.")
    crop: int = Field(
        default=0,
        ge=0,
        description="Shift each image by up to so many pixels in height and width; what comes in at an edge is its "
        "mirror image.",
    )
    erase: int = Field(
        default=0,
        ge=0,
        description="Side in pixels of a square of the mean colour, put anywhere on each image and cut at its edges.",
    )


class TrainingConfig(StrictModel):
    """How a model is trained."""

    epochs: int = Field(default=100, ge=1, description="Passes over the training rows, at most.")
    batch_size: int = Field(
        default=32,
        ge=2,
        description="Rows per step. A single row left over joins the step before, because batch normalization "
        "cannot train on one.",
    )
    learning_rate: float = Field(default=1e-2, gt=0, le=10, description="Step size of AdamW, at its highest.")
    learning_rate_schedule: Literal["constant", "cosine", "one-cycle"] = Field(
        default="constant",
        description="How the learning rate goes over all epochs: cosine falls to 0; one-cycle rises from a 25th, then "
        "falls to almost 0. With patience, a falling rate may never be reached: set patience to null.",
    )
    warmup_epochs: float = Field(
        default=0,
        ge=0,
        description="Epochs in which the learning rate rises linearly at first; with one-cycle, the length of its "
        "rise, and 0 means 30 % of the training.",
    )
    weight_decay: float = Field(default=1e-2, ge=0, le=10, description="Decoupled weight decay of AdamW.")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of each label spread over all classes, in training alone."
    )
    gradient_clip: float | None = Field(
        default=None, gt=0, description="Norm to which a longer gradient is cut; null cuts none."
    )
    augmentation: Augmentation = Field(
        default_factory=Augmentation, description="How training images are varied: `flip`, `crop`, `erase`."
    )
    patience: int | None = Field(
        default=20, ge=1, description="Epochs without a lower validation loss before training stops; null never stops."
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Fixes initial weights, order of rows, dropout and augmentation."
    )
    threads: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="CPU threads; another number may round otherwise, so it enters the recipe.",
    )
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="Where to train; auto takes a GPU if this machine has one."
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        default="32-true", description="Arithmetic of the forward pass; weights stay float32. 16-mixed needs cuda."
    )
    compile: bool = Field(
        default=False,
        description="Compile the network with torch.compile: up to a minute at the start for faster steps; the CPU "
        "needs a C++ compiler for it.",
    )


def environment(config: TrainingConfig) -> dict[str, str]:
    """Name what weights depend on beside code, data and configuration, without importing torch.

    Keys: versions of torch, numpy, polars and python (minor), platform, threads, device ("cpu", "cuda" or "mps") and
    precision. Packages are read once in a process: one that is replaced under it was imported before anyway.
    """
    return {
        **_packages(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "platform": f"{sys.platform}-{platform.machine()}",
        "threads": str(config.threads),
        "device": _device(config),
        "precision": config.precision,
    }


def environment_digest(names: Mapping[str, str]) -> str:
    """Digest an environment, in whatever order its names come."""
    return digest(names)


@cache
def _packages() -> Mapping[str, str]:
    return {package: metadata.version(package) for package in ("torch", "numpy", "polars")}


def _device(config: TrainingConfig) -> Literal["cpu", "cuda", "mps"]:
    if config.accelerator != "auto":
        return config.accelerator
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "mps"
    # a build of torch for the CPU alone says so in its version
    if Path("/dev/nvidiactl").exists() and not _packages()["torch"].endswith("+cpu"):
        return "cuda"
    return "cpu"
