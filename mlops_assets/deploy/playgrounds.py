"""The playgrounds of all champions at one address: `/playground/` lists them, `/playground/NAME/` is one.

Belongs here: putting the apps of `space_app.py` side by side and following the champions. Not here: the apps, and the
model server, whose pointers are read.
"""

from __future__ import annotations

import html
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from mlops_assets.deploy.space_app import examples_folder, measured, playground
from mlops_assets.serving.slot import Slot
from mlops_assets.serving.slots import Slots

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from mlops_assets.settings import Settings

PREFIX: Final = "/playground"

LOOK_SECONDS: Final = 2.0
"""How often the pointers are looked at; a new champion's page is there some seconds later."""


def serve_all(here: Settings, port: int) -> NoReturn:
    """Serve the playgrounds of all champions until a signal comes; when a champion changes, all are made anew.

    Args:
        here: The settings; the model server of that home says who is champion.
        port: Of the web pages.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: it reads it then
    import uvicorn

    slots = Slots(here.home)
    slots.refresh()
    while True:
        with examples_folder() as examples:
            shown = _who(slots)
            server = uvicorn.Server(
                uvicorn.Config(app(list(slots), examples), host=here.host, port=port, log_level="warning")
            )
            ended = threading.Event()
            follower = threading.Thread(target=_follow, args=(slots, shown, server, ended), daemon=True)
            follower.start()
            server.run()  # raises the signal again that ends it, so that only a new champion comes past here
            ended.set()
            follower.join()


def app(slots: Sequence[Slot], examples: Path) -> FastAPI:
    """One page for each slot, and one that lists them.

    Args:
        slots: The champions.
        examples: An empty folder below the temporary one, for example images.
    """
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse, RedirectResponse

    made = FastAPI(title="playgrounds", docs_url=None, redoc_url=None, openapi_url=None)
    page = _page(slots)

    @made.get("/")
    def _entry() -> RedirectResponse:
        return RedirectResponse(f"{PREFIX}/")

    @made.get(f"{PREFIX}/")
    def _list() -> HTMLResponse:
        return HTMLResponse(page)

    for slot in slots:
        folder, path = examples / slot.pipeline, f"{PREFIX}/{slot.pipeline}"
        folder.mkdir()
        gr.mount_gradio_app(made, playground(slot, folder), path=path, root_path=path, ssr_mode=False)
    return made


def _page(slots: Sequence[Slot]) -> str:
    listed = "".join(
        f'<li><a href="{one.pipeline}/">{one.pipeline}</a>, version {one.version}. {html.escape(measured(one))}</li>'
        for one in slots
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<title>Playground</title><style>body{font:1rem/1.5 system-ui;margin:2rem auto;max-width:40rem;padding:0 1rem}"
        "@media (prefers-color-scheme: dark){body{background:#14171a;color:#e6e6e6}a{color:#8ab4f8}}</style>"
        f"<h1>Playground</h1><ul>{listed or '<li>No pipeline has a champion yet.</li>'}</ul></html>"
    )


def _who(slots: Slots) -> set[tuple[str, int, str]]:
    return {(slot.pipeline, slot.version, slot.model_digest) for slot in slots}


def _follow(slots: Slots, shown: set[tuple[str, int, str]], server: uvicorn.Server, ended: threading.Event) -> None:
    """End the server when a champion has changed."""
    while not ended.wait(LOOK_SECONDS):
        slots.refresh()
        if _who(slots) != shown:
            server.should_exit = True
            return
