"""Which files of a repository want scoring, and which predictions of them there are.

Belongs here: what lies under a pipeline's `predictions.path`, the manifest beside the predictions, and comparing the
two; all of it reads the repository's tree alone, so that a sensor may ask. Not here: scoring and committing
(`batch_run.py`).

A table, an idx file or a batch of CIFAR is scored by itself. Image files that lie in one directory are scored
together, into one file: a file of predictions for each image would cost more than the predictions.

An input whose predictions have no place there, as where their name is that of a directory, is refused by itself: Oxen
would refuse the whole commit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from mlops_assets.errors import MlopsError
from mlops_assets.fingerprint import digest
from mlops_assets.oxen.errors import PathNotFound, UnsafePath
from mlops_assets.oxen.inputs import checked_path, directories
from mlops_assets.oxen.nodes import Entry
from mlops_assets.oxen.repository import Repository
from mlops_assets.spec import TABLE_ENDINGS, PipelineSpec

MANIFEST: Final = "manifest.json"
DIRECTORY_OUTPUT: Final = "images.parquet"
"""Predictions of the image files of a directory; all others are called as their input, with `.parquet` after it."""


class PredictionsTaken(MlopsError):
    """The predictions of another pipeline lie where this one's are to go."""


class Unit(NamedTuple):
    """What is scored into one file.

    Attributes:
        path: Of the file, or of the directory whose image files it is, in the repository.
        hash: Of its content; of a directory, over the names and contents of its image files. While it is refused, over
            the reason too: once that is gone, it is another input.
        form: What it is read as: the ending of a table's name, or the layout of images.
        output: Where its predictions go, in the repository.
        files: The file, or the image files.
        refused: Why its predictions have no place; empty: they have one.
    """

    path: str
    hash: str
    form: str
    output: str
    files: tuple[Entry, ...]
    refused: str = ""


class Record(BaseModel):
    """What became of one input.

    Attributes:
        input: Its hash.
        output: Path of its predictions; empty when all of it was refused.
        output_sha256: Of them.
        model_digest: What names the model that scored it, by content.
        contract: What names the code and the checks of that version.
        version: The version's number in MLflow's registry.
        rows: That were scored.
        rows_refused: That were not; None where nobody counted them.
        labels: Rows by predicted class.
        refused: The first sentences that say why.
    """

    model_config = ConfigDict(frozen=True)

    input: str
    output: str = ""
    output_sha256: str = ""
    model_digest: str
    contract: str
    version: int
    rows: int = 0
    rows_refused: int | None = 0
    labels: Mapping[str, int] = {}
    refused: tuple[str, ...] = ()


