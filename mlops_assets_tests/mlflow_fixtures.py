"""Real MLflow stores and Dagster instances for tests, which `conftest.py` gives to all of them.

Creating MLflow's database runs some sixty migrations (2 s), and Dagster's four take 0.2 s, so they are made once in a
test run and copied.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mlops_assets.home import ensure_home, open_instance
from mlops_assets.services import answers
from mlops_assets.settings import Settings
from mlops_assets.tracking.runs import Tracking
from mlops_assets.tracking.store import ensure_store, sqlalchemy_store
from mlops_assets_tests.templates import made_once


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "store", ensure_store)


@pytest.fixture(scope="session")
def dagster_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "dagster", _make_dagster) / "dagster"


def _make_dagster(home: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(home / "dagster"))
        with open_instance(ensure_home(Settings(home=home))):
            pass


@pytest.fixture
def home(store_template: Path, dagster_template: Path, tmp_path: Path) -> Path:
    """A platform home whose databases are ready."""
    shutil.copytree(dagster_template, tmp_path / "home" / "dagster")
    return Path(shutil.copytree(store_template, tmp_path / "home", dirs_exist_ok=True))


@pytest.fixture
def tracking(home: Path) -> Iterator[Tracking]:
    tracking = Tracking.embedded(home)
    yield tracking
    close_stores()


@contextmanager
def mlflow_server(home: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A lean MLflow server over the store of a home, which keeps what it is sent beside that; and its process."""
    with socket.socket() as held:
        # While this one has the port, nobody else is given it; the server may share it, as neither of both minds.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        with _mlflow_server(home, held.getsockname()[1]) as started:
            yield started


@contextmanager
def _mlflow_server(home: Path, port: int) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", "--serve-artifacts"]
    command += ["--backend-store-uri", f"sqlite:///{home}/mlflow/mlflow.db"]
    command += ["--artifacts-destination", str(home / "mlflow" / "served")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLOPS_HOME": str(home)}
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=home, stdout=output, stderr=output, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while not answers(f"{url}/health"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield url, process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def close_stores() -> None:
    """MLflow keeps the engines of its stores for the life of the process; a test's are closed with the test."""
    engines = sqlalchemy_store()._engine_map
    for uri in list(engines):
        engines.pop(uri).dispose()
