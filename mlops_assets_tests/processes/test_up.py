"""`mlops up`: it starts everything, and ends everything, however it comes."""

import signal
import time

import pytest

from mlops_assets.data import samples
from mlops_assets_tests.processes.project import Project, send

pytestmark = pytest.mark.slow


def test_first(project: Project) -> None:
    began = time.monotonic()
    up = project.up()
    print("up", time.monotonic() - began)
    began = time.monotonic()
    project.commit(samples.iris())
    project.wait_for(project.champion, "champion")
    print("champion", time.monotonic() - began)
    print(project.mlflow_statuses(), project.made())
    print([(p.pid, p.ppid(), p.cmdline()[1:6]) for p in project.alive()])
    print(send(up, signal.SIGTERM))
    print(project.alive(), project.told())
