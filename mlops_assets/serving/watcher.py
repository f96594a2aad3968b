"""From the champion alias to the pointer that workers follow.

Belongs here: noticing that an alias moved, fetching that version's files, proving that it answers, and only then moving
the pointer. Not here: asking MLflow (`registry.py`), and loading (`slot.py`). One process of a server does this; a
version that cannot be fetched or does not load leaves the last good one in place, over restarts too.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from mlops_assets.errors import MlopsError
from mlops_assets.pipeline import Pipeline, find_pipeline, pipeline_folders
from mlops_assets.serving import CONTRACT, MODEL
from mlops_assets.serving.config import ServingSpec
from mlops_assets.serving.contract import ContractError
from mlops_assets.serving.pointer import (
    POINTER,
    Accuracy,
    Pointer,
    damage,
    pointer_file,
    read_pointer,
    serving_folder,
    tidy,
    unpack,
    write_pointer,
)
from mlops_assets.serving.registry import Registered, Registry, registry_of
from mlops_assets.serving.slot import Slot
from mlops_assets.settings import Settings
from mlops_assets.spec import SPEC_FILE
from mlops_assets.tracking import tags as keys

log = logging.getLogger("mlops_assets")

AGAIN_SECONDS: Final = 5.0
"""How long after a failure a version is tried again: what was unreachable may be back."""

CONTRACT_ARTIFACT: Final = f"serving/{CONTRACT}"
MODEL_ARTIFACT: Final = f"onnx/{MODEL}"
"""Where a training run keeps the files of its version."""


class NoChampion(MlopsError):
    """A pipeline has no version that could answer."""


class Watcher:
    """Moves pointers after aliases.

    Args:
        home: The platform's home.
        registry: Where versions are registered.
        folders: The pipelines' folders now.
    """

    def __init__(self, home: Path, registry: Registry, folders: Callable[[], list[Path]] = pipeline_folders) -> None:
        self._home, self._registry, self._folders = home, registry, folders
        self._pipelines: dict[Path, tuple[int, Pipeline | None]] = {}
        self._done: dict[str, tuple[Registered | None, Pipeline, int]] = {}
        self._failed: dict[str, tuple[Registered | None, Pipeline]] = {}
        self._again: dict[str, float] = {}
        self._options: dict[str, ServingSpec] = {}
        self._outage = ""

    def look(self) -> None:
        """Look once at the aliases, and move the pointers of those that moved.

        What goes wrong is told of in the log and in the pointers; nothing is raised.
        """
        folders = self._folders()
        pipelines = {folder.name: loaded for folder in folders if (loaded := self._load(folder))}
        self._keep_options(pipelines)
        self._tell_of_the_gone({folder.name for folder in folders})
        try:
            found = self._registry.behind({one.model_name: one.spec.gate.champion_alias for one in pipelines.values()})
        except MlopsError as error:
            if str(error) != self._outage:
                log.warning("%s; what answers goes on answering", error)
            self._outage = str(error)
            return
        self._outage = ""
        for name, pipeline in pipelines.items():
            wanted = found.get(pipeline.model_name)
            stamp = _changed(pointer_file(self._home, name))
            if self._done.get(name) == (wanted, pipeline, stamp):
                continue
            if self._failed.get(name) == (wanted, pipeline) and time.monotonic() < self._again[name]:
                continue
            try:
                # What was just written is read at the next look: another process may have written after us.
                if not self._move(pipeline, wanted):
                    self._done[name] = wanted, pipeline, stamp
                self._failed.pop(name, None)
            except Exception as error:  # noqa: BLE001  whatever it is, the other pipelines are followed
                self._failed[name], self._again[name] = (wanted, pipeline), time.monotonic() + AGAIN_SECONDS
                self._tell(pipeline, wanted, str(error) if isinstance(error, MlopsError) else repr(error))

    def _keep_options(self, pipelines: Mapping[str, Pipeline]) -> None:
        """Let the options for serving hold at once, also while MLflow is down: one may keep persons out of the log."""
        for name, pipeline in pipelines.items():
            if self._options.get(name) == pipeline.spec.serving:
                continue
            try:
                before = read_pointer(pointer_file(self._home, name))
                if before is not None and before.serving != pipeline.spec.serving:
                    write_pointer(self._home, before.model_copy(update={"serving": pipeline.spec.serving}))
                self._options[name] = pipeline.spec.serving
            except (ContractError, OSError) as error:
                log.warning("%s: its options for serving do not hold yet: %s", name, error)

    def _tell_of_the_gone(self, names: Collection[str]) -> None:
        """Let a version answer on whose pipeline has no folder, which a checkout may lack for a moment, and say so."""
        for path in serving_folder(self._home).glob(f"*/{POINTER}"):
            name = path.parent.name
            if name in names:
                continue
            problem = (
                f"the folder of the pipeline is gone, so no alias is followed; delete {path.parent} to end its answers"
            )
            with suppress(ContractError, OSError):
                before = read_pointer(path)
                if before is not None and before.problem != problem:
                    log.warning("%s: %s", name, problem)
                    write_pointer(self._home, before.model_copy(update={"problem": problem}))

    def _move(self, pipeline: Pipeline, wanted: Registered | None) -> bool:
        """Let the pointer say what is wanted; whether it had to be written."""
        path = pointer_file(self._home, pipeline.name)
        if wanted is None:
            if path.exists():
                log.warning("%s: no version is champion any more, so none answers", pipeline.name)
                path.unlink(missing_ok=True)
            return False
        before = None
        with suppress(ContractError):  # a damaged pointer is written anew
            before = read_pointer(path)
        folder, pointer = fetched(self._home, self._registry, pipeline, wanted)
        if before is None or before.key != pointer.key:
            Slot.load(folder, pointer)
        if pointer != before:
            write_pointer(self._home, pointer)
            log.info("%s: version %d is to answer", pipeline.name, pointer.version)
        with suppress(OSError):
            tidy(self._home, pipeline.name, pointer.key)
        return pointer != before

    def _tell(self, pipeline: Pipeline, wanted: Registered | None, problem: str) -> None:
        """Leave the reason where workers and people find it; the version that answers stays."""
        before = None
        with suppress(MlopsError):
            before = read_pointer(pointer_file(self._home, pipeline.name))
        if before is None:
            version, alias = wanted.version if wanted else 0, pipeline.spec.gate.champion_alias
            before = Pointer(pipeline=pipeline.name, key="", version=version, run_id="", model_digest="", alias=alias)
        if before.problem != problem:
            log.warning("%s: %s", pipeline.name, problem)
            with suppress(OSError):
                write_pointer(self._home, before.model_copy(update={"problem": problem}))

    def _load(self, folder: Path) -> Pipeline | None:
        """A pipeline as its file is now; one that cannot be read stays what it was."""
        known, stamp = self._pipelines.get(folder), _changed(folder / SPEC_FILE)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            pipeline: Pipeline | None = Pipeline.load(folder)
        except MlopsError as error:
            pipeline = known[1] if known is not None else None
            log.warning("%s %s: %s", folder.name, "stays as it was" if pipeline else "is not followed", error)
        self._pipelines[folder] = stamp, pipeline
        return pipeline


def fetched(home: Path, registry: Registry, pipeline: Pipeline, wanted: Registered) -> tuple[Path, Pointer]:
    """Bring a version's files below the home, and say what they are.

    Raises:
        MlopsError: It was registered by other means, or its files are gone or damaged.
    """
    name = pipeline.model_name
    tags = registry.tags(name, wanted.version)
    if keys.CONTRACT not in tags:
        raise ContractError(
            f"version {wanted.version} of {name} has no serving contract: it was registered by other means or before "
            f"there were any; promote one that `mlops run {pipeline.name}` trained"
        )
    key = tags[keys.CONTRACT][:32]
    folder = serving_folder(home) / pipeline.name / key
    if damage(folder, key):
        contract = registry.artifact(wanted.run_id, CONTRACT_ARTIFACT)
        if hashlib.sha256(contract).hexdigest() != tags[keys.CONTRACT]:
            raise ContractError(f"the contract of version {wanted.version} of {name} is damaged in MLflow's files")
        folder = unpack(home, pipeline.name, contract, registry.artifact(wanted.run_id, MODEL_ARTIFACT))
    told = registry.metrics(wanted.run_id)
    names = ("test_accuracy", "test_accuracy_lower", "test_accuracy_upper")
    return folder, Pointer(
        pipeline=pipeline.name,
        key=key,
        version=wanted.version,
        run_id=wanted.run_id,
        model_digest=tags.get(keys.MODEL_DIGEST, ""),
        alias=pipeline.spec.gate.champion_alias,
        accuracy=_accuracy([told.get(one) for one in names]),
        serving=pipeline.spec.serving,
    )


def champion_slot(here: Settings, pipeline: Pipeline | str, *, threads: int = 1) -> Slot:
    """The champion of a pipeline, loaded, without a server.

    Args:
        here: The settings.
        pipeline: The pipeline, or its name.
        threads: CPU threads of a pass.

    Raises:
        MlopsError: There is no such pipeline, it has no champion, or that one cannot answer.
    """
    if isinstance(pipeline, str):
        pipeline = find_pipeline(pipeline)
    registry, name, alias = registry_of(here), pipeline.name, pipeline.spec.gate.champion_alias
    wanted = registry.behind({pipeline.model_name: alias}).get(pipeline.model_name)
    if wanted is None:
        raise NoChampion(f"{name} has no champion yet (no version has the alias '{alias}'); run `mlops run {name}`")
    folder, pointer = fetched(here.home, registry, pipeline, wanted)
    return Slot.load(folder, pointer, threads=threads)


def _changed(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _accuracy(told: list[float | None]) -> Accuracy | None:
    estimate, lower, upper = told
    if estimate is None or lower is None or upper is None:
        return None
    return Accuracy(estimate=estimate, lower=lower, upper=upper)
