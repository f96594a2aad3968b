"""What is refused by itself, while the round goes on with the rest."""

import json
from typing import Any

import polars as pl
import pytest

from mlops_assets.serving import batch_run, batch_tables
from mlops_assets.serving.batch_plan import PredictionsTaken
from mlops_assets_tests.serving.made import loaded, publish_table
from mlops_assets_tests.serving.test_batch_run import Batch, flowers, folder, rows, slot, template

__all__ = ["flowers", "folder", "template"]

pytestmark = pytest.mark.slow

LONG = "n" * 250 + ".csv"


@pytest.mark.parametrize("name", ["a.csv.parquet/b.csv", "manifest.json/b.csv", LONG])
def test_an_input_whose_predictions_have_no_place_is_refused_alone(name: str, flowers: Batch) -> None:
    flowers.put({"a.csv": rows(5), name: rows(6, first=10)})

    done = flowers.run(slot(flowers))

    assert sorted(flowers.predictions()) == ["a.csv.parquet", "manifest.json"]
    (sentence,) = done.refusals
    assert sentence.startswith(f"incoming/{name}: its predictions cannot be kept as 'predictions/{name}.parquet': ")
    again = flowers.run(slot(flowers))
    assert (again.commit, again.records, again.refusals) == (None, {}, [sentence])


def test_an_input_whose_place_gets_free_is_scored(flowers: Batch) -> None:
    flowers.put({"a.csv": rows(5), "a.csv.parquet/b.csv": rows(6, first=10)})
    flowers.run(slot(flowers))
    flowers.put({"a.csv": None})
    flowers.run(slot(flowers))  # the file goes, then the directory may come, and the other way round

    assert flowers.run(slot(flowers)).refusals == []
    assert sorted(flowers.predictions()) == ["a.csv.parquet/b.csv.parquet", "manifest.json"]

    flowers.put({"a.csv": rows(5), "a.csv.parquet/b.csv": None})
    flowers.run(slot(flowers))
    assert flowers.run(slot(flowers)).refusals == []
    assert sorted(flowers.predictions()) == ["a.csv.parquet", "manifest.json"]


def test_a_file_at_which_polars_panics_is_refused_alone(flowers: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    read = batch_tables._polars

    def panics(batch: Any) -> pl.DataFrame:
        frame = read(batch)
        if "2.5" in frame["2"]:
            raise pl.exceptions.PanicException("it broke")
        return frame

    monkeypatch.setattr(batch_tables, "_polars", panics)
    flowers.commit(a_csv=rows(5), b_csv=rows(5, width=2.5))

    done = flowers.run(slot(flowers))

    assert done.refusals == ["incoming/b.csv: Polars fails at it: it broke"]
    assert sorted(flowers.predictions()) == ["a.csv.parquet", "manifest.json"]


def test_the_predictions_of_another_pipeline_are_left_alone(flowers: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they were there before, or came while this one scored."""
    flowers.commit(a_csv=rows(5))
    ours, theirs = slot(flowers), loaded(flowers.home, publish_table(flowers.home, 2))
    theirs.pipeline = "meadows"
    publish = batch_run._publish

    def theirs_first(*arguments: object) -> object:
        monkeypatch.undo()
        flowers.run(theirs)
        return publish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(batch_run, "_publish", theirs_first)

    for _ in range(2):
        with pytest.raises(PredictionsTaken, match=r"of the pipeline meadows; give flowers .* `predictions: \{to: "):
            flowers.run(ours)
        assert flowers.commits() == 3
    assert json.loads(flowers.predictions()["manifest.json"])["pipeline"] == "meadows"
