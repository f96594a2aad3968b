"""`mlops export`: the champion as a folder that runs elsewhere.

Belongs here: which version and which rows, what a person types and reads. Not here: what lies in such a folder
(`deploy/edge.py`, `deploy/browser.py`), and making the model smaller (`deploy/quantize.py`).
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mlops_assets.cli.console import out as console
from mlops_assets.home import ensure_home
from mlops_assets.pipeline import Pipeline, find_pipeline

if TYPE_CHECKING:
    from mlops_assets.data.arrays import Arrays
    from mlops_assets.deploy.edge import Lighter
    from mlops_assets.serving.slot import Slot
    from mlops_assets.settings import Settings


def export(
    name: Annotated[str, typer.Argument(metavar="PIPELINE", help="Name of the pipeline, a folder below defs/.")],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    target: Annotated[
        Literal["onnx", "int8", "browser"],
        typer.Option(
            help="`onnx`: runs with ONNX Runtime and NumPy; `int8`: the same with 8-bit weights, when the gate allows "
            "the loss; `browser`: a web page."
        ),
    ] = "onnx",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier bundle in DIR.")] = False,
    condition: Annotated[
        str,
        typer.Option(
            help='For int8: what must hold, n being int8 and o the registered model; "n - o > -0.02" if empty.'
        ),
    ] = "",
    runtime: Annotated[
        Path | None,
        typer.Option(help="For browser: a folder or .tgz of the npm package onnxruntime-web; fetched by npm without."),
    ] = None,
) -> None:
    """Write the champion as a bundle for the edge: it runs elsewhere, without this platform.

    Example: [bold]mlops export digits --target browser --out ./bundle[/bold]
    """
    from mlops_assets.deploy import browser, edge
    from mlops_assets.serving.watcher import champion_slot

    here, pipeline = ensure_home(), find_pipeline(name)
    if condition and target != "int8":
        raise edge.EdgeError("--condition judges what int8 loses; it goes with --target int8")
    if runtime and target != "browser":
        raise edge.EdgeError("--runtime is what runs in browsers; it goes with --target browser")
    out = out.expanduser().resolve()
    edge.require_replaceable(out, force=force)
    slot = champion_slot(here, name)
    model = (slot.folder / edge.MODEL).read_bytes()
    lighter: Lighter | None = None
    if target == "int8":
        model, lighter = _lighter(here, pipeline, slot, model, condition)
    with edge.fresh_bundle(out, force=force) as folder:
        if target == "browser":
            browser.write_page(slot, model, folder, browser.runtime_files(runtime, here.home / "downloads"))
        else:
            edge.write_onnx(slot, model, folder, lighter=lighter)
    console.print(f"[green]{name}, version {slot.version}[/green], is in {shlex.quote(str(out))}")
    if lighter:
        sizes = f"{len(model):,} bytes instead of {lighter.before:,}"
        console.print(f"{sizes}; a row takes {lighter.latency_ratio:.2f} times as long; {lighter.reason}", markup=False)
        if len(model) >= lighter.before and lighter.latency_ratio >= 1:
            console.print("[yellow]neither smaller nor faster[/yellow]: --target onnx serves this network better")
    if target == "browser":
        command = f"python -m http.server --directory {shlex.quote(str(out))} --bind 127.0.0.1 8080"
        console.print(f"`{command}` serves it at http://127.0.0.1:8080/; the page tests itself", markup=False)
    else:
        console.print(f"`cd {shlex.quote(str(out))} && python predict.py FILE`; README.md says more", markup=False)


def _lighter(here: Settings, pipeline: Pipeline, slot: Slot, model: bytes, condition: str) -> tuple[bytes, Lighter]:
    """The model with 8-bit weights, and what is told of it.

    Raises:
        QuantizationRefused: The gate does not allow what it loses.
    """
    from mlops_assets.deploy import quantize
    from mlops_assets.deploy.edge import Lighter

    parts = _rows(here, slot)
    made = quantize.quantize(model, parts["train"].x)
    validation = parts["validation"]
    judged = quantize.judge(
        made.model,
        model,
        validation.x,
        validation.y,
        classes=slot.contract.classes,
        condition=condition or quantize.CONDITION,
        reliability=pipeline.spec.gate.reliability,
    )
    quantize.require_allowed(judged)
    ratio = quantize.latency_ratio(made.model, model, validation.x[:1])
    return made.model, Lighter(made.method, judged.decision.reason, len(model), ratio)


def _rows(here: Settings, slot: Slot) -> dict[str, Arrays]:
    """The rows that the version was trained and validated on: its features are kept while an alias points at it.

    Raises:
        StoreError: The store has lost them, or it never had them.
    """
    from mlops_assets.assets.content import pixels_of, table_of
    from mlops_assets.assets.features import SPLIT
    from mlops_assets.data.arrays import arrays
    from mlops_assets.store import EntryMissing, Store
    from mlops_assets.upkeep import entries

    store, name, contract = Store(here.store_url), slot.pipeline, slot.contract
    stored = [one.entry for stage in ("model", "features") for one in entries(store, f"{name}/{stage}") if one.entry]
    wanted = {one.inputs["features"] for one in stored if one.digest == slot.model_digest}
    features = next((one for one in stored if one.asset == f"{name}/features" and one.digest in wanted), None)
    if features is None:
        raise EntryMissing(
            f"the store has no features of version {slot.version} of {name} to calibrate and judge int8 by; "
            f"`mlops run {name}` trains a version that has them, and --target onnx needs none"
        )
    frame = table_of(features)
    pixels = pixels_of(features) if contract.kind == "images" else None
    columns = {"key": contract.key, "target": contract.target, "split": SPLIT, "classes": list(contract.classes)}
    return {part: arrays(frame, pixels, part, **columns) for part in ("train", "validation")}  # type: ignore[arg-type]
