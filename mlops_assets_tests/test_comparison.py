"""The newest model beside a champion, over a real home: what is told agrees with the gate, and nothing is spent."""

import shutil
from pathlib import Path

import pytest

from mlops_assets.comparison import Comparison, NothingToReport, Throne
from mlops_assets.data import samples
from mlops_assets.evaluation.summary import Compared, markdown_comparison
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import asset_key
from mlops_assets.registry.ledger import Ledger
from mlops_assets.store import Store
from mlops_assets_tests.loop import Loop, made

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning"
    ),
    pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning"),
]

BEFORE_THE_GATE = ("dataset", "features", "model", "evaluation")


def train(loop: Loop) -> None:
    """Everything but the decisions."""
    assert "evaluation" in made(loop.run([asset_key("iris", stage) for stage in BEFORE_THE_GATE]))


def compared(loop: Loop, throne: Path | None = None) -> Compared:
    store = Store(loop.here.store_url)
    kept = Store(str(throne / "store")) if throne else store
    place = Throne((throne or loop.here.home) / "ledger", kept, elsewhere=throne is not None)
    return Comparison.of(Pipeline.load(loop.folder), loop.instance, store, place).compared()


def ledger(loop: Loop) -> bytes:
    return Ledger(loop.here.home / "ledger", "iris").path.read_bytes()


def test_before_and_after_the_first_champion(loop: Loop) -> None:
    with pytest.raises(NothingToReport, match="iris/dataset was never materialized"):
        compared(loop)
    loop.commit(samples.iris())
    train(loop)
    alone = compared(loop)
    assert alone.promotes
    assert alone.old is None
    assert alone.difference is None
    assert [clause.verdict for clause in alone.facts.decision.clauses] == ["skipped", "true"]
    assert not (loop.here.home / "ledger").exists()

    made(loop.run())
    sitting = compared(loop)
    assert sitting.sitting
    assert not sitting.promotes
    assert sitting.facts.version == sitting.facts.champion == 1
    assert "MLflow run" in sitting.facts.provenance


def test_it_says_what_the_gate_then_decides(loop: Loop) -> None:
    loop.commit(samples.iris())
    made(loop.run())
    loop.edit("defs.yaml", "hidden: [32]", "hidden: [8]")
    train(loop)
    before = ledger(loop)
    told = compared(loop)
    assert ledger(loop) == before
    assert told.facts.cost.look == 0
    assert told.facts.champion == 1
    assert told.facts.version == 2
    assert told.difference is not None
    assert told.old is not None
    assert told.difference.estimate == pytest.approx(told.new.accuracy - told.old.accuracy)
    assert told.difference.lower < told.difference.estimate < told.difference.upper

    made(loop.run([asset_key("iris", "champion")]))
    records = Ledger(loop.here.home / "ledger", "iris").records()
    outcome = [one for one in records if one.kind == "outcome"][-1]
    assert outcome.facts["promoted"] == told.promotes
    assert outcome.facts["reason"] == told.facts.decision.reason


def test_a_champion_of_another_home_is_only_read(loop: Loop, tmp_path: Path) -> None:
    loop.commit(samples.iris())
    made(loop.run())
    throne = tmp_path / "throne"
    for name in ("ledger", "store"):
        shutil.copytree(loop.here.home / name, throne / name)
    before = {path: path.stat().st_mtime_ns for path in throne.rglob("*")}
    # A column more in the features: the champion cannot be run on today's rows, and its own predictions are taken.
    loop.edit(
        "features.py", "    return ", "    frame = frame.with_columns(area=pl.col('petal_length') ** 2)\n    return "
    )
    train(loop)
    told = compared(loop, throne)
    assert {path: path.stat().st_mtime_ns for path in throne.rglob("*")} == before
    assert told.facts.version == 0
    assert told.facts.champion == 1
    assert told.old is not None
    assert "MLflow run" not in told.facts.provenance
    assert "a trial, which is no version of the registry: the gate would" in markdown_comparison(told)

    shutil.rmtree(throne / "store")
    (throne / "store").mkdir()
    lost = compared(loop, throne)
    assert lost.facts.decision.verdict == "by hand"
    assert "the store has neither version 1 nor its predictions" in lost.facts.outcome


def test_rows_without_looks_left_and_barred_weights_need_a_hand(loop: Loop) -> None:
    loop.edit("defs.yaml", "steps: 6", "steps: 1")
    loop.commit(samples.iris())
    made(loop.run())
    loop.edit("defs.yaml", "hidden: [32]", "hidden: [8]")
    train(loop)
    told = compared(loop)
    assert told.facts.decision.verdict == "by hand"
    assert "have had all 1 looks" in told.facts.decision.reason
    assert "was not asked" in markdown_comparison(told)


def test_slices_are_told_for_both(loop: Loop) -> None:
    loop.edit("defs.yaml", "  gate:", "  slices: [species]\n\n  gate:")
    loop.commit(samples.iris())
    assert "champion" in made(loop.run())
    loop.edit("defs.yaml", "hidden: [32]", "hidden: [8]")
    train(loop)
    told = compared(loop)
    assert [one.value for one in told.old_slices] == [one.value for one in told.facts.slices]
    assert sum(one.rows for one in told.old_slices) == told.new.rows
    assert "Slices: 3" in markdown_comparison(told)