class Manifest(BaseModel):
    """Every input whose predictions lie beside it, by path, and every input that was refused."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    pipeline: str = ""
    files: Mapping[str, Record] = {}

    def to_bytes(self) -> bytes:
        """As JSON; equal manifests give equal bytes."""
        ordered = self.model_copy(update={"files": dict(sorted(self.files.items()))})
        return ordered.model_dump_json(indent=1).encode()


@dataclass(frozen=True)
class Look:
    """A pipeline's inputs and predictions at one commit.

    Attributes:
        commit: Its id.
        units: What there is to score, by path.
        others: How many files are of no kind that can be scored.
        manifest: What is told of the predictions; empty where it is missing or damaged.
        outputs: The files that lie where predictions go, by path.
    """

    commit: str
    units: Mapping[str, Unit]
    others: int = 0
    manifest: Manifest = field(default_factory=Manifest)
    outputs: Mapping[str, Entry] = field(default_factory=dict)

    def require_own(self, pipeline: str, to: str) -> None:
        """Refuse to score into a directory that another pipeline scores into.

        Args:
            pipeline: Who asks.
            to: The directory.

        Raises:
            PredictionsTaken: The manifest is another pipeline's.
        """
        if self.manifest.pipeline not in {"", pipeline}:
            raise PredictionsTaken(
                f"`{to}` holds the predictions of the pipeline {self.manifest.pipeline}; give {pipeline} a directory "
                "of its own by `predictions: {to: ...}` in its defs.yaml"
            )

    def wanted(self, model_digest: str, contract: str | None = None) -> list[Unit]:
        """What a version has not scored, or not in its present state; what it refused it would refuse again.

        Args:
            model_digest: What names the version's model by content.
            contract: What names its contract, as its pointer's key does; None takes that of the model for known.
        """
        return [unit for unit in self.units.values() if not self._done(unit, model_digest, contract)]

    @property
    def gone(self) -> list[str]:
        """Inputs that were scored or refused, and are not there any more."""
        return sorted(self.manifest.files.keys() - self.units.keys())

    def _done(self, unit: Unit, model_digest: str, contract: str | None) -> bool:
        known = self.manifest.files.get(unit.path)
        if known is None or (known.input, known.model_digest) != (unit.hash, model_digest):
            return False
        if contract not in {None, known.contract}:
            return False
        return not known.output or (known.output == unit.output and known.output in self.outputs)


def look(repository: Repository, spec: PipelineSpec) -> Look:
    """Read what there is at the head of the pipeline's branch; a path that is not there holds nothing.

    Raises:
        OxenError: There is no repository or no branch.
    """
    commit = repository.resolve(spec.data.branch)
    entries = _entries(repository, spec.predictions.path, commit)
    outputs = {entry.path: entry for entry in _entries(repository, spec.predictions.to, commit)}
    units, others = _units(entries, spec)
    told = outputs.get(f"{spec.predictions.to}/{MANIFEST}")
    manifest = Manifest()
    if told is not None:
        try:
            manifest = Manifest.model_validate_json(repository.read(told))
        except ValidationError:  # of another release, or edited: all is scored again, from the store if it is there
            manifest = Manifest()
    return Look(commit, _placed(units, outputs, spec.predictions.to), others, manifest, outputs)


def _entries(repository: Repository, path: str, commit: str) -> list[Entry]:
    try:
        return repository.entries(path, commit)
    except PathNotFound:
        return []


def _units(entries: Sequence[Entry], spec: PipelineSpec) -> tuple[dict[str, Unit], int]:
    source, target = spec.predictions.path, spec.predictions.to
    layout = spec.data.images.layout if spec.data.images else None
    forms = [(entry, _form(entry.path, layout)) for entry in entries]
    found = [(entry, form) for entry, form in forms if form]
    units: dict[str, Unit] = {}
    if layout == "folder":
        directories: dict[str, list[Entry]] = {}
        for entry, _ in found:
            directories.setdefault(str(PurePosixPath(entry.path).parent), []).append(entry)
        for directory, files in directories.items():
            below = PurePosixPath(directory)
            below = below.relative_to(source) if below.is_relative_to(source) else PurePosixPath()
            content = digest([[PurePosixPath(entry.path).name, entry.hash] for entry in files])
            output = str(PurePosixPath(target) / below / DIRECTORY_OUTPUT)
            units[directory] = Unit(directory, content, layout, output, tuple(files))
    else:
        for entry, form in found:
            name = entry.path.removeprefix(source).lstrip("/") or PurePosixPath(source).name
            units[entry.path] = Unit(entry.path, entry.hash, form, f"{target}/{name}.parquet", (entry,))
    return units, len(entries) - len(found)


def _placed(units: Mapping[str, Unit], outputs: Iterable[str], to: str) -> dict[str, Unit]:
    """The inputs, of which those are refused whose predictions have no place beside what is there and the others'."""
    files = {f"{to}/{MANIFEST}", *outputs, *(unit.output for unit in units.values())}
    occupied = {parent for path in outputs for parent in directories(path)}
    placed = {}
    for path, unit in units.items():
        fault = _misplaced(unit, files, occupied)
        refused = f"{path}: its predictions cannot be kept as '{unit.output}': {fault}"
        placed[path] = unit._replace(hash=digest([unit.hash, refused]), refused=refused) if fault else unit
    return placed


def _misplaced(unit: Unit, files: Collection[str], occupied: Collection[str]) -> str:
    """Why Oxen would not take an input's predictions; empty: it takes them."""
    above = next((parent for parent in directories(unit.output) if parent in files), "")
    if above:
        return f"'{above}' is a file, or is to be one; rename '{unit.path}'"
    if unit.output in occupied:
        return f"that is a directory; rename '{unit.path}' if it stays one"
    try:
        checked_path(unit.output, new=True)
    except UnsafePath as error:
        return str(error)
    return ""


def _form(path: str, layout: str | None) -> str:
    """As what a file is scored, by its name: the ending of a table's, or the layout of images; empty: it is not."""
    if layout is None:
        return next((ending for ending in TABLE_ENDINGS if path.lower().endswith(ending)), "")
    from mlops_assets.serving.batch_images import belongs  # not for tables: a sensor that asks need not load Polars

    return layout if belongs(path, layout) else ""
