"""A copy of the project in a temporary folder with a home and ports of its own, and the processes that work in it."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import httpx
import psutil

if TYPE_CHECKING:
    import dagster as dg

    from mlops_assets.oxen.repository import Repository

CHECKOUT: Final = Path(__file__).resolve().parent.parent
COPIED: Final = ("pyproject.toml", "workspace.yaml")
MLOPS: Final = ("-c", "from mlops_assets.cli import main; main()")
OURS: Final = ("MLOPS_", "DAGSTER_", "MLFLOW_", "PYTHON")
"""Beginnings of the variables that would let the caller's own set-up into a measurement."""

PR_SET_PDEATHSIG: Final = 1
READY_SECONDS: Final = 120.0
STOP_SECONDS: Final = 40.0


class BenchmarkFailed(Exception):
    """A process did not do what is to be measured."""


@dataclass(frozen=True)
class Project:
    """A copy of the project, or a bare folder, with its environment."""

    folder: Path
    environment: Mapping[str, str]

    @property
    def home(self) -> Path:
        """The platform's home."""
        return Path(self.environment["MLOPS_HOME"])

    @property
    def dagster_url(self) -> str:
        """Where its webserver will be."""
        return f"http://127.0.0.1:{self.environment['MLOPS_DAGSTER_PORT']}"

    @property
    def mlflow_url(self) -> str:
        """Where its MLflow will be."""
        return f"http://127.0.0.1:{self.environment['MLOPS_MLFLOW_PORT']}"

    def repository(self) -> Repository:
        """The Oxen repository of iris."""
        from mlops_assets.oxen.repository import Repository

        return Repository(self.home / "oxen" / "iris")

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """Its Dagster instance, to read events from; the project has made it already."""
        import dagster as dg

        with dg.DagsterInstance.from_config(str(self.home / "dagster")) as instance:
            yield instance

    @contextmanager
    def popen(self, arguments: Sequence[str], **options: object) -> Iterator[subprocess.Popen[str]]:
        """A Python process in the project; whatever it started and left is gone at the end."""
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C goes to us alone, and we stop it in order
            preexec_fn=_die_with_parent,  # noqa: PLW1509  no threads here, and only async-signal-safe calls
            **options,  # type: ignore[call-overload]
        )
        try:
            yield process
        finally:
            _stop(process)

    def run(self, *arguments: str) -> str:
        """Run a Python process to its end; returns its standard output.

        Raises:
            BenchmarkFailed: It ended with another code than 0.
        """
        with self.popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            output, _ = process.communicate()
        if process.returncode:
            raise BenchmarkFailed(f"{' '.join(arguments)} ended with code {process.returncode}:\n{output[-3000:]}")
        return str(output)

    def mlops(self, *arguments: str) -> str:
        """Run an `mlops` command to its end."""
        return self.run(*MLOPS, *arguments)

    @contextmanager
    def serving(self, arguments: Sequence[str], urls: Sequence[str], name: str) -> Iterator[None]:
        """A process that serves, once all of its addresses answer.

        Raises:
            BenchmarkFailed: It ended, or they do not answer in time.
        """
        path = self.folder / f"{name}.log"
        with path.open("w") as log, self.popen(arguments, stdout=log, stderr=subprocess.STDOUT) as process:
            deadline = time.monotonic() + READY_SECONDS
            while not all(_answers(url) for url in urls):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchmarkFailed(f"{name} does not answer; its log ends with:\n{path.read_text()[-2000:]}")
                time.sleep(0.2)
            yield


@contextmanager
def copied_project(*, copy: bool = True) -> Iterator[Project]:
    """A copy of the project (or, without `copy`, an empty folder) with a home and ports of its own; gone at the end."""
    with TemporaryDirectory(prefix="mlops-bench-") as name:
        folder = Path(name).resolve()
        if copy:
            for each in COPIED:
                shutil.copy(CHECKOUT / each, folder / each)
            shutil.copytree(
                CHECKOUT / "mlops_assets", folder / "mlops_assets", ignore=shutil.ignore_patterns("__pycache__")
            )
        dagster_port, mlflow_port, serve_port, grpc_port = free_ports(4)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        yield Project(
            folder,
            {
                **kept,
                "PYTHONPATH": str(folder),
                "MLOPS_HOME": str(folder / ".mlops"),
                "MLOPS_DAGSTER_PORT": str(dagster_port),
                "MLOPS_MLFLOW_PORT": str(mlflow_port),
                "MLOPS_SERVE_PORT": str(serve_port),
                "MLOPS_GRPC_PORT": str(grpc_port),
            },
        )


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120.0, poll: float = 0.25) -> None:
    """Wait until something holds.

    Raises:
        BenchmarkFailed: It did not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(poll)


def iris_csv(variant: int) -> str:
    """Iris with another length in one flower for each variant, so that nothing was seen before."""
    import polars as pl

    from mlops_assets.data.samples import iris

    length = 5.1 + variant / 1000
    return (
        iris()
        .with_columns(pl.when(pl.col("id") == 1).then(length).otherwise("sepal_length").alias("sepal_length"))
        .write_csv()
    )


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def free_ports(count: int) -> list[int]:
    """Ports that were free just now."""
    with ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in bound]


def _die_with_parent() -> None:
    """Undo an inherited "ignore" of Ctrl-C, with which Dagster could only be killed, and end when we are killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(process: subprocess.Popen[str]) -> None:
    """End a process and, by their ids, all that descend from it."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _, left = psutil.wait_procs(family, timeout=5)
    for each in left:
        with suppress(psutil.NoSuchProcess):
            each.kill()
