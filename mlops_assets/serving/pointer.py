"""What should answer for each pipeline: one small file that a watcher writes and every worker reads.

Belongs here: the places below the home, the file, and unpacking what it points at. Not here: finding out which version
that is (`watcher.py`), and loading it (`slot.py`). A file between the two keeps MLflow out of the workers, and lets
them start, and start again, while MLflow is down.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from mlops_assets.serving import CONTRACT, MODEL
from mlops_assets.serving.config import ServingSpec
from mlops_assets.serving.contract import SOURCE, Contract, ContractError

POINTER: Final = "current.json"
ASIDE: Final = ".tmp"
KEPT_FOLDERS: Final = 4
"""Versions of a pipeline whose files stay unpacked, so that going back takes no download."""

LEFTOVER_SECONDS: Final = 3600
"""Age at which what lies aside is of a process that was killed."""


class Accuracy(BaseModel):
    """Share of the test rows that the version answers rightly, with its interval at 95 %."""

    model_config = ConfigDict(frozen=True)

    estimate: float
    lower: float
    upper: float


class Pointer(BaseModel):
    """The version that answers for a pipeline.

    Attributes:
        key: Names the folder of its files.
        version: Its number in MLflow's registry.
        run_id: Its training run.
        alias: The alias that points at it.
        accuracy: On the test rows, where an evaluation is known.
        serving: The `serving` section of `defs.yaml`, as it is now.
        problem: Why a newer champion does not answer; empty when none is wanted.
    """

    model_config = ConfigDict(frozen=True)

    pipeline: str
    key: str
    version: int
    run_id: str
    model_digest: str
    alias: str
    accuracy: Accuracy | None = None
    serving: ServingSpec = ServingSpec()
    problem: str = ""


def serving_folder(home: Path) -> Path:
    """Where everything of the model server lies."""
    return home / "serving"


def pointer_file(home: Path, pipeline: str) -> Path:
    """The file that says what answers for a pipeline."""
    return serving_folder(home) / pipeline / POINTER


def read_pointer(path: Path) -> Pointer | None:
    """What a pointer's file says, or None: there is none.

    Raises:
        ContractError: It is damaged.
    """
    try:
        return Pointer.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a pointer"
        raise ContractError(f"{path} cannot be read ({reason}); delete it, and `mlops serve` writes it again") from None


def write_pointer(home: Path, pointer: Pointer) -> None:
    """Let a pipeline be answered by a version: at once for all workers, whole or not at all."""
    target = pointer_file(home, pointer.pipeline)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(target)
    with aside.open("w", encoding="utf-8") as file:
        file.write(json.dumps(pointer.model_dump(), indent=1))
        file.flush()
        os.fsync(file.fileno())  # a power cut must not leave an empty file in the place of a good one
    now = time.time_ns()
    os.utime(aside, ns=(now, now))  # the file system's own clock may stand still for 4 ms, and the file's number return
    os.replace(aside, target)  # noqa: PTH105  the same call, and no second object in a hot loop of tests


def unpack(home: Path, pipeline: str, contract: bytes, model: bytes) -> Path:
    """Lay a version's files where a slot loads them from; a folder that is there already and whole is left alone.

    Raises:
        ContractError: They do not belong together, or were damaged on the way.
    """
    parsed = Contract.read(contract, f"the contract of {pipeline}")
    if hashlib.sha256(model).hexdigest() != parsed.onnx:
        raise ContractError(f"the ONNX file of {pipeline} is not the one that its contract names; it is damaged")
    key = hashlib.sha256(contract).hexdigest()[:32]
    folder = serving_folder(home) / pipeline / key
    if not damage(folder, key):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    aside = _aside(folder)
    try:
        for name, text in parsed.sources.items():
            path = aside / SOURCE / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        (aside / SOURCE).mkdir(parents=True, exist_ok=True)
        (aside / CONTRACT).write_bytes(contract)
        (aside / MODEL).write_bytes(model)
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was quicker
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def damage(folder: Path, key: str) -> str:
    """What is wrong with a version's unpacked files; empty when they are what they were.

    Args:
        folder: The files.
        key: What names them by content.
    """
    try:
        data = (folder / CONTRACT).read_bytes()
        if hashlib.sha256(data).hexdigest()[:32] != key:
            return f"{folder / CONTRACT} was changed"
        contract = Contract.read(data, str(folder / CONTRACT))
        with (folder / MODEL).open("rb") as model:
            if hashlib.file_digest(model, "sha256").hexdigest() != contract.onnx:
                return f"{folder / MODEL} was changed"
        for name, text in contract.sources.items():
            if (folder / SOURCE / name).read_bytes() != text.encode():
                return f"{folder / SOURCE / name} was changed"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except ContractError as error:
        return str(error)
    return ""


def tidy(home: Path, pipeline: str, keep: str) -> None:
    """Remove the files of versions that answered long ago, and what killed processes left.

    Those of `keep` and the newest stay. Others may tidy too, and what they removed first is no error.
    """
    ages: dict[Path, float] = {}
    for path in (serving_folder(home) / pipeline).iterdir():
        with suppress(OSError):
            ages[path] = time.time() - path.stat().st_mtime
    left = [path for path, age in ages.items() if path.suffix == ASIDE and age > LEFTOVER_SECONDS]
    unpacked = [path for path in ages if path.suffix != ASIDE and path.is_dir() and path.name != keep]
    for path in [*left, *sorted(unpacked, key=lambda one: ages[one])[KEPT_FOLDERS - 1 :]]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    """Where a file or folder is made before it takes its place, whole."""
    return path.with_name(f".{uuid.uuid4().hex}{ASIDE}")
