"""All that makes a training give the same weights again, and the word for how far that goes.

Belongs here: seeds, threads, deterministic algorithms, the states of random generators. Does not belong here: the
names that enter a recipe (`config`).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_assets.training.config import TrainingConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@contextmanager
def reproducible(config: TrainingConfig, device: str) -> Iterator[None]:
    """Fix seeds, threads and algorithms, and put back what the caller had."""
    import torch

    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    python_state, numpy_state = random.getstate(), np.random.get_state()
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    with torch.random.fork_rng(devices=range(min(torch.cuda.device_count(), 1)) if device == "cuda" else ()):
        try:
            torch.set_num_threads(config.threads)
            # an operation without a deterministic version should warn, not make a model untrainable on a GPU
            torch.use_deterministic_algorithms(mode=True, warn_only=True)
            torch.backends.cudnn.benchmark = False
            random.seed(config.seed)
            np.random.seed(config.seed)
            torch.manual_seed(config.seed)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.backends.cudnn.benchmark = benchmark
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def unfilled_memory() -> Iterator[None]:
    """Spare torch's filling of each fresh tensor, which deterministic algorithms bring: 12 % of a small network's step.

    The filling only makes visible a module that reads memory it never wrote; while it is built, it is on.
    """
    import torch

    before = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before  # type: ignore[attr-defined]


def promise(config: TrainingConfig, device: str) -> str:
    """Say how far the same code, data, configuration and environment give the same weights again."""
    import torch

    if device == "cuda":
        said = (
            f"bit for bit on the same GPU ({torch.cuda.get_device_name()}) and driver, unless torch warned of an "
            "operation without a deterministic version"
        )
    elif device == "mps":
        said = "not promised: operations on mps have no deterministic versions"
    else:
        threads = f"{config.threads} thread{'s' if config.threads > 1 else ''}"
        said = f"bit for bit on {torch.backends.cpu.get_cpu_capability()} with {threads}, on the same kind of CPU"
    return (
        f"{said}; the code that torch.compile makes depends on this machine's compiler too" if config.compile else said
    )


def random_states(device: str, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Give the states of every generator that a training draws from: tensors, and values that JSON can hold."""
    import torch

    tensors = {"torch": torch.get_rng_state(), "order": generator.get_state()}
    if device != "cpu":
        tensors["device"] = getattr(torch, device).get_rng_state()
    name, keys, *rest = np.random.get_state()
    return tensors, {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}


def put_back_random_states(
    device: str, generator: torch.Generator, tensors: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """Continue every generator from what `random_states` gave."""
    import torch

    torch.set_rng_state(tensors["torch"])
    generator.set_state(tensors["order"])
    if device != "cpu":
        getattr(torch, device).set_rng_state(tensors["device"])
    version, keys, gauss = facts["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(facts["numpy"]))
