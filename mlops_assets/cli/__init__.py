"""The `mlops` command: what a person does with the platform from a terminal.

Belongs here: the list of commands, and how errors reach a person. Does not: what the commands do (one module each).
"""

from __future__ import annotations

import gc
import logging
import sys

import typer

from mlops_assets.cli import (
    backup,
    console,
    data,
    demo,
    deploy,
    doctor,
    export,
    gate,
    incoming,
    judge,
    ledger,
    moves,
    new,
    portal,
    predict,
    report,
    run,
    serve,
    status,
    store,
    stream,
    up,
    versions,
)
from mlops_assets.errors import MlopsError

app = typer.Typer(
    name="mlops",
    help="A data and model platform made of Dagster assets.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Start with [bold]mlops demo[/bold]; [bold]mlops new NAME --like iris[/bold] makes a pipeline of your own.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("up")(up.up)
app.add_typer(data.app, name="data")
data.app.command("incoming")(incoming.incoming)
data.app.command("branches", epilog="Example: mlops data branches iris")(versions.branches)
data.app.command("branch", epilog="Example: mlops data branch iris relabelled --from main")(versions.branch)
data.app.command("merge", epilog="Example: mlops data merge iris relabelled --into main")(versions.merge)
data.app.command("fsck", epilog="Example: mlops data fsck iris --history --heal")(versions.fsck)
data.app.command("growth", epilog="Example: mlops data growth iris")(versions.growth)
data.app.command("cleanup", epilog="Example: mlops data cleanup iris --hours 1")(versions.cleanup)
app.command("status")(status.status)
app.command("run")(run.run)
app.command("stale")(judge.stale)
app.command("report")(report.report)
app.command("trial")(report.trial)
app.command("new")(new.new)
app.command("serve")(serve.serve)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("deploy")(deploy.deploy)
app.command("playground")(deploy.playground)
app.command("stream", epilog=stream.EPILOG)(stream.stream)
app.add_typer(ledger.app, name="ledger")
app.command("at")(ledger.at)
app.command("anchor")(ledger.anchor)
app.command("judge")(judge.judge)
app.command("promote")(moves.promote)
app.command("rollback")(moves.rollback)
app.add_typer(gate.app, name="gate")
app.add_typer(store.app, name="store")
app.command("portal")(portal.portal)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.command("doctor")(doctor.doctor)
app.command("env")(up.env)


def main() -> None:
    """Run a command; what a user can mend ends it with one sentence on standard error and exit code 1."""
    logging.getLogger("mlops_assets").setLevel(logging.INFO)
    # Torch, MLflow and ONNX make millions of objects that live until the end: looking through them again and again, and
    # once more at exit, was a third of the CPU time of `mlops run`.
    gc.set_threshold(50_000, 20, 100)
    try:
        app()
    except MlopsError as error:
        console.fail(error)
        sys.exit(1)
    finally:
        gc.freeze()
