"""Models and champions of the loop: what MLflow is told, and how the gate compares."""

import dagster as dg
import pytest

from mlops_assets.data import samples
from mlops_assets.pipeline import STAGES
from mlops_assets.provenance import asset_key, read_state
from mlops_assets.registry import aliases
from mlops_assets.report import champion_facts
from mlops_assets.tracking.runs import Tracking
from mlops_assets_tests.loop import Loop, made

pytestmark = [
    pytest.mark.slow,
    # Observable source assets are beta in Dagster 1.13; `dg.load_from_defs_folder` silences the same warnings.
    pytest.mark.filterwarnings(
        "ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning"
    ),
    pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning"),  # Dagster's own use of it
]


def test_a_refused_challenger_is_a_normal_outcome(settled: Loop) -> None:
    settled.edit("defs.yaml", "n - o > -0.20", "n - o > 0.30")
    settled.edit("defs.yaml", "learning_rate: 0.01", "learning_rate: 0.02")
    request = settled.tick()
    assert isinstance(request, dg.RunRequest)
    result = settled.run(list(request.asset_selection or []), request.tags)
    assert result.success
    facts = champion_facts(settled.instance, "iris")
    assert facts is not None
    assert facts.version == 1
    assert facts.outcome.startswith("kept version 1, because n - o > 0.30 fails")
    (gate,) = [one for one in result.get_asset_check_evaluations() if one.check_name == "gate"]
    assert not gate.passed
    assert gate.severity == dg.AssetCheckSeverity.WARN
    tracking = Tracking.embedded(settled.here.home)
    challenger = aliases.current(tracking, "iris", "challenger")
    assert challenger is not None
    assert challenger.number == 2
    refused = tracking.client.get_run(challenger.run_id)
    assert refused.info.status == "FINISHED"
    assert refused.data.tags["mlops.gate"] == "false"
    assert settled.tick() == "nothing is stale"


def test_a_first_challenger_that_is_too_weak_is_not_promoted(loop: Loop) -> None:
    loop.edit("defs.yaml", "n > 0.75", "n > 0.99")
    loop.commit(samples.iris())
    assert loop.settle() == list(STAGES)
    facts = champion_facts(loop.instance, "iris")
    assert facts is not None
    assert facts.version == 0
    assert aliases.current(Tracking.embedded(loop.here.home), "iris", "champion") is None


def test_the_champion_is_compared_though_its_features_are_others(settled: Loop) -> None:
    settled.edit(
        "features.py",
        "        petal_area",
        "        length_sum=pl.col('petal_length') + pl.col('sepal_length'),\n        petal_area",
    )
    assert settled.settle() == ["features", "model", "evaluation", "champion", "deployment"]
    facts = champion_facts(settled.instance, "iris")
    assert facts is not None
    assert "paired rows" in facts.outcome


def test_a_lost_mlflow_version_is_logged_again_without_training(settled: Loop) -> None:
    tracking = Tracking.embedded(settled.here.home)
    version = aliases.current(tracking, "iris", "challenger")
    assert version is not None
    tracking.client.delete_model_version("iris", str(version.number))
    settled.commit(samples.iris_uci())
    settled.settle()
    settled.commit(samples.iris())
    assert settled.settle() == list(STAGES[:-1]), "the same champion needs no other deployment"
    restored = aliases.current(tracking, "iris", "challenger")
    assert restored is not None
    assert restored.model_digest == version.model_digest
    assert tracking.client.get_run(restored.run_id).data.tags["mlops.restored"] == "true"


def test_a_failed_training_is_a_failed_mlflow_run(loop: Loop) -> None:
    loop.commit(samples.iris())
    loop.edit("model.py", "return MLP(", 'raise RuntimeError("no such layer")\n    return MLP(')
    result = loop.run()
    assert not result.success
    assert "no such layer" in str(result.failure_data_for_node("iris__model"))
    client = Tracking.embedded(loop.here.home).client
    experiment = client.get_experiment_by_name("iris")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FAILED"}
    assert len(runs) == 2, "the model's run, and the Dagster run it belongs to"


