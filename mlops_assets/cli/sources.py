"""The source of a pipeline, written from what its table says.

Belongs here: the text of `schema.py`, `columns.py`, `features.py` and `defs.yaml`. Does not: judging the columns
(`derive.py`).

What is written is a beginning that runs; it is the user's from then on. So it reads as if written by hand, and passes
ruff as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import yaml

from mlops_assets.cli.derive import VALIDATION, Derived
from mlops_assets.data.config import SourceConfig
from mlops_assets.gate.budget import Budget
from mlops_assets.gate.decide import smallest_margin
from mlops_assets.spec import COMPONENT_TYPE, GateSpec, PipelineSpec

DISAGREEMENT: Final = 0.1
"""Share of test rows on which exactly one of two comparable models is right: few tables and models come above it."""

FEW_STEPS: Final = 8
MANY_ROWS: Final = 1000
"""Test rows from which a test set can serve for as many decisions as a gate makes by default."""

LINE: Final = 120


def steps(rows: float) -> int:
    """How many decisions a test set of about so many rows can afford."""
    return FEW_STEPS if rows < MANY_ROWS else GateSpec.model_fields["steps"].default


def margin(rows: float, gate: GateSpec, clauses: int) -> float:
    """The margin of `n - o > -margin` that a test set of about so many rows can decide, as often as the gate says."""
    level = Budget(gate.reliability, gate.steps, gate.adaptivity).level
    return smallest_margin(max(1, round(rows)), reliability=level, disagreement=DISAGREEMENT, clauses=clauses)


def schema_source(derived: Derived, path: str) -> str:
    """`schema.py`."""
    uses = any(column.role == "category" for column in derived.columns)
    lines = [
        '"""What a row of the dataset must look like."""',
        "",
        "import pandera.polars as pa",
        "import polars as pl",
        *(["", "from .columns import CATEGORIES"] if uses else []),
        "",
        "",
        "def schema() -> pa.DataFrameSchema:",
        f'    """The columns of `{path}`; `nullable` where the first version of it had gaps."""',
        "    return pa.DataFrameSchema(",
        "        {",
    ]
    for column in derived.columns:
        if column.dtype is None and column.role == "left out":
            continue
        arguments = [] if column.dtype is None else [f"pl.{column.dtype!r}".replace("'", '"')]
        if column.role == "category":
            arguments.append(f"{'' if arguments else 'checks='}pa.Check.isin(CATEGORIES[{literal(column.name)}])")
        if column.role == "key":
            arguments.append("unique=True")
        if column.nullable:
            arguments.append("nullable=True")
        lines.append(f"            {literal(column.name)}: pa.Column({', '.join(arguments)}),")
    return "\n".join([*lines, "        }", "    )", ""])


def columns_source(derived: Derived) -> str:
    """`columns.py`; empty when the table has no categories."""
    categories = {column.name: list(column.values) for column in derived.of("category")}
    if not categories:
        return ""
    return (
        '"""The values of the text columns: the schema refuses others, and each becomes a feature."""\n\n'
        + "\n".join(_mapping("CATEGORIES", {name: _sequence(values) for name, values in categories.items()}))
        + "\n"
    )


def features_source(derived: Derived) -> str:
    """`features.py`."""
    numbers, filled, categories = derived.of("number"), derived.of("filled"), derived.of("category")
    lines = ['"""What the model sees of a row."""', "", "import polars as pl", ""]
    if categories:
        lines += ["from .columns import CATEGORIES", ""]
    if numbers:
        lines += [
            "# Columns without gaps, taken as they are.",
            *_assigned("NUMBERS", [one.name for one in numbers]),
            "",
        ]
    if filled:
        lines += ["# Columns with gaps, and what fills them: the median over the training rows of the first version."]
        lines += [*_mapping("FILL", {one.name: repr(one.fill) for one in filled}), ""]
    left = derived.of("left out")
    if left:
        lines += ["# Left out:", *[f"# - {literal(one.name)}, {one.note}"[:LINE] for one in left], ""]
    chosen = [literal(derived.key), literal(derived.target)]
    parts = ["the numbers with their gaps filled" if filled else "the numbers"] if numbers or filled else []
    if numbers:
        chosen.append("*NUMBERS")
    body = []
    if filled:
        body.append("    filled = [_number(name).fill_null(value) for name, value in FILL.items()]")
        chosen.append("*filled")
    if categories:
        body += [
            "    known = [",
            '        pl.col(name).eq_missing(pl.lit(value)).alias(f"{name}={value}")',
            "        for name, values in CATEGORIES.items()",
            "        for value in values",
            "    ]",
        ]
        chosen.append("*known")
        parts.append("a yes or no for each value of a text column")
    lines += [
        "",
        "def features(frame: pl.DataFrame) -> pl.DataFrame:",
        f'    """Key and target, then {" and ".join(parts)}."""',
        *body,
        f"    return frame.select({', '.join(chosen)})",
    ]
    if filled:
        lines += [
            "",
            "",
            "def _number(name: str) -> pl.Expr:",
            '    """A column as a number: null where it has none, or one that is not finite."""',
            "    value = pl.col(name).cast(pl.Float64, strict=False)",
            "    return pl.when(value.is_finite()).then(value)",
        ]
    return "\n".join([*lines, ""])


def spec_source(
    derived: Derived, like: PipelineSpec, *, path: str, description: str, data_source: SourceConfig | None = None
) -> str:
    """`defs.yaml`, with the parameters, the training and the reliability of another pipeline."""
    training: dict[str, Any] = like.training.model_dump(exclude_unset=True)
    # A hundred steps or so per epoch: small steps over a large table only cost time.
    batch = 1 << max(0, (derived.rows // 100).bit_length() - 1)
    training["batch_size"] = min(1024, max(like.training.batch_size, batch))
    test_rows = round(derived.rows * derived.test)
    narrow = margin(test_rows, like.gate.model_copy(update={"steps": steps(test_rows)}), clauses=2)
    threshold = min(0.99, math.floor(derived.commonest * 100) / 100)
    return spec_text(
        like,
        description=description,
        data={
            "path": path,
            **({"source": data_source.model_dump(exclude_defaults=True)} if data_source else {}),
            "key": derived.key,
            "target": derived.target,
            "classes": derived.classes,
        },
        split={"salt": derived.salt, "test": derived.test, "validation": VALIDATION},
        training=training,
        gate=(narrow, threshold, test_rows),
    )


def spec_text(
    like: PipelineSpec,
    *,
    description: str,
    data: Mapping[str, Any],
    split: Mapping[str, Any],
    training: Mapping[str, Any],
    gate: tuple[float, float, int],
) -> str:
    """A `defs.yaml` of these sections, with the network, the parameters and the reliability of another pipeline.

    Args:
        like: The other pipeline.
        description: One line.
        data: The section.
        split: The section.
        training: The section.
        gate: The margin that the test rows can decide, the accuracy to exceed, and how many test rows there are.
    """
    narrow, threshold, test_rows = gate
    network = like.functions.network
    sections: list[Mapping[str, Any]] = [
        {"description": description, **({"owners": like.owners} if like.owners else {})},
        {"data": data},
        {"split": split},
        {"functions": {"model": network}} if "network" in like.functions.model_fields_set else {},
        {"parameters": like.parameters} if like.parameters else {},
        {"training": training},
        {
            "gate": {
                "condition": f"n - o > -{narrow:.2f} and n > {threshold:.2f}",
                "reliability": like.gate.reliability,
                "steps": steps(test_rows),
            }
        },
    ]
    told = (
        f"    # {narrow:.2f} is what about {test_rows} test rows can decide {steps(test_rows)} times,\n"
        f"    # {threshold:.2f} the accuracy of always naming the commonest class.\n"
    )
    text = "\n".join("".join(_block(section, "  ")) for section in sections if section)
    return f"type: {COMPONENT_TYPE}\n\nattributes:\n{text.replace('    condition:', told + '    condition:', 1)}"


def literal(text: str) -> str:
    """A string as Python source, in double quotes where that needs no escape."""
    if '"' in text and "'" not in text and text.isprintable() and "\\" not in text:
        return f"'{text}'"
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _block(section: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Lines of YAML in block style, with lists within a line, as people write such files."""
    for field, value in section.items():
        name = _flow(field)
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}:\n"
            yield from _block(value, f"{indent}  ")
        else:
            yield f"{indent}{name}: {_flow(value)}\n"


def _flow(value: Any) -> str:
    """A value within a line; in brackets, YAML quotes whatever could end it."""
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=math.inf).strip()[1:-1]


def _mapping(name: str, values: Mapping[str, str | Sequence[str]]) -> Iterator[str]:
    yield f"{name} = {{"
    for key, value in values.items():
        if isinstance(value, str):
            yield f"    {literal(key)}: {value},"
            continue
        line = f"    {literal(key)}: [{', '.join(value)}],"
        yield from (
            [line] if len(line) <= LINE else [f"    {literal(key)}: [", *[f"        {one}," for one in value], "    ],"]
        )
    yield "}"


def _assigned(name: str, values: Sequence[str]) -> list[str]:
    line = f"{name} = [{', '.join(_sequence(values))}]"
    return [line] if len(line) <= LINE else [f"{name} = [", *[f"    {one}," for one in _sequence(values)], "]"]


def _sequence(values: Sequence[str]) -> list[str]:
    return [literal(value) for value in values]
