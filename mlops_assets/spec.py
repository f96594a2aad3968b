"""What a `defs.yaml` may say.

Belongs here: the pydantic models of a pipeline's YAML. Does not: reading the file (`spec_file.py`), what Dagster makes
of a pipeline (`component.py`), and what its functions do.

The same models serve Dagster's component loader and the platform's own reader, so that a running sensor, the command
line and `dg check yaml` read one file in one way.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from mlops_assets.data.config import ImagesConfig, OriginConfig, SourceConfig
from mlops_assets.gate.condition import ConditionError, parse
from mlops_assets.serving.config import ServingSpec
from mlops_assets.strict import StrictModel
from mlops_assets.training.config import TrainingConfig

COMPONENT_TYPE: Final = "mlops_assets.component.ModelPipeline"
SPEC_FILE: Final = "defs.yaml"
NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
TABLE_ENDINGS: Final = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".pq")
"""What `data.readers` reads; a copy, since reading a `defs.yaml` must not load Polars."""
MOST_FULL_STEPS: Final = 32
"""Of a budget that every step halves: an error of 1e-12 is left, and a level beyond that is none to a float."""
SPLIT_COLUMN: Final = "split"
"""The column that the platform adds to the features."""
IMAGE_COLUMNS: Final = {"key": "key", "target": "label"}
"""How the readers of images name the columns that a table's author names himself."""


def _condition(text: str) -> str:
    try:
        parse(text)
    except ConditionError as error:
        raise ValueError(str(error)) from error
    return text


def _cron(text: str) -> str:
    try:
        import dagster as dg
    except ImportError:
        return text  # in the model server's image, where nobody keeps a schedule; the code server has read it, too

    try:
        dg.ScheduleDefinition(name="check", job_name="check", cron_schedule=text)
    except dg.DagsterInvalidDefinitionError:
        hint = "not a cron expression; five fields, for example '0 3 * * *' for three o'clock every night"
        raise ValueError(f"{hint} (got '{text}')") from None
    return text


def _column(name: str) -> str:
    if name == SPLIT_COLUMN:
        raise ValueError(f"the platform adds a column '{name}' of its own; rename the one in the table")
    return name


