"""What is remembered of the event log is what the event log says, whatever happens to it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from mlops_assets.fingerprint import Recipe
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.pipeline import STAGES
from mlops_assets.provenance import RECIPE, asset_key, provenance_metadata, read_state, read_states
from mlops_assets.settings import settings
from mlops_assets_tests.materialized import report, report_check

pytestmark = pytest.mark.slow

MADE_BY = Recipe("iris/dataset", "c", {"oxen": "file-1"})
AGAIN = Recipe("iris/dataset", "c", {"oxen": "file-2"})
PIPELINES = ("iris", "digits")


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with open_instance(ensure_home(settings())) as opened:
        yield opened


def dataset(instance: dg.DagsterInstance) -> tuple[str, dict[str, bool]] | None:
    """The dataset's digest and checks as they are remembered, which must be as they are."""
    states = read_states(instance, PIPELINES)
    assert states == {name: read_state(instance, name) for name in PIPELINES}
    made = states["iris"].get("dataset")
    return (made.digest, dict(made.checks)) if made else None


def test_materializations_and_check_results_are_seen(instance: dg.DagsterInstance) -> None:
    assert dataset(instance) is None
    report(instance, "iris", "dataset", "a", MADE_BY)
    assert dataset(instance) == ("a", {})
    report_check(instance, "iris", "dataset", "schema", MADE_BY)
    assert dataset(instance) == ("a", {"schema": True})
    report_check(instance, "iris", "dataset", "schema", MADE_BY, passed=False)
    assert dataset(instance) == ("a", {"schema": False})
    report_check(instance, "iris", "dataset", "target", MADE_BY)
    assert dataset(instance) == ("a", {"schema": False, "target": True})
    report(instance, "iris", "dataset", "b", AGAIN)
    assert dataset(instance) == ("b", {}), "the results are of what was there before"


def test_what_did_not_change_is_not_read_again(instance: dg.DagsterInstance) -> None:
    report(instance, "iris", "dataset", "a", MADE_BY)
    report(instance, "digits", "dataset", "a", MADE_BY)
    before = read_states(instance, PIPELINES)
    report(instance, "iris", "dataset", "b", AGAIN)
    after = read_states(instance, PIPELINES)
    assert after["digits"] is before["digits"]
    assert after["iris"] is not before["iris"]


def test_a_check_that_ends_after_its_run_was_looked_at_is_seen(instance: dg.DagsterInstance) -> None:
    seen = []

    @dg.asset(key=asset_key("iris", "dataset"))
    def made() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata=provenance_metadata(MADE_BY, "a"))

    @dg.asset_check(asset=made, name="schema")
    def schema() -> dg.AssetCheckResult:
        seen.append(dataset(instance))  # Dagster has noted by now that the check is planned
        return dg.AssetCheckResult(passed=True, metadata={RECIPE: MADE_BY.key})

    assert dg.materialize([made, schema], instance=instance).success
    assert seen == [("a", {})]
    assert dataset(instance) == ("a", {"schema": True})


def test_a_check_that_is_tried_again_in_its_run_is_seen(instance: dg.DagsterInstance) -> None:
    key = asset_key("iris", "dataset")
    report(instance, "iris", "dataset", "a", MADE_BY)
    seen = []

    @dg.asset(key=key, check_specs=[dg.AssetCheckSpec("schema", asset=key)], output_required=False)
    def made() -> Iterator[dg.AssetCheckResult]:
        seen.append(dataset(instance))
        yield dg.AssetCheckResult(passed=len(seen) > 1, metadata={RECIPE: MADE_BY.key})
        if len(seen) == 1:
            raise dg.RetryRequested(max_retries=1)

    assert dg.materialize([made], instance=instance).success
    assert seen == [("a", {}), ("a", {"schema": False})]
    assert dataset(instance) == ("a", {"schema": True})


