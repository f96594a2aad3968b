"""Checks of real MLflow servers: one as it should be, and one that was started in every wrong way."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets.doctor import server_mlflow
from mlops_assets.doctor.examination import Examination, findings
from mlops_assets.services import Service, answers, started
from mlops_assets.settings import Settings
from mlops_assets.tracking.store import ensure_store
from mlops_assets_tests.processes.conftest import free_ports

pytestmark = pytest.mark.slow

PUBLIC = "http://mlops.test"
"""Without TLS, which `test_server_proxy.py` has: these servers are asked directly, under the public name."""


def service(name: str, folder: Path, store: str, port: int, *options: str) -> Service:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--static-prefix", "/mlflow", *options]
    return Service(
        name,
        command,
        folder / f"{name}.log",
        ready=lambda: answers(f"http://127.0.0.1:{port}/mlflow/health"),
        environment={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Ports of the right server and of the wrong one."""
    folder = tmp_path_factory.mktemp("mlflow")
    right, wrong = free_ports(2)
    hosts = f"127.0.0.1:{right},mlops.test"
    store = ensure_store(folder / "home")
    services = [
        service(
            "right",
            folder,
            store,
            right,
            *("--allowed-hosts", hosts, "--cors-allowed-origins", PUBLIC),
            *("--artifacts-destination", str(folder / "artifacts")),
        ),
        service(
            "wrong",
            folder,
            store,
            wrong,
            *("--allowed-hosts", "mlops.test", "--cors-allowed-origins", "*", "--no-serve-artifacts"),
        ),
    ]
    with started(services):
        yield right, wrong


@pytest.fixture(autouse=True)
def _login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-long-password")


def looking(port: int, *, prefix: str = "/mlflow", public: str = PUBLIC, deep: bool = False) -> Examination:
    here = Settings(public_url=public)
    here.proxy_at, here.mlflow_tracking_uri = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}{prefix}"
    return Examination(here, deep)


def test_a_server_as_it_should_be(ports: tuple[int, int]) -> None:
    for check in (server_mlflow.server, server_mlflow.proxied):
        (found,) = check(looking(ports[0], deep=True))
        assert (found.result, "and keeps artifacts" in found.found) == ("ok", True), found


def test_an_artifact_is_sent_when_looking_closely_and_leaves_nothing(
    ports: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    (found,) = server_mlflow.server(looking(ports[0]))
    assert (found.result, "artifacts" in found.found) == ("ok", False)
    assert not list(tmp_path_factory.getbasetemp().glob("mlflow*/artifacts/*"))


def test_a_name_that_is_not_among_the_allowed_hosts(ports: tuple[int, int]) -> None:
    (found,) = server_mlflow.server(looking(ports[1]))
    assert found.result == "problem"
    assert f"answers 403: it refuses the name 127.0.0.1:{ports[1]}" in found.found
    assert f"--allowed-hosts containing 127.0.0.1:{ports[1]}" in found.fix
    (found,) = server_mlflow.proxied(looking(ports[0], public="http://other.test"))
    assert (found.result, "--allowed-hosts containing other.test" in found.fix) == ("problem", True)


def test_origins_that_are_refused_or_not(ports: tuple[int, int]) -> None:
    (found,) = server_mlflow.server(looking(ports[0], public="http://other.test"))
    assert found.result == "problem"
    assert "a page of http://other.test is refused to write by" in found.found
    assert found.fix.endswith("--cors-allowed-origins http://other.test")
    (found,) = server_mlflow.proxied(looking(ports[1]))
    assert found.result == "problem"
    assert f"a page of {server_mlflow.FOREIGN} is not refused to write by" in found.found


def test_a_prefix_that_the_server_does_not_have(ports: tuple[int, int]) -> None:
    (found,) = server_mlflow.server(looking(ports[0], prefix=""))
    assert (found.result, "answers 404: nothing is below /" in found.found) == ("problem", True)
    assert "--static-prefix" in found.fix


def test_an_artifact_proxy_that_is_off(ports: tuple[int, int]) -> None:
    found = list(server_mlflow.proxied(looking(ports[1], deep=True)))
    assert [one.result for one in found] == ["problem", "problem"]
    assert "refuses an upload" in found[1].found
    assert "--serve-artifacts" in found[1].fix


def test_without_a_login_it_is_said_and_without_a_server_too(
    ports: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    (found,) = server_mlflow.proxied(looking(ports[0]))
    assert (found.result, found.found.startswith("not looked at: ")) == ("ok", True)
    (closed,) = free_ports(1)
    (found,) = findings("MLflow", lambda: server_mlflow.server(looking(closed)))
    assert (found.result, found.fix) == ("problem", "start it, or mend MLFLOW_TRACKING_URI")


def test_another_release(ports: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_mlflow.metadata, "version", lambda name: "3.0.0")
    (found,) = server_mlflow.server(looking(ports[0]))
    assert (found.result, found.fix) == ("warning", "install the same at both")
