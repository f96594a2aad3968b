"""`mlops up`: it starts everything, follows data and code, and ends everything, however it comes."""

import signal
import socket
import sys
import time
from contextlib import suppress

import psutil
import pytest

from mlops_assets.cli.up import MOST_RESTARTS
from mlops_assets.data import samples
from mlops_assets_tests.processes.project import Project, is_answering, send

pytestmark = pytest.mark.slow

COMMITTER = """
import sys
from pathlib import Path
from mlops_assets.oxen.repository import Repository

who, table = sys.argv[2], Path("iris.csv").read_text()
for number in range(5):
    content = f"{table}{150 + int(who)},5.{number},3.{who},1.4,0.2,setosa\\n".encode()
    files = {"iris.csv": content, f"{who}/{number}": b""}
    Repository(Path(sys.argv[1])).commit(f"{who} {number}", files=files)
"""


@pytest.mark.timeout(600)
def test_up_follows_data_and_code_until_ctrl_c(project: Project, record_property) -> None:
    began = time.monotonic()
    up = project.up()
    record_property("seconds until all answer", time.monotonic() - began)
    done = project.mlops("data", "import", "iris", "--no-push")
    assert done.returncode == 0, done.stderr
    project.wait_for(project.champion, "the champion")
    project.wait_until_settled()
    assert project.mlflow_statuses() == [("parent", "FINISHED"), ("model", "FINISHED")]
    assert project.made() == {"dataset": 1, "features": 1, "model": 1, "evaluation": 1, "champion": 1}
    assert project.serves(1)

    second = project.mlops("up")
    assert second.returncode == 1
    assert second.stderr == f"error: another `mlops up` runs with {project.home}; stop it, or set MLOPS_HOME\n"

    project.edit("features.py", "    return frame", "    # the area is what tells them apart\n    return frame")
    project.wait_until_settled()
    project.wait_until_settled()
    assert len(project.runs()) == 1, "a comment is no change"

    project.edit("defs.yaml", "learning_rate: 0.01", "learning_rate: 0.02")
    project.wait_for(lambda: project.made()["champion"] == 2, "the champion after the edit")
    project.wait_until_settled()
    assert project.made() == {"dataset": 1, "features": 1, "model": 2, "evaluation": 2, "champion": 2}

    (project.root / "iris.csv").write_text(samples.iris().write_csv())
    committers = [
        project.start(sys.executable, "-c", COMMITTER, str(project.repository.path), who) for who in ("1", "2")
    ]
    assert [process.wait(120) for process in committers] == [0, 0], project.told()
    messages = [commit.message for commit in project.repository.log("main")]
    assert len(messages) == 11
    assert set(messages) >= {f"{who} {number}" for who in "12" for number in range(5)}
    assert len(project.repository.entries("", project.repository.resolve("main"))) == 11
    project.wait_until_settled()
    assert project.failed_ticks() == []
    assert set(project.statuses()) == {"SUCCESS"}
    status = project.mlops("status")
    assert "up to date" in status.stdout, status.stdout + status.stderr

    code, seconds = send(up, signal.SIGINT)
    assert code == 0
    assert seconds < 20
    assert project.output.read_text().endswith("stopped\n")
    assert not project.alive()


def test_a_dead_service_is_started_again_and_not_for_ever(project: Project) -> None:
    up = project.up()
    killed: set[int] = set()

    def next_webserver() -> psutil.Process | None:
        """A webserver that answers and was not killed yet."""
        found = [one for one in webservers(up.pid) if one.pid not in killed]
        return found[0] if found and is_answering(f"{project.dagster_url}/server_info") else None

    while up.poll() is None and len(killed) <= MOST_RESTARTS:
        webserver = project.wait_for(next_webserver, "a webserver")
        killed.add(webserver.pid)
        webserver.kill()
        webserver.wait(10)
    assert len(killed) == MOST_RESTARTS + 1
    assert up.wait(60) == 1
    told = project.output.read_text()
    assert told.count("starting again") == MOST_RESTARTS
    assert "error: Dagster ended" in told
    assert "dagster.log ends with:" in told
    assert "Traceback" not in told
    project.wait_for(lambda: not project.alive(), "the end of all", 20)


def test_the_death_of_up_ends_all(project: Project) -> None:
    up = project.up()
    send(up, signal.SIGKILL)
    project.wait_for(lambda: not project.alive(), "the end of all", 30)


def webservers(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(pid).children(recursive=True)
        return [child for child in children if "dagster_webserver" in child.cmdline()]
    return []


def test_a_taken_port_is_one_sentence(project: Project) -> None:
    for name in ("MLOPS_DAGSTER_PORT", "MLOPS_MLFLOW_PORT", "MLOPS_SERVE_PORT", "MLOPS_GRPC_PORT"):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = project.mlops("up", **{name: str(port)})
        assert done.returncode == 1
        assert done.stderr == (
            f"error: port {port} on 127.0.0.1 cannot be used (Address already in use); "
            f"stop what listens there, or set {name}\n"
        )
    assert not project.alive()
