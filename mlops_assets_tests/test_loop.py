"""What is stale runs, and nothing else: the real sensor, real runs, a real Oxen repository and a real MLflow store."""

import dagster as dg
import polars as pl
import pytest

from mlops_assets.assessment import WISH_TAG, Assessment
from mlops_assets.data import samples
from mlops_assets.execution import execute, wanted_stages
from mlops_assets.pipeline import STAGES, Pipeline
from mlops_assets.provenance import asset_key, read_state
from mlops_assets.report import champion_facts
from mlops_assets.sensors import rematerialize
from mlops_assets.store import Store
from mlops_assets_tests.loop import Loop, made, trainings

pytestmark = [
    pytest.mark.slow,
    # Observable source assets are beta in Dagster 1.13; `dg.load_from_defs_folder` silences the same warnings.
    pytest.mark.filterwarnings(
        "ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning"
    ),
    pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning"),  # Dagster's own use of it
]


def test_a_b_a_is_two_trainings_and_ends_where_it_began(loop: Loop) -> None:
    loop.commit(samples.iris())
    assert loop.settle() == list(STAGES)
    first = read_state(loop.instance, "iris")
    assert loop.settle() == []

    loop.commit(samples.iris_uci())
    assert loop.settle() == list(STAGES)
    assert loop.settle() == []
    assert trainings(loop) == 2

    loop.commit(samples.iris())
    assert loop.settle() == list(STAGES)
    again = read_state(loop.instance, "iris")
    assert trainings(loop) == 2
    assert {stage: again[stage].digest for stage in STAGES[:4]} == {stage: first[stage].digest for stage in STAGES[:4]}

    loop.commit(samples.iris_uci())
    assert loop.settle() == list(STAGES), "the same wish from another starting point is a new wish"
    assert trainings(loop) == 2


def test_a_commit_that_changes_nothing_for_the_pipeline_runs_nothing(settled: Loop) -> None:
    settled.repository.commit("unrelated", files={"notes.txt": b"hello"})
    assert settled.tick() == "nothing is stale"


def test_code_changes_run_what_uses_them(settled: Loop) -> None:

    settled.edit("features.py", "def features(", "# a comment\ndef features(")
    settled.edit("defs.yaml", "description: Iris", "description: The iris")
    assert settled.tick() == "nothing is stale"

    settled.edit("schema.py", "15", "16")
    assert settled.settle() == ["dataset"], "the table is the same, so nothing after it runs"
    assert settled.tick() == "nothing is stale"

    settled.edit("features.py", "frame.with_columns(", "frame.select(pl.all()).with_columns(")
    assert settled.settle() == ["features"], "another program with the same result: early cutoff"
    assert settled.tick() == "nothing is stale"

    settled.edit("model.py", "hidden=tuple(hidden)", "hidden=(*hidden, 8)")
    assert settled.settle() == ["model", "evaluation", "champion", "deployment"]

    (settled.folder / "helpers.py").write_text("FACTOR = 1.0\n")
    settled.edit("features.py", "import polars as pl\n", "import polars as pl\n\nfrom .helpers import FACTOR\n")
    settled.edit("features.py", 'pl.col("sepal_length") *', 'FACTOR * pl.col("sepal_length") *')
    assert settled.settle() == ["features"]
    (settled.folder / "helpers.py").write_text("FACTOR = 0.0\n")
    assert settled.settle() == ["features", "model", "evaluation", "champion", "deployment"]

    settled.edit("defs.yaml", "n > 0.75", "n > 0.76")
    assert settled.settle() == ["champion"]
    assert trainings(settled) == 3


def test_a_later_stage_that_is_stale_runs_though_an_earlier_one_is_not(settled: Loop) -> None:
    settled.edit("defs.yaml", "learning_rate: 0.01", "learning_rate: 0.02")
    assert "model" in made(settled.run()), "a run over everything must not stop at the unchanged dataset"
    assert made(settled.run()) == [], "and when nothing is stale it does nothing"


