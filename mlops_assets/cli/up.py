"""`mlops up`: the Dagster UI, its daemon, an MLflow server and the model server, until Ctrl-C."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final, NoReturn

import psutil

from mlops_assets.cli.console import out
from mlops_assets.errors import MlopsError
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.services import (
    Service,
    ServiceError,
    answers,
    ended,
    interrupt_on_signals,
    require_free_port,
    started,
)
from mlops_assets.settings import PROJECT, Settings

WATCH_SECONDS: Final = 1.0
MISSED_LOOKS: Final = 3
"""How often in a row the code server must be missing: reloading the definitions replaces it."""

CODE_SERVER: Final = {"api", "grpc"}
"""Words in the command line of the process that has loaded the definitions."""

MOST_RESTARTS: Final = 3
RESTART_SECONDS: Final = 300.0
"""Time within which more than `MOST_RESTARTS` ends are a fault that starting again does not mend."""


class AlreadyUp(MlopsError):
    """Another `mlops up` has this home."""


def env() -> None:
    """Print the variables that Dagster's and MLflow's own commands need.

    Example: [bold]eval "$(mlops env)"[/bold]
    """
    here = ensure_home()
    variables = {"MLOPS_HOME": here.home, "DAGSTER_HOME": here.dagster_home, "DAGSTER_DISABLE_TELEMETRY": "true"}
    for name, value in variables.items():
        sys.stdout.write(f"export {name}={shlex.quote(str(value))}\n")


def up() -> None:
    """Start the Dagster UI, the daemon that watches data and code, MLflow, and the model server; one Ctrl-C stops all.

    Example: [bold]mlops up[/bold]  (ports: MLOPS_DAGSTER_PORT, MLOPS_MLFLOW_PORT, MLOPS_SERVE_PORT, MLOPS_GRPC_PORT;
    address: MLOPS_HOST)
    """
    from filelock import FileLock, Timeout

    here = ensure_home()
    lock = FileLock(here.home / "up.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise AlreadyUp(f"another `mlops up` runs with {here.home}; stop it, or set MLOPS_HOME") from None
    with lock:
        interrupt_on_signals()
        try:
            require_free_port(here.host, here.dagster_port, "MLOPS_DAGSTER_PORT")
            if not here.mlflow_tracking_uri:
                require_free_port(here.host, here.mlflow_port, "MLOPS_MLFLOW_PORT")
            if here.webhook_secret.get_secret_value():
                require_free_port(here.host, here.webhook_port, "MLOPS_WEBHOOK_PORT")
            require_free_port(here.host, here.serve_port, "MLOPS_SERVE_PORT")
            require_free_port(here.host, here.grpc_port, "MLOPS_GRPC_PORT")
            with out.status("closing what a killed predecessor left open ..."):
                _tell(close_orphans(here))
            try:
                _serve(here)
            finally:
                _tell(close_orphans(here))  # the runs that went down with the services
        except KeyboardInterrupt:
            out.print("stopped")


def _serve(here: Settings) -> NoReturn:
    """Run the services until a signal ends them; when one of them dies, start all again.

    Raises:
        ServiceError: A service did not start, or they end too often for another start to help.
    """
    ends: list[float] = []
    while True:
        try:
            error = _served(here)
        except ServiceError as failed:
            if not ends:
                raise  # what did not start the first time is not mended by starting it again
            error = failed
        ends = [when for when in ends if when > time.monotonic() - RESTART_SECONDS] + [time.monotonic()]
        if len(ends) > MOST_RESTARTS:
            raise error
        out.print(f"{error}; starting again", markup=False)
        _tell(close_orphans(here))


def _served(here: Settings) -> ServiceError:
    """Run the services until the first of them ends, and say which."""
    with ExitStack() as stack:
        with out.status("starting Dagster, MLflow and the model server ..."):
            services = [dagster_service(here)]
            if not here.mlflow_tracking_uri:
                services.append(mlflow_service(here))
            if here.webhook_secret.get_secret_value():
                services.append(webhook_service(here))
            services.append(model_server_service(here))
            processes = stack.enter_context(started(services))
        out.print(f"Dagster  [link]{here.dagster_url}[/link]   (log {services[0].log})")
        out.print(f"MLflow   [link]{here.mlflow_url}[/link]")
        out.print(f"Models   [link]{here.serve_url}/docs[/link]   (gRPC on port {here.grpc_port})")
        out.print("Ctrl-C stops all.")
        return _first_end(services, processes)


def _first_end(services: Sequence[Service], processes: Mapping[str, subprocess.Popen[bytes]]) -> ServiceError:
    """Wait for the end of a service, or of the code server that Dagster runs in a process of its own.

    Dagster itself does not notice that one: every tick would fail from then on.
    """
    dagster, missing = services[0], 0
    while not (error := ended(services, processes)):
        time.sleep(WATCH_SECONDS)
        missing = 0 if _has_code_server(processes[dagster.name].pid) else missing + 1
        if missing >= MISSED_LOOKS:
            return ServiceError(f"Dagster's code server is gone; see {dagster.log}")
    return error


def _has_code_server(pid: int) -> bool:
    """Whether one of Dagster's processes serves the definitions."""
    try:
        children = psutil.Process(pid).children(recursive=True)
        return any(set(_command(child)) >= CODE_SERVER for child in children)
    except psutil.NoSuchProcess:
        return False


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _tell(lines: list[str]) -> None:
    for line in lines:
        out.print(line, markup=False)


