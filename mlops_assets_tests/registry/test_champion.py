"""Moves of the champion on record, against a real registry: by the gate, by hand, back, and by other means."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mlops_assets.registry import aliases
from mlops_assets.registry.aliases import RegistryError, Version, current, register
from mlops_assets.registry.champion import HEAD_TAG, Champions, VersionBarred
from mlops_assets.registry.ledger import Ledger, LedgerError
from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import Tracking
from mlops_assets.tracking.store import TrackingError
from mlops_assets_tests.registry.test_aliases import logged_model

Register = Callable[..., list[Version]]


@pytest.fixture
def made(tracking: Tracking, tmp_path: Path) -> Register:
    """Registers versions, each with weights of its own unless their digests are given."""
    uris: list[str] = []

    def make(count: int = 1, *digests: str) -> list[Version]:
        if not uris:
            uris.append(logged_model(tracking, tmp_path)[1])
        found = []
        for number in range(count):
            digest = digests[number] if digests else f"weights {len(tracking.client.search_model_versions())}"
            tags = {keys.MODEL_DIGEST: digest, keys.RECIPE: f"recipe of {digest}", "other": "x"}
            found.append(register(tracking, name="iris", model_uri=uris[0], tags=tags))
        return found

    return make


@pytest.fixture
def champions(tracking: Tracking, home: Path) -> Champions:
    return Champions(Ledger(home / "ledger", "iris"), tracking, "iris", "Champion")


def promote(champions: Champions, *versions: int) -> None:
    for version in versions:
        champions.move(version, how="gate", actor="sensor", reason=f"{version} is better")


def kinds(champions: Champions) -> list[str]:
    return [record.kind for record in champions.ledger.records()]


def kept_head(tracking: Tracking) -> str:
    return tracking.client.get_registered_model("iris").tags[HEAD_TAG]


def test_nothing_registered_is_nothing_to_record(champions: Champions) -> None:
    assert champions.reconcile() == []
    assert champions.verify() == []
    assert (champions.at(datetime.now(UTC)), champions.anchor(), champions.barred()) == (None, None, {})
    assert champions.verify({"Dagster": f"1:{'0' * 64}"}) != []
    with pytest.raises(RegistryError, match="iris has no earlier champion"):
        champions.rollback(actor="ada", reason="r")


def test_a_move_is_intent_alias_and_confirmation(champions: Champions, tracking: Tracking, made: Register) -> None:
    first, second = made(2)
    evidence = {"verdict": "true", "bound": 0.01}
    moved = champions.move(
        1, how="gate", actor="sensor", reason="first", evidence=evidence, dagster_run="7f3a"
    )  # without a champion
    assert current(tracking, "iris", "champion") == first
    intent, confirmed = champions.ledger.records()
    assert (intent.kind, confirmed.kind, confirmed) == ("intent", "moved", moved)
    told = {
        "version": 1,
        "model_digest": first.model_digest,
        "run_id": first.run_id,
        "tags": {keys.MODEL_DIGEST: first.model_digest, keys.RECIPE: first.recipe},
        "leaves": None,
        "leaves_digest": "",
        "how": "gate",
        "actor": "sensor",
        "reason": "first",
        "dagster_run": "7f3a",
    }
    assert intent.facts == {**told, "evidence": evidence}
    assert moved.facts == {**told, "intent": 1}
    second_move = champions.move(2, how="hand", actor="ada", reason="second")
    assert (second_move.facts["leaves"], second_move.facts["how"]) == (1, "hand")
    assert current(tracking, "iris", "champion") == second
    assert kept_head(tracking) == champions.ledger.head == second_move.head
    assert champions.reconcile() == []
    assert champions.verify({"Dagster": moved.head}) == []


def test_the_same_move_twice_is_one(champions: Champions, made: Register) -> None:
    made()
    first = champions.move(1, how="gate", actor="sensor", reason="r")
    assert champions.move(1, how="hand", actor="ada", reason="again") == first
    assert kinds(champions) == ["intent", "moved"]


def test_versions_that_are_not_there(champions: Champions, tracking: Tracking, home: Path, made: Register) -> None:
    made(2)
    promote(champions, 1)
    tracking.client.delete_model_version("iris", "2")
    for missing in (2, 9):
        with pytest.raises(RegistryError, match=f"iris has no version {missing} in MLflow, or its files are gone"):
            promote(champions, missing)
        with pytest.raises(RegistryError, match=f"no version {missing}"):
            champions.pin(missing, actor="ada", reason="r")
        with pytest.raises(RegistryError, match=f"no version {missing}"):
            champions.rollback(missing, actor="ada", reason="r")
    made()
    shutil.rmtree(home / "mlflow" / "artifacts" / "iris" / "models")
    with pytest.raises(RegistryError, match="no version 3 in MLflow, or its files are gone"):
        promote(champions, 3)
    assert kinds(champions) == ["intent", "moved"]


def test_a_version_registered_by_other_means(
    champions: Champions, tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its source is `models:/`, which MLflow would look up in the store of the process."""
    _, uri = logged_model(tracking, tmp_path)
    tracking.client.create_registered_model("iris")
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("MLFLOW_TRACKING_URI", tracking.uri)
        tracking.client.create_model_version("iris", uri, model_id=uri.removeprefix("models:/"))
    promote(champions, 1)
    assert champions.at(datetime.now(UTC)) == 1


