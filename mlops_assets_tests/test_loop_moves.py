"""Moves of the champion as runs of its asset: by the gate, by hand, back, by others; all of it on record."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mlops_assets.assets.champion import MOVE_TAG
from mlops_assets.data import samples
from mlops_assets.execution import RunFailed, execute_move
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import LEDGER_HEAD, asset_key, latest_metadata, metadata_history
from mlops_assets.registry import aliases
from mlops_assets.registry.champion import Champions
from mlops_assets.registry.ledger import Ledger
from mlops_assets.spec_file import SpecError
from mlops_assets.tracking.runs import Tracking
from mlops_assets_tests.loop import Loop, copied, living_in, made

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning"
    ),
    pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning"),
]


def tracking(loop: Loop) -> Tracking:
    return Tracking.embedded(loop.here.home)


def champions(loop: Loop) -> Champions:
    return Champions(Ledger(loop.here.home / "ledger", "iris"), tracking(loop), "iris", "champion")


def champion(loop: Loop) -> int:
    found = aliases.current(tracking(loop), "iris", "champion")
    return found.number if found else 0


def told(loop: Loop) -> dict[str, Any]:
    (metadata,) = latest_metadata(loop.instance, [asset_key("iris", "champion")])
    return {name: value.value for name, value in metadata.items()}


def move(loop: Loop, **wanted: Any) -> dg.ExecuteInProcessResult:
    tags = {MOVE_TAG: json.dumps({"actor": "tom", "reason": "bad Tuesday", **wanted})}
    return loop.run([asset_key("iris", "champion")], tags)


def looks(loop: Loop) -> list[Mapping[str, Any]]:
    return [record.facts for record in champions(loop).ledger.records() if record.kind == "look"]


def judge_again(loop: Loop) -> None:
    """Let the champion's stage run as if it had never decided about the newest model."""
    loop.instance.wipe_assets([asset_key("iris", "champion")])
    assert made(loop.run([asset_key("iris", "champion")])) == ["champion"]


def mlflow_model() -> type:
    import mlflow

    return mlflow.pyfunc.PythonModel  # type: ignore[no-any-return]


def logged(loop: Loop, model: Any) -> str:
    """Log a model as somebody does who knows nothing of this platform; returns where it is."""
    import mlflow

    with mlflow.start_run(experiment_id=tracking(loop).experiment("iris")):
        return str(mlflow.pyfunc.log_model(name="model", python_model=model, pip_requirements=[]).model_uri)


