"""Moves of the champion alias, each on record: intent, alias, confirmation.

Belongs here: moving, rolling back, barring, pinning, and mending what a kill has left between two steps of a move. Not
here: what entries mean (`history.py`), their file (`ledger.py`), MLflow's calls (`aliases.py`), and who deserves to be
champion (`gate/`).

MLflow has no compare-and-set for aliases: all moves of ours hold the ledger's lock, and one that somebody makes in
MLflow is noticed and recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

from mlops_assets.registry import aliases
from mlops_assets.registry.aliases import Registered, RegistryError, Version, normalise
from mlops_assets.registry.history import bars, history, is_of, pinned, reign_at
from mlops_assets.registry.ledger import Ledger, LedgerError, Record
from mlops_assets.tracking.runs import Tracking
from mlops_assets.tracking.store import TrackingError

log = logging.getLogger(__name__)

How = Literal["gate", "rollback", "hand"]

HEAD_TAG: Final = "mlops.ledger_head"
"""On the registered model: the ledger's head, so that a tail that was cut off, or a rewrite, is found."""


class VersionBarred(RegistryError):
    """A version that was rolled back, or one with the same weights."""


class Champions:
    """The champion alias of one registered model, and the ledger of its moves."""

    def __init__(self, ledger: Ledger, tracking: Tracking, model_name: str, alias: str) -> None:
        self.ledger = ledger
        self._tracking = tracking
        self._name = model_name
        self._alias = normalise(alias)

    def reconcile(self, anchors: Mapping[str, str] | None = None) -> list[Record]:
        """Bring the ledger up to what MLflow shows; every move begins with this.

        A move that a kill has left without its end gets one, together with the bar that a rollback implies; a champion
        that somebody else has set, or taken away, is noticed; the head that MLflow keeps is renewed.

        Returns:
            What was appended.

        Raises:
            LedgerError: The ledger was changed, or is not the one whose head MLflow keeps.
            TrackingError: MLflow cannot be reached or refuses.
        """
        with self.ledger.lock():
            model = aliases.registered(self._tracking, self._name)
            records = self.ledger.records()
            self._refuse_another_ledger(model, records, anchors or {})
            standing = aliases.current(self._tracking, self._name, self._alias)
            made: list[Record] = []
            intent = next((record for record in reversed(records) if record.kind == "intent"), None)
            if intent:
                made += self._ended(intent, records, standing)
            reigns = history([*records, *made])
            before = reigns[-1].version if reigns else None
            if (standing.number if standing else None) != before:
                made.append(self._noticed(standing, before, first=not reigns))
            head = made[-1].head if made else records[-1].head if records else ""
            if model and head and model.tags.get(HEAD_TAG) != head:
                self._keep(head)
            return made

    def move(
        self,
        version: int,
        *,
        how: Literal["gate", "hand"],
        actor: str,
        reason: str,
        evidence: Any = None,
        dagster_run: str = "",
    ) -> Record:
        """Make a version the champion.

        Args:
            version: Its number.
            how: By whose decision.
            actor: A user of the operating system, or "sensor".
            reason: One sentence.
            evidence: What it rests on; anything that JSON can hold.
            dagster_run: The run that does it, where one does.

        Returns:
            The record of the move; when the version is champion already, that of how it became so.

        Raises:
            VersionBarred: It was rolled back, and nobody has cleared it.
            RegistryError: There is no such version, or its files are gone.
            LedgerError: See `reconcile`.
            TrackingError: MLflow did not do it, or cannot be reached; what became of it is then told by `reconcile`.
        """
        with self.ledger.lock():
            self.reconcile()
            return self._move(
                version, how, {"actor": actor, "reason": reason, "evidence": evidence, "dagster_run": dagster_run}
            )

    def rollback_target(self, to: int | datetime | None = None) -> int:
        """Which version a rollback would go to.

        Args:
            to: A version, or a time: who answered then. Without, the last champion before the present one that is
                there, not barred, and has other weights.

        Raises:
            RegistryError: There is none.
        """
        if isinstance(to, int):
            return to
        records = self.ledger.records()
        if to:
            reign = reign_at(records, to)
            if reign is None or reign.version is None:
                raise RegistryError(f"{self._name} had no champion at {to.isoformat()}: name a version instead")
            return reign.version
        reigns = history(records)
        for number in dict.fromkeys(reign.version for reign in reversed(reigns)):
            found = aliases.get(self._tracking, self._name, number) if number else None
            if found and not is_of(reigns[-1].record, _facts(found)) and self._bar(found, records) is None:
                return found.number
        raise RegistryError(
            f"{self._name} has no earlier champion that is there and not barred: name a version, or "
            f"`mlops ledger clear {self._name} VERSION` first"
        )

    def rollback(
        self,
        to: int | datetime | None = None,
        *,
        actor: str,
        reason: str,
        evidence: Any = None,
        dagster_run: str = "",
    ) -> Record:
        """Make an earlier version the champion, and bar the one that is left until somebody clears it.

        Args:
            to: As for `rollback_target`. Whoever may be tried again after a kill finds a version by that first, and
                names it here: the same rollback asked twice is one.
            actor: As for `move`, like the rest.
            reason: Likewise.
            evidence: Likewise.
            dagster_run: Likewise.

        Raises:
            RegistryError: There is nothing to go back to, it is the champion already, or has the same weights.
            MlopsError: As for `move`.
        """
        with self.ledger.lock():
            self.reconcile()
            target = self.rollback_target(to)
            last = history(self.ledger.records())[-1:]
            if last and last[0].version == target:
                if last[0].record.facts["how"] == "rollback":
                    return last[0].record
                raise RegistryError(f"version {target} of {self._name} is the champion already: name another one")
            if last and is_of(last[0].record, _facts(self._existing(target))):
                raise RegistryError(
                    f"version {target} of {self._name} has the same weights as version {last[0].version}, which is to "
                    "be left: name another one"
                )
            return self._move(
                target, "rollback", {"actor": actor, "reason": reason, "evidence": evidence, "dagster_run": dagster_run}
            )

    def at(self, time: datetime) -> int | None:
        """Which version answered at a moment; None when none did, or before the first."""
        reign = reign_at(self.ledger.records(), time)
        return reign.version if reign else None

    def barred(self) -> Mapping[int, Record]:
        """The versions that are barred, as of the last `reconcile`."""
        return bars(self.ledger.records())

    def is_barred(self, version: Version) -> bool:
        """Whether a version, or one with the same weights, was rolled back and not cleared since."""
        return self._bar(version, self.ledger.records()) is not None

    def clear(self, version: int, *, actor: str, reason: str) -> Record:
        """Let a version, and every one with the same weights, be promoted again.

        Raises:
            RegistryError: It is not barred.
        """
        with self.ledger.lock():
            self.reconcile()
            records = self.ledger.records()
            known = bars(records).get(version)
            found = None if known else aliases.get(self._tracking, self._name, version)
            known = known or (self._bar(found, records) if found else None)
            if known is None:
                raise RegistryError(
                    f"version {version} of {self._name} is not barred; `mlops ledger show {self._name}` tells which are"
                )
            facts = {"version": version, "model_digest": known.facts["model_digest"], "actor": actor, "reason": reason}
            return self._append("cleared", facts)

    def anchor(self) -> int | None:
        """The version that slow decay is measured from: the pinned one, by default the first champion."""
        return pinned(self.ledger.records())

    def pin(self, version: int, *, actor: str, reason: str) -> Record:
        """Make a version the anchor.

        Raises:
            RegistryError: There is no such version, or its files are gone.
        """
        with self.ledger.lock():
            self.reconcile()
            facts = {**_facts(self._existing(version)), "actor": actor, "reason": reason}
            return self._append("anchored", facts)

    def verify(self, anchors: Mapping[str, str] | None = None) -> list[str]:
        """What is wrong with the ledger, or between it and MLflow, a sentence each; changes nothing.

        Args:
            anchors: Heads that were kept elsewhere than in MLflow, by the place.

        Raises:
            TrackingError: MLflow cannot be reached or refuses.
        """
        with self.ledger.lock():
            model = aliases.registered(self._tracking, self._name) or Registered({}, {})
            kept = {"MLflow": model.tags[HEAD_TAG]} if HEAD_TAG in model.tags else {}
            problems = self.ledger.verify(kept | dict(anchors or {}))
            if problems:
                return problems
            records = self.ledger.records()
        spellings = sorted(alias for alias in model.aliases if alias.lower() == self._alias)
        if len(spellings) > 1:
            problems.append(f"{self._name} has the aliases {' and '.join(spellings)} in MLflow: delete all but one")
        reigns = history(records)
        told, shown = reigns[-1].version if reigns else None, model.aliases.get(self._alias)
        if told != shown:
            problems.append(
                f"'{self._alias}' of {self._name} is {_named(shown)} in MLflow and {_named(told)} in the ledger: it "
                "was moved by other means, or by a process that died; the next run, or the sensor, records it"
            )
        return problems

    def _ended(self, intent: Record, records: Sequence[Record], standing: Version | None) -> list[Record]:
        """Give the last intent the end, and the bar, that it lacks."""
        of_it = {record.kind: record for record in records if record.facts.get("intent") == intent.number}
        made = []
        if not of_it.keys() & {"moved", "abandoned"}:
            done = standing is not None and standing.number == intent.facts["version"]
            facts = {"reconciled": True} if done else {"reason": "the alias was not moved"}
            made.append(self._end(intent, "moved" if done else "abandoned", facts))
        confirmed = "moved" in of_it or (made and made[0].kind == "moved")
        if confirmed and "barred" not in of_it:
            made += self._barred_by(intent)
        return made

    def _end(self, intent: Record, kind: Literal["moved", "abandoned"], facts: Mapping[str, Any]) -> Record:
        told = {name: value for name, value in intent.facts.items() if name != "evidence"}
        return self.ledger.append(kind, {**told, "intent": intent.number, **facts})

    def _barred_by(self, intent: Record) -> list[Record]:
        """Append the bar that a rollback implies."""
        facts = intent.facts
        if facts["how"] != "rollback" or facts["leaves"] is None:
            return []
        bar = {"version": facts["leaves"], "model_digest": facts["leaves_digest"], "intent": intent.number}
        return [self.ledger.append("barred", {**bar, "actor": facts["actor"], "reason": facts["reason"]})]

    def _noticed(self, standing: Version | None, before: int | None, *, first: bool) -> Record:
        reason = "it was champion before the ledger began" if first else "the alias was moved by other means"
        facts = {"version": None, "model_digest": ""} if standing is None else _facts(standing)
        return self.ledger.append(
            "noticed", {**facts, "leaves": before, "how": "hand", "actor": "unknown", "reason": reason}
        )

    def _move(self, version: int, how: How, told: Mapping[str, Any]) -> Record:
        """The steps of a move, with everything before them reconciled."""
        found = self._existing(version)
        records = self.ledger.records()
        bar = self._bar(found, records)
        if bar:
            raise VersionBarred(
                f"version {version} of {self._name} is barred since version {bar.facts['version']} was rolled back "
                f"({bar.facts['reason']}): clear it first: `mlops ledger clear {self._name} {version} --reason ...`"
            )
        last = history(records)[-1:]
        if last and last[0].version == version:
            return last[0].record
        leaves = {
            "leaves": last[0].version if last else None,
            "leaves_digest": last[0].record.facts["model_digest"] if last else "",
        }
        intent = self.ledger.append("intent", {**_facts(found), **leaves, "how": how, **told})
        try:
            aliases.point(self._tracking, self._name, self._alias, version)
        except TrackingError:
            self.reconcile()
            raise
        moved = self._end(intent, "moved", {})
        self._barred_by(intent)
        self._keep(self.ledger.head)
        return moved

    def _append(self, kind: Literal["cleared", "anchored"], facts: Mapping[str, Any]) -> Record:
        record = self.ledger.append(kind, facts)
        self._keep(record.head)
        return record

    def _keep(self, head: str) -> None:
        """Write the head to where a change of the file does not reach."""
        try:
            aliases.tag(self._tracking, self._name, HEAD_TAG, head)
        except TrackingError as error:
            log.warning("%s: MLflow does not keep the ledger's head yet: %s", self._name, error)

    def _refuse_another_ledger(
        self, model: Registered | None, records: Sequence[Record], anchors: Mapping[str, str]
    ) -> None:
        """Stop before the head that proves a change is overwritten."""
        kept = {"MLflow": model.tags[HEAD_TAG]} if model and HEAD_TAG in model.tags else {}
        heads = {place: head for place, head in (kept | dict(anchors)).items() if head}
        problems = self.ledger.contradictions(records, heads)
        if problems:
            raise LedgerError(
                f"{problems[0]}; put a copy of it from a backup back (without one: a new ledger, which forgets bars "
                f"and looks, begins when the file is moved aside and the tag '{HEAD_TAG}' of the registered model "
                f"{self._name} is deleted in MLflow)"
            )

    def _existing(self, version: int) -> Version:
        found = aliases.get(self._tracking, self._name, version)
        if found is None:
            raise RegistryError(f"{self._name} has no version {version} in MLflow, or its files are gone: name another")
        return found

    @staticmethod
    def _bar(version: Version, records: Sequence[Record]) -> Record | None:
        return next((bar for bar in bars(records).values() if is_of(bar, _facts(version))), None)


def _facts(version: Version) -> dict[str, Any]:
    """What the ledger tells of a version, so that it need not be there any more to be explained."""
    tags = {key: value for key, value in version.tags.items() if key.startswith("mlops.")}
    return {
        "version": version.number,
        "model_digest": version.model_digest,
        "run_id": version.run_id,
        "tags": tags,
    }


def _named(version: int | None) -> str:
    return "no version" if version is None else f"version {version}"
