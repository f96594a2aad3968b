"""A code server that dies with its runs before these hold anything: the one that follows it closes what it left."""

import sys
import time
from contextlib import suppress

import psutil
import pytest

from mlops_assets import liveness
from mlops_assets.data import samples
from mlops_assets_tests.processes.conftest import free_ports
from mlops_assets_tests.processes.project import Project, replace, script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LOST_SECONDS = 9.0
"""How long a run must be lost here: at three looks, for a busy code server may miss one."""

ENOUGH_TICKS = 4
"""The sensor looks every five seconds."""

SLOW_IMPORT = """
import multiprocessing, os, pathlib, time
if multiprocessing.parent_process():  # the process of a run, not the code server
    while pathlib.Path(os.environ["MLOPS_HOME"]).with_name("slow-import").exists():
        time.sleep(0.05)
"""

SLOW_STEP = """\
        import os, pathlib, time
        while pathlib.Path(os.environ["MLOPS_HOME"]).with_name("slow-step").exists():
            time.sleep(0.05)
"""


class Server:
    """A daemon and a code server at an address of its own, as the server set-up has them."""

    def __init__(self, project: Project) -> None:
        self.project = project
        (self.port,) = free_ports(1)
        self.variables = {"DAGSTER_HOME": str(project.home / "dagster")}
        self.workspace = project.home.with_name("workspace.yaml")
        at = f"{{host: 127.0.0.1, port: {self.port}, location_name: mlops_assets}}"
        self.workspace.write_text(f"load_from: [{{grpc_server: {at}}}]")

    def start_code(self) -> None:
        command = ["api", "grpc", "-m", "mlops_assets.definitions", "--port", str(self.port), "--host", "127.0.0.1"]
        self.project.start(script("dagster"), *command, "--log-level", "warning", **self.variables)

        def is_up() -> bool:
            check = [script("dagster"), "api", "grpc-health-check", "--port", str(self.port)]
            return self.project.call(check, **self.variables).returncode == 0

        self.project.wait_for(is_up, "the code server to answer", 120)

    def start_daemon(self) -> None:
        command = ["-m", "dagster._daemon", "run", "-w", str(self.workspace), "--log-level", "warning"]
        self.project.start(sys.executable, *command, **self.variables)

    def kill_code(self) -> None:
        """As a container dies: the code server with all of its children."""
        servers: list[psutil.Process] = []
        for one in self.project.alive():
            with suppress(psutil.Error):  # others end meanwhile
                servers += [one] if {"grpc", str(self.port)} <= set(one.cmdline()) else []
        code = min(servers, key=lambda one: one.create_time())
        dying = [code, *code.children(recursive=True)]
        for process in dying:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(dying, 180)


def test_a_run_that_dies_with_its_code_server_before_it_holds_anything(project: Project) -> None:
    package = project.root / "mlops_assets"
    given = f"LOST_SECONDS: Final = {LOST_SECONDS}"
    replace(package / "sensors" / "run_status.py", "LOST_SECONDS: Final = 45.0", given)
    replace(package / "definitions.py", "import warnings\n", f"import warnings\n{SLOW_IMPORT}")
    holding = "        hold(settings().home, context.run.run_id)\n"
    replace(package / "assets" / "stage.py", holding, SLOW_STEP + holding)
    slow_import, slow_step = (project.home.with_name(name) for name in ("slow-import", "slow-step"))
    slow_import.touch()
    slow_step.touch()
    project.commit(samples.iris())
    assert project.statuses() == []  # and the home has its dagster.yaml

    server = Server(project)
    server.start_code()
    server.start_daemon()
    project.wait_for(lambda: project.statuses() == ["STARTING"], "a run whose process imports the definitions", 120)
    began = time.time()

    def has_looked() -> bool:
        return sum(tick.timestamp > began for tick in project.ticks("run_status")) >= ENOUGH_TICKS

    project.wait_for(has_looked, "the sensor to have looked for longer than a lost run is given", 120)
    assert project.statuses() == ["STARTING"], "one that is merely slow is left alone"
    slow_import.unlink()
    project.wait_for(lambda: project.statuses() == ["STARTED"], "the run to start", 120)

    server.kill_code()
    slow_step.unlink()
    (first,) = project.runs()
    assert first.status.value == "STARTED"
    assert not liveness.is_known(project.home, first.run_id), "it never held anything"
    server.start_code()
    project.wait_for(lambda: project.statuses()[0] == "FAILURE", "the run to be closed", 120)
    project.wait_for(lambda: any(run.parent_run_id == first.run_id for run in project.runs()), "it to be tried again")
    assert [one for one in project.failed_ticks() if "DagsterUserCodeUnreachableError" not in one] == []
