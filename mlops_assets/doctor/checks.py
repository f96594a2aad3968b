"""The list of checks, in the order in which they are told."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

from mlops_assets.doctor import contents, databases, machine, processes, server
from mlops_assets.doctor.examination import Check, Finding, examination, findings, sentence
from mlops_assets.errors import MlopsError
from mlops_assets.home import ensure_home
from mlops_assets.pipeline import pipeline_folders
from mlops_assets.settings import PROJECT, HomeError, settings


def examine(*, deep: bool = False) -> Iterator[Finding]:
    """Look at everything.

    Args:
        deep: Hash all content again, and import what pipelines define.

    Yields:
        What was found, check by check.
    """
    yield from findings("Python", partial(machine.python, PROJECT))
    yield from findings("packages", partial(machine.packages, PROJECT))
    try:
        here = settings()
    except MlopsError as error:
        yield Finding("settings", "problem", *sentence(error))
        return
    yield from findings("settings", partial(contents.settings, here, os.environ))
    yield from findings("temporary files", machine.temporary)
    yield from findings("pipelines", partial(contents.pipelines, pipeline_folders(), deep=deep))
    try:
        ensure_home(here)
    except HomeError as error:
        yield Finding("home", "problem", *sentence(error))
        return
    yield from findings("home", partial(machine.space, "home", here.home))
    yield from findings("file locks", partial(machine.locking, here.home))
    yield from findings("clock", partial(machine.clock, here.home))
    has_servers = server.is_one(here)
    if has_servers:
        server.hasten()
    with examination(here, deep=deep) as look:
        for name, check in CHECKS.items():
            if not (has_servers and name == "ports"):  # those of `mlops up`, which is not what runs there
                yield from findings(name, partial(check, look))
        if has_servers:
            yield from server.examine(look)


CHECKS: Final[Mapping[str, Check]] = {
    "locks": processes.locks,
    "Dagster": databases.dagster,
    "MLflow": databases.mlflow,
    "models": databases.registered_models,
    "Oxen": contents.repositories,
    "store": contents.store,
    "runs": processes.runs,
    "MLflow's runs": processes.mlflow_runs,
    "ports": processes.ports,
}
"""By what the table calls them."""
