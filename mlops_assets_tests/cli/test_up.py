"""`mlops up` where it needs no Dagster and no MLflow to be proven; `processes/` has the rest."""

import itertools
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlops_assets.cli import up
from mlops_assets.services import Service
from mlops_assets.settings import Settings, settings
from mlops_assets_tests.cli.conftest import Mlops
from mlops_assets_tests.processes.conftest import free_ports

PORTS = ("MLOPS_DAGSTER_PORT", "MLOPS_MLFLOW_PORT", "MLOPS_SERVE_PORT", "MLOPS_GRPC_PORT")


@pytest.fixture(autouse=True)
def _ports_and_signals(mlops: Mlops, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True):
        monkeypatch.setenv(name, str(port))
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("name", PORTS)
def test_a_taken_port_is_one_sentence(mlops: Mlops, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv(name, str(port))
        settings.cache_clear()
        ended = mlops("up")
    assert (ended.code, ended.err) == (
        1,
        f"error: port {port} on 127.0.0.1 cannot be used (Address already in use); "
        f"stop what listens there, or set {name}\n",
    )


def test_a_dead_service_is_started_again_and_not_for_ever(
    mlops: Mlops, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a Dagster that ends at once, beside two that would go on."""
    pids = tmp_path / "pids"
    starts = itertools.count(1)

    def going_on(here: Settings) -> Service:
        command, number = ["sh", "-c", f"echo $$ >> {pids}; exec sleep 600"], next(starts)
        # Else it may be stopped, for Dagster has ended, before it has said who it is.
        said = lambda: pids.exists() and pids.read_text().count("\n") == number  # noqa: E731
        return Service("other", command, here.home / "other.log", ready=said)

    def ending(here: Settings) -> Service:
        return Service("Dagster", ["sh", "-c", "echo out of luck; exit 3"], here.home / "dagster.log")

    monkeypatch.setattr(up, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(up, "MISSED_LOOKS", 100)
    monkeypatch.setattr(up, "dagster_service", ending)
    monkeypatch.setattr(up, "mlflow_service", going_on)
    monkeypatch.setattr(up, "model_server_service", lambda here: Service("third", ["sleep", "600"], here.home / "log"))
    ended = mlops("up")
    assert ended.code == 1
    assert ended.out.count("; starting again") == up.MOST_RESTARTS
    assert ended.err.startswith("error: Dagster ended with code 3; its log")
    assert ended.err.endswith("out of luck\n")
    assert ended.err.count("\n") == 1
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == up.MOST_RESTARTS + 1
    assert not any(psutil.pid_exists(pid) for pid in started)
