"""Dagster, MLflow and the portal behind the entry: as programs and a real browser use them."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from mlops_assets_tests.processes.conftest import free_ports
from mlops_assets_tests.proxy.browser import CHROMIUM, browsing
from mlops_assets_tests.proxy.conftest import Entry, entering
from mlops_assets_tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DEFINITIONS = """
import dagster as dg

@dg.asset(kinds={"python"}, description="one")
def one() -> int:
    return 1

defs = dg.Definitions([one])
"""

UPLOAD_BYTES = 64 << 20  # twice what other requests may have

CLIENT = """
import hashlib, sys
from pathlib import Path
import mlflow

folder = Path(sys.argv[1])
client = mlflow.MlflowClient()
run = client.create_run(client.create_experiment("through"))
client.log_artifact(run.info.run_id, str(folder / "large.bin"))
path = client.download_artifacts(run.info.run_id, "large.bin", str(folder))
print(run.info.run_id, hashlib.sha256(Path(path).read_bytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    """An entry over Dagster's webserver, MLflow's server and the portal, each a process under its prefix."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "dagster").mkdir()
    (folder / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    (folder / "definitions.py").write_text(DEFINITIONS)
    dagster, mlflow, portal = free_ports(3)
    commands = [
        [*("-m", "dagster_webserver", "-f", "definitions.py", "--path-prefix", "/dagster", "-p", str(dagster))],
        [
            *("-m", "mlflow", "server", "--static-prefix", "/mlflow", "--port", str(mlflow), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "store")),
            *("--allowed-hosts", "localhost,localhost:*,127.0.0.1:*"),
        ],
        ["-c", "from mlops_assets.cli import main; main()", "portal"],
    ]
    with ExitStack() as stack:
        names = {
            f"MLOPS_{name}_UPSTREAM": f"127.0.0.1:{port}"
            for name, port in (("DAGSTER", dagster), ("MLFLOW", mlflow), ("PORTAL", portal))
        }
        entry = stack.enter_context(entering(folder, **names))
        commands[1] += ["--cors-allowed-origins", entry.url]
        environment = os.environ | {
            "DAGSTER_HOME": str(folder / "dagster"),
            "DAGSTER_DISABLE_TELEMETRY": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLOPS_HOME": str(folder / "home"),
            "MLOPS_PORTAL_PORT": str(portal),
            "MLOPS_PUBLIC_URL": entry.url,
            "PYTHONWARNINGS": "ignore",
        }
        output = stack.enter_context((folder / "output").open("ab"))
        processes = [
            subprocess.Popen([sys.executable, *one], cwd=folder, env=environment, stdout=output, stderr=output)
            for one in commands
        ]
        stack.callback(end, processes)
        client = stack.enter_context(entry.client())
        for path in ("/dagster/server_info", "/mlflow/health", "/status.json"):
            wait_for(
                lambda path=path: client.get(path).status_code == 200, f"{path}\n{(folder / 'output').read_text()}"
            )
        yield entry


def end(processes: "list[subprocess.Popen[bytes]]") -> None:
    family = [one for process in processes for one in psutil.Process(process.pid).children(recursive=True)]
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(180)
    for one in psutil.wait_procs(family, 10)[1]:
        one.kill()


def test_dagster_answers_and_sends_updates_over_a_websocket(whole: Entry) -> None:
    with whole.client() as client:
        answer = client.post("/dagster/graphql", json={"query": "{ version }"}, headers={"Origin": whole.url})
        assert answer.json()["data"]["version"]
        page = client.get("/dagster/runs", headers={"Accept-Encoding": "gzip"})
        assert page.headers["content-encoding"] == "gzip"
    login = base64.b64encode(f"admin:{whole.password}".encode()).decode()
    headers = {"authorization": f"Basic {login}"}
    address = f"wss://localhost:{whole.port}/dagster/graphql"
    options = {"ssl": whole.tls, "subprotocols": ["graphql-ws"], "proxy": None, "open_timeout": 60}
    with connect(address, additional_headers=headers, origin=whole.url, **options) as updates:
        updates.send(json.dumps({"type": "connection_init", "payload": {}}))
        assert json.loads(updates.recv(60))["type"] == "connection_ack"
        query = """subscription { pipelineRunLogs(runId: "none") {
            ... on PipelineRunLogsSubscriptionFailure { missingRunId } } }"""
        updates.send(json.dumps({"type": "start", "id": "1", "payload": {"query": query}}))
        told = json.loads(updates.recv(60))
        assert (told["type"], told["id"]) == ("data", "1"), told
        assert told["payload"]["data"] == {"pipelineRunLogs": {"missingRunId": "none"}}
    for refused, status in (({}, "401"), ({**headers, "origin": "https://evil.example"}, "403")):
        with pytest.raises(InvalidStatus, match=status), connect(address, additional_headers=refused, **options):
            pass


def test_a_python_client_logs_large_artifacts_through_mlflow(whole: Entry, tmp_path: Path) -> None:
    block = os.urandom(1 << 20)
    with (tmp_path / "large.bin").open("wb") as large:
        for _ in range(UPLOAD_BYTES >> 20):
            large.write(block)
    wanted = hashlib.sha256(block * (UPLOAD_BYTES >> 20)).hexdigest()
    (tmp_path / "down").mkdir()
    variables = {
        "MLFLOW_TRACKING_URI": f"{whole.url}/mlflow",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": whole.password,
        "MLFLOW_TRACKING_SERVER_CERT_PATH": str(whole.certificate),
        "NO_PROXY": "localhost",
    }
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(tmp_path)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == wanted
    kept = [path for name in ("body", "proxy") for path in (whole.folder / "run" / name).rglob("*") if path.is_file()]
    assert kept == []
    warnings = [line for line in (whole.folder / "errors").read_text().splitlines() if "temporary file" in line]
    assert warnings == [], "streamed, not written to a disk on its way"


def test_mlflow_takes_what_its_own_pages_send_and_nothing_of_others(whole: Entry) -> None:
    search = {"max_results": 1}
    path = "/mlflow/ajax-api/2.0/mlflow/experiments/search"
    with whole.client() as client:
        assert client.post(path, json=search, headers={"Origin": whole.url}).status_code == 200
        assert client.post(path, json=search, headers={"Origin": "https://evil.example"}).status_code == 403
        assert client.get("/mlflow/").headers["content-security-policy"]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium, which opens the pages here, is not installed")
def test_a_browser_that_logs_in_sees_every_page_without_a_complaint(whole: Entry, tmp_path: Path) -> None:
    pages = {
        "/": "document.querySelectorAll('article').length > 1",
        "/dagster/assets": "document.body.innerText.includes('one')",
        "/dagster/runs": "document.body.innerText.includes('Runs')",
        "/mlflow/#/experiments": "document.body.innerText.includes('Experiments')",
        "/mlflow/#/models": "/registered models|model registry/i.test(document.body.innerText)",
    }
    with browsing(tmp_path / "profile", "admin", whole.password) as page:
        for path, shown in pages.items():
            page.open(whole.url + path)
            page.wait_for(shown)
        page.open(whole.url + "/")
        page.wait_for("document.querySelectorAll('article').length > 1")
        page.wait_for(
            "performance.getEntriesByType('resource').filter(one => one.name.endsWith('status.json')).length > 1"
        )
        page.wait_for("document.getElementById('lost').hidden")
    # MLflow's page asks who somebody is, and its server knows that only with its own logins.
    unknown = "/mlflow/ajax-api/2.0/mlflow/users/current"
    assert [complaint for complaint in page.complaints if unknown not in complaint] == []
    assert [one for one in page.failures if not one.startswith("401 ") and unknown not in one] == []
