"""The fixture of all tests here: a checkout with a home, and nothing left running when it is gone."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mlops_assets_tests.mlflow_fixtures import close_stores
from mlops_assets_tests.processes.project import EPOCHS, Project, copy_package


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
    made.edit("defs.yaml", "epochs: 200", f"epochs: {EPOCHS}")
    made.edit("model.py", "from torch import nn", "import pathlib, time\nfrom torch import nn")
    wait = f"    while pathlib.Path({str(made.gate)!r}).exists():\n        time.sleep(0.05)\n"
    made.edit("model.py", "    return MLP(", f"{wait}    return MLP(")
    try:
        yield made
    finally:
        made.end()
        close_stores()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]
