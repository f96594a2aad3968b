"""`make docker-test`: the server set-up as a team runs it: built, started, used through nginx, killed, taken down.

Needs a Docker engine with Compose and a Python, nothing else. Its project is `mlops-test`, with volumes of its own, so
that it can run beside a set-up that is in use. MLOPS_TAG=TAG tests images that are there, KEEP=1 leaves the stack
running at the end, and names of steps as arguments run these alone.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from browser import browser, program
from stack import PROJECT, ROOT, TAG, Failed, NoRedirect, Stack, basic, free_ports, require, seconds_of, wait

TARGETS: Final = ("nginx", "dagster", "mlflow", "models", "code", "playground")
SERVICES: Final = ("postgres", "code", "dagster", "daemon", "mlflow", "models", "portal", "nginx")

HEALTHY_SECONDS: Final = 90
"""From a container's start to its first good health check."""

END_SECONDS: Final = 120
"""From a kill to the end of the run that it hit."""

MODELS_BYTES: Final = 900 * 10**6
OTHERS_BYTES: Final = 3 * 10**9
BASE_BYTES: Final = 150 * 10**6
"""The public `python:3.11-slim-bookworm` is about 130 MB; what stands in for it may be larger, and is not ours."""

ROWS: Final = {"rows": [{"sepal_length": 6.2, "sepal_width": 2.8, "petal_length": 4.8, "petal_width": 1.8}]}

DONE: Final = {"SUCCESS", "FAILURE", "CANCELED"}


def main() -> int:
    """Run all; the exit code."""
    stack = Stack()
    steps = [(what, step) for what, step in STEPS if step.__name__ in (sys.argv[1:] or [step.__name__])]
    try:
        for number, (what, step) in enumerate(steps, 1):
            began = time.monotonic()
            print(f"[{number}/{len(steps)}] {what} ...", flush=True)
            for line in step(stack) or ():
                print(f"      {line}", flush=True)
            print(f"      {time.monotonic() - began:.0f} s", flush=True)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        logs = Path(tempfile.gettempdir()) / f"{PROJECT}.log"
        logs.write_text(stack.compose("logs", "--no-color", "--timestamps"))
        print(f"the logs of all services are in {logs}", file=sys.stderr)
        return 1
    finally:
        if not os.environ.get("KEEP"):
            stack.compose("--profile", "playground", "down", "--volumes", "--timeout", "20")
    print("passed")
    return 0


def build(stack: Stack) -> Iterator[str]:
    """All images, and how large they are."""
    network = os.environ.get("MLOPS_BUILD_NETWORK", "default")
    for target in () if "MLOPS_TAG" in os.environ else TARGETS:
        command = ["build", "--quiet", "--network", network, "--file", str(ROOT / "docker" / "Dockerfile")]
        command += ["--target", target, "--tag", f"mlops-{target}:{TAG}"]
        command += ["--build-arg", f"TORCH_INDEX={os.environ.get('TORCH_INDEX', '')}", str(ROOT)]
        stack.environment["DOCKER_BUILDKIT"] = "1"
        stack.engine(*command, timeout=3600)
    base = stack.size(os.environ.get("PYTHON_IMAGE", "python:3.11-slim-bookworm"))
    for target in TARGETS[1:]:
        size = stack.size(f"mlops-{target}:{TAG}")
        most = MODELS_BYTES if target == "models" else OTHERS_BYTES
        yield f"{target}: {size / 10**6:.0f} MB, {(size - base) / 10**6:.0f} MB of it above the base image"
        ours = size - base + min(base, BASE_BYTES)
        require(ours <= most, f"the image of {target} is larger than {most / 10**6:.0f} MB")


def start(stack: Stack) -> Iterator[str]:
    """Everything healthy in time."""
    stack.compose("up", "--detach", "--no-build", timeout=600)
    for service in SERVICES:
        wait(lambda one=service: stack.healthy(one), f"{service} to be healthy", HEALTHY_SECONDS)
        began = seconds_of(stack.inspected(service)["State"]["StartedAt"])
        log = stack.inspected(service)["State"]["Health"]["Log"]
        good = next((seconds_of(one["Start"]) for one in log if one["ExitCode"] == 0), began)
        yield f"{service}: healthy {good - began:.0f} s after its start"


