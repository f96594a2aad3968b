"""What people are told of a pipeline, from the event log."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from mlops_assets.fingerprint import Recipe
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.pipeline import Stage
from mlops_assets.provenance import PIPELINE_TAG, asset_key, provenance_metadata
from mlops_assets.report import all_champion_facts, last_run, last_runs
from mlops_assets.settings import settings

pytestmark = pytest.mark.slow


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with open_instance(ensure_home(settings())) as opened:
        yield opened


def asset(pipeline: str, stage: Stage, *, fails: bool = False) -> dg.AssetsDefinition:
    @dg.asset(key=asset_key(pipeline, stage))
    def made() -> dg.MaterializeResult[None]:
        if fails:
            raise dg.Failure("on purpose", allow_retries=False)
        told = provenance_metadata(Recipe(f"{pipeline}/{stage}", "c", {}), "d")
        return dg.MaterializeResult(metadata={"champion": 3, "test rows": 9, **told})

    return made


def test_the_last_run_is_the_newest_whoever_asked_for_it(instance: dg.DagsterInstance) -> None:
    assert last_run(instance, "iris") is None
    dataset, model = asset("iris", "dataset"), asset("iris", "model", fails=True)
    asked_for = dg.materialize([dataset], instance=instance, tags={PIPELINE_TAG: "iris"})
    found = last_run(instance, "iris")
    assert found
    assert found.run_id == asked_for.run_id

    by_hand = dg.materialize([model], instance=instance, raise_on_error=False)
    found = last_run(instance, "iris")
    assert found
    assert (found.run_id, found.status) == (by_hand.run_id, dg.DagsterRunStatus.FAILURE)

    for_both = dg.materialize([dataset, asset("digits", "dataset")], instance=instance)
    assert {name: run.run_id for name, run in last_runs(instance, ["iris", "digits", "cifar10"]).items()} == {
        "iris": for_both.run_id,
        "digits": for_both.run_id,
    }


def test_the_last_run_survives_a_wipe_and_a_deletion(instance: dg.DagsterInstance) -> None:
    dataset = asset("iris", "dataset")
    first = dg.materialize([dataset], instance=instance, tags={PIPELINE_TAG: "iris"})
    instance.wipe_assets([asset_key("iris", "dataset")])
    found = last_run(instance, "iris")
    assert found
    assert found.run_id == first.run_id
    second = dg.materialize([dataset], instance=instance)
    instance.delete_run(second.run_id)
    found = last_run(instance, "iris")
    assert found
    assert found.run_id == first.run_id


def test_champions_are_told_by_name(instance: dg.DagsterInstance) -> None:
    dg.materialize([asset("iris", "champion")], instance=instance)
    found = all_champion_facts(instance, ["digits", "iris"])
    assert {name: (facts.version, facts.rows) for name, facts in found.items()} == {"iris": (3, 9)}
