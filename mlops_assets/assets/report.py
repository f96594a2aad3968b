"""How tables and validation reports look in Dagster's UI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from mlops_assets.provenance import RECIPE

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.data.validation import Report

# An event is one row of Dagster's database, and the UI loads many at once.
_MOST_COLUMNS: Final = 200
_COLUMNS_SHOWN: Final = 20
_FILES_SHOWN: Final = 10
_MOST_FAILURES: Final = 100
_LONGEST_NAME: Final = 60
_LONGEST_TEXT: Final = 200
_LONGEST_SENTENCE: Final = 2000


def table_metadata(frame: pl.DataFrame) -> Mapping[str, Any]:
    """Row count, schema of the first 200 columns and the first rows, under the keys that Dagster's UI knows."""
    columns = [
        dg.TableColumn(_short(name, _LONGEST_NAME), _short(str(dtype), _LONGEST_NAME))
        for name, dtype in list(frame.schema.items())[:_MOST_COLUMNS]
    ]
    return {
        "dagster/row_count": frame.height,
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "first rows": dg.MetadataValue.md(_markdown(frame.head(5))),
    }


def file_changes(added: Sequence[str], removed: Sequence[str], changed: Sequence[str]) -> Mapping[str, Any]:
    """How many files differ between two versions, and the first of them by name."""
    lines = [
        f"* {what} `{_short(path, _LONGEST_NAME)}`"
        for what, paths in (("added", added), ("removed", removed), ("changed", changed))
        for path in paths[:_FILES_SHOWN]
    ]
    counts = {"files added": len(added), "files removed": len(removed), "files changed": len(changed)}
    return {**counts, "changed files": dg.MetadataValue.md("\n".join(lines) or "none")}


def check_result(
    report: Report, recipe: str, severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
) -> dg.AssetCheckResult:
    """A validation report as the result of a check: one sentence, and a table of the failing rows."""
    records = [
        dg.TableRecord(
            {
                "column": _short(failure.column or "", _LONGEST_TEXT),
                "check": _short(failure.check, _LONGEST_TEXT),
                "failing rows": failure.count,
                "rows": ", ".join(map(str, failure.rows)),
                "values": _short(", ".join(failure.values), _LONGEST_TEXT),
            }
        )
        for failure in report.failures[:_MOST_FAILURES]
    ]
    metadata: dict[str, Any] = {"rows": report.rows, RECIPE: recipe}
    if more := len(report.failures) - len(records):
        metadata["failures not listed"] = more
    if records:
        metadata["failures"] = dg.MetadataValue.table(records)
    return dg.AssetCheckResult(
        passed=report.passed,
        severity=severity,
        description=_short(report.sentence(), _LONGEST_SENTENCE),
        metadata=metadata,
    )


def _markdown(frame: pl.DataFrame) -> str:
    from mlops_assets.evaluation.markdown import cell, table

    shown = frame[:, :_COLUMNS_SHOWN]
    text = table(list(map(cell, shown.columns)), [[cell(str(value)) for value in row] for row in shown.iter_rows()])
    more = frame.width - shown.width
    return f"{text}\n\nand {more:,} more columns" if more else text


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
