"""How a model is trained, and on what kind of machine: all that enters a recipe beside code and data.

Belongs here: the configuration and the names of the environment. Does not belong here: the training itself. A light
module on purpose: the definitions read it, so it imports neither torch nor numpy.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import Field

from mlops_assets.fingerprint import digest
from mlops_assets.strict import StrictModel


class TrainingConfig(StrictModel):
    """How a model is trained."""

    epochs: int = Field(default=100, ge=1, description="Passes over the training rows, at most.")
    batch_size: int = Field(
        default=32,
        ge=2,
        description="Rows per step. A single row left over joins the step before, because batch normalization "
        "cannot train on one.",
    )
    learning_rate: float = Field(default=1e-2, gt=0, le=10, description="Step size of AdamW, constant.")
    weight_decay: float = Field(default=1e-2, ge=0, le=10, description="Decoupled weight decay of AdamW.")
    patience: int | None = Field(
        default=20, ge=1, description="Epochs without a lower validation loss before training stops; null never stops."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Fixes initial weights, order of rows, and dropout.")
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


def environment(config: TrainingConfig) -> dict[str, str]:
    """Name what weights depend on beside code, data and configuration, without importing torch.

    Keys: versions of torch, numpy, polars and python (minor), platform, threads, device ("cpu", "cuda" or "mps") and
    precision.
    """
    return {
        **{package: metadata.version(package) for package in ("torch", "numpy", "polars")},
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "platform": f"{sys.platform}-{platform.machine()}",
        "threads": str(config.threads),
        "device": _device(config),
        "precision": config.precision,
    }


def environment_digest(names: Mapping[str, str]) -> str:
    """Digest an environment, in whatever order its names come."""
    return digest(names)


def _device(config: TrainingConfig) -> Literal["cpu", "cuda", "mps"]:
    if config.accelerator != "auto":
        return config.accelerator
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "mps"
    # a build of torch for the CPU alone says so in its version
    if Path("/dev/nvidiactl").exists() and not metadata.version("torch").endswith("+cpu"):
        return "cuda"
    return "cpu"
