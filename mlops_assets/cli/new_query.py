"""`mlops new --sql`: a pipeline for what a query gives.

Belongs here: asking the database once, and handing the answer on. Does not: what is written for a table (`new.py`), and
how a database is asked (`data/query.py`).
"""

from __future__ import annotations

from pathlib import Path

from mlops_assets.cli.intake import meter
from mlops_assets.cli.new import Table, begin, write_pipeline
from mlops_assets.data.config import SourceConfig
from mlops_assets.doors import ask, query_of
from mlops_assets.intake import aside
from mlops_assets.pipeline import DEFS
from mlops_assets.settings import Settings


def write_queried_pipeline(
    name: str,
    like: str,
    source: SourceConfig,
    here: Settings,
    *,
    columns: tuple[str, str],
    description: str = "",
    defs: Path = DEFS,
) -> Path:
    """Write a pipeline for what a query gives, which follows that query from then on.

    Args:
        name: The new pipeline.
        like: The one to begin from.
        source: The query and its database.
        here: The home.
        columns: Target and key; an empty key is `id`.
        description: One line.
        defs: Where pipelines are.

    Returns:
        Its folder.

    Raises:
        MlopsError: Nothing is given that a pipeline can be made of.
    """
    begin(name, like, defs)  # before the database is asked
    target, key = columns[0], columns[1] or "id"
    sql = query_of(source, Path())
    with aside(here.home) as place:
        file = place / f"{name}.parquet"
        said = ask(sql, source, file, key=key, needed={"target": target}, meter=meter)
        table = Table(file, target, key, source.model_copy(update={"sql": sql}), said)
        return write_pipeline(name, like, table, here, description=description, defs=defs)
