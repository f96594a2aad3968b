"""Checks of what the platform keeps and runs: settings, Oxen repositories, the store, pipelines."""

from __future__ import annotations

import difflib
import socket
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import xxhash
from rich.filesize import decimal

from mlops_assets.doctor import models
from mlops_assets.doctor.examination import Examination, Finding, Result, findings, sentence
from mlops_assets.errors import MlopsError
from mlops_assets.oxen.repository import Repository
from mlops_assets.pipeline import DECISIONS, STAGES, Pipeline, pipeline_folders
from mlops_assets.settings import Settings

if TYPE_CHECKING:
    from mlops_assets.upkeep import Slot

_CHUNK: Final = 1 << 20
_FUNCTIONS: Final[tuple[Literal["schema", "features", "model"], ...]] = ("schema", "features", "model")
_LOOKS_LIKE: Final = 0.8
"""From this likeness on, a variable that nobody reads is taken for a misspelt one."""


def settings(here: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the variables have values that can be used, and names that are read."""
    from mlops_assets.store import Store

    sound = True
    known = {str(one.validation_alias or f"MLOPS_{name.upper()}") for name, one in Settings.model_fields.items()}
    for name in sorted(environment):
        near = difflib.get_close_matches(name, known, n=1, cutoff=_LOOKS_LIKE)
        if name.startswith("MLOPS_") and name not in known and near:
            sound = False
            yield Finding("settings", "warning", f"nothing reads {name}", f"did you mean {near[0]}?")
    try:
        Store(here.store_url)
    except (ImportError, ValueError) as error:
        sound = False
        fix = "install the package that it names, or correct MLOPS_STORE"
        yield Finding("settings", "problem", f"the store {here.store_url} cannot be opened: {error}", fix)
    try:
        socket.getaddrinfo(here.host, here.dagster_port)
    except OSError as error:
        sound = False
        found = f"MLOPS_HOST is '{here.host}', which is no address: {error.strerror}"
        yield Finding("settings", "problem", found, "correct it, or leave it out for 127.0.0.1")
    if sound:
        yield Finding("settings", "ok", f"home {here.home}, store {here.store_url}")


def repositories(look: Examination) -> Iterator[Finding]:
    """Whether each Oxen repository opens, and holds what its branches' heads name."""
    folders = sorted(path for path in (look.here.home / "oxen").glob("*") if path.is_dir())
    sound, files, size = 0, 0, 0
    for folder in folders:
        content = dict[str, int]()
        name = f"Oxen {folder.name}"
        bad = findings(name, partial(_repository, name, Repository(folder), content, deep=look.deep))
        yield from bad
        sound, files, size = sound + (not bad), files + len(content), size + sum(content.values())
    if sound == len(folders):
        how = ", hashed again" if look.deep else ""
        yield Finding(
            "Oxen", "ok", f"{sound} repositories, {files} files ({decimal(size)}) at their branches' heads{how}"
        )


def store(look: Examination) -> Iterator[Finding]:
    """Whether the store has what the newest materializations made, and is whole."""
    from mlops_assets import upkeep
    from mlops_assets.doctor.references import references, stranded
    from mlops_assets.store import Store

    place = Store(look.here.store_url)
    slots = list(upkeep.entries(place))
    flawed = {slot.place: slot for slot in upkeep.verify(place, slots)} if look.deep else {}
    slots = [flawed.get(slot.place, slot) for slot in slots]
    bad = [slot for slot in slots if slot.flaw] + stranded(slots)
    lost = _lost(look, slots)
    used = references(look.instance, models.aliases(look.here), slots, keep=1) if look.instance and bad else None
    for slot in bad:
        fix = f"`mlops store verify --repair`, then `mlops run {slot.pipeline}`"
        result: Result = "problem" if used and used.need(slot) else "warning"
        yield Finding("store", result, f"{slot.asset} {slot.key[:8]} is damaged: {slot.flaw}", fix)
    for pipeline, stage, key in lost:
        found = f"{pipeline}/{stage} {key[:8]}, which was materialized last, is gone"
        yield Finding("store", "problem", found, f"`mlops run {pipeline}` makes it again")
    if not bad and not lost:
        count, size = sum(slot.exists for slot in slots), decimal(sum(slot.bytes for slot in slots))
        how = "hashed again" if look.deep else "each with its files"
        yield Finding("store", "ok", f"{count} entries ({size}) in {place.root}, {how}")


def _lost(look: Examination, slots: Sequence[Slot]) -> list[tuple[str, str, str]]:
    """Pipeline, stage and key of what was materialized last and is not in the store."""
    from mlops_assets.provenance import read_state

    if look.instance is None:
        return []
    there = {slot.place for slot in slots if slot.exists}
    names = sorted({folder.name for folder in pipeline_folders()} | {slot.pipeline for slot in slots})
    return [
        (name, stage, made.recipe)
        for name in names
        for stage, made in read_state(look.instance, name).items()
        if stage not in DECISIONS and (f"{name}/{stage}", made.recipe) not in there
    ]


def pipelines(folders: list[Path], *, deep: bool) -> Iterator[Finding]:
    """Whether each pipeline's `defs.yaml` and source files can be used; deep: whether its functions can be imported."""
    sound = 0
    for folder in folders:
        try:
            pipeline = Pipeline.load(folder)
            for stage in STAGES:
                pipeline.code_version(stage)
            if deep:
                for kind in _FUNCTIONS:
                    pipeline.function(kind)
        except MlopsError as error:
            what, fix = sentence(error)
            yield Finding(f"pipeline {folder.name}", "problem", what, fix)
        else:
            sound += 1
    if sound == len(folders):
        yield Finding("pipelines", "ok", f"{sound} load: {', '.join(folder.name for folder in folders) or 'none yet'}")


def _repository(name: str, repository: Repository, content: dict[str, int], *, deep: bool) -> Iterator[Finding]:
    """What is wrong with a repository; puts hash and size of what lies at the heads into `content`."""
    from mlops_assets.doctor.processes import holders
    from mlops_assets.oxen.tree import Tree

    tree = Tree(repository.path / ".oxen")
    for branch, commit in sorted(repository.heads().items()):
        repository.log(commit, limit=1)
        for entry in repository.entries("", commit):
            flaw = (
                "" if entry.hash in content else _flaw(tree.blob(entry.hash), entry.bytes, entry.hash if deep else "")
            )
            content[entry.hash] = entry.bytes
            if flaw:
                blob = tree.blob(entry.hash)
                fix = f"delete {blob} if it is there, then commit the original again, or restore it from a backup"
                yield Finding(name, "problem", f"the content of {entry.path} (branch {branch}) {flaw}", fix)
    mine = repository.path / ".oxen" / "mlops"
    left = [] if holders([mine / "lock"]) else list((mine / "work").glob("*"))
    if left:
        what = f"{len(left)} folders in {mine / 'work'} were left by killed writers"
        yield Finding(name, "warning", what, "nothing: the next commit removes them")


def _flaw(blob: Path, size: int, content_hash: str) -> str:
    """What is wrong with a stored file, in a few words; empty when nothing is. An empty hash is not compared."""
    try:
        found = blob.stat().st_size
    except FileNotFoundError:
        return "is gone"
    if found != size:
        return f"has {found} bytes instead of {size}"
    if content_hash:
        total = xxhash.xxh3_128()
        with blob.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                total.update(chunk)
        if total.digest() != bytes.fromhex(content_hash):
            return "does not have its hash"
    return ""