def test_a_scheduled_retraining_has_a_seed_of_its_own(settled: Loop) -> None:
    settled.edit("defs.yaml", "  gate:", '  schedule: "0 3 * * *"\n\n  gate:')
    before = read_state(settled.instance, "iris")["model"]
    schedule = settled.definitions().get_repository_def().get_schedule_def("iris_retrain")
    context = dg.build_schedule_context(settled.instance, scheduled_execution_time=_at(3))
    (request,) = schedule.evaluate_tick(context).run_requests
    result = settled.run(list(request.asset_selection or []), request.tags)
    assert made(result)[0] == "model"
    after = read_state(settled.instance, "iris")["model"]
    assert after.digest != before.digest
    assert settled.tick() == "nothing is stale", "the sensor does not undo what the schedule did"
    assert made(settled.run(list(request.asset_selection or []), request.tags)) == [], "the same tick is known"


def test_a_feature_that_changed_its_meaning_is_not_shown_to_the_champion(settled: Loop) -> None:
    before = champion_facts(settled.instance, "iris")
    settled.edit(
        "features.py", "sepal_area=", "**{name: pl.col(name) * 10 for name in frame.columns[1:5]},\n        sepal_area="
    )
    settled.edit("defs.yaml", "n - o > -0.20", "n - o > 0.30")
    assert settled.settle() == ["features", "model", "evaluation", "champion"], "kept, so there is nothing to deploy"
    after = champion_facts(settled.instance, "iris")
    assert before is not None
    assert after is not None
    assert after.version == 1
    assert after.accuracy == before.accuracy, "the champion is judged as it was evaluated, in its own units"


def test_another_split_is_not_compared_with(settled: Loop) -> None:
    settled.edit("defs.yaml", "salt: iris-1", "salt: iris-2")
    result = settled.run()
    assert result.success
    facts = champion_facts(settled.instance, "iris")
    assert facts is not None
    assert facts.version == 1
    assert "are among those that the champion judged, so a promotion needs a hand" in facts.outcome


def test_a_network_that_only_predicts_otherwise_is_evaluated(loop: Loop) -> None:
    loop.edit("model.py", "    return MLP(n_features, n_classes, hidden=tuple(hidden))", MODEL_WITH_TEMPERATURE)
    loop.commit(samples.iris())
    loop.settle()
    loop.edit("model.py", "TEMPERATURE = 1.0", "TEMPERATURE = 0.25")
    assert loop.settle() == ["model", "evaluation", "champion", "deployment"]


MODEL_WITH_TEMPERATURE = """    class Cooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = MLP(n_features, n_classes, hidden=tuple(hidden))

        def forward(self, x):
            return self.inner(x) if self.training else self.inner(x) * TEMPERATURE

    return Cooled()


TEMPERATURE = 1.0
"""


def test_a_model_names_the_data_that_its_features_were_made_from(settled: Loop) -> None:
    first = settled.repository.resolve("main")
    settled.commit(samples.iris().drop("petal_width"))
    settled.settle()
    settled.edit("defs.yaml", "learning_rate: 0.01", "learning_rate: 0.02")
    result = settled.run([asset_key("iris", "model")])
    assert made(result) == ["model"]
    tracking = Tracking.embedded(settled.here.home)
    challenger = aliases.current(tracking, "iris", "challenger")
    assert challenger is not None
    assert tracking.run_tags(challenger.run_id)["mlops.oxen_commit"] == first


def test_a_version_that_somebody_else_registered_stays_until_a_hand_moves_it(loop: Loop) -> None:
    client = Tracking.embedded(loop.here.home).client
    client.create_registered_model("iris")
    foreign = client.create_model_version("iris", source=str(loop.here.home))
    client.set_registered_model_alias("iris", "champion", foreign.version)
    loop.commit(samples.iris())
    assert loop.settle() == list(STAGES)
    facts = champion_facts(loop.instance, "iris")
    assert facts is not None
    assert facts.version == int(foreign.version)
    assert "version 1 of iris does not run on the test rows" in facts.outcome
    assert "so a promotion needs a hand: `mlops promote iris 2 --reason ...`" in facts.outcome


def _at(hour: int):
    from datetime import UTC, datetime

    return datetime(2026, 1, 1, hour, tzinfo=UTC)