@pytest.fixture
def as_others(two: Loop) -> Iterator[None]:
    """MLflow as somebody else has set it up, for the whole process; and as if nobody had, after that."""
    import mlflow

    mlflow.set_tracking_uri(tracking(two).uri)
    yield
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def made_once(settled_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two versions, the second of which is the champion, and the pipeline's folder beside it."""
    place = tmp_path_factory.mktemp("two")
    with living_in(place / "home"), copied(settled_template, place) as loop:
        loop.commit(samples.iris_uci())
        loop.settle()
        assert champion(loop) == 2, told(loop)["outcome"]
    return place


@pytest.fixture
def two(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    """A copy of that."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))
    with copied(made_once, tmp_path) as loop:
        yield loop


def test_every_promotion_is_on_record(two: Loop) -> None:
    ledger = champions(two)
    moves = [record.facts for record in ledger.ledger.records() if record.kind == "moved"]
    assert [(one["version"], one["how"]) for one in moves] == [(1, "gate"), (2, "gate")]
    intent = [record.facts for record in ledger.ledger.records() if record.kind == "intent"][-1]
    assert intent["evidence"]["decision"]["verdict"] == "true"
    assert set(intent["evidence"]["digests"]) == {"dataset", "features", "model", "evaluation"}
    heads = [one[LEDGER_HEAD].value for one in metadata_history(two.instance, asset_key("iris", "champion"), 10)]
    assert heads[0] == ledger.ledger.head
    assert ledger.verify({f"Dagster, {number} back": str(head) for number, head in enumerate(heads)}) == []
    assert ledger.anchor() == 1


def test_the_same_decision_costs_one_look(two: Loop) -> None:
    assert len(looks(two)) == 2
    two.edit("defs.yaml", "reliability: 0.95", "reliability: 0.950")
    assert two.tick() == "nothing is stale"
    before = told(two)["decisions left"]
    judge_again(two)
    assert len(looks(two)) == 2, "the champion judged again costs nothing"
    aliases.point(tracking(two), "iris", "champion", 1)
    judge_again(two)
    assert len(looks(two)) == 2, "the same question of the same rows costs nothing"
    assert champion(two) == 2
    assert told(two)["decisions left"] == before


def test_a_rollback_goes_back_bars_and_stays(two: Loop) -> None:
    result = move(two, how="rollback", version=1, leaves=2)
    assert result.success
    assert champion(two) == 1
    assert told(two)["outcome"] == "rolled back to version 1 by tom: bad Tuesday"
    assert told(two)["champion"] == 1
    assert told(two)["accuracy"] > 0.8
    assert two.settle() == ["deployment"], "the next tick must not promote it again"
    assert two.tick() == "nothing is stale"

    judge_again(two)
    assert champion(two) == 1
    assert "version 2 was rolled back and is barred" in told(two)["outcome"]

    champions(two).clear(2, actor="tom", reason="it was the sensor's fault")
    judge_again(two)
    assert champion(two) == 2
    assert champions(two).verify() == []


def test_a_rollback_leaves_open_what_was_open(two: Loop) -> None:
    two.edit("defs.yaml", "hidden: [32]", "hidden: [24]")
    request = two.tick()
    assert isinstance(request, dg.RunRequest)
    keys = [asset_key("iris", stage) for stage in ("model", "evaluation")]
    assert two.run(keys, request.tags).success
    assert move(two, how="rollback", version=1, leaves=2).success
    assert champion(two) == 1
    assert two.settle() == ["champion", "deployment"], "version 3 waits for its judgement"
    assert told(two)["challenger"] == 3


def test_going_back_in_time(two: Loop) -> None:
    then = datetime.now(UTC)
    assert move(two, how="hand", version=1).success
    assert champion(two) == 1
    assert champions(two).rollback_target(then) == 2
    assert move(two, how="rollback", version=2, leaves=1).success
    assert champion(two) == 2
    assert champions(two).at(then) == 2


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"how": "hand", "version": 9}, "iris has no version 9"),
        ({"how": "rollback", "version": 2, "leaves": 2}, "is the champion already"),
        ({"how": "rollback", "version": 9, "leaves": 2}, "iris has no version 9"),
        ({"how": "rollback", "version": 1, "leaves": 7}, "version 2 is the champion of iris by now, and not version 7"),
        ({"how": "hand", "version": 2}, "is the champion already"),
        ({"how": "candidate", "version": 9}, "no version 9"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(two: Loop, wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(RunFailed, match=said) as caught:
        execute_move(Pipeline.load(two.folder), two.instance, {"actor": "tom", "reason": "no reason", **wanted})
    assert "\n" not in str(caught.value)
    assert champion(two) == 2


def test_an_alias_moved_by_hand_is_noticed(two: Loop) -> None:
    aliases.point(tracking(two), "iris", "champion", 1)
    assert move(two, how="notice").success
    assert told(two)["outcome"].startswith("version 1 is the champion, as somebody else wants it")
    assert champions(two).verify() == []


@pytest.mark.usefixtures("as_others")
def test_a_version_that_others_register_is_judged_like_ours(two: Loop) -> None:
    class Guess(mlflow_model()):  # type: ignore[misc]
        def predict(self, context, model_input):  # MLflow reads hints as a signature
            return ["setosa"] * len(model_input)

    version = tracking(two).client.create_model_version("iris", logged(two, Guess()))
    assert move(two, how="candidate", version=int(version.version)).success
    assert champion(two) == 2
    assert "kept version 2, because n - o" in told(two)["outcome"]
    assert "fails" in told(two)["outcome"]
    assert looks(two)[-1]["challenger"] == 3
    assert two.tick() == "nothing is stale"


@pytest.mark.usefixtures("as_others")
def test_the_same_files_under_another_number_are_barred_too(two: Loop) -> None:
    client = tracking(two).client

    def registered(model: str) -> int:
        return int(client.create_model_version("iris", model).version)

    class Echo(mlflow_model()):  # type: ignore[misc]
        def predict(self, context, model_input):  # MLflow reads hints as a signature
            short, long = model_input["petal_length"] < 2.5, model_input["petal_width"] > 1.7
            return [
                "setosa" if one else "virginica" if other else "versicolor"
                for one, other in zip(short, long, strict=True)
            ]

    uri = logged(two, Echo())
    first = registered(uri)
    assert move(two, how="candidate", version=first).success
    assert champion(two) == first, told(two)["outcome"]
    assert move(two, how="rollback", version=2, leaves=first).success
    second = registered(uri)
    assert move(two, how="candidate", version=second).success
    assert champion(two) == 2
    assert f"version {second} was rolled back and is barred" in told(two)["outcome"]


def test_our_own_model_registered_once_more_is_our_own(two: Loop) -> None:
    client = tracking(two).client
    again = client.create_model_version("iris", client.get_model_version("iris", "1").source)
    assert move(two, how="candidate", version=int(again.version)).success
    assert aliases.get(tracking(two), "iris", int(again.version)) is not None
    assert client.get_model_version("iris", again.version).tags["mlops.recipe"]
    assert champion(two) == int(again.version), "it is as good as the champion"


def test_a_champion_that_was_taken_away_does_not_reopen_the_cold_start(two: Loop) -> None:
    tracking(two).client.delete_registered_model_alias("iris", "champion")
    judge_again(two)
    assert champion(two) == 0
    assert "the champion was taken away in MLflow" in told(two)["outcome"]
    assert move(two, how="hand", version=2).success
    assert champion(two) == 2


def test_a_report_that_cannot_be_written_promotes_nothing(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlops_assets.evaluation import html

    def fail(*_: Any) -> bytes:
        raise OSError("no room")

    monkeypatch.setattr(html, "report_html", fail)
    loop.commit(samples.iris())
    loop.settle()
    assert champion(loop) == 0
    monkeypatch.undo()
    assert made(loop.run())[-3:] == ["champion", "deployment", "predictions"]
    assert champion(loop) == 1
    assert len(looks(loop)) == 1


def test_a_slice_that_is_only_reported_costs_nothing(two: Loop) -> None:
    aliases.point(tracking(two), "iris", "champion", 1)
    two.edit("defs.yaml", "  gate:\n", "  slices: [species]\n\n  gate:\n")
    assert two.settle() == ["champion"]
    assert champion(two) == 2
    assert len(looks(two)) == 2


def test_a_test_set_that_was_asked_too_often_is_spent(loop: Loop) -> None:
    loop.edit("defs.yaml", "steps: 6", "steps: 1")
    loop.commit(samples.iris())
    loop.settle()
    assert champion(loop) == 1
    loop.commit(samples.iris_uci())
    loop.settle()
    assert champion(loop) == 1
    assert "commit fresh labelled data" in told(loop)["outcome"]
    assert len(looks(loop)) == 1


def test_slices_and_anchor_in_a_condition(loop: Loop) -> None:
    loop.edit("defs.yaml", "  gate:\n", "  slices: [species]\n\n  gate:\n")
    loop.edit("defs.yaml", "condition: ", "condition: n[species=setosa] > 0.5 and n - a > -0.3 and ")
    loop.commit(samples.iris())
    loop.settle()
    assert champion(loop) == 1
    assert "skipped for want of" in told(loop)["outcome"]
    loop.commit(samples.iris_uci())
    loop.settle()
    assert champion(loop) == 2, told(loop)["outcome"]
    assert told(loop)["anchor"] == 1
    assert "`n[species=setosa] > 0.5` | true" in told(loop)["clauses"]


def test_a_slice_without_rows_is_an_error_with_a_caret(loop: Loop) -> None:
    loop.edit("defs.yaml", "  gate:\n", "  slices: [species]\n\n  gate:\n")
    loop.edit("defs.yaml", "condition: ", "condition: n[species=rose] > 0.5 and ")
    loop.commit(samples.iris())
    request = loop.tick()
    assert isinstance(request, dg.RunRequest)
    result = loop.run(list(request.asset_selection or []), request.tags)
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "species" in failure.step_failure_data.user_failure_data.description
    assert champion(loop) == 0


def test_a_condition_that_names_what_is_not_there_does_not_load(loop: Loop) -> None:
    loop.edit("defs.yaml", "condition: ", "condition: n.recall_rose > 0.5 and ")
    with pytest.raises(SpecError, match="there is no class 'rose'"):
        Pipeline.load(loop.folder)
