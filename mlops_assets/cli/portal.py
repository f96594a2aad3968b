"""`mlops portal`: the page that says how every pipeline is, until Ctrl-C."""

from __future__ import annotations

from contextlib import suppress

from mlops_assets.cli.console import out
from mlops_assets.home import ensure_home
from mlops_assets.services import interrupt_on_signals, require_free_port


def portal() -> None:
    """Serve one page with the state of every pipeline and links to all there is; behind a proxy, its start page.

    It shows what `mlops status` tells, and has it as JSON at /status.json and for Prometheus at /metrics. It listens on
    MLOPS_HOST and MLOPS_PORTAL_PORT.

    Example: [bold]mlops portal[/bold]
    """
    here = ensure_home()
    import uvicorn

    from mlops_assets.pipeline import pipeline_folders
    from mlops_assets.portal.app import create_app
    from mlops_assets.portal.gatherer import Gatherer

    require_free_port(here.host, here.portal_port, "MLOPS_PORTAL_PORT")
    interrupt_on_signals()
    out.print(f"Portal  [link]{here.portal_url}[/link]")
    with suppress(KeyboardInterrupt), Gatherer(here, pipeline_folders) as gatherer:
        app = create_app(here, gatherer)
        uvicorn.run(app, host=here.host, port=here.portal_port, log_level="warning", server_header=False)
    out.print("stopped")
