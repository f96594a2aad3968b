"""How often a test set may be asked: looks at its rows, counted in the ledger, and what each may cost.

Belongs here: spending the permitted error over looks, and which rows have looks left. Not here: what a look finds
(`decide.py`), how many rows it takes (`plan.py`), the file that it is written to (`registry/ledger.py`).

A decision that is made by looking at a test set tells something about that set; decide often enough, and noise is
promoted. So the error that is permitted in all is spent over a number of looks, after ease.ml/ci (Renggli, Karlaš,
Ding, Liu, Schawinski, Wu, Zhang: Continuous Integration of Machine Learning Models with ease.ml/ci, MLSys 2019). Looks
are counted per row, by the row's key: a test set that gains a row, or comes under another name, is the same one.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mlops_assets.gate import GateError
from mlops_assets.registry.ledger import LedgerError, sync_folder

if TYPE_CHECKING:
    from mlops_assets.registry.ledger import Ledger, Record

Adaptivity = Literal["none", "full", "first-change"]

SMALLEST_TEST_SET: Final = 30
"""Of a test set that was asked before, the rows with looks left must be so many to be asked alone."""

# Sums of up to 10,000 shares of an error are off by less than this part of one.
_ROUNDING: Final = 1e-6


class BudgetExhausted(GateError):
    """The test rows have been asked as often as the permitted error allows."""


@dataclass(frozen=True)
class Budget:
    """The permitted error, and over how many looks it is spent.

    Attributes:
        reliability: One-sided confidence over all the looks together, from 0.5 to below 1.
        steps: How many looks each row serves for.
        adaptivity: What those who make models learn from the looks.
    """

    reliability: float
    steps: int
    adaptivity: Adaptivity = "none"

    def __post_init__(self) -> None:
        """Refuse what cannot be spent.

        Raises:
            GateError: A value is out of its range, or a look would have to be all but certain.
        """
        if not 0.5 <= self.reliability < 1 or self.steps < 1 or self.adaptivity not in get_args(Adaptivity):
            raise GateError(
                f"a reliability of {self.reliability} over {self.steps} steps with adaptivity '{self.adaptivity}' is "
                f"no budget: choose 0.5 to below 1, at least 1 step, and one of {', '.join(get_args(Adaptivity))}"
            )
        if self.level >= 1:
            raise GateError(
                f"{self.steps} steps with adaptivity '{self.adaptivity}' leave each look an error of {self.error:.1g}, "
                "which no test set can meet: choose fewer steps"
            )

    @property
    def share(self) -> float:
        """The part of the permitted error that a look uses up: with `steps` of them it is spent."""
        return (1 - self.reliability) / self.steps

    @property
    def error(self) -> float:
        """The error that one look may make, by ease.ml/ci.

        `none`: models do not depend on the answers, so a union bound over the looks holds. `full`: every answer may
        steer what is tried next, and each of the 2 ** steps sequences of answers gets its part. `first-change`: until
        the first promotion there is one such sequence, and after it the rows are spent, so the first bound holds.
        """
        return math.ldexp(1 - self.reliability, -self.steps) if self.adaptivity == "full" else self.share

    @property
    def level(self) -> float:
        """One-sided confidence that one look needs."""
        return 1 - self.error


class Looks:
    """The looks at the test rows of one pipeline."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._folder = ledger.folder / "rows"

    @staticmethod
    def row_ids(keys: NDArray[Any]) -> NDArray[np.uint64]:
        """A hash of each row's key, shape (rows,): XXH3 of its text, so that 7 and "7" are one row."""
        import xxhash

        hashes = (xxhash.xxh3_64_intdigest(str(key).encode()) for key in keys.tolist())
        return np.fromiter(hashes, dtype=np.uint64, count=len(keys))

    def find(self, decision: str) -> Record | None:
        """The look that a decision has cost already.

        Args:
            decision: What identifies the question: a digest over predictions and rule.
        """
        return self._find("look", decision)

    def answer(self, decision: str) -> Record | None:
        """What came of a decision; None when it was never asked, or the process died before it answered."""
        return self._find("outcome", decision)

    def counts(self, ids: NDArray[np.uint64], budget: Budget) -> NDArray[np.int64]:
        """How many of a budget's looks each row has had, shape (rows,).

        Looks under another budget count by the error that they used up: more steps do not buy rows another life. Rows
        that a promotion has spent count as `steps`.

        Raises:
            LedgerError: The ledger, or a list of rows beside it, is damaged.
        """
        records = self.ledger.records()
        promoted = {one.facts["look"] for one in records if one.kind == "outcome" and one.facts.get("promoted")}
        used: defaultdict[str, float] = defaultdict(float)
        for look in (record for record in records if record.kind == "look"):
            facts = look.facts
            spent = look.number in promoted and "first-change" in {facts["adaptivity"], budget.adaptivity}
            used[facts["rows"]] += 1 - budget.reliability if spent else facts["share"]
        unique, places = np.unique(ids, return_inverse=True)
        total = np.zeros(len(unique))
        for rows, share in used.items():
            total += share * _among(unique, self._rows(rows))
        counts = np.ceil(total / budget.share - _ROUNDING).astype(np.int64)
        return np.minimum(counts, budget.steps)[places]

    def usable(self, ids: NDArray[np.uint64], budget: Budget) -> NDArray[np.bool_]:
        """The rows that have looks left, shape (rows,); a decision may rest on these alone.

        Raises:
            BudgetExhausted: They are too few; says how many rows are needed.
            LedgerError: As for `counts`.
        """
        counts = self.counts(ids, budget)
        usable = counts < budget.steps
        if _left(counts, budget) < 1:
            count = int(usable.sum())
            raise BudgetExhausted(
                f"{len(ids) - count} of the {len(ids)} test rows have had all {budget.steps} looks, and a decision "
                f"takes {SMALLEST_TEST_SET} that have not: commit fresh labelled data, with at least "
                f"{SMALLEST_TEST_SET - count} new test rows"
            )
        return usable

    def left(self, ids: NDArray[np.uint64], budget: Budget) -> int:
        """How many more decisions `usable` allows on these rows, each on those that then have looks left."""
        return _left(self.counts(ids, budget), budget)

    def charge(
        self, decision: str, ids: NDArray[np.uint64], budget: Budget, facts: Mapping[str, Any]
    ) -> tuple[Record, NDArray[np.bool_]]:
        """Pay for a look before anybody knows what it finds; the same decision asked twice pays once.

        Args:
            decision: As for `find`.
            ids: The test rows, by `row_ids`.
            budget: What a look costs.
            facts: What the record tells beside that.

        Returns:
            The record of the look, and which of the rows the decision rests on, shape (rows,).

        Raises:
            BudgetExhausted: As for `usable`.
            LedgerError: As for `counts`, or it cannot be written.
        """
        with self.ledger.lock():
            known = self.find(decision)
            if known:
                return known, self.rows_of(known, ids)
            usable = self.usable(ids, budget)
            spends = {"reliability": budget.reliability, "steps": budget.steps, "adaptivity": budget.adaptivity}
            told = {
                **facts,
                **spends,
                "decision": decision,
                "rows": self._keep(np.unique(ids[usable])),
                "count": int(usable.sum()),
                "share": budget.share,
            }
            return self.ledger.append("look", told), usable

    def rows_of(self, look: Record, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which rows a look was at, shape (rows,)."""
        return _among(ids, self._rows(look.facts["rows"]))

    def outcome(self, decision: str, facts: Mapping[str, Any]) -> Record:
        """Record what came of a decision that was charged for, once.

        Args:
            decision: As for `find`.
            facts: Its verdict and whatever it takes to answer it again; `promoted` spends the rows under
                `first-change`.

        Raises:
            GateError: It was not charged for.
        """
        with self.ledger.lock():
            known, look = self.answer(decision), self.find(decision)
            if look is None:
                raise GateError(f"decision {decision} has no look in {self.ledger.path}: charge it before it is made")
            return known or self.ledger.append("outcome", {**facts, "decision": decision, "look": look.number})

    def verify(self) -> list[str]:
        """What is wrong with the lists of rows that looks refer to, a sentence each."""
        problems = []
        for rows in dict.fromkeys(one.facts["rows"] for one in self.ledger.records() if one.kind == "look"):
            try:
                self._rows(rows)
            except LedgerError as error:
                problems.append(str(error))
        return problems

    def _find(self, kind: Literal["look", "outcome"], decision: str) -> Record | None:
        of_it = (one for one in self.ledger.records() if one.kind == kind and one.facts["decision"] == decision)
        return next(of_it, None)

    def _keep(self, rows: NDArray[np.uint64]) -> str:
        """Write sorted rows beside the ledger, under the digest of the file, which is returned; needs the lock."""
        buffer = io.BytesIO()
        np.save(buffer, rows)
        digest = _digest(buffer.getvalue())
        path, aside = self._path(digest), self._folder / f".{self.ledger.pipeline}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                file.write(buffer.getvalue())
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
            sync_folder(self._folder)
        except OSError as error:
            raise LedgerError.writing(path, error) from None
        return digest

    def _rows(self, digest: str) -> NDArray[np.uint64]:
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise LedgerError.reading(path, error) from None
        if _digest(data) != digest:
            raise LedgerError(f"{path}, the rows of a look, is damaged: put a copy of it from a backup back")
        return np.asarray(np.load(io.BytesIO(data)), dtype=np.uint64)

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.npy"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _among(ids: NDArray[np.uint64], rows: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which ids are among sorted rows; fastest when they are sorted too."""
    places = np.minimum(np.searchsorted(rows, ids), len(rows) - 1)
    return np.asarray(rows[places] == ids)


def _left(counts: NDArray[np.int64], budget: Budget) -> int:
    """Looks left of the last row that is needed: of a test set that is small to begin with, all of them are."""
    left = np.sort(budget.steps - counts)
    return int(left[-min(SMALLEST_TEST_SET, len(left))]) if len(left) else 0
