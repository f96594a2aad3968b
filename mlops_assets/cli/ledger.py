"""`mlops ledger`, `mlops anchor` and `mlops at`: the record of every champion, and of every look at the test rows.

Belongs here: what a person types and reads. Does not: the record itself (`registry/`), and moving the champion, which a
run of the asset does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Column, Table

from mlops_assets.cli.console import out
from mlops_assets.cli.data import PipelineName
from mlops_assets.errors import MlopsError
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.pipeline import Pipeline, PipelineElsewhere, own_pipeline, pipeline_folders

if TYPE_CHECKING:
    from mlops_assets.registry.champion import Champions
    from mlops_assets.registry.ledger import Ledger, Record
    from mlops_assets.settings import Settings

app = typer.Typer(
    help="The record of every champion and of every look at the test rows, and the proof that nobody changed it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

ANCHORS: Final = 1000
"""How many of the last materializations are compared: the newest proves all, older ones that it is no fake."""

Reason = Annotated[str, typer.Option("--reason", help="Why, in one sentence; it goes on record.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class LedgerChanged(MlopsError):
    """A ledger, or what lies beside it, is not as it was written."""


class NotUnderstood(MlopsError):
    """What was typed is no time, or lacks its reason."""


@app.command("show")
def show(
    name: PipelineName,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many entries, the newest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List moves, bars, anchors and decisions, the newest last; --json gives every entry whole, with its evidence.

    Example: [bold]mlops ledger show iris --limit 50[/bold]
    """
    records = _ledger(ensure_home(), own_pipeline(name).name).records()
    if as_json:
        typer.echo(json.dumps([_told(record) for record in records[-limit:]], indent=2))
        return
    if not records:
        out.print(f"the ledger of {name} has no entries yet", markup=False)
        return
    titles = ("entry", "when", "what", "version", "who")
    table = Table(*(Column(title, no_wrap=True) for title in titles), Column("why", no_wrap=True, ratio=1), expand=True)
    by_number = {record.number: record for record in records}
    # What a later entry tells again is left out: the look of an answered decision, the intent of a move that ended.
    repeated = {record.facts.get(kind) for record in records for kind in ("look", "intent")}
    for record in [one for one in records if one.number not in repeated][-limit:]:
        look = by_number[record.facts["look"]].facts if "look" in record.facts else {}
        facts = {**look, **record.facts}
        version, why = (
            facts.get("version", facts.get("challenger")),
            str(facts.get("reason") or facts.get("decision", "")),
        )
        who, what = escape(str(facts.get("actor", ""))), str(record.kind)
        if record.kind == "outcome":
            what = "decision"
        elif record.kind == "moved" and facts["how"] != "gate":
            what = "rollback" if facts["how"] == "rollback" else "by hand"
        table.add_row(str(record.number), _local(record.at)[:16], what, str(version or "none"), who, escape(why))
    out.print(table)


@app.command("verify")
def verify(
    name: Annotated[str, typer.Argument(metavar="[PIPELINE]", help="One pipeline; default: all.")] = "",
) -> None:
    """Prove that no entry was changed, by its hashes and by the heads in MLflow and Dagster; exits with 1 otherwise.

    Example: [bold]mlops ledger verify iris[/bold]
    """
    from mlops_assets.gate.budget import Looks

    here, problems = ensure_home(), 0
    for one in [name] if name else [folder.name for folder in pipeline_folders()]:
        try:
            pipeline = own_pipeline(one)
        except PipelineElsewhere as error:
            if name:
                raise
            out.print(f"{one} is left out: {error}", markup=False)
            continue
        champions = champions_of(here, pipeline)
        found = champions.verify(anchors(pipeline.name)) or Looks(champions.ledger).verify()
        for problem in found:
            out.print(f"[red]{pipeline.name}[/red]: {escape(problem)}")
        if not found:
            entries = len(champions.ledger.records())
            out.print(f"[green]{pipeline.name}[/green]: {entries} entries are as they were written")
        problems += len(found)
    if problems:
        raise LedgerChanged(
            f"{problems} problem(s); a copy of the ledger's folder, {here.home / 'ledger'}, from a backup mends what "
            "was changed"
        )


@app.command("clear")
def clear(
    name: PipelineName,
    version: Annotated[int, typer.Argument(min=1, help="A version that was rolled back.")],
    reason: Reason,
) -> None:
    """Let a version that was rolled back be promoted again, with all that have the same weights.

    Example: [bold]mlops ledger clear iris 4 --reason "the data of that Tuesday are mended"[/bold]
    """
    from mlops_assets.registry.ledger import user

    champions = champions_of(ensure_home(), own_pipeline(name))
    record = champions.clear(version, actor=user(), reason=given(reason))
    out.print(f"version {version} of {name} may be promoted again (entry {record.number})", markup=False)