def doors(stack: Stack) -> Iterator[str]:
    """One way in, and no default password on it."""
    published = {
        service: [
            port for ports in stack.inspected(service)["NetworkSettings"]["Ports"].values() for port in ports or []
        ]
        for service in SERVICES
    }
    open_ = {service: ports for service, ports in published.items() if ports}
    require(set(open_) == {"nginx"}, f"only nginx may have a port to the outside, and these have: {open_}")
    require({port["HostIp"] for port in open_["nginx"]} == {"127.0.0.1"}, "nginx listens beyond this machine")
    for path in ("/", "/dagster/server_info", "/mlflow/", "/v2/health/ready", "/docs", "/status.json"):
        require(stack.ask(path, password=None)[0] == 401, f"{path} answers without a login")
    asked = stack.ask("/dagster/graphql", {"query": "{version}"}, password=None)
    require(asked[0] == 401, "Dagster's GraphQL answers without a login")
    for password in ("admin", "password", "mlops", "postgres", "changeme"):
        require(stack.ask("/", password=password)[0] in {401, 429}, f"'{password}' is let in")
    for path in ("/", "/dagster/server_info", "/mlflow/", "/v2/health/live", "/docs", "/status.json"):
        require(stack.ask(path)[0] == 200, f"{path} does not let admin in")
    require(stack.ask("/metrics")[0] == 404, "/metrics is open")
    yield f"{stack.url}, user admin, password of {len(stack.password)} characters"
    redirected = urllib.request.Request(f"http://127.0.0.1:{stack.http}/dagster/")
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect()).open(redirected, timeout=10)
    except urllib.error.HTTPError as error:
        require(error.headers["Location"] == f"{stack.url}/dagster/", f"http leads to {error.headers['Location']}")
    with (
        socket.create_connection(("127.0.0.1", stack.https), timeout=10) as raw,
        stack.trusting.wrap_socket(raw, server_hostname="localhost") as wire,
    ):
        key = base64.b64encode(os.urandom(16)).decode()
        wire.sendall(
            f"GET /dagster/graphql HTTP/1.1\r\nHost: localhost:{stack.https}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: graphql-ws\r\n"
            f"Sec-WebSocket-Key: {key}\r\n"
            f"Origin: {stack.url}\r\nAuthorization: {basic('admin', stack.password)}\r\n\r\n".encode()
        )
        answer = wire.recv(200).decode(errors="replace").splitlines()[0]
    require(" 101 " in f"{answer} ", f"Dagster's live updates are refused: {answer}")
    yield "websocket of the Dagster UI: 101"


def loop(stack: Stack) -> Iterator[str]:
    """Data in, a champion out, and its answers."""
    stack.mlops("data", "import", "iris")
    run = _ended(stack, None)
    require(run["status"] == "SUCCESS", f"the first run ended as {run['status']}")
    count = [
        "psql",
        "-U",
        "postgres",
        "-d",
        "dagster",
        "-tAc",
        f"SELECT count(*) FROM runs WHERE run_id = '{run['runId']}'",
    ]
    require(stack.compose("exec", "-T", "postgres", *count).strip() == "1", "Dagster's runs are not in PostgreSQL")
    wait(lambda: stack.ask("/models/iris/predict", ROWS)[0] == 200, "the champion to answer", 30)
    yield "iris: " + stack.ask("/models/iris/predict", ROWS)[1].strip()[:150]
    ready = stack.ask("/v2/models/iris")[1]
    require('"versions":["1"]' in ready.replace(" ", ""), f"the Open Inference Protocol tells {ready}")
    told = json.loads(stack.ask("/status.json")[1])
    wait(lambda: "iris" in stack.ask("/")[1], "the start page to show iris", 30)
    yield f"start page: {', '.join(sorted(str(one) for one in told))}"
    for command in (["status"], ["ledger", "verify"], ["data", "log", "iris"], ["store", "verify"]):
        yield f"mlops {' '.join(command)}: " + stack.mlops(*command).strip().splitlines()[-1]


