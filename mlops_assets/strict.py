"""The base of everything that a `defs.yaml` may hold: unknown fields are refused by name, with the known ones."""

from __future__ import annotations

import difflib
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails


class StrictModel(BaseModel):
    """A section of the YAML: unknown fields are refused, and the refusal lists the known ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _name_what_is_allowed(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                error.title, [_explain(cls, line) for line in error.errors(include_url=False)]
            ) from None


def _explain(model: type[BaseModel], error: Any) -> InitErrorDetails:
    """Rewrite pydantic's "extra inputs are not permitted", which names neither the field nor the choice."""
    if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
        field = str(error["loc"][0])
        allowed = sorted(info.alias or name for name, info in model.model_fields.items())
        near = difflib.get_close_matches(field, allowed, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        problem = ValueError(f"unknown field '{field}'{hint} (allowed here: {', '.join(allowed)})")
        return InitErrorDetails(type="value_error", loc=error["loc"], input=error["input"], ctx={"error": problem})
    details = InitErrorDetails(type=error["type"], loc=error["loc"], input=error["input"])
    if "ctx" in error:
        details["ctx"] = error["ctx"]
    return details
