"""The asset over a real champion: trained, registered, promoted, and asked for files that arrive."""

import dagster as dg
import polars as pl
import pytest

from mlops_assets.assets.predictions import build_predictions, predictions_key
from mlops_assets.data import samples
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import latest_metadata
from mlops_assets_tests.loop import QUIET, Loop

pytestmark = [
    pytest.mark.slow,
    # Observable source assets are beta in Dagster 1.13; `dg.load_from_defs_folder` silences the same warnings.
    pytest.mark.filterwarnings(
        "ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning"
    ),
    pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning"),  # Dagster's own use of it
]

FLOWERS = samples.iris().drop("species")


def materialize(loop: Loop) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        build_predictions(Pipeline.load(loop.folder)),
        instance=loop.instance,
        resources=loop.resources,
        run_config=QUIET,
        raise_on_error=False,
    )


def told(loop: Loop) -> dict[str, object]:
    (metadata,) = latest_metadata(loop.instance, [predictions_key("iris")])
    return {name: value.value for name, value in metadata.items()}


def check(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    (evaluation,) = result.get_asset_check_evaluations()
    return evaluation


def test_files_that_arrive_are_scored_by_the_champion(settled: Loop) -> None:

    assert materialize(settled).success
    assert told(settled)["outcome"] == "there is no file to score"
    assert told(settled)["committed"] is False

    bad = FLOWERS.with_columns(sepal_length=pl.when(pl.col("id") == 3).then(-1.0).otherwise("sepal_length"))
    files = {"incoming/new.csv": FLOWERS.write_csv().encode(), "incoming/bad.csv": bad.write_csv().encode()}
    settled.repository.commit("arrived", files=files)
    result = materialize(settled)

    assert result.success
    assert not check(result).passed
    assert str(check(result).description).startswith("incoming/bad.csv, row 3, column 'sepal_length': -1.0 is refused")
    found = told(settled)
    assert found["outcome"] == (
        "of 2 inputs 1 scored, 0 taken from the store, 1 refused, 0 known already; 0 predictions removed"
    )
    assert (found["version"], found["dagster/row_count"], found["files"]) == (1, FLOWERS.height, 2)
    head = settled.repository.resolve("main")
    assert found["oxen commit"] == head
    (entry,) = settled.repository.entries("predictions/new.csv.parquet", head)
    scored = pl.read_parquet(settled.repository.read(entry))
    right = (scored["label"] == samples.iris()["species"].cast(pl.String)).mean()
    assert isinstance(right, float)
    assert right > 0.9

    assert materialize(settled).success
    assert told(settled)["skipped files"] == 2
    assert settled.repository.resolve("main") == head
    assert settled.tick() == "nothing is stale", "predictions are no data of the pipeline"


def test_without_a_champion_the_run_says_so(loop: Loop) -> None:
    loop.commit(samples.iris())

    result = materialize(loop)

    assert result.success, "no other run would mend it"
    assert check(result).passed
    assert "has no champion yet" in str(told(loop)["outcome"])