CLIENT: Final = """
import os, sys, time
import mlflow
from mlflow import MlflowClient
client = MlflowClient()
print("version behind the alias:", client.get_model_version_by_alias("iris", "champion").version)
experiment = client.create_experiment("through nginx")
run = client.create_run(experiment).info.run_id
client.log_metric(run, "one", 1.0)
size = int(sys.argv[1])
with open("/tmp/large.bin", "wb") as file:
    for _ in range(size >> 20):
        file.write(os.urandom(1 << 20))
began = time.monotonic()
client.log_artifact(run, "/tmp/large.bin")
up = time.monotonic() - began
os.rename("/tmp/large.bin", "/tmp/kept.bin")
began = time.monotonic()
got = client.download_artifacts(run, "large.bin", "/tmp")
down = time.monotonic() - began
import filecmp
assert filecmp.cmp("/tmp/kept.bin", got, shallow=False), "another content"
print(f"{size >> 20} MiB up in {up:.0f} s, down in {down:.0f} s, the same")
"""


def artifacts(stack: Stack) -> Iterator[str]:
    """MLflow's Python client through the login, and an artifact of 1 GB."""
    folder = tempfile.mkdtemp()
    certificate = Path(folder) / "certificate.pem"
    certificate.write_text(stack.compose("exec", "-T", "nginx", "cat", "/etc/mlops/web/certificate.pem"))
    # In nginx's own network, where https://localhost is nginx, on whatever machine the engine runs.
    variables = {
        "MLFLOW_TRACKING_URI": "https://localhost/mlflow",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": stack.password,
        "MLFLOW_TRACKING_SERVER_CERT_PATH": "/tmp/certificate.pem",
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    }
    flags = [flag for name in variables for flag in ("--env", name)]
    stack.environment |= variables
    name = f"{PROJECT}-client"
    network = f"container:{stack.container('nginx')}"
    stack.engine("create", "--name", name, "--network", network, *flags, "--entrypoint", "python",
                 f"mlops-mlflow:{TAG}", "-c", CLIENT, str(1 << 30))  # fmt: skip
    try:
        stack.engine("cp", str(certificate), f"{name}:/tmp/certificate.pem")
        yield from stack.engine("start", "--attach", name, timeout=600).splitlines()
    finally:
        stack.engine("rm", "--force", name)
        for one in variables:
            stack.environment.pop(one, None)
        shutil.rmtree(folder)


def pages(stack: Stack) -> Iterator[str]:
    """Log in with a real browser, where there is one, and look at the pages."""
    path = program()
    if path is None:
        yield "skipped: no chromium here"
        return
    with browser(path) as page:
        # The browser keeps the login; an address with one in it breaks what pages fetch.
        page.open(f"https://admin:{stack.password}@localhost:{stack.https}/healthz")
        page.open(f"https://admin:{stack.password}@localhost:{stack.https}/")
        require(page.shows("iris"), "the start page shows no iris")
        for url, wanted in (
            ("dagster/asset-groups/", "iris"),
            ("dagster/runs/", "Success"),
            ("mlflow/#/models", "iris"),
        ):
            page.open(f"{stack.url}/{url}")
            require(page.shows(wanted), f"/{url} shows no '{wanted}', but: {page.text()[:300]}")
            yield f"/{url} shows '{wanted}'"


CHANGE: Final = """
import sys
from mlops_assets.data import samples
samples.iris().head(150 - int(sys.argv[1])).write_csv(sys.argv[2])
"""
CHANGED: Final = "/tmp/iris.csv"


