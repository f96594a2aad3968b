"""`swaps`: the champion alias moved again and again under load: lost and wrong answers, time until seen, and memory."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.figures import Figure, Result
from benchmarks.project import BenchmarkFailed, free_ports

if TYPE_CHECKING:
    from mlops_assets.serving.contract import Contract

NAME: Final = "digits"
ALIAS: Final = "champion"
MOVES: Final = 1000
CLIENTS: Final = 4
SEEN_SECONDS: Final = 20.0
TOLERANCE: Final = 1e-5


@dataclass
class Storm:
    """What many moves under load led to.

    Attributes:
        requests: That were answered.
        failed: What went wrong, a sentence each.
        wrong: Answers that are not those of the version that they name.
        seconds: From each move to the first answer of the version that it moved to.
        memory: Resident bytes of the worker, after each move.
    """

    requests: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def measure(runs: int) -> Result:
    moves = MOVES if runs >= 7 else max(20, MOVES * runs // 7)
    with TemporaryDirectory() as folder:
        found = storm(Path(folder), _versions(Path(folder)), moves)
    if found.failed or found.wrong:
        raise BenchmarkFailed(
            f"{len(found.failed)} failed, {len(found.wrong)} wrong: {[*found.failed, *found.wrong][:3]}"
        )
    seen, worst = Figure("from a move of the alias to an answer, median", target=1.0), Figure("the slowest", target=1.0)
    seen.add(median(found.seconds))
    worst.add(max(found.seconds))
    settled = found.memory[len(found.memory) // 10 :]
    grown = Figure("worker's memory, last tenth against second", "times", target=1.1)
    tenth = max(1, len(settled) // 9)
    grown.add(median(settled[-tenth:]) / median(settled[:tenth]))
    told = f"{moves} moves under {CLIENTS} clients: {found.requests} answers, 0 failed, 0 wrong; "
    told += f"95 % of the moves were seen within {quantiles(found.seconds, n=20)[-1]:.2f} s"
    return Result([seen, worst, grown], notes=[told])


def storm(folder: Path, versions: Sequence[tuple[Contract, bytes]], moves: int) -> Storm:
    """Register versions, start a model server, and move the alias around under load.

    Args:
        folder: An empty folder for a home.
        versions: Contracts and ONNX files; of images.
        moves: How often the alias moves.
    """
    from mlops_assets.services import Service, answers, started
    from mlops_assets.tracking.runs import Tracking
    from mlops_assets.training.predict import predict

    home = folder / "home"
    tracking = Tracking.embedded(home)
    image = np.random.default_rng(3).integers(30, 220, size=(1, *versions[0][0].image_shape), dtype=np.uint8)
    expected = {_registered(tracking, *one): predict(one[1], image)[0] for one in versions}
    http, grpc = free_ports(2)
    url = f"http://127.0.0.1:{http}"
    server = Service(
        "the model server",
        [sys.executable, "-c", "from mlops_assets.cli import main; main()", "serve"],
        folder / "serve.log",
        ready=lambda: answers(f"{url}/v2/health/ready"),
        environment={
            "MLOPS_HOME": str(home),
            "MLOPS_SERVE_PORT": str(http),
            "MLOPS_GRPC_PORT": str(grpc),
            "MLFLOW_TRACKING_URI": "",
        },
    )
    found, done, seen = Storm(), threading.Event(), _Seen()
    tracking.client.set_registered_model_alias(NAME, ALIAS, "1")
    with started([server]) as processes:
        (worker,) = psutil.Process(processes[server.name].pid).children()
        body = {"rows": [{"pixels": image[0].tolist()}]}
        clients = [
            threading.Thread(target=_ask, args=(httpx.Client(base_url=url, timeout=30, trust_env=False), body, asked))
            for asked in [_Asked(expected, found, done, seen)] * CLIENTS
        ]
        for client in clients:
            client.start()
        try:
            for move in range(moves):
                version = [*expected][(move + 1) % len(expected)]
                began = time.monotonic()
                tracking.client.set_registered_model_alias(NAME, ALIAS, version)
                found.seconds.append(seen.wait(version, began) - began)
                found.memory.append(worker.memory_info().rss)
        finally:
            done.set()
            for client in clients:
                client.join()
    return found


class _Seen:
    """Which version was last seen in an answer to a request that began after a moment."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._last = ("", 0.0)

    def tell(self, version: str, asked: float) -> None:
        """An answer came to a request that was sent at a time."""
        with self._condition:
            self._last = version, max(asked, self._last[1])
            self._condition.notify_all()

    def wait(self, version: str, since: float) -> float:
        """The time at which a version is seen in an answer."""
        with self._condition:
            if not self._condition.wait_for(lambda: self._last[0] == version, SEEN_SECONDS):
                raise BenchmarkFailed(f"version {version} was not seen within {SEEN_SECONDS:.0f} s of {since}")
            return time.monotonic()


