"""What a server tells Prometheus: requests, latencies, batches, versions, swaps, the prediction log, the process.

Belongs here: the metrics, which of them go when a version goes, and how the workers of one server make one page. Not
here: the route that shows them (`app.py`), and what is counted where.

`prometheus_client` has a multi-process mode; it cannot drop the series of a version that is served no more, keeps a
file for every process that ever was, shows neither CPU nor memory, and wants an environment variable before it is
imported. So each worker counts in memory and every two seconds puts its numbers in a file of its own, and whoever is
asked adds the files up. A worker that is started again goes on from the file of the one before it: sums never go down.
"""

from __future__ import annotations

import importlib
import json
import logging
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from mlops_assets.serving.slot import Slot

log = logging.getLogger(__name__)

Outcome = Literal["ok", "invalid", "not_served", "shed", "timeout", "failed"]
"""How a request ended: answered; refused for what is in it; no such model; too many others; too late; our fault."""

SECONDS: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

KEPT: Final = 8
"""Of so many versions of a pipeline, those that answered last, requests are counted apart."""

SHARE_SECONDS: Final = 2.0
GONE_SECONDS: Final = 10.0
"""A worker whose file is older is taken for dead: what it counted stays in the sums, what it had at that moment not."""

_LARGEST: Final = ("mlops_model_info", "mlops_gpu", "process_start_time", "process_max_fds")
"""Gauges that all workers see alike, by the beginning of their names; the others are summed."""

_Key = tuple[str, tuple[tuple[str, str], ...]]


class _Family(NamedTuple):
    """A metric with its samples by name and labels."""

    documentation: str
    type: str
    samples: dict[_Key, float]


_Page = dict[str, _Family]


