"""How tables and validation reports look in Dagster's UI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.data.validation import Report


def table_metadata(frame: pl.DataFrame) -> Mapping[str, Any]:
    """Row count, column schema and the first rows, under the keys that Dagster's UI knows."""
    columns = [dg.TableColumn(name, str(dtype)) for name, dtype in frame.schema.items()]
    return {
        "dagster/row_count": frame.height,
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "first rows": dg.MetadataValue.md(_markdown(frame.head(5))),
    }


def check_result(report: Report) -> dg.AssetCheckResult:
    """A validation report as the result of a blocking check: one sentence, and a table of the failing rows."""
    records = [
        dg.TableRecord(
            {
                "column": failure.column or "",
                "check": failure.check,
                "failing rows": failure.count,
                "rows": ", ".join(map(str, failure.rows)),
                "values": ", ".join(failure.values),
            }
        )
        for failure in report.failures
    ]
    metadata: dict[str, Any] = {"rows": report.rows}
    if records:
        metadata["failures"] = dg.MetadataValue.table(records)
    return dg.AssetCheckResult(passed=report.passed, description=report.sentence(), metadata=metadata)


def _markdown(frame: pl.DataFrame) -> str:
    lines = ["| " + " | ".join(frame.columns) + " |", "|" + " --- |" * frame.width]
    lines += ["| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |" for row in frame.iter_rows()]
    return "\n".join(lines)