def dagster_service(here: Settings) -> Service:
    """The webserver, the daemon and one code server, as `dagster dev` runs them."""
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(PROJECT / "workspace.yaml")]
    command += ["-h", here.host, "-p", str(here.dagster_port)]
    command += ["--log-level", "warning", "--code-server-log-level", "warning"]
    return Service(
        "Dagster",
        command,
        here.home / "logs" / "dagster.log",
        ready=lambda: is_up(here),
        environment={"PYTHONWARNINGS": "ignore"},
    )


def daemon_service(here: Settings) -> Service:
    """The daemon alone: sensors, schedules and the run queue."""
    command = [sys.executable, "-m", "dagster._daemon", "run", "-w", str(PROJECT / "workspace.yaml")]
    return Service("the Dagster daemon", [*command, "--log-level", "warning"], here.home / "logs" / "daemon.log")


def mlflow_service(here: Settings) -> Service:
    """A lean MLflow server over the embedded store: two processes, no job runner."""
    from mlops_assets.tracking.store import ARTIFACT_ROOT, ensure_store

    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", ensure_store(here.home)]
    command += ["--default-artifact-root", ARTIFACT_ROOT, "--no-serve-artifacts", "--workers", "1"]
    command += ["--host", here.host, "--port", str(here.mlflow_port)]
    return Service(
        "MLflow",
        command,
        here.home / "logs" / "mlflow.log",
        ready=lambda: answers(f"{here.mlflow_url}/health"),
        environment={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )


def webhook_service(here: Settings) -> Service:
    """The receiver of MLflow's registry webhooks."""
    command = [sys.executable, "-m", "mlops_assets.registry.webhook"]
    return Service(
        "the webhook receiver",
        command,
        here.home / "logs" / "webhook.log",
        ready=lambda: answers(f"{here.webhook_url}/health"),
    )


def model_server_service(here: Settings) -> Service:
    """The model server: `mlops serve`, as a service."""
    command = [sys.executable, "-c", "from mlops_assets.cli import main; main()", "serve"]
    return Service(
        "the model server",
        command,
        here.home / "logs" / "serve.log",
        ready=lambda: answers(f"{here.serve_url}/v2/health/live"),
    )


def is_up(here: Settings) -> bool:
    """Whether the Dagster that `mlops up` starts answers."""
    return answers(f"{here.dagster_url}/server_info")


def close_orphans(here: Settings) -> list[str]:
    """End the runs whose process died with a predecessor, in Dagster and in MLflow; returns a line for each."""
    from mlops_assets.sensors.run_status import (
        ReconcileFailed,
        close_dead_runs,
        close_lost_runs,
        close_mlflow_runs,
    )
    from mlops_assets.tracking.store import may_have_open_runs

    with open_instance(here) as instance:
        closed = close_dead_runs(instance, here, {}) + close_lost_runs(instance, here, {}, grace=0)
    lines = [f"closed Dagster run {run_id[:8]}: its process is gone" for run_id in closed]
    if closed if here.mlflow_tracking_uri else may_have_open_runs(here.home):
        try:
            lines += [f"closed MLflow run {line}" for line in close_mlflow_runs()]
        except ReconcileFailed as error:
            lines.append(f"MLflow's open runs stay as they are for now: {error}")
    return lines
