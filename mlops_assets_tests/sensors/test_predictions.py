"""What the sensor asks for as files come and go, and champions change."""

from collections.abc import Iterator
from dataclasses import replace

import dagster as dg
import pytest

from mlops_assets.assessment import Assessment
from mlops_assets.assets.predictions import predictions_key
from mlops_assets.data import samples
from mlops_assets.pipeline import Pipeline
from mlops_assets.sensors import predictions
from mlops_assets.sensors.predictions import scoring_request
from mlops_assets.serving.batch_plan import Manifest, PredictionsTaken, Record
from mlops_assets_tests.loop import Loop

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning"
    ),
    pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning"),
]

FLOWERS = samples.iris().drop("species").write_csv().encode()
ONE = {"incoming/new.csv": FLOWERS}


@pytest.fixture(autouse=True)
def _nothing_seen() -> Iterator[None]:
    yield
    predictions._looks.clear()


def arrive(loop: Loop) -> None:
    loop.repository.commit("arrived", files=dict(ONE))


def leave(loop: Loop) -> None:
    loop.repository.commit("gone", remove=[*ONE])


def outputs(loop: Loop) -> list[str]:
    found = loop.repository.entries("predictions", loop.repository.resolve("main"))
    return [entry.path for entry in found if entry.path.endswith(".parquet")]


def test_what_comes_back_is_asked_for_again(settled: Loop) -> None:
    """More than twice each: what lies in the repository is then what lay there before."""
    for _ in range(3):
        arrive(settled)
        assert settled.settle() == ["predictions"]
        assert outputs(settled) == ["predictions/new.csv.parquet"]
        leave(settled)
        assert settled.settle() == ["predictions"]
        assert outputs(settled) == []
    arrive(settled)
    settled.settle()
    for _ in range(2):
        settled.repository.commit("oops", remove=["predictions/new.csv.parquet"])
        assert settled.settle() == ["predictions"]
        assert outputs(settled) == ["predictions/new.csv.parquet"]
    assert settled.tick() == "nothing is stale"


def test_a_run_that_failed_is_asked_for_once_from_where_it_starts(settled: Loop) -> None:
    arrive(settled)
    assert isinstance(settled.tick(), dg.RunRequest)
    assert [settled.tick() for _ in range(3)] == ["asked for before"] * 3
    leave(settled)
    assert settled.tick() == "nothing is stale"
    arrive(settled)
    assert isinstance(settled.tick(), dg.RunRequest)


def test_a_champion_that_comes_back_is_asked_for_again(settled: Loop) -> None:
    arrive(settled)
    keys = []
    for digest in "abababa":
        request = scoring_request(now(settled, digest), settled.repository)
        assert request is not None
        assert request.asset_selection == [predictions_key("iris")]
        keys.append(request.run_key)
        again = scoring_request(now(settled, digest), settled.repository)
        assert again is not None
        assert again.run_key == request.run_key
        score(settled, digest)
        assert scoring_request(now(settled, digest), settled.repository) is None
    assert len({*keys}) == len(keys)


def test_the_predictions_of_another_pipeline_are_not_asked_for(settled: Loop) -> None:
    arrive(settled)
    score(settled, "a", "meadows")

    with pytest.raises(PredictionsTaken):
        scoring_request(now(settled, "a"), settled.repository)

    assert str(settled.tick()).startswith(
        "iris/predictions: `predictions` holds the predictions of the pipeline meadows"
    )
    assert settled.run([predictions_key("iris")]).success is False


def now(loop: Loop, champion: str) -> Assessment:
    found = Assessment.of(Pipeline.load(loop.folder), loop.repository, loop.instance)
    return replace(found, state={**found.state, "champion": replace(found.state["champion"], digest=champion)})


def score(loop: Loop, champion: str, pipeline: str = "iris") -> None:
    """What a round by a champion commits."""
    (entry,) = loop.repository.entries("incoming/new.csv", loop.repository.resolve("main"))
    output = "predictions/new.csv.parquet"
    record = Record(input=entry.hash, output=output, model_digest=champion, contract="", version=1)
    manifest = Manifest(pipeline=pipeline, files={entry.path: record})
    files = {output: champion.encode(), "predictions/manifest.json": manifest.to_bytes()}
    assert loop.repository.commit("scored", files=files)
