"""`mlops store`: what the store of outputs has, whether it is whole, and what may go."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from mlops_assets.cli.console import out
from mlops_assets.errors import MlopsError
from mlops_assets.home import ensure_home, open_instance

if TYPE_CHECKING:
    from pathlib import Path

    import dagster as dg

    from mlops_assets.doctor.references import References
    from mlops_assets.settings import Settings
    from mlops_assets.store import Store
    from mlops_assets.upkeep import Garbage, Slot

app = typer.Typer(
    help="The store of outputs: what is there, whether it is whole, what may go.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

DAY: Final = 86400.0
CHECKPOINT_DAYS: Final = 7.0
"""A training that was killed longer ago than this is not taken up again."""

BAR_SECONDS: Final = 2.0
"""What takes longer than this shows how far it is."""


class StoreDamaged(MlopsError):
    """Something in the store is not as it was written."""


@app.command("ls")
def ls(
    asset: Annotated[str, typer.Option(metavar="PREFIX", help="A pipeline, or one asset: iris, iris/model.")] = "",
) -> None:
    """List what the store has, and what of it is in use.

    Example: [bold]mlops store ls --asset iris/model[/bold]
    """
    below = asset.strip("/")
    here, store, slots = _opened(below.partition("/")[0])  # all of a pipeline: its entries refer to one another
    shown = [slot for slot in slots if f"{slot.asset}/".startswith(f"{below}/") or not below]
    if not shown:
        out.print(f"{store.root}: nothing is there" + (f" below {below}" if below else ""), markup=False)
        return
    table = Table("asset", "key", "digest", "size", "made", "state")
    with open_instance(here) as instance:
        found = _references(here, instance, slots, keep=1)
    for slot in shown:
        made = datetime.fromtimestamp(slot.made).astimezone().strftime("%Y-%m-%d %H:%M")
        digest = slot.entry.digest[:8] if slot.entry else ""
        table.add_row(escape(slot.asset), slot.key[:8], digest, decimal(slot.bytes), made, _state(slot, found))
    out.print(table)
    out.print(f"{len(shown)} in {store.root}, {decimal(sum(slot.bytes for slot in shown))}", markup=False)


@app.command("verify")
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Set damaged entries aside, to be made again.")] = False,
) -> None:
    """Hash every file of the store again; exit code 1 when something is damaged.

    Example: [bold]mlops store verify --repair[/bold]
    """
    from mlops_assets import upkeep
    from mlops_assets.doctor.references import stranded

    here, store, slots = _opened()
    with _bar("verifying", sum(slot.bytes for slot in slots)) as read:
        damaged = list(upkeep.verify(store, slots, on_read=read))
    flawed = {slot.place: slot for slot in damaged}
    damaged += stranded([flawed.get(slot.place, slot) for slot in slots])
    count = sum(slot.entry is not None for slot in slots)
    if not damaged:
        out.print(f"[green]{count} entries in {escape(store.root)} are whole[/green]")
        return
    with open_instance(here) as instance:
        found = _references(here, instance, slots, keep=1)
    table = Table("asset", "key", "damage", "state")
    for slot in damaged:
        table.add_row(escape(slot.asset), slot.key, escape(slot.flaw), found.state(slot))
    out.print(table)
    pipelines = sorted({slot.pipeline for slot in damaged})
    again = f"{' and '.join(f'`mlops run {name}`' for name in pipelines)} makes again what is current"
    if not repair:
        raise StoreDamaged(
            f"{_entries(len(damaged))} damaged; `mlops store verify --repair` sets aside what is, then {again}"
        )
    left = [slot for slot in damaged if not upkeep.set_aside(store, slot)]
    out.print(f"{_entries(len(damaged) - len(left))} set aside; {again}", markup=False)
    if left:
        names = ", ".join(f"{slot.asset} {slot.key[:8]}" for slot in left)
        raise StoreDamaged(
            f"{names}: being made right now; run `mlops store verify --repair` again when that has ended"
        )


@app.command("gc")
def gc(
    keep: Annotated[int, typer.Option(min=1, help="Of each asset, keep what its last so many recipes made.")] = 10,
    older_than: Annotated[float, typer.Option(min=1, metavar="DAYS", help="Keep what is younger.")] = 1.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what nothing refers to: old entries, what killed writers left, old checkpoints.

    What is current, what an alias of a registered model points to (with its features and predictions), and everything
    of a pipeline that has a run under way stays.

    Example: [bold]mlops store gc --keep 3 --older-than 7[/bold]
    """
    here, store, slots = _opened()
    checkpoints = _old_checkpoints(here)
    if not slots and not checkpoints:
        out.print("nothing to remove")
        return
    with open_instance(here) as instance:
        before = time.time() - older_than * DAY
        found: list[Garbage] = []
        for name in sorted({slot.pipeline for slot in slots}):
            found += _collect(here, instance, store, name, keep=keep, before=before, dry_run=True)
        total = sum(one.bytes for one in found) + sum(path.stat().st_size for path in checkpoints)
        if not found and not checkpoints:
            out.print("nothing to remove")
            return
        out.print(_summary(found, checkpoints))
        out.print(f"{decimal(total)} in all")
        if not yes and sys.stdin.isatty() and not typer.confirm("Remove this?"):
            out.print("nothing was removed")
            return
        removed: list[Garbage] = []
        for name in sorted({one.asset.partition("/")[0] for one in found}):
            removed += _collect(here, instance, store, name, keep=keep, before=before, dry_run=False)
    out.print(f"removed {decimal(sum(one.bytes for one in removed) + _unlink(checkpoints))}")


