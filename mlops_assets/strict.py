"""The base of everything that a `defs.yaml` may hold, and the sentences with which it refuses.

Belongs here: refusals that every section has in common. Does not: what a section may say (`spec.py`).
"""

from __future__ import annotations

import difflib
import re
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
    """Rewrite what pydantic says in terms of Python, and without what is allowed instead."""
    # Dagster prints what was given: text may be an address with a password, and a section may hold one.
    given = error["input"] if isinstance(error["input"], bool | int | float) else "..."
    if sentence := _sentence(model, error["type"], error["loc"], error["input"]):
        context = {"error": ValueError(sentence)}
        return InitErrorDetails(type="value_error", loc=error["loc"], input=given, ctx=context)
    details = InitErrorDetails(type=error["type"], loc=error["loc"], input=given)
    if "ctx" in error:
        details["ctx"] = error["ctx"]
    return details


def _sentence(model: type[BaseModel], kind: str, loc: tuple[int | str, ...], given: object) -> str:
    """The refusal of one value; empty where pydantic's own is good enough."""
    fields = {info.alias or name: info for name, info in model.model_fields.items()}
    allowed = f"allowed here: {', '.join(sorted(fields))}"
    if kind == "model_type" and not loc:
        found = "empty" if given is None else _shown(repr(given))
        return f"a section of fields is needed, and this is {found} ({allowed})"
    if kind == "string_type" and isinstance(given, bool | int | float):
        return f"YAML reads unquoted numbers, yes, no, on and off as no text (this one as {given}); put it in quotes"
    field = str(loc[0]) if loc else ""
    if kind in {"extra_forbidden", "invalid_key"} and len(loc) == 1:
        near = difflib.get_close_matches(field, fields, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"unknown field '{field}'{hint} ({allowed})"
    purpose = (fields[field].description or "").rstrip(".") if field in fields else ""
    if kind == "string_pattern_mismatch":
        return f"'{_shown(str(given))}' is not allowed; allowed: {purpose}"
    return f"missing: {purpose}" if kind == "missing" and purpose else ""


def _shown(given: str) -> str:
    """What was given, without the users and passwords of addresses in it."""
    return re.sub(r"//.*@", "//...@", given)
