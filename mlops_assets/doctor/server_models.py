"""The check of a model server that runs elsewhere: ready, of our release, and answering from this home."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import Any

from mlops_assets.doctor.asking import asking
from mlops_assets.doctor.examination import Examination, Finding
from mlops_assets.doctor.machine import DISTRIBUTION
from mlops_assets.serving.pointer import POINTER, read_pointer, serving_folder


def model_server(look: Examination) -> Iterator[Finding]:
    """Whether the model server is ready, is of our release, and answers with what this home says."""
    if not look.here.serve_at:
        return
    with asking(look.here.serve_url) as asker:
        health: dict[str, Any] = asker.get("/health").json()
        theirs, ours = str(asker.get("/v2").json()["version"]), metadata.version(DISTRIBUTION)
    sound = True
    if not health["ready"]:
        sound = False
        fix = "`mlops status` tells which champions there are, the server's log why one does not answer"
        yield Finding("model server", "warning", f"{look.here.serve_url} is not ready: {health['reason']}", fix)
    if theirs != ours:
        sound = False
        what = f"{look.here.serve_url} is mlops-assets {theirs}, here is {ours}"
        yield Finding("model server", "warning", what, "start it from the same release")
    served = health["pipelines"]
    wanted = {file.parent.name: read_pointer(file) for file in serving_folder(look.here.home).glob(f"*/{POINTER}")}
    for name in sorted({*served, *wanted}):
        pointer, answering = wanted.get(name), (served.get(name) or {}).get("run_id")
        if (pointer.run_id if pointer else None) != answering:
            sound = False
            what = f"{name} is answered by {f'run {answering}' if answering else 'nobody'}, while this home says "
            what += f"version {pointer.version} of run {pointer.run_id}" if pointer else "nothing"
            fix = "give the model server this MLOPS_HOME, or look at its log if it has it"
            yield Finding("model server", "problem", what, fix)
    if sound:
        yield Finding("model server", "ok", f"{theirs} answers at {look.here.serve_url} for {len(served)} pipelines")