def kills(stack: Stack) -> Iterator[str]:
    """`kill -9` of each container in the middle of a training."""
    moments = [("code", "as soon as it is there"), *((service, "in its training") for service in SERVICES)]
    for number, (service, moment) in enumerate(moments, 1):
        wait(lambda: all(map(stack.healthy, SERVICES)), "all to be healthy", HEALTHY_SECONDS)
        known = {run["runId"] for run in stack.runs()}
        stack.compose("exec", "-T", "code", "python", "-c", CHANGE, str(number), CHANGED)
        stack.mlops("data", "commit", "iris", CHANGED, "-m", f"{number}: the end of {service}")
        if moment == "in its training":
            wait(lambda seen=known: _training(stack, seen), "a training", 90)
        pid = stack.inspected(service)["State"]["Pid"]
        killed = time.monotonic()
        stack.engine("run", "--rm", "--pid", "host", "--user", "0", "--entrypoint", "/bin/sh",
                     f"mlops-dagster:{TAG}", "-c", f"kill -9 {pid}")  # fmt: skip
        run = _ended(stack, known)
        took = time.monotonic() - killed
        require(took < END_SECONDS, f"after the end of {service}, the run took {took:.0f} s to end")
        wait(lambda one=service: stack.healthy(one), f"{service} to be back", HEALTHY_SECONDS)
        back = time.monotonic() - killed
        tries = len([one for one in stack.runs() if one["runId"] not in known])
        how = f"{run['status']} after {took:.0f} s, {tries} tries; healthy again after {back:.0f} s"
        yield f"{service}, {moment}: {how}"
        if run["status"] != "SUCCESS":
            yield stack.mlops("run", "iris").strip().splitlines()[-1]
        require("entries are as they were written" in stack.mlops("ledger", "verify"), "the ledger is damaged")
        log = stack.mlops("data", "log", "iris")
        require(f"{number}: the end of {service}" in log, f"the commit before the end of {service} is lost")
    require("up to date" in stack.mlops("status", "iris"), "iris is not up to date in the end")


def _training(stack: Stack, known: set[str]) -> bool:
    return any(
        step["stepKey"].endswith("__model") and step["status"] == "IN_PROGRESS"
        for run in stack.runs()
        if run["runId"] not in known
        for step in run["stepStats"]
    )


def _ended(stack: Stack, known: set[str] | None) -> dict[str, Any]:
    """The newest of the new runs, when all have ended and no retry is to come."""

    def end() -> dict[str, Any] | None:
        try:
            new = [run for run in stack.runs() if run["runId"] not in (known or set())]
        except (OSError, ValueError, TypeError, KeyError):
            return None  # what was killed is on its way back
        if not new or any(run["status"] not in DONE for run in new):
            return None
        newest = new[0]
        tags = {tag["key"]: tag["value"] for tag in newest["tags"]}
        if newest["status"] == "FAILURE" and tags.get("dagster/will_retry") == "true":
            return None
        return newest

    return wait(end, "the run to end", 2 * END_SECONDS)


