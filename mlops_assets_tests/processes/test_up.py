"""`mlops up`: it starts everything, follows data and code, and ends everything.

What it does when a service or itself is killed is in `test_kill.py` and `test_kill_storm.py`.
"""

import signal
import sys

import pytest

from mlops_assets.data import samples
from mlops_assets_tests.processes.project import Project, send

pytestmark = pytest.mark.slow

COMMITTER = """
import sys
from pathlib import Path
from mlops_assets.oxen.repository import Repository

who, table = sys.argv[2], Path("iris.csv").read_text()
for number in range(3):
    content = f"{table}{150 + int(who)},5.{number},3.{who},1.4,0.2,setosa\\n".encode()
    files = {"iris.csv": content, f"{who}/{number}": b""}
    Repository(Path(sys.argv[1])).commit(f"{who} {number}", files=files)
"""


@pytest.mark.timeout(600)
def test_up_follows_data_and_code_until_ctrl_c(project: Project) -> None:
    up = project.up()
    done = project.mlops("data", "import", "iris", "--no-push")
    assert done.returncode == 0, done.stderr
    project.wait_for(project.champion, "the champion")
    project.wait_until_settled()
    ended = [("parent", "FINISHED"), ("model", "FINISHED")]
    project.wait_for(lambda: project.mlflow_statuses() == ended, "MLflow to know")
    assert project.made() == {"dataset": 1, "features": 1, "model": 1, "evaluation": 1, "champion": 1}
    project.wait_for(lambda: project.serves(1), "the champion to answer")

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
    assert [process.wait(300) for process in committers] == [0, 0], project.told()
    messages = [commit.message for commit in project.repository.log("main")]
    assert len(messages) == 7
    assert set(messages) >= {f"{who} {number}" for who in "12" for number in range(3)}
    assert len(project.repository.entries("", project.repository.resolve("main"))) == 7
    project.wait_until_settled()
    assert project.failed_ticks() == []
    assert set(project.statuses()) == {"SUCCESS"}
    status = project.mlops("status")
    assert "up to date" in status.stdout, status.stdout + status.stderr

    assert send(up, signal.SIGINT) == 0
    assert project.output.read_text().endswith("stopped\n")
    assert not project.alive()
