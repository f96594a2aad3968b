"""How a pipeline is served: the `serving` section of a `defs.yaml`.

Belongs here: the configuration, which workers read too. A light module on purpose, as `data/config.py` is.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mlops_assets.strict import StrictModel


class LogSpec(StrictModel):
    """What the prediction log keeps of what was asked."""

    inputs: Literal["values", "digest", "none"] = Field(
        default="values", description="The raw values of a row, their digest, or nothing; of images at most a digest."
    )
    leave_out: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="Columns that never reach the log, such as names of persons."
    )


class ServingSpec(StrictModel):
    """How the model server answers for the pipeline; it follows a change of this at once."""

    log: LogSpec = Field(default_factory=LogSpec)
    batching: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether requests that wait are answered in one pass; `auto`: on a GPU, where it pays.",
    )