def backup(stack: Stack) -> Iterator[str]:
    """Everything into one archive, while it runs, and out of it again."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "out.tar"
        with archive.open("wb") as file:
            command = stack.command("exec", "-T", "code", "mlops", "backup", "-")
            subprocess.run(command, stdout=file, env=stack.environment, check=True, timeout=300)
        yield f"{archive.stat().st_size / 10**6:.0f} MB"
        before = stack.mlops("ledger", "show", "iris")
        stack.compose("down", "--volumes", "--timeout", "20")
        stack.compose("up", "--detach", "--no-build", "postgres")
        wait(lambda: stack.healthy("postgres"), "an empty PostgreSQL", HEALTHY_SECONDS)
        with archive.open("rb") as file:
            command = stack.command("run", "--rm", "-T", "code", "mlops", "restore", "-")
            done = subprocess.run(
                command, stdin=file, env=stack.environment, capture_output=True, text=True, check=False, timeout=300
            )
        require(done.returncode == 0, f"the restore failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    for name in ("password", "trusting"):
        stack.__dict__.pop(name)  # made anew by the first start
    yield from start(stack)
    require(stack.mlops("ledger", "show", "iris") == before, "the ledger is another one")
    yield stack.mlops("ledger", "verify").strip().splitlines()[-1]
    wait(lambda: stack.ask("/models/iris/predict", ROWS)[0] == 200, "the champion to answer again", 60)
    wait(lambda: "up to date" in stack.mlops("status", "iris"), "iris to be as it was", 120)
    yield "the champion answers again; nothing was trained"


def worker(stack: Stack) -> Iterator[str]:
    """A code server on another host, which a network of its own stands for: it alone has the data, and trains there."""
    # What stands for the private network between the two hosts: this host's address in a network of Docker's.
    gateway = "{{(index .IPAM.Config 0).Gateway}}"
    private = stack.engine("network", "inspect", f"{PROJECT}_default", "--format", gateway).strip()
    database, port = free_ports(2)
    with tempfile.TemporaryDirectory() as folder:
        defs, secrets = Path(folder) / "defs", Path(folder) / "secrets"
        shutil.copytree(ROOT / "mlops_assets" / "defs", defs)
        shutil.copytree(defs / "iris", defs / "far")
        text = (defs / "far" / "defs.yaml").read_text()
        (defs / "far" / "defs.yaml").write_text(text.rstrip() + "\n  location: gpu\n")
        secrets.mkdir()
        (secrets / "password").write_text(stack.compose("exec", "-T", "code", "cat", "/run/mlops/dagster/password"))
        for path in [Path(folder), *Path(folder).rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        stack.environment |= {
            "MLOPS_DEFS": str(defs),
            "MLOPS_PRIVATE_ADDRESS": private,
            "MLOPS_DATABASE_PORT": str(database),
            "MLOPS_WORKER_PORT": str(port),
            "MLOPS_WORKER_HOST": private,
            "MLOPS_MAIN_HOST": private,
            "MLOPS_WORKER_SECRETS": str(secrets),
            "MLOPS_WORKER_MLFLOW": "http://mlflow:5000/mlflow",
        }
        stack.files.append("compose.with-worker.yaml")
        stack.compose("up", "--detach", "--no-build")
        stack.compose("up", "--detach", "--no-build", worker=True)
        try:
            far = stack.compose("ps", "-q", "worker", worker=True).strip()
            # MLflow is reached as inside, since the certificate of this test is not one for the private address.
            stack.engine("network", "connect", f"{PROJECT}_default", far)
            health = ["inspect", "--format", "{{.State.Health.Status}}", far]
            wait(lambda: stack.engine(*health).strip() == "healthy", "the worker to be healthy", HEALTHY_SECONDS)
            wait(lambda: all(map(stack.healthy, SERVICES)), "all to be healthy", HEALTHY_SECONDS)
            known = {run["runId"] for run in stack.runs()}
            stack.compose("exec", "-T", "worker", "mlops", "data", "import", "far", worker=True)
            run = _ended(stack, known)
            require(run["status"] == "SUCCESS", f"the worker's run ended as {run['status']}")
            here = stack.compose("exec", "-T", "code", "ls", "/var/lib/mlops/oxen").split()
            require("far" not in here, "the worker's data lie on the main host")
            wait(lambda: stack.ask("/models/far/predict", ROWS)[0] == 200, "its champion to answer here", 60)
            yield "trained there, answered here: " + stack.ask("/models/far/predict", ROWS)[1].strip()[:80]
        finally:
            stack.compose("down", "--volumes", "--timeout", "20", worker=True)


def doctor(stack: Stack) -> Iterator[str]:
    """What the doctor says of it; a problem ends its command, and so this."""
    for one in json.loads(stack.mlops("doctor", "--json")):
        if one["result"] != "ok":
            yield f"{one['result']}: {one['check']}: {one['found']}"


STEPS: Final[list[tuple[str, Callable[[Stack], Iterator[str]]]]] = [
    ("building the images", build),
    ("starting the stack", start),
    ("one door, with a lock", doors),
    ("a pipeline, from its data to its answers", loop),
    ("the doctor", doctor),
    ("MLflow's client, and an artifact of 1 GB", artifacts),
    ("a browser", pages),
    ("kill -9 of each container in the middle of a run", kills),
    ("backup, and restore into an empty set-up", backup),
    ("a worker on another host", worker),
]


if __name__ == "__main__":
    sys.exit(main())
