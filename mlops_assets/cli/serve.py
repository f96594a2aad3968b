"""`mlops serve`: the model server, until Ctrl-C."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mlops_assets.cli.console import out, progress_of_runs
from mlops_assets.home import ensure_home
from mlops_assets.services import interrupt_on_signals
from mlops_assets.settings import settings


def serve(
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="HTTP; else MLOPS_SERVE_PORT, 8000.")] = None,
    grpc_port: Annotated[int | None, typer.Option(min=1, max=65535, help="gRPC; else MLOPS_GRPC_PORT, 8001.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; else MLOPS_SERVE_WORKERS, 1.")] = None,
) -> None:
    """Answer with the champions of all pipelines; a new champion takes over within a second, without a lost request.

    One pipeline is at /models/NAME/predict (JSON by column names), at /v2/models/NAME/infer and on gRPC (Open Inference
    Protocol), and at /models/NAME/invocations (MLflow's). /docs has examples to try; `mlops up` starts the server too.

    Example: [bold]mlops serve --workers 4[/bold]
    """
    # The workers read their settings from the environment.
    for name, value in {"SERVE_PORT": port, "GRPC_PORT": grpc_port, "SERVE_WORKERS": workers}.items():
        if value is not None:
            os.environ[f"MLOPS_{name}"] = str(value)
    settings.cache_clear()
    here = ensure_home(dagster=False)
    from mlops_assets.serving.server import ModelServer

    interrupt_on_signals()
    try:
        with progress_of_runs():
            ModelServer(here, lambda line: out.print(line, markup=False)).run()
    except KeyboardInterrupt:
        out.print("stopped")
