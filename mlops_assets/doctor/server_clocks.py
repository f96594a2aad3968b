"""The check of the clocks of all servers against ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING

from mlops_assets.doctor.asking import Asker, NoAnswer, asking, proxied
from mlops_assets.doctor.examination import Examination, Finding
from mlops_assets.doctor.machine import MOST_SKEW_SECONDS
from mlops_assets.doctor.server_postgres import DatabaseError, connected, databases

if TYPE_CHECKING:
    from sqlalchemy import Connection


def clocks(look: Examination) -> Iterator[Finding]:
    """Whether servers and databases have our time; one that does not answer is told of elsewhere."""
    here, skews = look.here, dict[str, float]()
    servers = {"MLflow": here.mlflow_tracking_uri, "Dagster": here.dagster_at, "the model server": here.serve_at}
    for name, url in servers.items():
        if url.startswith("http"):
            with suppress(NoAnswer), asking(url) as asker:
                skews |= _of_server(name, asker)
    if here.public_url:
        with suppress(NoAnswer), proxied(here, anonymous=True) as proxy:
            skews |= _of_server("the proxy", proxy)
    for variable, secret in databases(here).items():
        with suppress(DatabaseError), connected(variable, secret) as connection:
            skews[f"PostgreSQL ({variable})"] = _skew(partial(_of_database, connection), 0.0)
    off = {name: skew for name, skew in skews.items() if abs(skew) > MOST_SKEW_SECONDS}
    for name, skew in off.items():
        what = f"the clock of {name} is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} ours"
        yield Finding("clocks", "warning", what, "synchronize the hosts' clocks (NTP)")
    if skews and not off:
        yield Finding("clocks", "ok", f"{', '.join(skews)} have our time")


def _of_database(connection: Connection) -> float:
    return float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())


def _of_server(name: str, asker: Asker) -> dict[str, float]:
    """The skew that a server's Date tells, which is cut to seconds; nothing where it tells none."""
    dates = list[float]()

    def ask() -> float:
        dates.append(parsedate_to_datetime(asker.get("/").headers["Date"]).timestamp())
        return dates[0]

    with suppress(KeyError):
        return {name: _skew(ask, 1.0)}
    return {}


def _skew(ask: Callable[[], float], coarse: float) -> float:
    """By how much another clock is ahead for sure, however long its answer took; negative when behind."""
    before = time.time()
    theirs = ask()
    after = time.time()
    return max(theirs - after, 0.0) + min(theirs + coarse - before, 0.0)
