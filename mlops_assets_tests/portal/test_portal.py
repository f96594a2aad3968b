"""The portal over a real Dagster instance and real Oxen repositories: what it shows, and that nothing makes it wait."""

import asyncio
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest

from mlops_assets.home import POSTGRES_YAML
from mlops_assets.pipeline import Pipeline
from mlops_assets.portal import app
from mlops_assets.portal import gatherer as gathering
from mlops_assets.portal.app import ago, create_app
from mlops_assets.portal.gatherer import Gatherer
from mlops_assets.provenance import asset_key
from mlops_assets.registry.ledger import Ledger
from mlops_assets.settings import Settings, settings
from mlops_assets_tests.materialized import Several, several
from mlops_assets_tests.serving.asking import app_of, listening
from mlops_assets_tests.serving.made import publish_table

__all__ = ["several"]

EVIL = "<img src=x onerror=alert(1)>\"' & {{ 7*7 }}"


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "PAUSE_SECONDS", 0.02)
    for patience in ("FIRST_SECONDS", "SLOW_SECONDS", "STOP_SECONDS"):  # a busy machine makes nobody give up
        monkeypatch.setattr(gathering, patience, 180.0)


class Portal:
    def __init__(self, here: Settings, gatherer: Gatherer) -> None:
        self._app = create_app(here, gatherer)

    def get(self, path: str) -> httpx.Response:
        async def once() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url="http://portal") as client:
                return await client.get(path)

        return asyncio.run(once())

    def until(self, wanted: str) -> dict[str, Any]:
        """What it says when its page has a text."""
        deadline = time.monotonic() + 180
        while True:
            told: dict[str, Any] = self.get("/status.json").json()
            if re.search(wanted, told["html"]):
                return told
            assert time.monotonic() < deadline, told
            time.sleep(0.02)

    def values(self) -> dict[str, float]:
        lines = [line for line in self.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


@contextmanager
def portal_of(several: Several) -> Iterator[Portal]:
    with Gatherer(several.here, lambda: several.folders) as gatherer:
        yield Portal(several.here, gatherer)


def promote(several: Several, name: str, version: int) -> None:
    told = {"champion": version, "accuracy": 0.9, "accuracy_lower": 0.8, "accuracy_upper": 0.95, "test rows": 40}
    several.instance.report_runless_asset_event(dg.AssetMaterialization(asset_key(name, "champion"), metadata=told))
    ledger = Ledger(several.here.home / "ledger", name)
    with ledger.lock():
        ledger.append("moved", {"version": version})


@pytest.mark.slow
def test_each_pipeline_is_shown_with_what_is_known_of_it(several: Several, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(several, "one", 3)
    (several.here.repository("two")).commit(EVIL, files={"other.txt": b""})
    publish_table(several.here.home)
    with listening(app_of(several.here.home)) as address, portal_of(several) as portal:
        monkeypatch.setattr(several.here, "serve_at", f"http://{address}")
        page, told = portal.get("/"), portal.until("not served")
        one, two = told["picture"]["rows"]
        assert (one["champion"]["version"], one["champion"]["accuracy"], one["served"]) == (3, 0.9, None)
        assert datetime.now(UTC) - datetime.fromisoformat(one["champion"]["since"]) < timedelta(minutes=10)
        assert (two["state"], two["champion"], two["data"]["message"]) == ("up to date", None, EVIL)
        values = portal.values()
    assert values['mlops_pipeline_champion_version{pipeline="one"}'] == 3
    assert values['mlops_pipeline_champion_accuracy{pipeline="one"}'] == 0.9
    assert values['mlops_pipeline_served_version{pipeline="one"}'] == 0
    assert values['mlops_pipeline_stale_stages{pipeline="two"}'] == 0
    assert 'mlops_pipeline_champion_version{pipeline="two"}' not in values
    assert values["mlops_portal_gathered_age_seconds"] >= 0
    assert values["mlops_backup_timestamp_seconds"] == 0
    for html in (page.text, told["html"]):
        assert "&lt;img src=x onerror=alert(1)&gt;" in html
        assert "<img" not in html
        assert "0.800 to 0.950, on 40 test rows" in html
        assert "promoted <time" in html
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)=\"(?!portal/|/|#|http://127\.0\.0\.1)", page.text)