def test_a_result_is_seen_though_a_later_run_has_planned_the_check(instance: dg.DagsterInstance) -> None:
    key = asset_key("iris", "dataset")
    report(instance, "iris", "dataset", "a", MADE_BY)
    report_check(instance, "iris", "dataset", "schema", MADE_BY, passed=False)

    @dg.asset(key=key, output_required=False)
    def unchanged() -> Iterator[dg.MaterializeResult[None]]:
        yield from ()

    @dg.asset_check(asset=key, name="schema")
    def late() -> dg.AssetCheckResult:
        assert dg.materialize([unchanged, skipped], instance=instance).success
        assert dataset(instance) == ("a", {"schema": False})
        return dg.AssetCheckResult(passed=True, metadata={RECIPE: MADE_BY.key})

    @dg.asset_check(asset=unchanged, name="schema")
    def skipped() -> dg.AssetCheckResult:
        raise AssertionError

    checks = dg.Definitions(
        asset_checks=[late], jobs=[dg.define_asset_job("j", selection=dg.AssetSelection.all_asset_checks())]
    )
    assert checks.resolve_job_def("j").execute_in_process(instance=instance).success
    assert dataset(instance) == ("a", {"schema": True})


def test_a_planned_check_that_never_ran_hides_no_result(instance: dg.DagsterInstance) -> None:
    passes = True

    @dg.asset(key=asset_key("iris", "dataset"), output_required=False)
    def made() -> Iterator[dg.MaterializeResult[None]]:
        if passes:
            yield dg.MaterializeResult(metadata=provenance_metadata(MADE_BY, "a"))

    @dg.asset_check(asset=made, name="schema")
    def schema() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True, metadata={RECIPE: MADE_BY.key})

    assert dg.materialize([made, schema], instance=instance).success
    assert dataset(instance) == ("a", {"schema": True})
    passes = False
    assert dg.materialize([made, schema], instance=instance).success
    assert dataset(instance) == ("a", {"schema": True})


def test_an_event_of_another_process_is_seen(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    report(instance, "iris", "dataset", "a", MADE_BY)
    assert dataset(instance) == ("a", {})
    program = (
        "import dagster as dg\n"
        "from mlops_assets.fingerprint import Recipe\n"
        "from mlops_assets_tests.materialized import report\n"
        "with dg.DagsterInstance.get() as instance:\n"
        "    report(instance, 'iris', 'dataset', 'b', Recipe('iris/dataset', 'c', {'oxen': 'file-2'}))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent.parent, env=os.environ)
    assert dataset(instance) == ("b", {})


def test_a_wiped_asset_is_gone_and_comes_back(instance: dg.DagsterInstance) -> None:
    report(instance, "iris", "dataset", "a", MADE_BY)
    report_check(instance, "iris", "dataset", "schema", MADE_BY)
    assert dataset(instance) == ("a", {"schema": True})
    instance.wipe_assets([asset_key("iris", "dataset")])
    assert dataset(instance) is None
    report(instance, "iris", "dataset", "a", MADE_BY)
    assert dataset(instance) == ("a", {})


def test_deleting_the_run_changes_what_it_changes(instance: dg.DagsterInstance) -> None:
    @dg.asset(key=asset_key("iris", "dataset"))
    def made() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata=provenance_metadata(MADE_BY, "a"))

    run = dg.materialize([made], instance=instance)
    before = dataset(instance)
    instance.delete_run(run.run_id)
    assert dataset(instance) == before, "Dagster keeps the newest materialization beside the asset"
    instance.wipe_assets([asset_key("iris", "dataset")])
    assert dataset(instance) is None


def test_another_home_is_another_memory(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    report(instance, "iris", "dataset", "a", MADE_BY)
    assert dataset(instance) == ("a", {})
    (tmp_path / "other").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "other")) as other:
        report(other, "iris", "dataset", "b", AGAIN)
        assert dataset(other) == ("b", {})
        assert dataset(instance) == ("a", {})


def test_an_instance_in_memory_is_read_like_any_other() -> None:
    with dg.DagsterInstance.ephemeral() as other:
        report(other, "iris", "dataset", "a", MADE_BY)
        assert dataset(other) == ("a", {})
        report(other, "iris", "dataset", "b", AGAIN)
        assert dataset(other) == ("b", {})


def test_no_pipelines_are_no_states(instance: dg.DagsterInstance) -> None:
    assert read_states(instance, []) == {}
    assert set(STAGES) > set(read_state(instance, "iris"))
