"""`mlops run` in this process; `processes/test_run.py` kills and interrupts it."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from mlops_assets.home import ensure_home, open_instance
from mlops_assets.pipeline import STAGES
from mlops_assets.provenance import asset_key
from mlops_assets.settings import settings
from mlops_assets_tests.cli.conftest import Mlops
from mlops_assets_tests.mlflow_fixtures import close_stores

pytestmark = [
    pytest.mark.slow,
    # Observable source assets are beta in Dagster 1.13; `dg.load_from_defs_folder` silences the same warnings.
    pytest.mark.filterwarnings(
        "ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning"
    ),
    pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning"),  # Dagster's own use of it
]


@pytest.fixture
def instance(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    with open_instance(ensure_home(settings())) as opened:
        yield opened
    close_stores()


def made(instance: dg.DagsterInstance) -> list[int]:
    """How often each stage was materialized."""
    filters = [dg.AssetRecordsFilter(asset_key("iris", stage)) for stage in STAGES]
    return [len(instance.fetch_materializations(one, limit=100).records) for one in filters]


def test_a_trial_is_not_promoted_and_the_next_run_trains_as_the_file_says(
    mlops: Mlops, instance: dg.DagsterInstance
) -> None:
    trial = mlops("run", "iris", "--epochs", "2")
    assert trial.code == 0, trial.out + trial.err
    assert "iris has no data yet: importing the sample 'iris'" in trial.out
    assert "a trial with 2 epochs, which is never promoted: accuracy 0." in trial.out
    assert made(instance) == [1, 1, 1, 1, 0, 0]
    whole = mlops("run", "iris")
    assert whole.code == 0, whole.out + whole.err
    assert made(instance) == [1, 1, 2, 2, 1, 1]
