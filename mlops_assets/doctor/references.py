"""What Dagster's event log and MLflow's registry refer to in the store.

Belongs here: which entries are still of use, and how. Does not: listing and removing them (`upkeep.py`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import dagster as dg

from mlops_assets.assessment import active_run
from mlops_assets.doctor.models import Alias
from mlops_assets.provenance import RECIPE
from mlops_assets.upkeep import Slot

CURRENT: Final = "current"
"""The output of a stage's newest materialization, or predictions that it tells of."""

IN_USE: Final = "in use"
"""An input of something current or of a model that an alias points to, or what such a model was judged by."""

RECENT: Final = "recent"
"""Of one of the last recipes that were materialized."""

PREDICTIONS: Final = "predictions"
_PAGE: Final = 100


@dataclass(frozen=True)
class References:
    """Which entries are referred to.

    Attributes:
        marks: By asset and key: how an entry is referred to; besides the words above, the aliases of its model.
        unknown: Pipelines of which Dagster's event log knows nothing: whether their entries are of use is not known.
    """

    marks: dict[tuple[str, str], list[str]]
    unknown: frozenset[str]

    def state(self, slot: Slot) -> str:
        """How something refers to an entry, for people; `old` where nothing but the last recipes do."""
        words = [word for word in self.marks.get(slot.place, []) if word not in {IN_USE, RECENT}]
        return ", ".join(words) or (IN_USE if IN_USE in self.marks.get(slot.place, []) else "old")

    def need(self, slot: Slot) -> bool:
        """Whether an entry must stay."""
        return bool(self.marks.get(slot.place)) or slot.pipeline in self.unknown


def references(
    instance: dg.DagsterInstance, aliases: Iterable[Alias], slots: Sequence[Slot], *, keep: int, young: float = math.inf
) -> References:
    """Find what is referred to among slots, which must be all of their pipelines.

    An entry that is current, or a model that an alias points to, comes with its inputs, a model also with predictions
    and evaluations of it, and an evaluation with its predictions.

    Args:
        instance: The Dagster instance.
        aliases: The registry's aliases.
        slots: What the store has.
        keep: How many of the last recipes of each asset count; at least the newest does.
        young: Entries made after this count, too, in seconds since the epoch.
    """
    marks: dict[tuple[str, str], list[str]] = defaultdict(list)
    known = set()
    for asset in {slot.asset for slot in slots}:
        recipes = recent_recipes(instance, asset, max(keep, 1))
        if recipes:
            known.add(asset.partition("/")[0])
        for key in recipes:
            marks[asset, key].append(CURRENT if key == recipes[0] else RECENT)
    for alias in aliases:
        marks[f"{alias.model}/model", alias.recipe].append(alias.alias)
    roots = [slot for slot in slots if set(marks[slot.place]) - {RECENT}]
    for slot in slots:
        if slot.made > young:
            marks[slot.place].append(RECENT)
        if any(_belongs(slot, root) for root in roots):
            marks[slot.place].append(IN_USE)
    for slot in slots:
        if marks[slot.place] and predictions_of(slot):
            marks[f"{slot.pipeline}/{PREDICTIONS}", predictions_of(slot)] += marks[slot.place]
    found = {place: list(dict.fromkeys(how)) for place, how in marks.items()}
    return References(found, frozenset(slot.pipeline for slot in slots) - known)


def recent_recipes(instance: dg.DagsterInstance, asset: str, most: int) -> list[str]:
    """The last recipes that an asset was materialized by, each once, the newest first."""
    key, found, cursor = dg.AssetKey(asset.split("/")), dict[str, None](), None
    while len(found) < most:
        page = instance.fetch_materializations(key, limit=_PAGE, cursor=cursor)
        for record in page.records:
            made = record.asset_materialization
            if made and RECIPE in made.metadata:
                found[str(made.metadata[RECIPE].value)] = None
        cursor = page.cursor
        if not page.has_more:
            break
    return list(found)[:most]


def predictions_of(slot: Slot) -> str:
    """The key of the predictions that an evaluation judges; empty for everything else."""
    is_evaluation = slot.entry is not None and slot.asset == f"{slot.pipeline}/evaluation"
    return str(slot.entry.info.get(PREDICTIONS, "")) if slot.entry and is_evaluation else ""


def stranded(slots: Sequence[Slot]) -> list[Slot]:
    """Evaluations whose predictions are gone or damaged, with that as their flaw: the gate cannot decide on them."""
    whole = {slot.place for slot in slots if slot.entry and not slot.flaw}
    return [
        replace(slot, flaw="the predictions that it judges are gone or damaged")
        for slot in slots
        if predictions_of(slot)
        and not slot.flaw
        and (f"{slot.pipeline}/{PREDICTIONS}", predictions_of(slot)) not in whole
    ]


def busy(instance: dg.DagsterInstance, pipeline: str) -> str:
    """Which run of a pipeline is queued or under way, in a few words; empty when none is."""
    run = active_run(instance, pipeline)
    return f"run {run.run_id[:8]} of {pipeline} is {run.status.value.lower()}" if run else ""


def _belongs(slot: Slot, root: Slot) -> bool:
    """Whether an entry is an input of another one, or what a model was judged by."""
    if slot.entry is None or root.entry is None or slot.pipeline != root.pipeline:
        return False
    stage, of = (one.asset.partition("/")[2] for one in (slot, root))
    judges = of == "model" and slot.entry.inputs.get(of) == root.entry.digest
    return judges or root.entry.inputs.get(stage) == slot.entry.digest