def _path(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or str(parts) != path or not parts.parts:
        raise ValueError(f"'{path}' is not a path within the repository, such as iris.csv or tables/iris.parquet")
    return path


def _alias(text: str) -> str:
    from mlops_assets.registry.aliases import RegistryError, normalise

    if text == "challenger":
        raise ValueError("the alias 'challenger' stands for the newest model; choose another, such as champion")
    try:
        return normalise(text)
    except RegistryError as error:
        raise ValueError(str(error).rstrip(".")) from error


Column = Annotated[str, Field(min_length=1), AfterValidator(_column)]
# A file is imported as a module, whose name has neither dots nor dashes, from no other pipeline's folder.
FunctionRef = Annotated[str, Field(pattern=r"^(\w+/)*\w+\.py:[A-Za-z_]\w*$")]
# Dagster's own rule, for a refusal before Dagster is loaded.
Owner = Annotated[str, Field(pattern=r"^(team:.+|[A-Za-z0-9_][A-Za-z0-9._%+-]*@[A-Za-z0-9.-]+\.[A-Za-z]{2,7})$")]


class SourceSpec(SourceConfig):
    """Where new versions of the data come from, and when they are fetched."""

    schedule: Annotated[str, AfterValidator(_cron)] | None = Field(
        default=None,
        description="Cron expression, in UTC, of fetching it; an unchanged source makes no commit. Without, "
        "`mlops data import NAME` fetches it.",
    )


def _required_of_tables_alone(schema: dict[str, Any]) -> None:
    """Say in the JSON schema, by which `dg check` judges a file, that images leave out what `IMAGE_COLUMNS` names."""
    schema["required"] = [name for name in schema["required"] if name not in IMAGE_COLUMNS]
    schema["if"] = {"not": {"properties": {"images": {"type": "object"}}, "required": ["images"]}}
    schema["then"] = {"required": [*IMAGE_COLUMNS]}


class DataSpec(StrictModel):
    """Which table or which images of which Oxen repository, and what its columns mean."""

    model_config = ConfigDict(json_schema_extra=_required_of_tables_alone)

    repository: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$|^$",
        description="Name of the local Oxen repository, of letters, digits, '.', '_' and '-'; empty means the "
        "pipeline's own name.",
    )
    branch: str = Field(default="main", min_length=1, description="Branch whose head the pipeline follows.")
    images: ImagesConfig | None = Field(default=None, description="For images: how they are laid out and decoded.")
    path: Annotated[str, AfterValidator(_path)] = Field(
        description="The table's file in the repository (.csv, .csv.gz, .tsv or .parquet), or the images' directory."
    )
    origin: OriginConfig = Field(
        default_factory=OriginConfig, description="Where the first version comes from when nobody gives a file."
    )
    source: SourceSpec | None = Field(default=None, description="Where new versions come from, again and again.")
    key: Column = Field(
        description="Column that identifies a row for ever, and that the split hashes; `key` for images."
    )
    target: Column = Field(description="Column with the class to predict; `label` for images.")
    classes: list[str] = Field(
        min_length=2, description="The target's values, in the order in which the model's outputs stand."
    )
    max_label_shift: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Total variation distance between the class shares of two versions of the data that warns.",
    )

    @field_validator("path")
    @classmethod
    def _readable(cls, path: str, known: ValidationInfo) -> str:
        if known.data.get("images", ...) is None and not path.lower().endswith(TABLE_ENDINGS):
            raise ValueError(
                f"'{path}' is of no kind that can be read; a table's name must end in {', '.join(TABLE_ENDINGS)}, and "
                "a directory of images needs `images: {layout: folder}`"
            )
        return path

    @model_validator(mode="before")
    @classmethod
    def _columns_of_images(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("images") is not None:
            return {**IMAGE_COLUMNS, **given}
        return given

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if self.images is not None and {"key": self.key, "target": self.target} != IMAGE_COLUMNS:
            raise ValueError("images have the columns key and label; leave `key` and `target` out")
        if self.images is not None and self.source is not None and self.source.sql:
            raise ValueError("a query gives a table and no images; use `folder` or `url` in `source`")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must differ from each other (got {self.classes})")
        if self.key == self.target:
            raise ValueError(f"key and target must be two columns (both are '{self.key}')")
        return self


class SplitSpec(StrictModel):
    """Which rows are for testing and validating: by a hash of the key, so a test row stays one when data grows."""

    salt: str = Field(min_length=1, description="Fixes the split; another salt is another split.")
    column: Column | None = Field(
        default=None,
        description="Column with the data's own split, such as `part` of idx and CIFAR images: rows that it calls "
        "`test` are the test rows (`validation` likewise), and the hash splits the others.",
    )
    test: float = Field(default=0.2, gt=0, lt=1, description="Share of the rows kept for the evaluation.")
    validation: float = Field(default=0.15, gt=0, lt=1, description="Share of the rows that early stopping watches.")

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.column is not None and "test" in self.model_fields_set:
            raise ValueError(f"column '{self.column}' says which rows are for testing; leave `test` out")
        if self.column is None and self.test + self.validation >= 1:
            raise ValueError(f"test + validation must leave rows to train on (got {self.test} + {self.validation})")
        return self


class FunctionsSpec(StrictModel):
    """Where the pipeline's three functions are. They are imported when used, never with the definitions."""

    schema_: FunctionRef = Field(
        default="schema.py:schema",
        alias="schema",
        description="FILE.py:FUNCTION in this folder, `schema() -> pandera.polars.DataFrameSchema` of the dataset.",
    )
    features: FunctionRef = Field(
        default="features.py:features",
        description="FILE.py:FUNCTION in this folder, `features(frame: polars.DataFrame) -> polars.DataFrame`: keeps "
        "key and target, returns numbers. For images `features(images: numpy.ndarray) -> numpy.ndarray`, uint8, "
        "(n, height, width, channels); image i must stay image i.",
    )
    network: FunctionRef = Field(
        default="model.py:model",
        alias="model",
        description="FILE.py:FUNCTION in this folder, `model(n_features: int, n_classes: int, **parameters) -> "
        "torch.nn.Module`; for images the shape (height, width, channels) takes the place of n_features.",
    )


class GateSpec(StrictModel):
    """When a challenger replaces the champion."""

    condition: Annotated[str, AfterValidator(_condition)] = Field(
        description="For example `n - o > -0.10 and n > 0.80 and n - a > -0.15`: n new, o old, a anchor; with metrics "
        "and slices, `n.f1[sex=Female]`; docs/gate.md has the grammar."
    )
    reliability: float = Field(
        default=0.95,
        gt=0.5,
        le=0.999999,
        description="One-sided confidence over all the decisions that a test set serves for.",
    )
    mode: Literal["fp-free", "fn-free"] = Field(
        default="fp-free", description="What an undecided condition means: `fp-free` keeps the champion."
    )
    method: Literal["efficient", "certified"] = Field(
        default="efficient",
        description="`efficient` uses score intervals where they are known to be sound; `certified` always those that "
        "hold for every number of rows, which take more rows.",
    )
    steps: int = Field(
        default=32,
        ge=1,
        le=10_000,
        description="How many decisions a test set serves for; each then gets its part of the permitted error. A small "
        "test set can afford few.",
    )
    adaptivity: Literal["none", "full", "first-change"] = Field(
        default="none",
        description="What those who make models learn from the decisions: `none` (or they do not act on it), `full` "
        "(everything; then the error is divided by 2^steps), `first-change` (fresh test rows after a promotion).",
    )
    cold_start: Literal["gate", "hand"] = Field(
        default="gate",
        description="How the first champion is made: by the clauses on `n` alone, or by `mlops promote`.",
    )
    champion_alias: Annotated[str, AfterValidator(_alias)] = Field(
        default="champion",
        pattern=r"^[a-z][a-z0-9_-]*$",
        description="MLflow alias, of lower-case letters, digits, '_' and '-', of the version that answers users "
        "(`production` in older setups).",
    )

    @model_validator(mode="after")
    def _can_start(self) -> Self:
        if self.cold_start == "gate" and not parse(self.condition).absolute:
            raise ValueError(
                f"'{self.condition}' has no clause on `n` alone, so no first model could pass it; add one such as "
                "`n > 0.80`, or set `cold_start: hand`"
            )
        if self.adaptivity == "full" and self.steps > MOST_FULL_STEPS:
            raise ValueError(
                f"with `adaptivity: full` each step halves the permitted error, and {self.steps} leave nothing of it; "
                f"choose at most {MOST_FULL_STEPS} steps"
            )
        return self


class PredictionsSpec(StrictModel):
    """Which files of the pipeline's repository are scored in bulk."""

    path: Annotated[str, AfterValidator(_path)] = Field(
        default="incoming", description="File or directory in the repository whose rows are scored."
    )
    to: Annotated[str, AfterValidator(_path)] = Field(
        default="predictions", description="Directory in the repository for the pipeline's own predictions."
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        path, to = PurePosixPath(self.path), PurePosixPath(self.to)
        if path == to or path in to.parents or to in path.parents:
            raise ValueError(f"'{self.to}' and '{self.path}' must lie apart, or predictions would be scored")
        return self


class DeploymentSpec(StrictModel):
    """Where a champion goes beside the model server."""

    space: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$|^$",
        description="OWNER/NAME of a Hugging Face Space that each new champion is pushed to, with the token in "
        "HF_TOKEN; empty: none.",
    )


class PipelineSpec(StrictModel):
    """The `attributes` of one pipeline."""

    description: str = Field(default="", description="One line for people who open the asset graph.")
    owners: list[Owner] = Field(
        default_factory=list, description="team:NAME or mail addresses; shown at every asset of the pipeline."
    )
    data: DataSpec
    split: SplitSpec
    functions: FunctionsSpec = Field(default_factory=FunctionsSpec)
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of the model function, for example `hidden: [32]`."
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    slices: list[Column] = Field(
        default_factory=list,
        description="Columns of the dataset whose values are reported and judged apart, as in `n.recall[sex=Female]`.",
    )
    gate: GateSpec
    serving: ServingSpec = Field(default_factory=ServingSpec)
    predictions: PredictionsSpec = Field(default_factory=PredictionsSpec)
    deployment: DeploymentSpec = Field(default_factory=DeploymentSpec)
    schedule: Annotated[str, AfterValidator(_cron)] | None = Field(
        default=None,
        description="Cron expression of an extra retraining; each tick enters the seed, so it is never a cache hit.",
    )
    location: str = Field(
        default="mlops_assets",
        pattern="^[A-Za-z0-9_-]+$",
        description="The code location that loads the pipeline, by its MLOPS_LOCATION: that of another host runs it "
        "there, with its data, its store and its ledger.",
    )
    sensor: bool = Field(
        default=True,
        description="Whether the sensors act by themselves: on changes of data and code, and on versions that others "
        "register.",
    )

    @model_validator(mode="after")
    def _split_by_a_column_of_its_own(self) -> Self:
        if self.split.column in {self.data.key, self.data.target}:
            raise ValueError(
                f"split.column '{self.split.column}' is the key or the target; name the one with the parts"
            )
        return self

    @model_validator(mode="after")
    def _judges_what_there_is(self) -> Self:
        try:
            parse(self.gate.condition).require(self.data.classes, self.slices)
        except ConditionError as error:
            raise ValueError(str(error)) from None
        return self
