"""`training`: epochs of the trainer against the same loop by hand and a `DataLoader`, each in a fresh process.

The images are the first of CIFAR-10 where `MLOPS_CIFAR10` names a folder or an archive with its batches, else noise of
the same shape.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.figures import Figure, Result
from benchmarks.project import CHECKOUT, BenchmarkFailed, Project, copied_project

if TYPE_CHECKING:
    from numpy.typing import NDArray

VARIABLE: Final = "MLOPS_CIFAR10"
ROWS: Final = {"train": 2000, "test": 500}
NETWORKS: Final = ("ResNet9", "AlexNet")
MOST_RUNS: Final = 3
EPOCHS: Final = 2
"""The first also allocates and warms up, and is dropped."""
BATCH_SIZE: Final = 128
THREADS: Final = min(os.cpu_count() or 1, 2)

OURS: Final = """
import json, sys, time
from pathlib import Path
from tempfile import TemporaryDirectory
import numpy as np
from mlops_assets.training import architectures
from mlops_assets.training.config import TrainingConfig
from mlops_assets.training.trainer import Rows, train
file, network, epochs, batch_size, threads = sys.argv[1:3] + [int(one) for one in sys.argv[3:6]]
data = np.load(file)
config = TrainingConfig(
    epochs=epochs, batch_size=batch_size, threads=threads, accelerator="cpu", patience=None,
    learning_rate=0.01 if network == "ResNet9" else 0.001, augmentation={"flip": True, "crop": 4},
)
told = []
with TemporaryDirectory() as folder:
    result = train(
        lambda: getattr(architectures, network)(data["x"].shape[1:], int(data["y"].max()) + 1),
        Rows(data["x"], data["y"]), Rows(data["validation_x"], data["validation_y"]), config,
        on_epoch=lambda epoch: told.append(time.perf_counter()), checkpoint=Path(folder, "checkpoint"),
    )
seconds = [later - earlier for earlier, later in zip(told, told[1:])]
print(json.dumps({"seconds": seconds, "loss": result.history[-1].validation_loss}))
"""
"""From the end of an epoch to that of the next, with all that lies between: the best weights, and the checkpoint."""


def measure(runs: int) -> Result:
    figures: list[Figure] = []
    with copied_project() as project:
        file = project.folder / "images.npz"
        name = _save_images(file)
        for network in NETWORKS:
            bare = Figure(f"{network}, an epoch of a bare loop over tensors")
            ours = Figure(f"{network}, an epoch of the trainer", against=bare, target=1.05)
            loader = Figure(f"{network}, an epoch of a DataLoader with 2 workers", against=bare)
            for _ in range(min(runs, MOST_RUNS)):
                bare_seconds, expected = _epoch(project, *_script("tensors"), str(file), network)
                our_seconds, loss = _epoch(project, "-c", OURS, str(file), network)
                if loss != expected:
                    raise BenchmarkFailed(f"the trainer's validation loss is {loss}, not {expected}: another training")
                bare.add(bare_seconds)
                ours.add(our_seconds)
                loader.add(_epoch(project, *_script("loader"), str(file), network)[0])
            figures += [bare, ours, loader]
    note = (
        f"{ROWS['train']} images for training and {ROWS['test']} for validation, of {name}; batches of {BATCH_SIZE}, "
        f"mirrored and shifted, {THREADS} threads; trainer and bare loop reach the same validation loss to the last bit"
    )
    return Result(figures, notes=[note])


def _script(way: str) -> tuple[str, str]:
    return str(CHECKOUT / "benchmarks" / "bare_images.py"), way


def _epoch(project: Project, *arguments: str) -> tuple[float, float]:
    """Seconds of the last epoch of a fresh process, and its validation loss."""
    said = project.run(*arguments, str(EPOCHS), str(BATCH_SIZE), str(THREADS))
    told = json.loads(said.splitlines()[-1])
    return told["seconds"][-1], told["loss"]


def _save_images(file: Path) -> str:
    """Write what the processes train on; returns its name."""
    given = os.environ.get(VARIABLE)
    parts = _cifar(Path(given), file.parent) if given else _noise()
    (x, y), (validation_x, validation_y) = parts["train"], parts["test"]
    np.savez(file, x=x, y=y, validation_x=validation_x, validation_y=validation_y)
    return "CIFAR-10" if given else "noise"


def _noise() -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    rng = np.random.default_rng(0)
    return {
        part: (rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, n)) for part, n in ROWS.items()
    }


def _cifar(place: Path, folder: Path) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    from mlops_assets.data.config import ImagesConfig
    from mlops_assets.data.images import SourceFile, read_images
    from mlops_assets.data.origin import local, unpacked

    root = local(place)
    root = root if root.is_dir() else unpacked(root, folder / "cifar")
    files = [
        SourceFile(path.relative_to(root).as_posix(), "", path.stat().st_size, path.read_bytes)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    ]
    images = read_images(files, ImagesConfig(layout="cifar")).images
    _, y = np.unique(images.table["label"].to_numpy(), return_inverse=True)
    of_part = {part: np.flatnonzero(images.table["part"].to_numpy() == part)[:n] for part, n in ROWS.items()}
    return {part: (images.pixels[rows], y[rows].astype(np.int64)) for part, rows in of_part.items()}
