"""What a `defs.yaml` may say.

Belongs here: the pydantic models of a pipeline's YAML, and the loader that turns a bad file into sentences which name
file, line and what is allowed. Does not: what Dagster makes of a pipeline (`component.py`), and what its functions do.

The same models serve Dagster's component loader and the platform's own reader, so that a running sensor, the command
line and `dg check yaml` read one file in one way.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from mlops_assets.errors import MlopsError
from mlops_assets.gate.condition import ConditionError, parse
from mlops_assets.strict import StrictModel
from mlops_assets.training.config import TrainingConfig

COMPONENT_TYPE: Final = "mlops_assets.component.ModelPipeline"
SPEC_FILE: Final = "defs.yaml"
NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")


class SpecError(MlopsError):
    """A `defs.yaml` that cannot be used; the text has one line for each thing to mend."""


def _condition(text: str) -> str:
    try:
        parse(text)
    except ConditionError as error:
        raise ValueError(str(error)) from error
    return text


def _cron(text: str) -> str:
    import dagster as dg

    try:
        dg.ScheduleDefinition(name="check", job_name="check", cron_schedule=text)
    except dg.DagsterInvalidDefinitionError:
        hint = "not a cron expression; five fields, for example '0 3 * * *' for three o'clock every night"
        raise ValueError(f"{hint} (got '{text}')") from None
    return text


FunctionRef = Annotated[
    str,
    Field(pattern=r"^[\w./-]+\.py:[A-Za-z_]\w*$", description="`FILE.py:FUNCTION`, the file relative to this folder."),
]


class DataSpec(StrictModel):
    """Which table of which Oxen repository, and what its columns mean."""

    repository: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$|^$",
        description="Name of the local Oxen repository; empty means the pipeline's own name.",
    )
    branch: str = Field(default="main", min_length=1, description="Branch whose head the pipeline follows.")
    path: str = Field(min_length=1, description="The table's file in the repository: .csv or .parquet.")
    key: str = Field(min_length=1, description="Column that identifies a row for ever; the split hashes it.")
    target: str = Field(min_length=1, description="Column with the class to predict.")
    classes: list[str] = Field(
        min_length=2, description="The target's values, in the order in which the model's outputs stand."
    )
    max_label_shift: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Total variation distance between the class shares of two versions of the data that warns.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must differ from each other (got {self.classes})")
        if self.key == self.target:
            raise ValueError(f"key and target must be two columns (both are '{self.key}')")
        return self


class SplitSpec(StrictModel):
    """Which rows are for testing and validating: by a hash of the key, so a test row stays one when data grows."""

    salt: str = Field(min_length=1, description="Fixes the split; another salt is another split.")
    test: float = Field(default=0.2, gt=0, lt=1, description="Share of the rows kept for the evaluation.")
    validation: float = Field(default=0.15, gt=0, lt=1, description="Share of the rows that early stopping watches.")

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.test + self.validation >= 1:
            raise ValueError(f"test + validation must leave rows to train on (got {self.test} + {self.validation})")
        return self


class FunctionsSpec(StrictModel):
    """Where the pipeline's three functions are. They are imported when used, never with the definitions."""

    schema_: FunctionRef = Field(
        default="schema.py:schema",
        alias="schema",
        description="`schema() -> pandera.polars.DataFrameSchema` of the dataset.",
    )
    features: FunctionRef = Field(
        default="features.py:features",
        description="`features(frame: polars.DataFrame) -> polars.DataFrame`: keeps key and target, returns numbers.",
    )
    network: FunctionRef = Field(
        default="model.py:model",
        alias="model",
        description="`model(n_features: int, n_classes: int, **parameters) -> torch.nn.Module`.",
    )


class GateSpec(StrictModel):
    """When a challenger replaces the champion."""

    condition: Annotated[str, AfterValidator(_condition)] = Field(
        description="For example `n - o > -0.10 and n > 0.80`: n new, o old, d share of differing predictions."
    )
    reliability: float = Field(default=0.95, gt=0.5, lt=1, description="One-sided confidence of the whole condition.")
    mode: Literal["fp-free", "fn-free"] = Field(
        default="fp-free", description="What an undecided condition means: `fp-free` keeps the champion."
    )
    champion_alias: str = Field(
        default="champion",
        pattern=r"^[a-z][a-z0-9_-]*$",
        description="MLflow alias of the version that answers users (`production` in older setups).",
    )


class PipelineSpec(StrictModel):
    """The `attributes` of one pipeline."""

    description: str = Field(default="", description="One line for people who open the asset graph.")
    owners: list[str] = Field(
        default_factory=list, description="`team:NAME` or mail addresses; shown at every asset of the pipeline."
    )
    data: DataSpec
    split: SplitSpec
    functions: FunctionsSpec = Field(default_factory=FunctionsSpec)
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of the model function, for example `hidden: [32]`."
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    gate: GateSpec
    schedule: Annotated[str, AfterValidator(_cron)] | None = Field(
        default=None,
        description="Cron expression of an extra retraining; each tick enters the seed, so it is never a cache hit.",
    )
    sensor: bool = Field(default=True, description="Whether the rematerialize sensor starts switched on.")


def load_spec(path: Path) -> PipelineSpec:
    """Read a `defs.yaml`.

    Raises:
        SpecError: The file is missing, is not YAML, or says something that is not allowed; one line for each problem,
            each naming file and line.
    """
    from dagster_shared.yaml_utils import parse_yaml_with_source_position
    from yaml import YAMLError

    beginning = f"{path}:1: a pipeline starts with `type: {COMPONENT_TYPE}` and has `attributes:`"
    try:
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            raise SpecError(beginning)
        parsed = parse_yaml_with_source_position(text, str(path))
    except FileNotFoundError:
        raise SpecError(f"{path} does not exist; `mlops new NAME` writes a pipeline") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not a text in UTF-8 ({error.reason} at byte {error.start}); save it as one") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise SpecError(f"{path}:{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    document = parsed.value
    if not isinstance(document, dict) or document.get("type") != COMPONENT_TYPE or "attributes" not in document:
        raise SpecError(beginning)
    try:
        return PipelineSpec.model_validate(document["attributes"])
    except ValidationError as error:
        problems = []
        for line in error.errors(include_url=False):
            keys = ["attributes", *line["loc"]]
            position = parsed.source_position_tree.lookup_closest_and_path(keys, None)[0]
            message = line["msg"].removeprefix("Value error, ")
            problems.append(f"{path}:{position.start.line}: {'.'.join(map(str, keys))}: {message}")
        raise SpecError("\n".join(problems)) from None
