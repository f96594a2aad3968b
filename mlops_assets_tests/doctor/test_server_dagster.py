"""Checks of a real Dagster webserver, directly and through an nginx, and of what its instance knows."""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import SerializableErrorInfo

from mlops_assets.doctor import server, server_clocks, server_dagster, server_proxy
from mlops_assets.doctor.examination import Examination, examination
from mlops_assets.home import ensure_home
from mlops_assets.services import Service, answers, started
from mlops_assets.settings import Settings, settings
from mlops_assets_tests.doctor.entry import LOGIN, certificate, nginx, users
from mlops_assets_tests.processes.conftest import free_ports

pytestmark = pytest.mark.slow

WORKSPACE = """
load_from:
  - python_file: {relative_path: sound.py, location_name: mlops_assets}
  - python_file: {relative_path: other.py, location_name: gpu}
"""

ENTRY = """
server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {pem};
    ssl_certificate_key {key};
    auth_basic mlops;
    auth_basic_user_file {users};
    location /dagster/ {{ proxy_pass http://127.0.0.1:{dagster}; proxy_http_version 1.1; {headers} }}
    {metrics}
}}
"""

UPGRADE = "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;"

RELOAD = """
mutation { reloadRepositoryLocation(repositoryLocationName: "gpu") { __typename } }
"""


@dataclass(frozen=True)
class Webserver:
    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dagster"

    def write(self, text: str) -> None:
        """Give the location `gpu` another file, and have it loaded."""
        (self.folder / "other.py").write_text(text)
        httpx.post(f"{self.url}/graphql", json={"query": RELOAD}, timeout=60, trust_env=False).raise_for_status()


@pytest.fixture(scope="module")
def webserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webserver]:
    folder = tmp_path_factory.mktemp("dagster")
    (port,) = free_ports(1)
    (folder / "workspace.yaml").write_text(WORKSPACE)
    for name in ("sound", "other"):
        (folder / f"{name}.py").write_text("import dagster as dg\ndefs = dg.Definitions()\n")
    home = ensure_home(Settings(home=folder / "home"))
    os.environ.pop("DAGSTER_HOME")
    command = [sys.executable, "-m", "dagster_webserver", "-w", str(folder / "workspace.yaml")]
    command += ["-h", "127.0.0.1", "-p", str(port), "--path-prefix", "/dagster", "--log-level", "warning"]
    service = Service(
        "Dagster",
        command,
        folder / "dagster.log",
        ready=lambda: answers(f"http://127.0.0.1:{port}/dagster/server_info"),
        environment={"DAGSTER_HOME": str(home.dagster_home), "DAGSTER_DISABLE_TELEMETRY": "true"},
    )
    with started([service]):
        yield Webserver(folder, port)


def looking(webserver: Webserver, **changed: object) -> Examination:
    here = Settings()
    here.dagster_at = webserver.url
    return Examination(here.model_copy(update=changed), deep=False)


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Examination]:
    """An examination of a home whose instance has had no daemon yet."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))
    here = ensure_home(settings())
    here.dagster_at = "http://dagster:3000/dagster"
    with examination(here) as made:
        yield made


def test_locations_that_are_loaded(webserver: Webserver) -> None:
    (found,) = server_dagster.webserver(looking(webserver))
    assert (found.result, found.found.endswith("has loaded mlops_assets, gpu")) == ("ok", True), found


def test_a_location_that_does_not_load(webserver: Webserver) -> None:
    webserver.write("raise RuntimeError('no such disk')\n")
    (found,) = server_dagster.webserver(looking(webserver))
    assert found.result == "problem"
    assert "the code location gpu is not loaded" in found.found
    assert "no such disk" in found.found
    webserver.write("import dagster as dg\ndefs = dg.Definitions()\n")
    (found,) = server_dagster.webserver(looking(webserver))
    assert found.result == "ok"


def test_a_location_that_is_not_there(webserver: Webserver) -> None:
    (found,) = server_dagster.webserver(looking(webserver, location="cloud"))
    assert found.result == "problem"
    assert "no code location cloud: it has mlops_assets, gpu" in found.found


def test_another_prefix_and_another_release(webserver: Webserver, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = server_dagster.webserver(looking(webserver, dagster_at=f"http://127.0.0.1:{webserver.port}/elsewhere"))
    assert (found.result, "--path-prefix /elsewhere" in found.fix) == ("problem", True)
    monkeypatch.setattr(server_dagster.metadata, "version", lambda name: "1.12.0")
    found = list(server_dagster.webserver(looking(webserver)))
    assert [one.result for one in found] == ["warning"] * 3
    assert found[0].found.endswith("here is 1.12.0")
    assert found[1].found.startswith("the code location mlops_assets has Dagster 1.")


@pytest.mark.parametrize("sound", [True, False])
def test_what_a_user_gets_through_the_proxy(
    webserver: Webserver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound: bool
) -> None:
    (port,), pem = free_ports(1), certificate(tmp_path, "mlops.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", LOGIN[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", LOGIN[1])
    entry = ENTRY.format(
        port=port,
        pem=pem,
        key=pem.with_suffix(".key"),
        users=users(tmp_path),
        dagster=webserver.port,
        headers=UPGRADE if sound else "",
        metrics="" if sound else "location = /metrics { return 200 ok; }",
    )
    look = looking(webserver, public_url="https://mlops.test", proxy_at=f"https://127.0.0.1:{port}")
    with nginx(tmp_path / "nginx", entry):
        found = list(server_proxy.logged_in(look))
        (clocks,) = server_clocks.clocks(look)
    assert (clocks.result, clocks.found) == ("ok", "Dagster, the proxy have our time")
    assert [one.result for one in found] == (["ok"] if sound else ["problem", "problem"]), found
    if not sound:
        websocket, metrics = found
        assert websocket.found.startswith("https://mlops.test/dagster/graphql as a WebSocket answers ")
        assert metrics.found == "https://mlops.test/metrics answers 200 instead of 404"


def test_daemons_that_never_told_told_late_fail_or_live(look: Examination) -> None:
    assert look.instance is not None
    needed = sorted(look.instance.get_required_daemon_types())
    found = list(server_dagster.daemons(look))
    assert [one.result for one in found] == ["problem"] * len(needed)
    assert found[0].found.endswith("daemon never told that it lives")

    def tell(kind: str, age: float, error: str = "") -> None:
        assert look.instance is not None
        errors = [SerializableErrorInfo(error, [], None)] if error else []
        look.instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - age, kind, "one", errors))

    for kind in needed:
        tell(kind, 10)
    (one,) = server_dagster.daemons(look)
    assert one.result == "ok"
    tell("SENSOR", 600)
    tell("SCHEDULER", 10, "no such\ndisk")
    failing, late = server_dagster.daemons(look)
    assert (failing.result, failing.found) == ("warning", "the scheduler daemon fails: no such disk")
    assert (late.result, late.found.startswith("the sensor daemon told last 6")) == ("problem", True)


def test_checks_run_side_by_side_and_are_told_in_their_order(
    look: Examination, webserver: Webserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    look.here.dagster_at = webserver.url
    found = [one.check for one in server.examine(look)]
    order = list(server.CHECKS)
    assert {"Dagster's server", "dagster.yaml", "daemons", "clocks", "rights"} <= set(found)
    assert found == sorted(found, key=order.index)
