"""The registry's sensor beside a real MLflow server, and MLflow's webhooks beside both."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import dagster as dg
import pytest

from mlops_assets.assets.champion import MOVE_TAG
from mlops_assets.cli.up import mlflow_service, webhook_service
from mlops_assets.registry import aliases, watch
from mlops_assets.registry.champion import Champions
from mlops_assets.registry.ledger import Ledger
from mlops_assets.registry.watch import Seen, look
from mlops_assets.sensors import registry
from mlops_assets.sensors.registry import build_registry
from mlops_assets.services import started
from mlops_assets.settings import settings
from mlops_assets.tracking.runs import Tracking
from mlops_assets_tests.loop import Loop, made
from mlops_assets_tests.processes.conftest import free_ports

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning"
    ),
    pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning"),
]

SECRET = "correct horse"


@dataclass
class Watched:
    loop: Loop
    sensor: dg.SensorDefinition
    cursor: str | None = None

    def tick(self) -> dg.SensorResult:
        with dg.build_sensor_context(instance=self.loop.instance, cursor=self.cursor) as context:
            result = self.sensor(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        return result

    def later(self) -> dg.SensorResult:
        """A tick when the last look is long past."""
        self.cursor = None
        return self.tick()

    @property
    def tracking(self) -> Tracking:
        return Tracking.embedded(self.loop.here.home)


@pytest.fixture(autouse=True)
def ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the home's settings are read."""
    mlflow, webhook = free_ports(2)
    monkeypatch.setenv("MLOPS_MLFLOW_PORT", str(mlflow))
    monkeypatch.setenv("MLOPS_WEBHOOK_PORT", str(webhook))
    monkeypatch.setenv("MLOPS_WEBHOOK_SECRET", SECRET)
    settings.cache_clear()


@pytest.fixture
def watched(ports: None, settled: Loop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(registry, "LOOK_SECONDS", 3600.0)  # a moment, however slow the tests are
    monkeypatch.setattr(watch, "SECONDS", 120.0)
    here = settings()
    mlflow = mlflow_service(here)
    local = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
    mlflow = replace(mlflow, environment={**mlflow.environment, **local})
    jobs = list(settled.definitions().jobs or ())
    with started([mlflow]):
        yield Watched(settled, build_registry([settled.folder], jobs))


def reason(result: dg.SensorResult) -> str:
    assert isinstance(result.skip_reason, dg.SkipReason)
    return str(result.skip_reason.skip_message)


def foreign(watched: Watched) -> int:
    """Register a version as others do, without our tags."""
    ours = aliases.current(watched.tracking, "iris", "champion")
    assert ours is not None
    source = watched.tracking.client.get_model_version("iris", str(ours.number)).source
    return int(watched.tracking.client.create_model_version("iris", source).version)


def test_what_others_do_is_seen_judged_and_noted(watched: Watched) -> None:
    seen = look(settings().mlflow_url)["iris"]
    assert (seen.aliases["champion"], seen.unjudged) == (1, {})
    assert reason(watched.tick()) == "the registry is as the ledgers say"
    assert reason(watched.tick()) == "looked a moment ago"

    first, second = foreign(watched), foreign(watched)
    requests = watched.later().run_requests
    wanted = [{"how": "candidate", "version": version} for version in (first, second)]
    assert [json.loads(request.tags[MOVE_TAG]) for request in requests] == wanted
    for request in requests:
        result = watched.loop.run(list(request.asset_selection or []), request.tags)
        assert made(result) == ["champion"], result.failure_data_for_node("iris__champion")
    assert reason(watched.later()) == "the registry is as the ledgers say", "each is judged once"

    watched.tracking.client.delete_registered_model_alias("iris", "champion")
    (request,) = watched.later().run_requests
    assert json.loads(request.tags[MOVE_TAG]) == {"how": "notice"}
    assert made(watched.loop.run(list(request.asset_selection or []), request.tags)) == ["champion"]
    records = Ledger(watched.loop.here.home / "ledger", "iris").records()
    assert records[-1].kind == "noticed"
    assert records[-1].facts["version"] is None
    champions = Champions(Ledger(watched.loop.here.home / "ledger", "iris"), watched.tracking, "iris", "champion")
    assert champions.verify() == []


def test_a_promotion_that_falls_into_the_look_is_no_move_of_others(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = foreign(watched)
    assert watched.later().run_requests, "it is to be judged"
    ledger = Ledger(watched.loop.here.home / "ledger", "iris")
    champions = Champions(ledger, watched.tracking, "iris", "champion")

    def overtaken(url: str) -> dict[str, Seen]:
        seen = look(url)
        with ledger.lock():
            champions.move(version, how="hand", actor="tom", reason="a test", dagster_run="")
        return seen

    monkeypatch.setattr(registry, "look", overtaken)
    assert reason(watched.later()) == "the registry is as the ledgers say"


def test_a_webhook_of_mlflow_has_the_registry_looked_at(watched: Watched) -> None:
    from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent

    assert reason(watched.tick()) == "the registry is as the ledgers say"
    here = settings()
    server = Tracking(here.mlflow_url).client
    local = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
    os.environ |= local
    try:
        server.create_webhook(
            "mlops_assets",
            f"{here.webhook_url}/webhook",
            [WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)],
            secret=SECRET,
        )
    finally:
        for name in local:
            del os.environ[name]
    with started([webhook_service(here)]):
        server.set_registered_model_alias("iris", "spare", "1")
        deadline = time.monotonic() + 300
        while not here.registry_poke.exists():
            assert time.monotonic() < deadline, (here.home / "logs" / "mlflow.log").read_text()
            time.sleep(0.1)
    assert reason(watched.tick()) == "the registry is as the ledgers say", "and not: looked a moment ago"


def test_without_a_server_the_sensor_waits(loop: Loop) -> None:
    sensor = Watched(loop, build_registry([loop.folder], list(loop.definitions().jobs or ())))
    assert reason(sensor.tick()).startswith("no MLflow server shows its registry at http://127.0.0.1:")
