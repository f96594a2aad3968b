"""One tick over several pipelines."""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from mlops_assets.component import pipeline_definitions
from mlops_assets.data import samples
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import asset_key, job_name, source_key
from mlops_assets.sensors import rematerialize
from mlops_assets.sensors.instance import instance_of
from mlops_assets_tests.materialized import Several, several

__all__ = ["several"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning"
    ),
]


@dataclass
class Daemon:
    """The sensor of a code location that was loaded once, and its cursor."""

    several: Several
    sensor: dg.SensorDefinition
    cursor: str | None = None

    def tick(self) -> dg.SensorResult:
        """One evaluation; a later one watches for new data before it ends, as in Dagster's daemon."""
        with dg.build_sensor_context(instance=self.several.instance, cursor=self.cursor) as context:
            context._last_tick_completion_time = time.time() if self.cursor else None
            result = self.sensor(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        return result


@pytest.fixture
def daemon(several: Several, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    monkeypatch.setattr(rematerialize, "WATCH_SECONDS", 0.0)
    definitions = dg.Definitions.merge(*[pipeline_definitions(Pipeline.load(folder)) for folder in several.folders])
    return Daemon(several, rematerialize.build_rematerialize(several.folders, list(definitions.jobs or ())))


def reason(result: dg.SensorResult) -> str:
    return str(result.skip_reason.skip_message) if isinstance(result.skip_reason, dg.SkipReason) else ""


def edit(folder: Path, file: str, old: str, new: str) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))


def asked_for(result: dg.SensorResult) -> dict[str | None, Sequence[dg.AssetKey] | None]:
    return {request.job_name: request.asset_selection for request in result.run_requests or ()}


def test_each_stale_pipeline_gets_a_run_of_its_own(daemon: Daemon) -> None:
    one, two = daemon.several.folders
    result = daemon.tick()
    assert (asked_for(result), reason(result)) == ({}, "nothing is stale")
    assert {event.asset_key for event in result.asset_events} == {source_key("one"), source_key("two")}

    edit(one, "defs.yaml", "n > 0.75", "n > 0.76")
    edit(two, "defs.yaml", "learning_rate: 0.01", "learning_rate: 0.02")
    result = daemon.tick()
    assert asked_for(result) == {
        job_name("one"): [asset_key("one", stage) for stage in ("champion", "deployment")],
        job_name("two"): [asset_key("two", stage) for stage in ("model", "evaluation", "champion", "deployment")],
    }
    assert not result.asset_events, "the data are as the cursor has them"


def test_a_reason_names_only_those_that_are_not_up_to_date(daemon: Daemon) -> None:
    one, two = daemon.several.folders
    edit(one, "defs.yaml", "target:", "targt:")
    result = daemon.tick()
    assert "one: " in reason(result)
    assert "did you mean 'target'" in reason(result)
    assert "two" not in reason(result)
    assert set(json.loads(result.cursor or "")) == {"two"}

    edit(two, "defs.yaml", "n > 0.75", "n > 0.76")
    assert list(asked_for(daemon.tick())) == [job_name("two")], "another's mistake is not in the way"


def test_a_pipeline_whose_sensor_is_off_is_not_asked_for(daemon: Daemon) -> None:
    one, _ = daemon.several.folders
    edit(one, "defs.yaml", "n > 0.75", "n > 0.76")
    edit(one, "defs.yaml", "attributes:\n", "attributes:\n  sensor: false\n")
    result = daemon.tick()
    assert asked_for(result) == {}
    assert "one: stale, but its defs.yaml says `sensor: false`; use `mlops run one`" in reason(result)


def test_data_that_come_while_a_tick_waits_are_asked_for_by_it(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.tick()
    monkeypatch.setattr(rematerialize, "WATCH_SECONDS", 60.0)
    table = samples.iris_uci().write_csv().encode()
    committing = threading.Timer(
        0.2, daemon.several.here.repository("two").commit, ["x"], {"files": {"iris.csv": table}}
    )
    committing.start()
    result = daemon.tick()
    committing.join()
    assert list(asked_for(result)) == [job_name("two")]
    assert [event.asset_key for event in result.asset_events] == [source_key("two")]


def test_a_repository_that_appears_later_is_found(daemon: Daemon) -> None:
    path = daemon.several.here.repository("one").path
    aside = path.with_name("aside")
    path.rename(aside)
    assert "no Oxen repository" in reason(daemon.tick())
    aside.rename(path)
    assert reason(daemon.tick()) == "nothing is stale"


def test_a_process_opens_its_instance_once(several: Several, tmp_path: Path) -> None:
    def opened(ref: object) -> dg.DagsterInstance:
        with dg.build_sensor_context(instance_ref=ref) as context:  # type: ignore[arg-type]
            return instance_of(context)

    ref = several.instance.get_ref()
    first = opened(ref)
    assert opened(several.instance.get_ref()) is first
    assert first.get_runs() == [], "it is still open"
    (tmp_path / "other").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "other")) as other:
        assert opened(other.get_ref()) is not first
        assert opened(other.get_ref()).root_directory == str(tmp_path / "other")
