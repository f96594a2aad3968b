"""`mlops predict`: ask a champion, from a terminal."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mlops_assets.cli.console import out
from mlops_assets.errors import MlopsError
from mlops_assets.home import ensure_home
from mlops_assets.pipeline import find_pipeline

if TYPE_CHECKING:
    from mlops_assets.serving.slot import Slot
    from mlops_assets.settings import Settings

WAIT_SECONDS: Final = 20.0
"""How long a server that was started a moment ago may take to answer."""

SHOWN: Final = 10


class WrongCall(MlopsError):
    """Options that do not go together, or a file that cannot be written."""


class NotAnswered(MlopsError):
    """The model server does not answer, or refuses."""


def predict(
    name: Annotated[str, typer.Argument(metavar="PIPELINE", help="Name of the pipeline, a folder below defs/.")],
    file: Annotated[
        Path | None,
        typer.Argument(help="A table (CSV, TSV, Parquet), an image, a folder of images or an idx file; scored here."),
    ] = None,
    sample: Annotated[
        int, typer.Option(min=0, help="Ask the model server for so many rows that the version was tested with.")
    ] = 0,
    to: Annotated[Path | None, typer.Option("--out", help="New Parquet file for the predictions of FILE.")] = None,
    local: Annotated[bool, typer.Option("--local", help="Answer in this process, without a model server.")] = False,
) -> None:
    """Ask the champion of a pipeline: the model server for sample rows, or this process for a file of any size.

    Example: [bold]mlops predict digits --sample 5[/bold], or
    [bold]mlops predict iris new.csv --out scored.parquet[/bold]
    """
    _check(file, sample, to, local)
    here = ensure_home()
    find_pipeline(name)
    if file is not None:
        _score(here, name, file, to)
    elif local:
        _show_local(here, name, sample or 3)
    else:
        _ask(here, name, sample or 3)


def _check(file: Path | None, sample: int, to: Path | None, local: bool) -> None:
    """Refuse what would be ignored, and what would destroy a file, before anything is loaded."""
    if file is None:
        if to is not None:
            raise WrongCall("--out takes the predictions of FILE, which is not given; name a file to score")
        return
    if sample or local:
        option = "--sample" if sample else "--local"
        raise WrongCall(f"{option} is about sample rows, and {file} is scored here in any case; give one of the two")
    if to is None:
        return
    if to.exists():
        what = f"{to} is the file to score" if file.exists() and to.samefile(file) else f"{to} exists already"
        raise WrongCall(f"{what}; name a new file by --out")
    if not (to.parent.is_dir() and os.access(to.parent, os.W_OK)):
        raise WrongCall(f"{to} cannot be written, as {to.parent} is no directory to write into; make it")


def _score(here: Settings, name: str, file: Path, to: Path | None) -> None:
    from tempfile import TemporaryDirectory

    import polars as pl

    from mlops_assets.serving.batch import score
    from mlops_assets.serving.watcher import champion_slot

    if not file.exists():
        raise NotAnswered(f"{file} does not exist; name a table, an image or a folder of images")
    slot = champion_slot(here, name)  # scoring takes a thread for each core by itself
    with TemporaryDirectory() as folder:
        target = to or Path(folder, "predictions.parquet")
        began = time.monotonic()
        with out.status(f"scoring {file} ...") as status:
            scored = score(slot, file, target, on_progress=lambda rows: status.update(f"{rows:,} rows scored ..."))
        seconds = time.monotonic() - began
        head = pl.read_parquet(target, n_rows=SHOWN, glob=False)
    _table(slot.pipeline, slot.version, head.columns, [list(map(_shown, row)) for row in head.rows()])
    counts = ", ".join(f"{label} {count:,}" for label, count in scored.labels.items())
    out.print(f"{scored.rows:,} rows in {seconds:.1f} s ({scored.rows / max(seconds, 1e-9):,.0f} rows/s): {counts}")
    for sentence in scored.refused:
        out.print(f"left out: {sentence}", markup=False)
    if to:
        out.print(f"predictions are in {to}", markup=False)


def _show_local(here: Settings, name: str, rows: int) -> None:
    from mlops_assets.serving.watcher import champion_slot

    slot = champion_slot(here, name)
    batch = slot.contract.sample_rows()[:rows]
    answer = slot.answer(batch)
    given = zip(answer.labels, answer.probabilities.max(axis=1), strict=True)
    _table(
        name,
        slot.version,
        ["row", *_inputs(slot), "label", "probability"],
        [
            [str(number), *_row(slot, number), label, f"{probability:.4f}"]
            for number, (label, probability) in enumerate(given)
        ],
    )


def _ask(here: Settings, name: str, rows: int) -> None:
    """Send sample rows to the model server, as any client would."""
    import httpx

    from mlops_assets.serving.watcher import champion_slot

    slot = champion_slot(here, name)  # its sample, and what there is to compare with
    if slot.contract.kind == "table":
        body = {"rows": slot.contract.sample[:rows]}
    else:
        images: Any = slot.contract.sample_rows()
        body = {"rows": tuple({"pixels": one.tolist()} for one in images[:rows])}
    url = f"{here.serve_url}/models/{name}/predict"
    told, began = False, time.monotonic()
    with out.status("") as status:
        while True:
            try:
                answer = httpx.post(url, json=body, timeout=here.serve_timeout_seconds, trust_env=False)
                if answer.status_code != httpx.codes.NOT_FOUND or time.monotonic() - began > WAIT_SECONDS:
                    break
            except httpx.TransportError as error:
                if time.monotonic() - began > WAIT_SECONDS:
                    raise NotAnswered(
                        f"no model server answers at {here.serve_url} ({error}); start one by `mlops serve`, or add "
                        "--local"
                    ) from None
            if not told:
                status.update(f"waiting for the model server at {here.serve_url} ...")
                told = True
            time.sleep(0.1)
    if not answer.is_success:
        raise NotAnswered(f"{url} refuses: {answer.json().get('error', answer.text)}")
    given: dict[str, Any] = answer.json()
    _table(
        name,
        given["model_version"],
        ["row", *_inputs(slot), "label", "probability"],
        [
            [str(number), *_row(slot, number), one["label"], f"{one['probability']:.4f}"]
            for number, one in enumerate(given["predictions"])
        ],
    )
    out.print(f"request {given['request_id']}, {answer.elapsed.total_seconds() * 1000:.1f} ms, from {url}")


def _inputs(slot: Slot) -> list[str]:
    return [one.name for one in slot.contract.inputs] if slot.contract.kind == "table" else []


def _row(slot: Slot, number: int) -> list[str]:
    return [_shown(slot.contract.sample[number].get(name)) for name in _inputs(slot)]


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(name: str, version: object, columns: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(title=f"{name}, version {version}", title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in {"row", "probability"} else "left")
    for row in rows:
        table.add_row(*row)
    out.print(table)
