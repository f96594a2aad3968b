"""The list of checks of a server set-up, which settings turn on one by one.

Belongs here: what makes a set-up one of servers, and how its checks are run. Not here: the checks (`server_*.py`), and
asking over HTTP (`asking.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from mlops_assets.doctor import server_clocks, server_dagster, server_files, server_mlflow, server_models
from mlops_assets.doctor import server_postgres as postgres
from mlops_assets.doctor import server_proxy as proxy
from mlops_assets.doctor.examination import Check, Examination, Finding, findings
from mlops_assets.settings import Settings

QUICK: Final = {"PGCONNECT_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""For what other checks ask through Dagster and MLflow, which would wait for minutes for a host that is gone."""


def is_one(here: Settings) -> bool:
    """Whether servers were set up, rather than what `mlops up` starts."""
    return bool(here.public_url or here.dagster_at or here.serve_at or here.dagster_database.get_secret_value())


def hasten() -> None:
    """Have nothing of this process wait long for a server."""
    for name, value in QUICK.items():
        os.environ.setdefault(name, value)


def examine(look: Examination) -> Iterator[Finding]:
    """Run the checks side by side, since they wait for others; tell what they found in their order."""
    with ThreadPoolExecutor(len(CHECKS)) as pool:
        running = [pool.submit(findings, name, partial(check, look)) for name, check in CHECKS.items()]
        for one in running:
            yield from one.result()


CHECKS: Final[Mapping[str, Check]] = {
    "PostgreSQL": postgres.servers,
    "MLflow's database": postgres.mlflow,
    "MLflow, proxied": server_mlflow.proxied,
    "Dagster's server": server_dagster.webserver,
    "dagster.yaml": server_dagster.configuration,
    "daemons": server_dagster.daemons,
    "model server": server_models.model_server,
    "certificate": proxy.certificate,
    "proxy": proxy.proxy,
    "proxy, logged in": proxy.logged_in,
    "clocks": server_clocks.clocks,
    "rights": server_files.rights,
    "secrets": server_files.secrets,
    "backup": server_files.backups,
}
"""By what the table calls them; each tells nothing where the setting that it looks at is not set."""
