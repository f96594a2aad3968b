"""A checkout of its own for a test, and real processes in it: what they start is found again by its home, and ended."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import dagster as dg
import httpx
import polars as pl
import psutil
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus
from mlflow.entities import Run

from mlops_assets.fingerprint import PACKAGE_ROOT
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.oxen.repository import Repository
from mlops_assets.provenance import SENSOR, asset_key
from mlops_assets.report import ChampionFacts, champion_facts
from mlops_assets.settings import settings
from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import Tracking

T = TypeVar("T")

EPOCHS = 20
WAIT = """\
    while pathlib.Path(os.environ["MLOPS_HOME"]).with_name("hold").exists():
        time.sleep(0.05)
"""


@dataclass
class Project:
    """A copy of the package with the pipeline iris, trained briefly, and a home with a ready MLflow store."""

    root: Path
    home: Path
    environment: dict[str, str]
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    closing: ExitStack = field(default_factory=ExitStack)

    @property
    def dagster_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['MLOPS_DAGSTER_PORT']}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['MLOPS_MLFLOW_PORT']}"

    @property
    def repository(self) -> Repository:
        return Repository(self.home / "oxen" / "iris")

    @property
    def pipeline(self) -> Path:
        return self.root / "mlops_assets" / "defs" / "iris"

    @property
    def gate(self) -> Path:
        return self.home.with_name("hold")

    @property
    def output(self) -> Path:
        """What the processes of `start` print."""
        return self.home.parent / "output.log"

    def commit(self, table: pl.DataFrame, message: str = "change") -> None:
        self.repository.init()
        self.repository.commit(message, files={"iris.csv": table.write_csv().encode()})

    def edit(self, file: str, old: str, new: str) -> None:
        replace(self.pipeline / file, old, new)

    def hold_trainings(self) -> None:
        """Let every training wait, in the middle of its MLflow run, until `release_trainings`; no source changes."""
        self.gate.touch()

    def release_trainings(self) -> None:
        self.gate.unlink()

    def mlops(self, *arguments: str, timeout: float = 300, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        return self.call([script("mlops"), *arguments], timeout=timeout, **variables)

    def call(self, command: list[str], timeout: float = 300, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run any command in the checkout to its end."""
        environment = self.environment | variables
        return subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def start(self, *command: str, **variables: str) -> "subprocess.Popen[bytes]":
        """Start a command that goes on; it has a session of its own."""
        with self.output.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=self.environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    @property
    def serve_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['MLOPS_SERVE_PORT']}"

    def serves(self, version: int) -> bool:
        """Whether the model server answers with a version of iris."""
        told = httpx.get(f"{self.serve_url}/health", timeout=60, trust_env=False, verify=False).json()
        return told["pipelines"].get("iris", {}).get("version") == version

    def up(self) -> "subprocess.Popen[bytes]":
        """`mlops up`, answering; started as a shell without a terminal starts `mlops up &`: Ctrl-C is ignored."""
        process = self.start("sh", "-c", 'trap "" INT; exec "$0" up', script("mlops"))

        def answering() -> bool:
            assert process.poll() is None, f"mlops up ended with {process.returncode}"
            return is_answering(f"{self.dagster_url}/server_info") and (
                "MLFLOW_TRACKING_URI" in self.environment or is_answering(f"{self.mlflow_url}/health")
            )

        self.wait_for(answering, "mlops up to answer")
        return process

    def alive(self) -> list[psutil.Process]:
        """Every process of this home."""
        return living(self.home)

    def kill(self) -> None:
        """Kill every process of this home."""
        kill_all(self.home)

    def end(self) -> None:
        """Kill whatever is left."""
        self.kill()
        for process in self.started:
            process.wait()
        self.closing.close()

    def wait_for(self, condition: Callable[[], T], what: str, timeout: float = 180) -> T:
        """Poll until a condition holds; a failure quotes the logs."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            value = condition()
            if value:
                return value
            time.sleep(0.2)
        raise AssertionError(f"waited {timeout:.0f} s for {what}\n{self.told()}")

    def told(self) -> str:
        """The ends of all logs, and the state of all runs."""
        logs = [self.output, *sorted((self.home / "logs").glob("*.log"))]
        parts = [f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs if log.exists()]
        with suppress(Exception):
            parts.append(f"--- Dagster runs: {[(run.run_id[:8], run.status.value) for run in self.runs()]}")
            parts.append(f"--- MLflow runs: {self.mlflow_statuses()}")
        return "\n".join(parts)

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        """The Dagster instance of the home, opened once."""
        return self.closing.enter_context(open_instance(ensure_home(settings())))

    def runs(self) -> list[dg.DagsterRun]:
        """All Dagster runs, the oldest first."""
        return self.instance.get_runs()[::-1]

    def statuses(self) -> list[str]:
        """The status of all Dagster runs, the oldest first."""
        return [run.status.value for run in self.runs()]

    def champion(self) -> ChampionFacts | None:
        return champion_facts(self.instance, "iris")

    def made(self) -> dict[str, int]:
        """How often each stage up to the champion was materialized."""
        return {
            stage: len(
                self.instance.fetch_materializations(
                    dg.AssetRecordsFilter(asset_key=asset_key("iris", stage)), limit=100
                ).records
            )
            for stage in ("dataset", "features", "model", "evaluation", "champion")
        }

    def ticks(self, sensor: str = SENSOR) -> list[InstigatorTick]:
        """The ticks of a sensor, the newest first."""
        states = [one for one in self.instance.all_instigator_state() if one.instigator_name == sensor]
        return [tick for one in states for tick in self.instance.get_ticks(one.instigator_origin_id, one.selector_id)]

    def failed_ticks(self) -> list[str]:
        """What went wrong in any sensor."""
        return [
            f"{state.instigator_name}: {tick.error}"
            for state in self.instance.all_instigator_state()
            for tick in self.instance.get_ticks(state.instigator_origin_id, state.selector_id)
            if tick.status == TickStatus.FAILURE
        ]

    def wait_until_settled(self) -> None:
        """Wait for a tick that began after this moment and had nothing to say of the pipeline."""
        now = time.time()

        def settled() -> bool:
            newest = self.ticks()[:1]
            return any(
                tick.timestamp > now and not re.search(r"\biris\b", tick.skip_reason or "iris") for tick in newest
            )

        self.wait_for(settled, "the sensor to find nothing stale", 300)

    def tracking(self) -> Tracking:
        uri = self.environment.get("MLFLOW_TRACKING_URI")
        return Tracking(uri) if uri else Tracking.embedded(self.home)

    def mlflow_runs(self) -> list[Run]:
        """All MLflow runs of the pipeline, the oldest first."""
        client = self.tracking().client
        experiment = client.get_experiment_by_name("iris")
        if experiment is None:
            return []
        return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))

    def mlflow_statuses(self) -> list[tuple[str, str]]:
        """(parent or model, status) of all MLflow runs, the oldest first."""
        return [
            ("model" if keys.DAGSTER_RUN in run.data.tags else "parent", run.info.status) for run in self.mlflow_runs()
        ]

    def is_training(self) -> bool:
        return ("model", "RUNNING") in self.mlflow_statuses()

    def training(self) -> str:
        """The Dagster run that trains now."""
        (found,) = [
            run.data.tags[keys.DAGSTER_RUN]
            for run in self.mlflow_runs()
            if keys.DAGSTER_RUN in run.data.tags and run.info.status == "RUNNING"
        ]
        return str(found)

    def status(self, run_id: str) -> str:
        """The status of a Dagster run."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status.value

    def holder(self, run_id: str) -> psutil.Process:
        """The process that holds a run's lock."""
        path = self.home / "runs" / run_id
        for process in self.alive():
            with suppress(psutil.Error):
                if any(Path(file.path) == path for file in process.open_files()):
                    return process
        raise AssertionError(f"nobody holds {path}\n{self.told()}")