BAD = {
    "missing column": (lambda frame: frame.drop("petal_width"), "petal_width"),
    "wrong type": (
        lambda frame: frame.with_columns(
            petal_width=pl.when(pl.col("id") == 7).then(pl.lit("wide")).otherwise(pl.col("petal_width").cast(pl.String))
        ),
        "'petal_width'.*row 7: 'wide'",
    ),
    "no row of one class": (lambda frame: frame.filter(pl.col("species") != "virginica"), "'species'.*virginica"),
    "unknown class": (
        lambda frame: frame.with_columns(
            species=pl.when(pl.col("id") == 9).then(pl.lit("rose")).otherwise(pl.col("species"))
        ),
        "'species'.*row 9: 'rose'",
    ),
    "repeated key": (
        lambda frame: frame.with_columns(id=pl.when(pl.col("id") == 5).then(4).otherwise(pl.col("id"))),
        "'id'.*row 4.*row 5",
    ),
    "implausible value": (
        lambda frame: frame.with_columns(
            sepal_width=pl.when(pl.col("id") == 11).then(-1.0).otherwise(pl.col("sepal_width"))
        ),
        "'sepal_width'.*row 11",
    ),
}


def test_a_failing_dataset_stops_everything_after_it(settled: Loop) -> None:
    before = read_state(settled.instance, "iris")
    champion = champion_facts(settled.instance, "iris")

    for name, (spoil, said) in [*BAD.items(), ("empty file", (None, "'id' is missing"))]:
        settled.commit(spoil(samples.iris()) if spoil else b"", name)
        request = settled.tick()
        assert isinstance(request, dg.RunRequest), name
        result = settled.run(list(request.asset_selection or []), request.tags)
        assert not result.success, name
        assert made(result) == ["dataset"], name
        failed = [one for one in result.get_asset_check_evaluations() if not one.passed and one.blocking]
        assert failed, name
        descriptions = " ".join(one.description or "" for one in failed)
        pattern = pytest.RaisesExc(Exception, match=said)
        assert pattern.matches(Exception(descriptions)), f"{name}: {descriptions}"
        assert any("failures" in one.metadata for one in failed), name

        assert "blocked: dataset's check" in str(settled.tick()), f"{name}: later ticks ask for nothing"
        by_hand = settled.run([asset_key("iris", "features")])
        assert not by_hand.success, f"{name}: nor can it be done by hand"
        assert made(by_hand) == [], name

    after = read_state(settled.instance, "iris")
    assert {stage: after[stage] for stage in STAGES[1:]} == {stage: before[stage] for stage in STAGES[1:]}
    assert champion_facts(settled.instance, "iris") == champion

    settled.commit(samples.iris())
    assert settled.settle() == ["dataset"], "good data again: the table is known, and so is all that follows"
    assert settled.tick() == "nothing is stale"


def test_a_lost_store_entry_is_named_and_made_again(settled: Loop) -> None:
    entry = settled.here.home / "store" / "iris" / "features"
    (next(entry.iterdir()) / "manifest.json").unlink()
    settled.edit("defs.yaml", "learning_rate: 0.01", "learning_rate: 0.02")
    result = settled.run([asset_key("iris", "model")])
    assert not result.success
    assert "run `mlops run iris` to make it again" in str(result.failure_data_for_node("iris__model"))
    now = Assessment.of(Pipeline.load(settled.folder), settled.repository, settled.instance)
    stages = wanted_stages(now, Store(settled.here.store_url))
    assert stages == ("features", "model", "evaluation", "champion", "deployment"), "what `mlops run` selects"
    execute(now, stages, settled.instance)
    again = Assessment.of(Pipeline.load(settled.folder), settled.repository, settled.instance)
    assert wanted_stages(again, Store(settled.here.store_url)) == ()


def test_a_source_that_changes_while_it_runs_is_not_recorded(loop: Loop) -> None:
    loop.commit(samples.iris())
    here = loop.folder / "features.py"
    loop.edit(
        "features.py",
        "    return",
        f"    with open({str(here)!r}, 'a') as file:\n        file.write('x = 1\\n')\n    return",
    )
    result = loop.run([asset_key("iris", "dataset"), asset_key("iris", "features")])
    assert not result.success
    assert "changed while it ran" in str(result.failure_data_for_node("iris__features"))
    assert "features" not in read_state(loop.instance, "iris")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def features(frame):\n    return frame.lazy()\n", "returned LazyFrame"),
        ("def features(frame):\n    return frame.drop('id')\n", "dropped id"),
        ("def features(frame):\n    return frame.with_columns(split=1)\n", "a name the platform needs"),
        ("def features(frame):\n    return frame['nothing']\n", r"features\.py:2: ColumnNotFoundError"),
        ("def features(:\n", r"features\.py:1: not valid Python"),
    ],
)
def test_a_broken_features_function_is_one_sentence(loop: Loop, source: str, said: str) -> None:
    loop.commit(samples.iris())
    (loop.folder / "features.py").write_text(source)
    request = loop.tick()
    if isinstance(request, str):
        told = request
    else:
        result = loop.run([asset_key("iris", "dataset"), asset_key("iris", "features")])
        assert not result.success
        told = str(result.failure_data_for_node("iris__features"))
    assert pytest.RaisesExc(Exception, match=said).matches(Exception(told)), told