@pytest.mark.slow
def test_what_is_stale_blocked_damaged_or_broken_is_told(several: Several) -> None:
    yaml = several.folders[0] / "defs.yaml"
    with portal_of(several) as portal:
        portal.until("up to date")
        yaml.write_text(yaml.read_text().replace("epochs: 200", "epochs: 20"))
        one, two = portal.until(r"data-state=\"stale\"")["picture"]["rows"]
        assert (one["stale"] > 0, two["state"]) == (True, "up to date")
        assert "model: code changed" in one["reasons"][0]
        assert portal.values()['mlops_pipeline_stale_stages{pipeline="one"}'] == one["stale"]

        promote(several, "two", 1)
        ledger = several.here.home / "ledger" / "two.jsonl"
        ledger.write_text(ledger.read_text().replace('"version":1', '"version":2'))
        told = portal.until(r"mlops ledger verify")
        assert told["picture"]["rows"][1]["state"] == "error"

        yaml.write_text("type: nothing")
        assert portal.until("one/defs.yaml")["picture"]["rows"][0]["state"] == "error"
        assert portal.values()['mlops_pipeline_failing{pipeline="one"}'] == 1


@pytest.mark.slow
def test_a_pipeline_of_another_host_is_no_error(several: Several) -> None:
    yaml = several.folders[0] / "defs.yaml"
    yaml.write_text(yaml.read_text().replace("attributes:", "attributes:\n  location: gpu"))
    several.here.repository("one").path.rename(several.here.home / "elsewhere")
    assert Pipeline.load(several.folders[0]).spec.location == "gpu"
    with portal_of(several) as portal:
        row = portal.until("elsewhere")["picture"]["rows"][0]
        assert (row["state"], row["reasons"]) == ("elsewhere", ["code location 'gpu' has it"])
        assert portal.values()['mlops_pipeline_failing{pipeline="one"}'] == 0


@pytest.mark.slow
def test_a_pipeline_that_waits_for_data_is_no_error_and_one_that_lost_them_is(several: Several) -> None:
    several.folders.append(Path(shutil.copytree(several.folders[0], several.folders[0].with_name("three"))))
    several.here.repository("one").path.rename(several.here.home / "aside")
    with portal_of(several) as portal:
        one, _, three = portal.until("no data yet")["picture"]["rows"]
        assert (three["state"], three["champion"], three["run"]) == ("no data yet", None, None)
        assert three["reasons"] == ["no data yet; `mlops data import three` brings some"]
        assert (one["state"], "there is no Oxen repository" in one["reasons"][0]) == ("error", True)
        assert portal.values()['mlops_pipeline_failing{pipeline="three"}'] == 0


@pytest.mark.slow
def test_a_failure_keeps_the_last_picture_and_heals(several: Several) -> None:
    file = several.here.dagster_home / "dagster.yaml"
    whole = file.read_text()
    with Gatherer(several.here, lambda: several.folders if "nonsense" not in file.read_text() else [1 / 0]) as gatherer:
        portal = Portal(several.here, gatherer)
        portal.until("up to date")
        file.write_text(f"{whole}nonsense: 1\n")
        told = portal.until("ZeroDivisionError")
        assert "What you see is from" in told["html"]
        assert len(told["picture"]["rows"]) == 2
        portal.until("dagster.yaml")
        assert portal.values()["mlops_portal_problem"] == 1
        file.write_text(whole)
        while portal.values()["mlops_portal_problem"]:
            time.sleep(0.02)
        assert portal.get("/health").text == "ok"
    assert portal.get("/health").status_code == 503


@pytest.mark.slow
def test_a_database_that_never_answers_is_told_of_at_once(several: Several, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dagster_postgres")
    monkeypatch.setattr(gathering, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(gathering, "SLOW_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(
            "MLOPS_DAGSTER_DATABASE", f"postgresql+psycopg2://u:s3cret@127.0.0.1:{silent.getsockname()[1]}/dagster"
        )
        file = several.here.dagster_home / "dagster.yaml"
        file.write_text(file.read_text() + POSTGRES_YAML)
        with portal_of(several) as portal:
            told = portal.until("has not answered for")
            assert told["picture"] is None
            assert "s3cret" not in portal.get("/").text
            silent.close()


def test_links_lead_through_the_proxy_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlops_assets.portal.app import links

    assert links(settings())["mlflow"] == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLOPS_PUBLIC_URL", "https://mlops.example.com")
    settings.cache_clear()
    assert links(settings()) == {"dagster": "/dagster", "mlflow": "/mlflow", "models": "", "playground": "/playground"}


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "just now"), (59, "just now"), (60, "1 minute ago"), (7300, "2 hours ago"), (90000, "1 day ago")],
)
def test_ages_are_told_in_words(seconds: float, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return now

    monkeypatch.setattr(app, "datetime", Clock)
    assert ago(now - timedelta(seconds=seconds)) == told