class Metrics:
    """The metrics of a worker, and through them those of its server.

    Args:
        folder: Where the workers of this server keep their numbers, `HOME/metrics`; None when there is but one.
        worker: Number of this worker; no other that lives has it.
    """

    def __init__(self, folder: Path | None = None, worker: int = 0) -> None:
        # Each would double the page, for what Prometheus knows by itself.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"mlops_{name}", documentation, labels, registry=registry)

        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            return Gauge(f"mlops_{name}", documentation, labels, registry=registry)

        def histogram(name: str, documentation: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return Histogram(f"mlops_{name}", documentation, labels, buckets=tuple(buckets), registry=registry)

        self._requests = counter(
            "requests_total", "Requests, by how they ended.", "pipeline", "version", "protocol", "outcome"
        )
        self._seconds = histogram(
            "request_seconds", "Time to answer a request, of those answered.", SECONDS, "pipeline", "protocol"
        )
        self._rows = histogram("request_rows", "Rows in a request, of those answered.", ROWS, "pipeline")
        self.in_flight = gauge("requests_in_flight", "Requests that are being answered.")
        self.batch_rows = histogram("batch_rows", "Rows that micro-batching put in one pass.", ROWS)
        self.queued_rows = gauge("batch_queued_rows", "Rows that wait for micro-batching.")
        self._info = gauge("model_info", "1 for the version that answers.", "pipeline", "version", "run_id")
        self._swaps = counter("model_swaps_total", "Versions that took the place of another.", "pipeline")
        self._failures = counter("model_load_failures_total", "Versions that did not load.", "pipeline")
        self.log_rows = counter("prediction_log_rows_total", "Rows written to the prediction log.")
        self.log_dropped = counter("prediction_log_dropped_total", "Rows that the prediction log lost.")
        self.log_errors = counter("prediction_log_errors_total", "Failed writes of the prediction log.")
        self.log_pending = gauge("prediction_log_pending_rows", "Rows that the prediction log has yet to write.")
        ProcessCollector(registry=registry)
        _watch_gpus(registry)

        self._changing = threading.Lock()
        self._versions: dict[str, list[str]] = {}
        self._shown: dict[str, tuple[str, str]] = {}
        self._bound: dict[tuple[str, int, str, str], tuple[Counter, Histogram | None, Histogram | None]] = {}

        self._folder = folder
        self._writing = threading.Lock()
        self._closed = threading.Event()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = folder / f"{worker}.json"
            self._before = _counts(_read(self._file))
            self._sharing = threading.Thread(target=self._share_on, name="metrics", daemon=True)
            self._sharing.start()

    def observe(
        self, *, pipeline: str, version: int, protocol: str, outcome: Outcome, rows: int, seconds: float
    ) -> None:
        """Count a request that has ended.

        Args:
            pipeline: As the client named it; one that is not served is counted under the empty name, so that nobody
                makes series by asking for nonsense.
            version: That answered; 0 when none was reached.
            protocol: `json`, `v2`, `grpc`, ...
            outcome: How it ended.
            rows: In the request.
            seconds: From its arrival to its answer.
        """
        bound = self._bound.get((pipeline, version, protocol, outcome)) or self._bind(
            pipeline, version, protocol, outcome
        )
        requests, latencies, sizes = bound
        requests.inc()
        if latencies is not None and sizes is not None:
            latencies.observe(seconds)
            sizes.observe(rows)

    def swapped(self, old: Slot | None, new: Slot) -> None:
        """Show that a version answers now, in the place of another or as the first; any thread may tell.

        The series of a version that has not been among the last `KEPT` of its pipeline are dropped: however often a
        server swaps, its page and its memory stay as they are. Prometheus keeps what it has read. Latencies and rows
        are by pipeline, not by version.
        """
        name, version = new.pipeline, str(new.version)
        with self._changing:
            if name in self._shown:
                self._info.remove(name, *self._shown[name])
            self._shown[name] = (version, new.run_id)
            self._info.labels(name, version, new.run_id).set(1)
            if old is not None:
                self._swaps.labels(name).inc()
            known = self._versions.setdefault(name, [])
            if version in known:
                known.remove(version)
            known.append(version)
            if len(known) > KEPT:
                self._forget(name, known.pop(0))

    def load_failed(self, pipeline: str) -> None:
        """Count a version that did not load."""
        self._failures.labels(pipeline).inc()

    def render(self) -> tuple[bytes, str]:
        """The page and its media type; of all workers when there are several."""
        if self._folder is None:
            return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4
        self._share()
        pages = CollectorRegistry()
        pages.register(_Sum(self._folder))
        return generate_latest(pages), CONTENT_TYPE_PLAIN_0_0_4

    def close(self) -> None:
        """Leave the last numbers where the other workers find them."""
        self._closed.set()
        if self._folder is not None:
            self._sharing.join()
            self._share()

    def _bind(
        self, pipeline: str, version: int, protocol: str, outcome: Outcome
    ) -> tuple[Counter, Histogram | None, Histogram | None]:
        with self._changing:
            known = self._versions.get(pipeline)
            if known is None:
                return self._requests.labels("", "", protocol, outcome), None, None
            text = str(version) if str(version) in known else ""
            requests = self._requests.labels(pipeline, text, protocol, outcome)
            if outcome != "ok":
                bound: tuple[Counter, Histogram | None, Histogram | None] = (requests, None, None)
            else:
                bound = (requests, self._seconds.labels(pipeline, protocol), self._rows.labels(pipeline))
            if text:
                self._bound[pipeline, version, protocol, outcome] = bound
            return bound

    def _forget(self, pipeline: str, version: str) -> None:
        for key in [key for key in self._bound if key[:2] == (pipeline, int(version))]:
            del self._bound[key]
            self._requests.remove(pipeline, version, *key[2:])

    def _share_on(self) -> None:
        while not self._closed.wait(SHARE_SECONDS):
            self._share()

    def _share(self) -> None:
        aside = self._file.with_suffix(".part")
        with self._writing:
            page = _page(self._registry.collect())
            _add(page, self._before)
            shown = {name: [one.documentation, one.type, list(one.samples.items())] for name, one in page.items()}
            try:
                aside.write_text(json.dumps(shown), encoding="utf-8")
                aside.replace(self._file)
            except OSError as error:
                log.warning("the metrics of this worker cannot be written to %s: %s", self._file, error.strerror)


def wipe(folder: Path) -> None:
    """Forget the numbers of a server that ended; for the parent of all workers, before it starts the first.

    Raises:
        OSError: They cannot be removed.
    """
    for file in folder.glob("*.*"):
        file.unlink()


class _Sum(Collector):
    """The sum of all workers' files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """The metrics of all workers as one."""
        total: _Page = {}
        for file in sorted(self._folder.glob("*.json")):
            page = _read(file)
            gone = time.time() - file.stat().st_mtime > GONE_SECONDS
            _add(total, _counts(page) if gone else page)
        for name, family in total.items():
            metric = Metric(name, family.documentation, family.type)
            for (sample, labels), value in family.samples.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric


def _page(metrics: Iterable[Metric]) -> _Page:
    return {
        metric.name: _Family(
            metric.documentation,
            metric.type,
            {(one.name, tuple(sorted(one.labels.items()))): one.value for one in metric.samples},
        )
        for metric in metrics
    }


def _read(file: Path) -> _Page:
    """The page in a worker's file; an empty one when it has left none that can be read."""
    try:
        document = json.loads(file.read_bytes())
        return {name: _Family(about, kind, _samples(listed)) for name, (about, kind, listed) in document.items()}
    except (OSError, ValueError):
        return {}


def _samples(listed: list[Any]) -> dict[_Key, float]:
    return {(name, tuple((label, value) for label, value in labels)): count for (name, labels), count in listed}


def _counts(page: _Page) -> _Page:
    """What only ever grows."""
    return {name: family for name, family in page.items() if family.type != "gauge"}


def _add(total: _Page, page: _Page) -> None:
    for name, family in page.items():
        into = total.setdefault(name, _Family(family.documentation, family.type, {})).samples
        largest = name.startswith(_LARGEST)
        for key, value in family.samples.items():
            into[key] = max(into.get(key, value), value) if largest else into.get(key, 0.0) + value


class _Gpus(Collector):
    """Memory and use of each GPU, as NVIDIA's management library tells them."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def collect(self) -> Iterable[Metric]:
        """Three gauges by GPU, without those that a device does not tell."""
        nvml = self._nvml
        used = GaugeMetricFamily("mlops_gpu_memory_used_bytes", "Memory in use.", labels=["gpu"])
        total = GaugeMetricFamily("mlops_gpu_memory_total_bytes", "Memory there is.", labels=["gpu"])
        busy = GaugeMetricFamily("mlops_gpu_utilization_ratio", "Share of time with a kernel running.", labels=["gpu"])
        for index in range(nvml.nvmlDeviceGetCount()):
            device = nvml.nvmlDeviceGetHandleByIndex(index)
            with suppress(nvml.NVMLError):
                memory = nvml.nvmlDeviceGetMemoryInfo(device)
                used.add_metric([str(index)], memory.used)
                total.add_metric([str(index)], memory.total)
            with suppress(nvml.NVMLError):
                busy.add_metric([str(index)], nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100)
        return [used, total, busy]


def _watch_gpus(registry: CollectorRegistry) -> None:
    """Add the GPUs where the package nvidia-ml-py is installed and finds a driver."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except ImportError:
        return
    except nvml.NVMLError:
        return
    registry.register(_Gpus(nvml))