class _Asked(NamedTuple):
    """What clients share: the right answer of each version, and where they tell what came."""

    expected: dict[str, NDArray[np.float32]]
    found: Storm
    done: threading.Event
    seen: _Seen


def _ask(client: httpx.Client, body: dict[str, Any], asked: _Asked) -> None:
    """Ask until it is done, and hold each answer to the version that it names."""
    with client:
        while not asked.done.is_set():
            sent = time.monotonic()
            try:
                answer = client.post(f"/models/{NAME}/predict", json=body)
                answer.raise_for_status()
                given = answer.json()
            except (httpx.HTTPError, ValueError) as error:
                asked.found.failed.append(f"{type(error).__name__}: {error}")
                continue
            version = given["model_version"]
            probabilities = [*given["predictions"][0]["probabilities"].values()]
            if answer.headers["x-model-version"] != version or not _alike(probabilities, asked.expected[version]):
                asked.found.wrong.append(f"version {version} answers {probabilities}")
            asked.found.requests += 1
            asked.seen.tell(version, sent)


def _alike(given: Sequence[float], wanted: NDArray[np.float32]) -> bool:
    return bool(np.allclose(given, wanted, rtol=0, atol=TOLERANCE))


def _registered(tracking: Any, contract: Contract, model: bytes) -> str:
    """A version in MLflow, as a training leaves it; its number."""
    from mlflow.exceptions import MlflowException

    from mlops_assets.tracking import tags

    data = contract.to_bytes()
    with tracking.training_run(experiment=NAME, name=NAME, params={}, tags={}) as run:
        run.log_artifact("onnx/model.onnx", model)
        run.log_artifact("serving/contract.json", data)
    try:
        tracking.client.create_registered_model(NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = tracking.client.create_model_version(
        NAME, f"runs:/{run.run_id}/onnx", run_id=run.run_id, tags={tags.CONTRACT: hashlib.sha256(data).hexdigest()}
    )
    return str(version.version)


def _versions(folder: Path) -> list[tuple[Contract, bytes]]:
    """Three networks for digits that were never trained."""
    import base64

    import torch

    from mlops_assets.pipeline import find_pipeline
    from mlops_assets.serving.contract import Contract, RawContract
    from mlops_assets.serving.contract_making import collect_sources
    from mlops_assets.training.architectures import SmallCNN
    from mlops_assets.training.export import to_onnx
    from mlops_assets.training.predict import predict

    pipeline = find_pipeline(NAME)
    sample = np.random.default_rng(1).integers(0, 256, size=(2, 8, 8, 1), dtype=np.uint8)
    raw = RawContract(
        pipeline=NAME,
        kind="images",
        inputs=(),
        images=pipeline.spec.data.images,
        image_shape=sample.shape[1:],
        key="key",
        target="label",
        sources=collect_sources([pipeline.function_file("features")], pipeline.folder.parent),
        functions={"features": pipeline.spec.functions.features, "schema": pipeline.spec.functions.schema_},
        sample=tuple(base64.b64encode(one.tobytes()).decode() for one in sample),
    )
    made = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        to_onnx(SmallCNN((8, 8, 1), 10), sample, folder / "model.onnx")
        model = (folder / "model.onnx").read_bytes()
        trained: dict[str, Any] = {"classes": pipeline.spec.data.classes, "features": (), "shape": sample.shape[1:]}
        answers = predict(model, sample).tolist()
        made.append((Contract.of(raw, **trained, onnx=hashlib.sha256(model).hexdigest(), answers=answers), model))
    return made