def test_mlflow_refuses_the_alias(
    champions: Champions, tracking: Tracking, made: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(2)
    promote(champions, 1)

    def refuse(*arguments: object) -> None:
        raise TrackingError("MLflow did not do it")

    monkeypatch.setattr(aliases, "point", refuse)
    with pytest.raises(TrackingError, match="did not do it"):
        promote(champions, 2)
    assert kinds(champions) == ["intent", "moved", "intent", "abandoned"]
    assert champions.ledger.records()[-1].facts["reason"] == "the alias was not moved"
    assert champions.verify() == []


# --- rollback and bars


def test_a_rollback_goes_one_back_and_bars(champions: Champions, tracking: Tracking, made: Register) -> None:
    made(3)
    promote(champions, 1, 2, 3)
    assert champions.rollback_target() == 2
    moved = champions.rollback(actor="ada", reason="bad Tuesday")
    assert (moved.facts["version"], moved.facts["leaves"], moved.facts["how"]) == (2, 3, "rollback")
    assert kinds(champions)[-3:] == ["intent", "moved", "barred"]
    assert {version: bar.facts["reason"] for version, bar in champions.barred().items()} == {3: "bad Tuesday"}
    assert kept_head(tracking) == champions.ledger.head
    with pytest.raises(
        VersionBarred,
        match=r"version 3 of iris is barred since version 3 was rolled back \(bad Tuesday\): clear it first: "
        r"`mlops ledger clear iris 3 --reason ...`",
    ):
        promote(champions, 3)
    with pytest.raises(VersionBarred):
        champions.rollback(3, actor="ada", reason="r")
    assert champions.rollback(actor="ada", reason="worse still").facts["version"] == 1
    assert set(champions.barred()) == {2, 3}
    with pytest.raises(RegistryError, match="iris has no earlier champion that is there and not barred"):
        champions.rollback(actor="ada", reason="r")
    assert champions.verify() == []


def test_equal_weights_under_another_number_are_barred(champions: Champions, made: Register) -> None:
    made(4, "a", "b", "b", "")
    promote(champions, 1, 2)
    champions.rollback(actor="ada", reason="r")
    same, unknown = made(2, "b", "")
    assert champions.is_barred(same)
    assert not champions.is_barred(unknown)
    with pytest.raises(VersionBarred, match="version 3 of iris is barred since version 2 was rolled back"):
        promote(champions, 3)
    cleared = champions.clear(same.number, actor="ada", reason="mended")
    assert (cleared.kind, cleared.facts["version"], champions.barred()) == ("cleared", same.number, {})
    promote(champions, 3)
    for number in (3, 99):
        with pytest.raises(RegistryError, match=f"version {number} of iris is not barred; `mlops ledger show iris`"):
            champions.clear(number, actor="ada", reason="r")


def test_a_bar_outlives_its_version(champions: Champions, tracking: Tracking, made: Register) -> None:
    made(2, "a", "b")
    promote(champions, 1, 2)
    champions.rollback(actor="ada", reason="r")
    tracking.client.delete_model_version("iris", "2")
    (again,) = made(1, "b")
    assert champions.is_barred(again)
    champions.clear(2, actor="ada", reason="mended")
    assert not champions.is_barred(again)


def test_no_rollback_to_the_weights_that_are_left(champions: Champions, made: Register) -> None:
    made(3, "a", "b", "b")
    promote(champions, 1, 2, 3)
    with pytest.raises(RegistryError, match="version 2 of iris has the same weights as version 3, which is to be left"):
        champions.rollback(2, actor="ada", reason="r")
    with pytest.raises(RegistryError, match="version 3 of iris is the champion already"):
        champions.rollback(3, actor="ada", reason="r")
    assert champions.rollback(actor="ada", reason="r").facts["version"] == 1


def test_a_rollback_passes_over_versions_that_are_gone(
    champions: Champions, tracking: Tracking, made: Register
) -> None:
    made(3)
    promote(champions, 1, 2, 3)
    tracking.client.delete_model_version("iris", "2")
    assert champions.rollback_target() == 1


def test_a_rollback_to_a_version_or_a_time_asked_twice_is_one(champions: Champions, made: Register) -> None:
    made(3)
    promote(champions, 1)
    then = datetime.now(UTC)
    promote(champions, 2, 3)
    first = champions.rollback(1, actor="ada", reason="r")
    assert first.facts["leaves"] == 3
    assert champions.rollback(1, actor="ada", reason="r") == first
    assert champions.rollback(then, actor="ada", reason="r") == first
    assert set(champions.barred()) == {3}
    with pytest.raises(RegistryError, match="iris had no champion at 2001-01-01T00:00:00: name a version instead"):
        champions.rollback(datetime(2001, 1, 1), actor="ada", reason="r")  # noqa: DTZ001  people type local times


# --- what somebody does in MLflow


def test_a_champion_from_before_the_ledger(champions: Champions, tracking: Tracking, made: Register) -> None:
    (first,) = made()
    before = datetime.now(UTC)
    aliases.point(tracking, "iris", "champion", 1)
    (told,) = champions.verify()
    assert told.startswith("'champion' of iris is version 1 in MLflow and no version in the ledger")
    (record,) = champions.reconcile()
    assert (record.kind, record.facts["reason"]) == ("noticed", "it was champion before the ledger began")
    assert (record.facts["version"], record.facts["run_id"]) == (1, first.run_id)
    assert (champions.at(before), champions.at(datetime.now(UTC)), champions.anchor()) == (None, 1, 1)
    assert champions.verify() == []
    assert kept_head(tracking) == record.head


def test_an_alias_moved_by_hand_is_noticed(champions: Champions, tracking: Tracking, made: Register) -> None:
    made(3)
    promote(champions, 1)
    aliases.point(tracking, "iris", "champion", 2)
    assert "is version 2 in MLflow and version 1 in the ledger" in champions.verify()[0]
    promote(champions, 3)
    assert kinds(champions) == ["intent", "moved", "noticed", "intent", "moved"]
    noticed, moved = champions.ledger.records()[2], champions.ledger.records()[4]
    assert noticed.facts["reason"] == "the alias was moved by other means"
    assert (noticed.facts["version"], noticed.facts["leaves"], moved.facts["leaves"]) == (2, 1, 2)
    tracking.client.delete_registered_model_alias("iris", "champion")
    (gone,) = champions.reconcile()
    assert (gone.facts["version"], gone.facts["leaves"]) == (None, 3)
    assert champions.at(datetime.now(UTC)) is None
    assert champions.verify() == []
    back = champions.rollback(actor="ada", reason="somebody deleted it")
    assert back.facts["version"] == 3
    assert champions.barred() == {}
    assert champions.reconcile() == []


def test_two_spellings_of_the_alias_are_two_champions(champions: Champions, tracking: Tracking, made: Register) -> None:
    made(2)
    promote(champions, 1)
    tracking.client.set_registered_model_alias("iris", "Champion", "2")
    assert champions.verify() == ["iris has the aliases Champion and champion in MLflow: delete all but one"]


# --- who answered, and from where decay is measured


def test_who_answered_when(champions: Champions, made: Register) -> None:
    made(2)
    assert champions.at(datetime.now(UTC)) is None
    promote(champions, 1, 2)
    champions.rollback(actor="ada", reason="r")
    moves = [record for record in champions.ledger.records() if record.kind == "moved"]
    moment = timedelta(microseconds=1)
    assert [champions.at(record.at) for record in moves] == [1, 2, 1]
    assert [champions.at(record.at - moment) for record in moves] == [None, 1, 2]
    local = moves[1].at.astimezone()
    assert champions.at(local.replace(tzinfo=None)) == champions.at(local) == 2


def test_the_anchor_is_the_first_champion_or_the_pinned_one(
    champions: Champions, tracking: Tracking, made: Register
) -> None:
    made(3)
    promote(champions, 1, 2)
    assert champions.anchor() == 1
    record = champions.pin(3, actor="ada", reason="the model of the paper")
    assert (record.kind, record.facts["version"], record.facts["actor"]) == ("anchored", 3, "ada")
    assert champions.anchor() == 3
    assert kept_head(tracking) == record.head


# --- a ledger that was changed


def test_a_tail_that_was_cut_off_stops_everything_and_stays_proven(
    champions: Champions, tracking: Tracking, made: Register
) -> None:
    made(3)
    promote(champions, 1, 2)
    path, head = champions.ledger.path, champions.ledger.head
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    for _ in range(2):
        assert f"{path} ends with entry 2, though MLflow has seen entry 4" in champions.verify()[0]
        with pytest.raises(LedgerError, match=r"put a copy of it from a backup back .*ledger_head"):
            promote(champions, 3)
    assert kept_head(tracking) == head
    path.unlink()
    assert f"{path} is not there, though MLflow has seen entry 4" in champions.verify()[0]
    Champions(Ledger(path.parent, "iris"), Tracking("sqlite:///unused"), "iris", "champion").ledger.append("look", {})
    assert "ends with entry 1" in champions.verify()[0]
    path.write_bytes(whole)
    promote(champions, 3)
    assert champions.verify() == []


def test_a_rewrite_is_found_by_the_head_that_mlflow_keeps(champions: Champions, made: Register) -> None:
    made(2)
    promote(champions, 1)
    facts = [(record.kind, record.facts) for record in champions.ledger.records()]
    champions.ledger.path.unlink()
    for kind, told in facts:
        champions.ledger.append(kind, {**told, "reason": "nicer"})
    assert champions.ledger.verify({}) == []
    assert champions.verify() == [
        f"{champions.ledger.path}: entry 2 is not the one that MLflow has seen: it was rewritten"
    ]


def test_a_head_that_mlflow_did_not_take_is_kept_later(
    champions: Champions,
    tracking: Tracking,
    made: Register,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, logger="mlops_assets")
    made(2)
    promote(champions, 1)
    head = kept_head(tracking)

    def refuse(*arguments: object) -> None:
        raise TrackingError("no tags today")

    with monkeypatch.context() as broken:
        broken.setattr(aliases, "tag", refuse)
        promote(champions, 2)
    assert "MLflow does not keep the ledger's head yet: no tags today" in caplog.text
    assert kept_head(tracking) == head != champions.ledger.head
    assert champions.verify() == [], "an older head proves all before it"
    assert champions.reconcile() == []
    assert kept_head(tracking) == champions.ledger.head