def _opened(asset: str = "") -> tuple[Settings, Store, list[Slot]]:
    from mlops_assets.store import Store
    from mlops_assets.upkeep import entries

    here = ensure_home()
    store = Store(here.store_url)
    return here, store, list(entries(store, asset))


def _references(
    here: Settings, instance: dg.DagsterInstance, slots: Sequence[Slot], *, keep: int, young: float = float("inf")
) -> References:
    from mlops_assets.doctor.models import aliases
    from mlops_assets.doctor.references import references

    return references(instance, aliases(here), slots, keep=keep, young=young)


def _state(slot: Slot, found: References) -> str:
    if slot.flaw:
        return f"[red]damaged: {escape(slot.flaw)}[/red]"
    if slot.entry is None:
        return "[yellow]incomplete[/yellow]"
    state = found.state(slot)
    return state if state == "old" else f"[green]{state}[/green]"


def _collect(
    here: Settings, instance: dg.DagsterInstance, store: Store, name: str, *, keep: int, before: float, dry_run: bool
) -> list[Garbage]:
    """Collect what one pipeline does not need, unless a run of it is under way."""
    from mlops_assets.doctor.references import busy
    from mlops_assets.upkeep import collect, entries

    with _without_new_runs(here, name) as alone:
        running = busy(instance, name) if alone else f"a `mlops run {name}` is under way"
        if running:
            out.print(f"{name}: {running}, so everything of it stays", markup=False)
            return []
        slots = list(entries(store, name))
        found = _references(here, instance, slots, keep=keep, young=before)
        if name in found.unknown and dry_run:
            out.print(f"{name}: Dagster's event log knows nothing of it, so its entries stay", markup=False)
        return collect(store, found.need, older_than=time.time() - before, dry_run=dry_run, slots=slots)


@contextmanager
def _without_new_runs(here: Settings, name: str) -> Iterator[bool]:
    """Keep `mlops run` out meanwhile, by the lock that it takes itself; False when it is under way."""
    from filelock import FileLock, Timeout

    folder = here.home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / f"run-{name}", timeout=0))
        except Timeout:
            yield False
        else:
            yield True


def _old_checkpoints(here: Settings) -> list[Path]:
    """Files of trainings that were killed, and that nobody went on with."""
    before = time.time() - CHECKPOINT_DAYS * DAY
    return [path for path in (here.home / "checkpoints").glob("*.safetensors") if path.stat().st_mtime < before]


def _unlink(files: Sequence[Path]) -> int:
    """Remove files; returns how many bytes they had."""
    from mlops_assets.store import StoreError

    total = 0
    for path in files:
        try:
            total += path.stat().st_size
            path.unlink()
        except OSError as error:
            raise StoreError.writing(str(path), error) from None
    return total


def _summary(found: Sequence[Garbage], checkpoints: Sequence[Path]) -> Table:
    table = Table("asset", "what", "number", "size")
    words = {"entry": "entries that nothing needs", "leftover": "left by writers", "lock": "locks that nobody needs"}
    kinds = dict.fromkeys((one.asset, one.kind) for one in found)
    for asset, kind in kinds:
        sizes = [one.bytes for one in found if (one.asset, one.kind) == (asset, kind)]
        table.add_row(escape(asset), words[kind], str(len(sizes)), decimal(sum(sizes)))
    if checkpoints:
        size = sum(path.stat().st_size for path in checkpoints)
        table.add_row("", "checkpoints of trainings that were given up", str(len(checkpoints)), decimal(size))
    return table


def _entries(count: int) -> str:
    return "1 entry is" if count == 1 else f"{count} entries are"


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that appears when the work takes longer than two seconds; yields what is told how many bytes were done."""
    from mlops_assets.cli.console import progress_bar

    began, done = time.monotonic(), 0
    show: Callable[[int, int], None] | None = None
    with ExitStack() as stack:

        def told(count: int) -> None:
            nonlocal done, show
            done += count
            if show is None and time.monotonic() - began > BAR_SECONDS:
                show = stack.enter_context(progress_bar(title))
            if show:
                show(done, total)

        yield told
