"""The portal as a web application: the page, the same as JSON, health and metrics.

Belongs here: what is answered under which path, and the page's words for values. Not here: gathering (`gatherer.py`).
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from mlops_assets.portal.gatherer import Gatherer, Sight
from mlops_assets.portal.metrics import page_of
from mlops_assets.settings import Settings

if TYPE_CHECKING:
    from jinja2 import Environment

HERE: Final = Path(__file__).parent

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
"""Of everything: the page needs its own two files and nothing else, and what others wrote must run nowhere."""

OLD_SECONDS: Final = 15.0
"""From which age on a picture says so by itself."""


def create_app(here: Settings, gatherer: Gatherer) -> Starlette:
    """The portal.

    Args:
        here: The settings, for links.
        gatherer: What takes the pictures.
    """
    shown: dict[str, Any] = {"links": links(here)}

    async def page(_request: Request) -> Response:
        sight = await run_in_threadpool(gatherer.look)
        return HTMLResponse(_render("page.html.j2", sight, shown), headers=HEADERS)

    async def status(_request: Request) -> Response:
        sight = await run_in_threadpool(gatherer.look)
        picture = dataclasses.asdict(sight.picture) if sight.picture else None
        told = {"picture": picture, "age": sight.age if picture else None, "problem": sight.problem}
        content = _plain({**told, "html": _render("pipelines.html.j2", sight, shown)})
        return JSONResponse(content, headers=HEADERS)

    async def health(_request: Request) -> Response:
        return PlainTextResponse(*(("ok", 200) if gatherer.alive else ("no pictures are taken any more", 503)))

    async def metrics(_request: Request) -> Response:
        sight = await run_in_threadpool(gatherer.look)
        return PlainTextResponse(page_of(sight))

    return Starlette(
        routes=[
            Route("/", page),
            Route("/status.json", status),
            Route("/health", health),
            Route("/metrics", metrics),
            Mount("/portal", StaticFiles(directory=HERE / "static")),
        ]
    )


def links(here: Settings) -> dict[str, str]:
    """Where the services' pages are: relative behind the proxy, which alone has a place for the playground."""
    if here.public_url:
        return {"dagster": "/dagster", "mlflow": "/mlflow", "models": "", "playground": "/playground"}
    return {"dagster": here.dagster_page, "mlflow": here.mlflow_page, "models": here.serve_page, "playground": ""}


def _render(template: str, sight: Sight, shown: dict[str, Any]) -> str:
    return _environment().get_template(template).render(sight=sight, old=OLD_SECONDS, **shown)


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.isoformat() if isinstance(value, datetime) else value


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"ago": ago, "clock": lambda at: f"{at:%Y-%m-%d %H:%M} UTC"}
    return environment


def ago(at: datetime) -> str:
    """How long a moment lies back, in the largest unit that fits."""
    seconds = (datetime.now(UTC) - at).total_seconds()
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
