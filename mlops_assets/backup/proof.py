"""The proof that a restored home is what it was: read again from where it lies now.

Belongs here: what each part must show. Not here: what Dagster knows (the caller tells), and printing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from mlops_assets.backup import postgresql
from mlops_assets.backup.archive import About
from mlops_assets.backup.contents import Places
from mlops_assets.backup.restore import flaws
from mlops_assets.errors import MlopsError
from mlops_assets.pipeline import Pipeline
from mlops_assets.settings import Settings

Anchors = Callable[[str], Mapping[str, str]]
"""The ledger's heads that Dagster keeps of a pipeline, by the place."""


@dataclass(frozen=True)
class Proof:
    """A part of the home.

    Attributes:
        part: What people call it.
        shown: What it shows, when nothing is wrong.
        problems: What is wrong, a sentence each.
    """

    part: str
    shown: str
    problems: tuple[str, ...] = ()


def sqlite(here: Settings) -> Iterator[Proof]:
    """Whether SQLite reads its files."""
    names = Places.of(here).databases()
    if names:
        found = tuple(f"{name}: {said}" for name, said in flaws(here).items())
        yield Proof("databases", f"{len(names)} files of SQLite are sound", found)


def ledgers(here: Settings, about: About, pipelines: Iterable[Pipeline], anchors: Anchors) -> Iterator[Proof]:
    """Whether every ledger ends as it did, follows from its beginning, and agrees with MLflow and Dagster."""
    from mlops_assets.gate.budget import Looks
    from mlops_assets.registry.champion import Champions
    from mlops_assets.registry.ledger import Ledger
    from mlops_assets.tracking.runs import Tracking

    known = {pipeline.name: pipeline for pipeline in pipelines}
    tracking = Tracking.embedded(here.home)
    if here.mlflow_database.get_secret_value():
        tracking = Tracking(postgresql.address(here.mlflow_database))  # no server runs yet
    elif here.mlflow_tracking_uri:
        tracking = Tracking(here.mlflow_tracking_uri)
    # Beside a database of its own MLflow makes a folder for artifacts, wherever it is.
    with tempfile.TemporaryDirectory() as aside, chdir(aside):
        for name, head in sorted(about.heads.items()):
            ledger = Ledger(here.home / "ledger", name)
            witnesses = "its hashes and the archive"
            try:
                problems = ledger.verify({"the archive": head} if head else {})
                if not problems and name in known:
                    pipeline = known[name]
                    alias = pipeline.spec.gate.champion_alias
                    champions = Champions(ledger, tracking, pipeline.model_name, alias)
                    problems = champions.verify(anchors(name)) or Looks(ledger).verify()
                    witnesses = "its hashes, MLflow and Dagster"
            except MlopsError as error:
                problems = [str(error)]
            yield Proof(
                f"ledger of {name}", f"{head.partition(':')[0]} entries, proved by {witnesses}", tuple(problems)
            )


def repositories(here: Settings) -> Iterator[Proof]:
    """Whether every content of every branch can be read."""
    for path in Places.of(here).repositories():
        name = path.parent.name
        try:
            found = here.repository(name).fsck()
        except MlopsError as error:
            yield Proof(f"datasets of {name}", "", (str(error),))
        else:
            shown = (
                f"{found.contents:,} files at the heads of {len(here.repository(name).heads())} branch(es) are whole"
            )
            yield Proof(f"datasets of {name}", shown, () if found.sound else found.remedies)


def store(here: Settings) -> Iterator[Proof]:
    """Whether every entry of the store has the hashes that its manifest tells."""
    from mlops_assets.store import Store
    from mlops_assets.upkeep import entries
    from mlops_assets.upkeep import verify as damaged

    opened = Store(here.store_url)
    slots = list(entries(opened))
    found = tuple(f"{slot.asset} {slot.key[:8]}: {slot.flaw}" for slot in damaged(opened, slots))
    yield Proof("store", f"{sum(slot.entry is not None for slot in slots):,} entries are whole", found)


def unheld(home: Path, run_ids: Iterable[str]) -> None:
    """Leave word that no process holds these runs, so that the next start closes them: theirs ended with the old home.

    A run's process holds a file of this name locked (`liveness.py`); one that nobody holds says that it is gone.
    """
    folder = home / "runs"
    folder.mkdir(exist_ok=True)
    for run_id in run_ids:
        (folder / run_id).touch()