def test_features_with_nulls_are_stopped(loop: Loop) -> None:
    loop.commit(samples.iris())
    loop.edit("features.py", "sepal_area=", "gap=pl.when(pl.col('id') > 3).then(1.0),\n        sepal_area=")
    result = loop.run()
    assert not result.success
    assert made(result) == ["dataset", "features"]
    (failed,) = [one for one in result.get_asset_check_evaluations() if not one.passed and one.blocking]
    assert "'gap'" in (failed.description or "")


def test_a_tick_says_what_keeps_it_from_deciding(loop: Loop) -> None:
    assert "no data yet; `mlops data import iris` brings some" in str(loop.tick())
    loop.repository.init()
    assert "no data yet; `mlops data import iris` brings some" in str(loop.tick()), "a first import that was killed"
    loop.repository.commit("other", files={"other.csv": b"a\n1\n"})
    assert "iris.csv" in str(loop.tick())
    loop.commit(samples.iris())
    good = (loop.folder / "defs.yaml").read_text()
    definitions = loop.definitions()
    (loop.folder / "defs.yaml").write_text(good.replace("target:", "targt:"))
    told = loop.evaluate(definitions).skip_reason
    assert isinstance(told, dg.SkipReason)
    assert "did you mean 'target'" in str(told.skip_message)


def test_nothing_is_asked_for_while_a_run_is_under_way(loop: Loop) -> None:
    loop.commit(samples.iris())
    job = loop.definitions().resolve_job_def("iris_job")
    run = loop.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert f"run {run.run_id[:8]} of iris is started" in str(loop.tick())


def test_what_was_materialized_alone_is_not_mixed(settled: Loop) -> None:
    settled.edit("features.py", 'pl.col("sepal_length") *', '2.5 * pl.col("sepal_length") *')
    assert settled.run([asset_key("iris", "features")]).success
    result = settled.run([asset_key("iris", "evaluation")])
    assert not result.success
    assert "trained on other features" in str(result.failure_data_for_node("iris__evaluation"))
    assert made(settled.run([asset_key("iris", "champion")])) == [], "there is nothing new to decide"


def test_a_failed_wish_is_asked_for_again_later_and_not_for_ever(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.commit(samples.iris())
    loop.edit("features.py", "    return", '    raise OSError("the disk is full")\n    return')
    assert loop.settle() == ["dataset"]
    request = loop.tick()
    assert isinstance(request, dg.RunRequest)
    keys = [request.run_key]
    for _ in range(2):
        assert not loop.run(list(request.asset_selection or []), request.tags).success
        assert "asked for and failed" in str(loop.tick())
        monkeypatch.setattr(rematerialize, "AGAIN_SECONDS", 0.0)
        request = loop.tick()
        assert isinstance(request, dg.RunRequest)
        assert request.tags[WISH_TAG] == keys[0]
        keys.append(request.run_key)
        monkeypatch.undo()
        monkeypatch.setenv("DAGSTER_HOME", str(loop.here.dagster_home))
    assert len(set(keys)) == 3
    loop.run(list(request.asset_selection or []), request.tags)
    assert "failed each time" in str(loop.tick())
    loop.edit("features.py", '    raise OSError("the disk is full")\n', "")
    assert "features" in loop.settle(), "a change is a new wish"


def test_the_exact_assets_checks_and_sensors_of_a_pipeline(loop: Loop) -> None:
    definitions = loop.definitions()
    keys = {key.to_user_string() for key in definitions.resolve_asset_graph().get_all_asset_keys()}
    assert keys == {"oxen/iris", "iris/predictions", *(f"iris/{stage}" for stage in STAGES)}
    checks = {key.to_user_string() for key in definitions.resolve_asset_graph().asset_check_keys}
    assert checks == {
        "iris/dataset:schema",
        "iris/dataset:target",
        "iris/dataset:label_shift",
        "iris/features:features",
        "iris/champion:gate",
        "iris/predictions:accepted",
    }
    assert Pipeline.load(loop.folder).name == "iris"
