"""The fixture of all tests here: a checkout with a home, and nothing left running when it is gone."""

import itertools
import os
import random
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mlops_assets.data import samples
from mlops_assets_tests.loop import prepare
from mlops_assets_tests.mlflow_fixtures import close_stores
from mlops_assets_tests.processes.project import Project, copy_package, shorten
from mlops_assets_tests.templates import made_once


@pytest.fixture
def project(store_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    root, home = tmp_path / "checkout", tmp_path / "home"
    copy_package(root)
    shutil.copytree(store_template, home)
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    dagster_port, mlflow_port, serve_port, grpc_port = free_ports(4)
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"} | {
        "PYTHONPATH": str(root),
        "MLOPS_HOME": str(home),
        "MLOPS_DAGSTER_PORT": str(dagster_port),
        "MLOPS_MLFLOW_PORT": str(mlflow_port),
        "MLOPS_SERVE_PORT": str(serve_port),
        "MLOPS_GRPC_PORT": str(grpc_port),
    }
    made = Project(root, home, environment)
    shorten(made.pipeline)
    try:
        yield made
    finally:
        made.end()
        close_stores()


@pytest.fixture
def trained(tmp_path_factory: pytest.TempPathFactory, project: Project) -> Project:
    """A project with a champion, in which nothing is stale."""
    files = {"iris.csv": samples.iris().write_csv().encode()}
    template = made_once(
        tmp_path_factory, "project", lambda place: prepare(place, "iris", files, epochs=200, change=shorten)
    )
    shutil.copytree(template / "home", project.home, dirs_exist_ok=True)
    return project


def _ports() -> Iterator[int]:
    """Ports to try, in turn and from a random one on, of a range that no other worker of this run tries.

    They are below those that Linux gives away by itself: somebody would get one between our look and its server's.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    own = range(20_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")), 32_000, workers)
    start = random.SystemRandom().randrange(len(own))
    return itertools.cycle([*own[start:], *own[:start]])


_turn = _ports()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, and that nobody else is given."""
    found: list[int] = []
    while len(found) < count:
        port = next(_turn)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            found.append(port)
    return found