def anchor(
    name: PipelineName,
    version: Annotated[
        int | None, typer.Argument(min=1, help="The version to pin; without, the present anchor is shown.")
    ] = None,
    reason: Reason = "",
) -> None:
    """Pin the version that conditions call `a`: no row of small losses leads unseen below it.

    Example: [bold]mlops anchor iris 3 --reason "the model of the audit"[/bold]
    """
    from mlops_assets.registry.history import pinned
    from mlops_assets.registry.ledger import user

    here, pipeline = ensure_home(), own_pipeline(name)
    if version is None:
        found = pinned(_ledger(here, pipeline.name).records())
        out.print(f"version {found}" if found else f"none: {name} never had a champion", markup=False)
        return
    record = champions_of(here, pipeline).pin(version, actor=user(), reason=given(reason))
    out.print(f"version {version} is the anchor of {name} (entry {record.number})", markup=False)


def at(
    name: PipelineName,
    time: Annotated[str, typer.Argument(metavar="TIME", help="ISO time; local unless it says otherwise.")],
    as_json: AsJson = False,
) -> None:
    """Tell which version answered at a moment, where it comes from, and why it was champion; reads the ledger alone.

    Example: [bold]mlops at iris 2026-11-21T10:00[/bold]
    """
    from mlops_assets.registry.history import reign_at

    pipeline = own_pipeline(name)
    then = moment(time)
    reign = reign_at(_ledger(ensure_home(), pipeline.name).records(), then)
    if as_json:
        told = {"version": reign.version, "since": reign.since.isoformat(), **_told(reign.record)} if reign else None
        typer.echo(json.dumps(told, indent=2))
        return
    if reign is None or reign.version is None:
        since = f" since {_local(reign.since)}" if reign else ", and none had before"
        out.print(f"no version of {name} answered at {_local(then)}{since}", markup=False)
        return
    facts = reign.record.facts
    table = Table(show_header=False)
    for what, value in {
        "version": reign.version,
        "champion since": _local(reign.since),
        "why": facts["reason"],
        "how": f"{facts['how']}, by {facts['actor']}",
        "Dagster run": facts.get("dagster_run"),
        "MLflow run": facts.get("run_id"),
        **facts.get("tags", {}),
        "entry": reign.record.number,
    }.items():
        if value:
            table.add_row(what, escape(str(value)))
    out.print(table)


def anchors(pipeline: str) -> Mapping[str, str]:
    """The ledger's heads that Dagster keeps, by the materialization of the champion that told each."""
    from mlops_assets.provenance import LEDGER_HEAD, asset_key, metadata_history

    with open_instance(ensure_home()) as instance:
        history = metadata_history(instance, asset_key(pipeline, "champion"), ANCHORS)
    heads = [str(made[LEDGER_HEAD].value) for made in history if LEDGER_HEAD in made]
    return {f"Dagster, {back} before the newest," if back else "Dagster": head for back, head in enumerate(heads)}


def moment(text: str) -> datetime:
    """Read a time that has been, by the local clock unless it says otherwise.

    Raises:
        NotUnderstood: It is none, or still to come.
    """
    try:
        found = datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise NotUnderstood(f"'{text}' is no time; write one such as 2026-11-21T10:00") from None
    if found > datetime.now().astimezone():
        raise NotUnderstood(f"{_local(found)} is still to come; name a time that has been")
    return found


def given(reason: str) -> str:
    """Refuse a reason that says nothing.

    Raises:
        NotUnderstood: It is blank.
    """
    if not reason.strip():
        raise NotUnderstood("an entry without a reason helps nobody later; say why with --reason")
    return reason


def _ledger(here: Settings, pipeline: str) -> Ledger:
    from mlops_assets.registry.ledger import Ledger

    return Ledger(here.home / "ledger", pipeline)


def champions_of(here: Settings, pipeline: Pipeline) -> Champions:
    """The champions of a pipeline; nothing is opened yet."""
    from mlops_assets.registry.champion import Champions
    from mlops_assets.tracking.runs import Tracking

    uri = here.mlflow_tracking_uri
    tracking = Tracking(uri) if uri else Tracking.embedded(here.home)
    return Champions(_ledger(here, pipeline.name), tracking, pipeline.model_name, pipeline.spec.gate.champion_alias)


def _told(record: Record) -> dict[str, Any]:
    own = {"number": record.number, "at": record.at.isoformat(), "kind": record.kind}
    return {**own, **record.facts, "before": record.before, "hash": record.hash}


def _local(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
