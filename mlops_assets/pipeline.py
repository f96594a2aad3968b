"""A pipeline: its folder, its specification, its stages, and the code version of each.

Belongs here: what one folder below `defs/` means, without Dagster. Does not: which of its outputs are stale
(`staleness.py`), and how a stage runs (`assets/`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from mlops_assets import versions
from mlops_assets.errors import MlopsError
from mlops_assets.fingerprint import PACKAGE_ROOT, code_version, digest
from mlops_assets.functions import load_function
from mlops_assets.settings import settings
from mlops_assets.spec import NAME_PATTERN, SPEC_FILE, PipelineSpec
from mlops_assets.spec_file import load_spec
from mlops_assets.training.config import TrainingConfig, environment, environment_digest

Stage = Literal["dataset", "features", "model", "evaluation", "champion", "deployment"]

STAGES: Final[tuple[Stage, ...]] = ("dataset", "features", "model", "evaluation", "champion", "deployment")
"""In the order of the graph."""

DECISIONS: Final[frozenset[Stage]] = frozenset({"champion", "deployment"})
"""What is done outside, in the registry and on servers, and so has no output in the store."""

SOURCE: Final = "oxen"
"""The input of the first stage: the table's content digest in Oxen."""

ENVIRONMENT: Final = "environment"
"""The input of the model that stands for library versions, thread count and device."""

TICK: Final = "tick"
"""The input of the model that a scheduled retraining changes; empty until the first tick."""

INPUTS: Final[Mapping[Stage, tuple[Stage, ...]]] = {
    "dataset": (),
    "features": ("dataset",),
    "model": ("features",),
    "evaluation": ("model", "features"),
    "champion": ("evaluation",),
    "deployment": ("champion",),
}

BLOCKING_CHECKS: Final[Mapping[Stage, tuple[str, ...]]] = {
    "dataset": ("schema", "target"),
    "features": ("features",),
    "model": (),
    "evaluation": (),
    "champion": (),
    "deployment": (),
}
"""Checks without which a version of the stage's output is not read by the next."""

DEFS: Final = PACKAGE_ROOT / "defs"


class PipelineNotFound(MlopsError):
    """No folder of that name below `defs/`."""


class PipelineElsewhere(MlopsError):
    """Another code location has the pipeline: its data, its store and its ledger are in that one's home.

    Attributes:
        location: Which.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.location = pipeline.spec.location
        super().__init__(f"{pipeline.name} is at the code location '{self.location}'; run this command on its host")


class NoDataYet(MlopsError):
    """A pipeline that was never given data."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(f"no data yet; `mlops data import {pipeline.name}` brings some")


