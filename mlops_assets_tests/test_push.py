import dataclasses
import http.server
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import httpx
import pytest
from dagster._core.storage.tags import RUN_KEY_TAG, SENSOR_NAME_TAG

from mlops_assets import push as push_
from mlops_assets.assessment import Assessment
from mlops_assets.cli import data
from mlops_assets.cli.up import is_up
from mlops_assets.data import samples
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.intake import Intake
from mlops_assets.pipeline import STAGES, find_pipeline
from mlops_assets.provenance import asset_key
from mlops_assets.push import PushError, answers, push
from mlops_assets.services import Service, started
from mlops_assets.settings import PROJECT, Settings, settings
from mlops_assets.staleness import Plan
from mlops_assets_tests.processes.conftest import free_ports

pytestmark = pytest.mark.slow


@contextmanager
def port_that_refuses() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take its time."""
    monkeypatch.setattr(push_, "CONNECT_SECONDS", 60.0)
    monkeypatch.setattr(push_, "LAUNCH_SECONDS", 180.0)


@pytest.fixture
def here(home: Path) -> Settings:
    """A home with iris in Oxen."""
    made = ensure_home(settings())
    repository = made.repository("iris")
    repository.init()
    repository.commit("first", files={"iris.csv": samples.iris().write_csv().encode()})
    return made


@pytest.fixture
def instance(here: Settings) -> Iterator[dg.DagsterInstance]:
    with open_instance(here) as opened:
        yield opened


@pytest.fixture
def now(here: Settings, instance: dg.DagsterInstance) -> Assessment:
    return Assessment.of(find_pipeline("iris"), here.repository("iris"), instance)


@contextmanager
def webserver(here: Settings, *options: str, workspace: Path = PROJECT / "workspace.yaml") -> Iterator[None]:
    """A real Dagster webserver over the home, without a daemon: runs stay queued."""
    (here.dagster_port,) = free_ports(1)
    command = [sys.executable, "-m", "dagster_webserver", "-w", str(workspace)]
    command += ["-h", here.host, "-p", str(here.dagster_port), *options]

    environment = {"MLOPS_HOME": str(here.home), "PYTHONPATH": str(PROJECT)}
    with started([Service("webserver", command, here.home / "webserver.log", lambda: is_up(here), environment)]):
        yield


def test_nobody_there(now: Assessment, instance: dg.DagsterInstance, here: Settings) -> None:
    with port_that_refuses() as here.dagster_port:
        assert not answers(here)
        pushed = push(now, instance, here)
    assert pushed.run_id is None
    assert f"no Dagster webserver answers at {here.dagster_url}: `mlops run iris`" in pushed.sentence


def test_somebody_who_is_no_dagster(now: Assessment, instance: dg.DagsterInstance, here: Settings) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever).start()
        here.dagster_port = server.server_port
        assert answers(here)
        with pytest.raises(PushError, match=r"is no Dagster webserver \(HTTP 501\); set MLOPS_DAGSTER_PORT"):
            push(now, instance, here)
        server.shutdown()


def test_somebody_who_never_answers(
    now: Assessment, instance: dg.DagsterInstance, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_, "LAUNCH_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        here.dagster_port = silent.getsockname()[1]
        with pytest.raises(PushError, match=r"broke off \(ReadTimeout\); look at .*/runs"):
            push(now, instance, here)


def test_nothing_stale_and_blocked_ask_nobody(now: Assessment, instance: dg.DagsterInstance, here: Settings) -> None:
    still = dataclasses.replace(now)
    still.__dict__["plan"] = Plan({})
    assert push(still, instance, here) == (None, "nothing is stale in iris")
    blocked = dataclasses.replace(now)
    blocked.__dict__["plan"] = Plan({}, "dataset's check 'schema' failed")
    assert push(blocked, instance, here) == (None, "iris is blocked: dataset's check 'schema' failed")


def uci() -> Intake:
    return Intake({"iris.csv": samples.iris_uci().write_csv().encode()}, "a test")


def test_a_failed_push_leaves_the_commit_standing(
    here: Settings, instance: dg.DagsterInstance, capsys: pytest.CaptureFixture[str]
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever).start()
        here.dagster_port = server.server_port
        data._record(find_pipeline("iris"), here, uci(), "second", launch=True)
        server.shutdown()
    told = capsys.readouterr()
    assert "committed" in told.out
    assert "warning: the commit is made, but no run was started: what answers at" in told.err
    assert here.repository("iris").log(limit=1)[0].message == "second"


def test_a_broken_dagster_home_does_not_stop_a_commit(here: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    (here.dagster_home / "dagster.yaml").write_text("run_queue: [")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        here.dagster_port = silent.getsockname()[1]
        data._record(find_pipeline("iris"), here, uci(), "second", launch=True)
    told = capsys.readouterr()
    assert "committed" in told.out
    assert "warning: Dagster's own files" in told.err


def test_the_tags_are_those_by_which_the_daemon_knows_a_wish(now: Assessment) -> None:
    assert (push_.RUN_KEY_TAG, push_.SENSOR_TAG) == (RUN_KEY_TAG, SENSOR_NAME_TAG)
    params = push_._request(now, settings())["variables"]["params"]
    tags = {tag["key"]: tag["value"] for tag in params["executionMetadata"]["tags"]}
    assert tags[RUN_KEY_TAG] == now.run_key
    assert now.tags.items() <= tags.items()


def test_the_run_is_what_the_sensor_would_ask_for(
    now: Assessment, instance: dg.DagsterInstance, here: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with webserver(here):
        unknown = dataclasses.replace(now, pipeline=dataclasses.replace(now.pipeline, folder=Path("defs/tulips")))
        with pytest.raises(PushError, match=r"does not know the pipeline 'tulips' yet; reload the code location"):
            push(unknown, instance, here)

        pushed = push(now, instance, here)
        assert pushed.run_id is not None
        assert f"{here.dagster_url}/runs/{pushed.run_id}" in pushed.sentence
        run = instance.get_run_by_id(pushed.run_id)
        assert run is not None
        assert run.status is dg.DagsterRunStatus.QUEUED
        assert run.asset_selection == {asset_key("iris", stage) for stage in STAGES}
        assert run.execution_plan_snapshot_id is not None
        steps = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id).step_keys_to_execute
        assert {f"iris__{stage}" for stage in STAGES} < set(steps)
        checks = {"dataset_schema", "dataset_target", "dataset_label_shift", "features_features", "champion_gate"}
        assert {f"iris__{check}" for check in checks} < set(steps)

        (sensor,) = [tag for key, tag in run.tags.items() if key == SENSOR_NAME_TAG]
        selector = f'{{repositoryName: "{push_.REPOSITORY}", repositoryLocationName: "{here.location}"}}'
        text = f"{{sensorsOrError(repositorySelector: {selector}) {{... on Sensors {{results {{name}}}}}}}}"
        answer = httpx.post(f"{here.dagster_url}/graphql", json={"query": text}, trust_env=False, timeout=180).json()
        assert sensor in [each["name"] for each in answer["data"]["sensorsOrError"]["results"]]

        again = push(now, instance, here)
        assert again == (None, f"run {pushed.run_id[:8]} of iris is queued; the sensor follows when it has ended")

        instance.delete_run(pushed.run_id)
        data._record(now.pipeline, here, uci(), "second", launch=True)
        (second,) = instance.get_runs()
        told = capsys.readouterr()
        assert f"run {second.run_id[:8]} started: " in told.out
        assert second.tags["mlops/oxen_commit"] == here.repository("iris").resolve("main")


def test_a_read_only_webserver_refuses(now: Assessment, instance: dg.DagsterInstance, here: Settings) -> None:
    with webserver(here, "--read-only"), pytest.raises(PushError, match=r"is read-only; use `mlops run iris`"):
        push(now, instance, here)
    assert instance.get_runs() == []


def test_a_code_location_that_does_not_load(
    now: Assessment, instance: dg.DagsterInstance, here: Settings, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('no')")
    workspace = tmp_path / "workspace.yaml"
    workspace.write_text("load_from: [{python_file: {relative_path: broken.py, location_name: mlops_assets}}]")
    with webserver(here, workspace=workspace), pytest.raises(PushError, match="cannot load the code location"):
        push(now, instance, here)
    workspace.write_text("load_from: [{python_file: {relative_path: broken.py, location_name: other}}]")
    with webserver(here, workspace=workspace), pytest.raises(PushError, match="cannot load the code location"):
        push(now, instance, here)