def script(name: str) -> str:
    """A command of the environment that the tests run in."""
    return str(Path(sys.executable).with_name(name))


def is_answering(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False, verify=False).is_success  # else it reads certificates: 20 ms
    except httpx.HTTPError:
        return False


def shorten(folder: Path) -> None:
    """Train the pipeline briefly, and not before `hold` beside the home is gone."""
    for file, old, new in (
        ("defs.yaml", "epochs: 200", f"epochs: {EPOCHS}"),
        ("model.py", "from torch import nn", "import os, pathlib, time\nfrom torch import nn"),
        ("model.py", "    return MLP(", f"{WAIT}    return MLP("),
    ):
        replace(folder / file, old, new)


def replace(path: Path, old: str, new: str) -> None:
    """Edit a file as editors do: whoever reads it meanwhile sees all of it, before or after."""
    text = path.read_text()
    assert old in text, f"{old!r} is not in {path}"
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text.replace(old, new))
    aside.replace(path)


def living(home: Path) -> list[psutil.Process]:
    """Every process that has a home in its environment, whoever its parent is now; not this one."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # one that ends meanwhile
            ours = process.environ().get("MLOPS_HOME") == str(home) and process.pid != os.getpid()
            if ours and process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_all(home: Path) -> None:
    """Kill all of them, also what one started while the others were killed."""
    while found := living(home):
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, 1)


def copy_package(root: Path) -> None:
    """The package and its project files, but for what another process is compiling right now."""
    root.mkdir()
    shutil.copytree(PACKAGE_ROOT, root / "mlops_assets", ignore=shutil.ignore_patterns("*.pyc.*"))
    for name in ("pyproject.toml", "workspace.yaml"):
        shutil.copyfile(PACKAGE_ROOT.parent / name, root / name)


def send(process: "subprocess.Popen[bytes]", number: signal.Signals, timeout: float = 180) -> int:
    """Send a signal and wait; the exit code.

    Once more every ten seconds, as a person would: Python drops an interrupt that hits a weak reference's callback.
    """
    began = time.monotonic()
    while True:
        process.send_signal(number)
        try:
            return process.wait(10)
        except subprocess.TimeoutExpired:
            if time.monotonic() - began > timeout:
                raise