@dataclass(frozen=True)
class Pipeline:
    """One folder below `defs/`, as it was on disk when it was loaded."""

    folder: Path
    spec: PipelineSpec

    @classmethod
    def load(cls, folder: Path) -> Pipeline:
        """Read the pipeline of a folder afresh.

        Raises:
            SpecError: Its `defs.yaml` is not usable.
        """
        return cls(folder, load_spec(folder / SPEC_FILE))

    def trial(self, training: Mapping[str, Any]) -> Pipeline:
        """The same pipeline with some options of `training` set otherwise; they enter the model's recipe.

        Raises:
            pydantic.ValidationError: An option is unknown, or has a value that is not allowed.
        """
        if not training:
            return self
        changed = TrainingConfig(**{**self.spec.training.model_dump(), **training})
        return replace(self, spec=self.spec.model_copy(update={"training": changed}))

    @property
    def decoding(self) -> str:
        """What a decoded image depends on beside its file: equal texts, equal pixels."""
        images = self.spec.data.images
        return digest([versions.IMAGES, images.model_dump() if images else None])

    @property
    def name(self) -> str:
        """The folder's name: the asset group, and the first part of every asset key."""
        return self.folder.name

    @property
    def model_name(self) -> str:
        """Name of the registered model and of the MLflow experiment."""
        return self.name

    @property
    def repository(self) -> str:
        """Name of the Oxen repository that holds the data."""
        return self.spec.data.repository or self.name

    def function(self, kind: Literal["schema", "features", "model"]) -> Callable[..., Any]:
        """Import one of the pipeline's functions as its file is now."""
        return load_function(self._reference(kind), self.folder)

    def function_file(self, kind: Literal["schema", "features", "model"]) -> Path:
        """The file that defines one of the pipeline's functions."""
        return self.folder / self._reference(kind).partition(":")[0]

    def code_version(self, stage: Stage) -> str:
        """Hash what a stage runs, from the files as they are now.

        Raises:
            SourceError: A source file is missing or does not parse.
        """
        kind, configuration = self._code[stage]
        source = self.function_file(kind) if kind else None
        return code_version(source, self.folder.parent, configuration)

    @cached_property
    def environment_digest(self) -> str:
        """Library versions, threads, device and precision of a training here, as an input of the model's recipe."""
        return environment_digest(environment(self.spec.training))

    def _reference(self, kind: str) -> str:
        functions = self.spec.functions
        return {"schema": functions.schema_, "features": functions.features, "model": functions.network}[kind]

    @property
    def _code(self) -> dict[Stage, tuple[Literal["schema", "features", "model"] | None, dict[str, Any]]]:
        """Per stage: the function whose source counts, and the configuration and version constants that do."""
        spec = self.spec
        images = spec.data.images
        columns = {"key": spec.data.key, "target": spec.data.target, "classes": spec.data.classes}
        data = {**columns, "repository": self.repository, "branch": spec.data.branch, "path": spec.data.path}
        reader: Any = versions.READER if images is None else [versions.IMAGES, images.model_dump()]
        split = {**spec.split.model_dump(exclude_none=True), "version": versions.SPLIT}
        functions = spec.functions
        contract = [versions.CONTRACT, sorted(spec.serving.log.leave_out)]  # another column left out: other sample rows
        return {
            "dataset": (
                "schema",
                {"function": functions.schema_, "data": data, "split": split, "reader": reader},
            ),
            "features": (
                "features",
                {
                    "function": functions.features,
                    "columns": columns,
                    "split": split,
                    "contract": contract,
                },
            ),
            "model": (
                "model",
                {
                    "function": functions.network,
                    "columns": columns,
                    "parameters": spec.parameters,
                    # An option that a later release brings changes nothing where it is not set; the trainer's
                    # constant is raised when a default changes.
                    "training": spec.training.model_dump(exclude_defaults=True),
                    "trainer": versions.TRAINER,
                    "contract": contract,
                },
            ),
            "evaluation": (
                None,
                {"columns": columns, "evaluation": versions.EVALUATION, "predict": versions.PREDICT},
            ),
            "champion": (
                None,
                {
                    "gate": spec.gate.model_dump(exclude_defaults=True),
                    "slices": spec.slices,
                    "version": versions.GATE,
                },
            ),
            "deployment": (None, {"deployment": spec.deployment.model_dump(), "version": versions.DEPLOYMENT}),
        }


def pipeline_folders(defs: Path = DEFS) -> list[Path]:
    """The folders below `defs/` that hold a pipeline, by name."""
    return sorted(path.parent for path in defs.glob(f"*/{SPEC_FILE}"))


def find_pipeline(name: str, defs: Path = DEFS) -> Pipeline:
    """Load a pipeline by name.

    Raises:
        PipelineNotFound: There is none of that name; lists those there are.
        SpecError: Its `defs.yaml` is not usable.
    """
    folder = defs / name
    if not NAME_PATTERN.fullmatch(name) or not (folder / SPEC_FILE).is_file():
        known = ", ".join(path.name for path in pipeline_folders(defs)) or "none yet"
        raise PipelineNotFound(f"there is no pipeline '{name}' (known: {known}); `mlops new {name}` writes one")
    return Pipeline.load(folder)


def own_pipeline(name: str) -> Pipeline:
    """Load a pipeline by name, for what reads or writes its part of this home.

    Raises:
        PipelineNotFound: There is none of that name; lists those there are.
        SpecError: Its `defs.yaml` is not usable.
        PipelineElsewhere: Another code location has it; here there would be a second repository, and a second ledger.
    """
    return require_here(find_pipeline(name))


def require_here(pipeline: Pipeline) -> Pipeline:
    """Refuse a pipeline that another code location has.

    Raises:
        PipelineElsewhere: It is one.
    """
    if pipeline.spec.location != settings().location:
        raise PipelineElsewhere(pipeline)
    return pipeline
