"""`serving`: one worker of the model server against `mlflow models serve` and the bare ONNX Runtime, by one client.

A small convolutional network over images of 32 x 32 pixels (207,000 parameters, a third of a millisecond), one image a
request unless eight are said, one CPU thread for each model. The bare loop takes one image after the other. The client
is h2load (of nghttp2) for all of them; the same images give the same answers everywhere, which is checked first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure, Result
from benchmarks.project import BenchmarkFailed, free_ports

SHAPE: Final = (32, 32, 3)
CLASSES: Final = 10
CHANNELS: Final = (48, 96, 160)
MANY_ROWS: Final = 8
NAME: Final = "bench"
SECONDS: Final = 4
CLIENTS: Final = (1, 16)
START_SECONDS: Final = 120.0
METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"


@dataclass
class Side:
    """A way to ask, and what it gave.

    Attributes:
        url: Where requests go; empty for the loop without a server.
        body: Of a request.
        headers: Of a request.
        http2: Whether it speaks HTTP/2.
        rows: In a request.
        rates: Requests/s by number of clients, one per round.
        latencies: Seconds of p50 and p99 by number of clients, one pair per round.
    """

    what: str
    url: str = ""
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    http2: bool = False
    rows: int = 1
    rates: dict[int, list[float]] = field(default_factory=dict)
    latencies: dict[int, list[tuple[float, float]]] = field(default_factory=dict)


def measure(runs: int) -> Result:
    if shutil.which("h2load") is None:
        raise BenchmarkFailed("h2load is not installed; on Debian and Ubuntu it is in the package nghttp2-client")
    rounds = min(runs, 3)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder, "home")
        image = np.random.default_rng(5).integers(0, 256, size=(1, *SHAPE), dtype=np.uint8)
        subprocess.run([sys.executable, "-m", "benchmarks.bare_serving", "prepare", str(home)], check=True)
        sides = [
            stack.enter_context(_mlflow(home, image)),
            *stack.enter_context(_ours(home, image, log=True)),
            stack.enter_context(_ours(home, image, log=False))[1],
        ]
        _require_equal(sides, home, image)
        bare = Side("bare ONNX Runtime loop")
        for _ in range(rounds):
            for clients in CLIENTS:
                for side in sides:
                    _load(side, clients)
                bare.rates.setdefault(clients, []).append(_bare(home))
    return _result(sides, bare)


@contextmanager
def _mlflow(home: Path, image: NDArray[np.uint8]) -> Iterator[Side]:
    (port,) = free_ports(1)
    command = ["-m", "mlflow", "models", "serve", "--model-uri", f"models:/{NAME}/1", "--env-manager", "local"]
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow/mlflow.db"}
    with _process(
        [*command, "--port", str(port), "--workers", "1"], home, f"http://127.0.0.1:{port}/ping", environment
    ):
        body = json.dumps({"inputs": image.tolist()}).encode()
        headers = {"content-type": "application/json"}
        yield Side("mlflow models serve, JSON", f"http://127.0.0.1:{port}/invocations", body, headers)


@contextmanager
def _ours(home: Path, image: NDArray[np.uint8], *, log: bool) -> Iterator[list[Side]]:
    port, grpc = free_ports(2)
    # a home of its own for each server, over the same version
    own = Path(shutil.copytree(home, home.with_name(f"home-{port}")))
    environment = {"MLOPS_SERVE_PORT": str(port), "MLOPS_GRPC_PORT": str(grpc), "MLOPS_SERVE_LOG": str(log)}
    command = ["-c", "from mlops_assets.cli import main; main()", "serve"]
    url = f"http://127.0.0.1:{port}"
    with _process(command, own, f"{url}/v2/health/ready", environment):
        told = "" if log else ", no prediction log"
        yield [
            Side(
                f"ours, JSON{told}",
                f"{url}/models/{NAME}/invocations",
                json.dumps({"inputs": image.tolist()}).encode(),
                {"content-type": "application/json"},
            ),
            _binary(f"ours, v2 binary{told}", url, image),
            _grpc(f"ours, gRPC{told}", f"http://127.0.0.1:{grpc}", image),
            _binary(f"ours, v2 binary, {MANY_ROWS} rows a request{told}", url, image.repeat(MANY_ROWS, axis=0)),
        ]


def _binary(what: str, url: str, image: NDArray[np.uint8]) -> Side:
    tensor = {"name": "input", "datatype": "UINT8", "shape": list(image.shape)}
    tensor["parameters"] = {"binary_data_size": image.nbytes}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(header))}
    return Side(what, f"{url}/v2/models/{NAME}/infer", header + image.tobytes(), headers, rows=len(image))


def _grpc(what: str, url: str, image: NDArray[np.uint8]) -> Side:
    from mlops_assets.serving.open_inference_pb2 import ModelInferRequest  # type: ignore[attr-defined]

    request = ModelInferRequest(model_name=NAME, raw_input_contents=[image.tobytes()])
    request.inputs.add(name="input", datatype="UINT8", shape=image.shape)
    message = request.SerializeToString()
    headers = {"content-type": "application/grpc", "te": "trailers"}
    return Side(what, url + METHOD, struct.pack(">BI", 0, len(message)) + message, headers, http2=True)


@contextmanager
def _process(command: list[str], home: Path, url: str, environment: dict[str, str]) -> Iterator[None]:
    """A server, until it is not needed any more."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLOPS_", "MLFLOW_", "DAGSTER_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # MLflow starts uvicorn by its name
    told = {
        **kept,
        "PATH": path,
        "MLOPS_HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **environment,
    }
    log = home / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *command], env=told, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkFailed(f"{' '.join(command[:4])} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _require_equal(sides: list[Side], home: Path, image: NDArray[np.uint8]) -> None:
    """Ask each side once: a server that answers something else is no comparison."""
    from mlops_assets.training.predict import predict

    expected = predict(next(home.glob(f"serving/{NAME}/*/model.onnx")), image)[0]
    wanted = f"class{expected.argmax()}"
    for side in sides:
        if side.http2:
            continue  # h2load itself asks, and what went wrong shows in the server's own count
        answer = httpx.post(side.url, content=side.body, headers=side.headers, timeout=30, trust_env=False)
        answer.raise_for_status()
        if "mlflow" in side.what:
            given = f"class{int(np.argmax(answer.json()['predictions'][0]))}"
        elif "binary" in side.what:
            given = wanted if wanted.encode() in answer.content else "another"
        else:
            given = answer.json()["predictions"][0]
        if given != wanted:
            raise BenchmarkFailed(f"{side.what} answers {given}, not {wanted}")


def _load(side: Side, clients: int) -> None:
    """One round of h2load: requests/s, and p50 and p99 of what it logs of each request."""
    with TemporaryDirectory() as folder:
        body, log = Path(folder, "body"), Path(folder, "log")
        body.write_bytes(side.body)
        command = ["h2load", "--threads=1", f"--clients={clients}", "--max-concurrent-streams=1"]
        command += [f"--duration={SECONDS}", "--warm-up-time=1", f"--data={body}", f"--log-file={log}"]
        command += [] if side.http2 else ["--h1"]
        command += [f"--header={name}: {value}" for name, value in side.headers.items()]
        done = subprocess.run([*command, side.url], capture_output=True, text=True, check=True)
        rate = re.search(r"finished in .*?, ([\d.]+) req/s", done.stdout)
        refused = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", done.stdout)
        if not rate or not refused or any(int(one) for one in refused.groups()[1:]):
            raise BenchmarkFailed(f"{side.what} refused requests: {done.stdout[-800:]}")
        microseconds = np.array([int(line.split("\t")[2]) for line in log.read_text().splitlines()])
    side.rates.setdefault(clients, []).append(float(rate[1]))
    p50, p99 = np.percentile(microseconds, [50, 99]) / 1e6
    side.latencies.setdefault(clients, []).append((float(p50), float(p99)))


def _bare(home: Path) -> float:
    command = [sys.executable, "-m", "benchmarks.bare_serving", "loop", str(home), str(SECONDS)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return float(done.stdout.splitlines()[-1])


def _result(sides: list[Side], bare: Side) -> Result:
    figures: list[Figure] = []
    many = max(CLIENTS)
    theirs = {clients: _figure(sides[0], clients) for clients in CLIENTS}
    loop = {clients: _figure(bare, clients, "rows/s") for clients in CLIENTS}
    for clients in CLIENTS:
        figures += [theirs[clients], loop[clients]]
        figures += [_figure(side, clients, against=theirs[clients]) for side in sides[1:4]]
    logged = _figure(sides[2], many, against=_figure(sides[5], many))
    logged.what += ", against the same without a prediction log"
    figures += [_rows(side, many, loop[many]) for side in (sides[2], sides[4])]
    figures.append(logged)
    for clients in CLIENTS:
        for name, place in (("p50", 0), ("p99", 1)):
            first = _latency(sides[0], clients, name, place)
            figures += [first, *(_latency(side, clients, name, place, first) for side in sides[1:4])]
    return Result(figures)


def _figure(side: Side, clients: int, unit: str = "requests/s", against: Figure | None = None) -> Figure:
    what = side.what if unit == "rows/s" else f"{side.what}, {clients} client{'s' if clients > 1 else ''}"
    figure = Figure(what, unit, against=against)
    return _filled(figure, side.rates[clients])


def _rows(side: Side, clients: int, loop: Figure) -> Figure:
    figure = Figure(f"{side.what}, {clients} clients, against the bare loop", "rows/s", against=loop)
    return _filled(figure, [rate * side.rows for rate in side.rates[clients]])


def _latency(side: Side, clients: int, name: str, place: int, against: Figure | None = None) -> Figure:
    figure = Figure(f"{side.what}, {clients} client{'s' if clients > 1 else ''}, {name}", "ms", against=against)
    return _filled(figure, [one[place] * 1000 for one in side.latencies[clients]])


def _filled(figure: Figure, values: list[Any]) -> Figure:
    figure.values, figure.loads = list(values), [os.getloadavg()[0]] * len(values)
    return figure
