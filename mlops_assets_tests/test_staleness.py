"""The decision what to run, over plain values."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from mlops_assets.pipeline import BLOCKING_CHECKS, ENVIRONMENT, SOURCE, STAGES, TICK, Stage
from mlops_assets.staleness import Materialization, Wanted, plan, recipe

WANTED = Wanted("data-1", {stage: f"code-{stage}" for stage in STAGES}, "environment-1")
INPUTS: Mapping[Stage, Mapping[str, str]] = {
    "dataset": {SOURCE: "data-1"},
    "features": {"dataset": "digest-dataset"},
    "model": {"features": "digest-features", ENVIRONMENT: "environment-1", TICK: ""},
    "evaluation": {"model": "digest-model", "features": "digest-features"},
    "champion": {"evaluation": "digest-evaluation"},
    "deployment": {"champion": "digest-champion"},
}


def state(**changes: Materialization | None) -> dict[Stage, Materialization]:
    """Everything made as wanted, but for the changes; None takes a stage away."""
    made = {
        stage: Materialization(
            event_id=number,
            recipe=f"recipe-{stage}",
            digest=f"digest-{stage}",
            code_version=f"code-{stage}",
            inputs=INPUTS[stage],
            checks=dict.fromkeys(BLOCKING_CHECKS[stage], True),
        )
        for number, stage in enumerate(STAGES)
    }
    return {stage: one for stage, one in {**made, **changes}.items() if one is not None}


def test_what_is_as_wanted_is_left_alone() -> None:
    made = plan("iris", WANTED, state())
    assert not made.stale
    assert made.blocked is None


def test_at_first_everything_is_wanted() -> None:
    made = plan("iris", WANTED, {})
    assert made.stages == STAGES
    assert made.reason == "dataset, features, model, evaluation, champion, deployment: never materialized"


@pytest.mark.parametrize(
    ("wanted", "stages", "reason"),
    [
        (replace(WANTED, source="data-2"), STAGES, "dataset: data changed (1 -> 2)"),
        (replace(WANTED, environment="environment-2"), STAGES[2:], "model: environment changed (1 -> 2)"),
        (
            replace(WANTED, code_versions={**WANTED.code_versions, "features": "new"}),
            STAGES[1:],
            "features: code changed (features -> new)",
        ),
        (
            replace(WANTED, code_versions={**WANTED.code_versions, "champion": "new"}),
            STAGES[4:],
            "champion: code changed (champion -> new)",
        ),
    ],
)
def test_a_change_takes_what_hangs_on_it_along(wanted: Wanted, stages: tuple[Stage, ...], reason: str) -> None:
    made = plan("iris", wanted, state())
    assert made.stages == stages
    assert made.reason == reason


def test_an_upstream_that_was_remade_by_hand_makes_stale() -> None:
    made = plan("iris", WANTED, state(features=replace(state()["features"], digest="another")))
    assert made.stages == ("model", "evaluation", "champion", "deployment")
    assert "model, evaluation: features changed (features -> another)" in made.reason


def test_a_stage_in_the_middle_that_was_wiped_is_made_again() -> None:
    assert plan("iris", WANTED, state(model=None)).stages == ("model", "evaluation", "champion", "deployment")


def test_past_a_failed_check_nothing_is_asked_for() -> None:
    failed = replace(state()["dataset"], checks={"schema": False, "target": True}, digest="digest-bad")
    made = plan("iris", WANTED, state(dataset=failed))
    assert not made.stale
    assert made.blocked == "dataset's check 'schema' failed"


def test_a_failed_check_does_not_keep_its_own_asset_from_new_data() -> None:
    failed = replace(state()["dataset"], checks={"schema": False, "target": True})
    assert plan("iris", replace(WANTED, source="data-2"), state(dataset=failed)).stages == STAGES


def test_code_that_changed_behind_a_failed_check_waits() -> None:
    failed = replace(state()["dataset"], checks={"schema": False, "target": True})
    wanted = replace(WANTED, code_versions={**WANTED.code_versions, "model": "new"})
    assert not plan("iris", wanted, state(dataset=failed)).stale


def test_a_missing_check_result_is_asked_for() -> None:
    unchecked = replace(state()["dataset"], checks={"schema": True})
    made = plan("iris", WANTED, state(dataset=unchecked))
    assert made.stages == STAGES
    assert made.reason == "dataset: no result yet of check 'target'"


def test_the_tick_of_a_schedule_sticks() -> None:
    ticked = replace(state()["model"], inputs={**INPUTS["model"], TICK: "tick-1"})
    assert not plan("iris", WANTED, state(model=ticked)).stale
    kept = recipe("model", "iris", WANTED, state(model=ticked), tick="")
    new = recipe("model", "iris", WANTED, state(model=ticked), tick="tick-2")
    assert kept is not None
    assert new is not None
    assert (kept.inputs[TICK], new.inputs[TICK]) == ("tick-1", "tick-2")
    assert kept.key != new.key


def key(wanted: Wanted, made: dict[Stage, Materialization]) -> str:
    return plan("iris", wanted, made).run_key(wanted, made)


def test_the_same_wish_has_one_key() -> None:
    there = replace(WANTED, source="data-2")
    assert key(there, state()) == key(there, state())


def test_a_return_to_an_earlier_state_is_a_new_wish() -> None:
    first = key(replace(WANTED, source="data-2"), state())
    later = {stage: replace(one, event_id=one.event_id + 100) for stage, one in state().items()}
    assert key(replace(WANTED, source="data-2"), later) != first


def test_a_check_that_dies_with_its_process_is_not_asked_for_for_ever() -> None:
    unchecked = replace(state()["dataset"], checks={})
    again = replace(unchecked, event_id=77)  # the run made the dataset anew, and died again in its check
    assert key(WANTED, state(dataset=unchecked)) == key(WANTED, state(dataset=again))
