"""What a server tells Prometheus."""

import gc
import os
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlops_assets.serving import metrics as metrics_module
from mlops_assets.serving.metrics import GONE_SECONDS, KEPT, Metrics, Outcome, wipe
from mlops_assets.serving.slot import Slot
from mlops_assets_tests.serving.made import loaded, publish_table

Labels = dict[str, str]


def samples(metrics: Metrics, name: str) -> list[tuple[Labels, float]]:
    page = metrics.render()[0].decode()
    return [
        (one.labels, one.value)
        for family in text_string_to_metric_families(page)
        for one in family.samples
        if one.name == name
    ]


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = [told for has, told in samples(metrics, name) if labels.items() <= has.items()]
    assert found, f"no {name} {labels}"
    return sum(found)


def answered(metrics: Metrics, version: int = 1, outcome: Outcome = "ok", **changed: Any) -> None:
    told: dict[str, Any] = {"pipeline": "flowers", "protocol": "json", "rows": 3, "seconds": 0.004}
    metrics.observe(version=version, outcome=outcome, **(told | changed))


@pytest.fixture
def slot(table_home: Path) -> Slot:
    return loaded(table_home, publish_table(table_home))


def test_a_request_is_counted_with_its_latency_and_rows(slot: Slot) -> None:
    metrics = Metrics()
    metrics.swapped(None, slot)
    answered(metrics)
    answered(metrics)
    answered(metrics, outcome="invalid")
    assert value(metrics, "mlops_requests_total", pipeline="flowers", version="1", outcome="ok") == 2
    assert value(metrics, "mlops_requests_total", outcome="invalid") == 1
    assert value(metrics, "mlops_request_seconds_count", pipeline="flowers", protocol="json") == 2
    assert value(metrics, "mlops_request_seconds_bucket", le="0.003") == 0
    assert value(metrics, "mlops_request_seconds_bucket", le="0.005") == 2
    assert value(metrics, "mlops_request_rows_sum", pipeline="flowers") == 6
    assert value(metrics, "mlops_model_info", pipeline="flowers", version="1", run_id="run1") == 1
    assert value(metrics, "process_resident_memory_bytes") > 0
    assert "mlops_requests_created" not in metrics.render()[0].decode()


def test_nobody_makes_series_by_asking_for_nonsense(slot: Slot) -> None:
    metrics = Metrics()
    metrics.swapped(None, slot)
    for number in range(50):
        answered(metrics, 0, "not_served", pipeline=f"nonsense{number}")
        answered(metrics, 100 + number)
    counted = samples(metrics, "mlops_requests_total")
    assert sorted((has["pipeline"], has["version"], told) for has, told in counted) == [
        ("", "", 50),
        ("flowers", "", 50),
    ]


def test_a_swap_shows_the_new_version_alone(table_home: Path, slot: Slot) -> None:
    metrics = Metrics()
    metrics.swapped(None, slot)
    metrics.swapped(slot, loaded(table_home, publish_table(table_home, 2)))
    assert [has["version"] for has, _ in samples(metrics, "mlops_model_info")] == ["2"]
    assert value(metrics, "mlops_model_swaps_total", pipeline="flowers") == 1
    metrics.load_failed("flowers")
    assert value(metrics, "mlops_model_load_failures_total", pipeline="flowers") == 1


def test_a_thousand_swaps_do_not_make_the_page_or_the_memory_grow(slot: Slot) -> None:
    metrics = Metrics()

    def swap(version: int) -> None:
        slot.version, slot.run_id = version, f"run{version}"
        metrics.swapped(slot, slot)
        answered(metrics, version)
        answered(metrics, version, "invalid")

    for version in range(1, 100):
        swap(version)
    gc.collect()
    length = len(metrics.render()[0])
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for version in range(100, 1100):
        swap(version)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    kept = {has["version"] for has, _ in samples(metrics, "mlops_requests_total")}
    assert kept == {str(version) for version in range(1100 - KEPT, 1100)}
    assert abs(len(metrics.render()[0]) - length) < 200  # longer numbers
    assert grown < 50_000


def test_a_version_that_comes_back_is_counted_again(slot: Slot) -> None:
    metrics = Metrics()
    for version in [*range(1, KEPT + 3), 1]:
        slot.version = version
        metrics.swapped(slot, slot)
        answered(metrics, version)
    assert value(metrics, "mlops_requests_total", version="1") == 1


def test_workers_are_summed(tmp_path: Path, slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "GONE_SECONDS", 3600.0)  # nobody is taken for dead, however slow this is
    first, second = Metrics(tmp_path, 0), Metrics(tmp_path, 1)
    for one in (first, second):
        one.swapped(None, slot)
        answered(one)
        one.in_flight.inc()
    answered(second)
    second.close()
    for asked in (first, second):
        assert value(asked, "mlops_requests_total", pipeline="flowers", version="1") == 3
        assert value(asked, "mlops_request_seconds_bucket", le="0.005") == 3
        assert value(asked, "mlops_request_seconds_count") == 3
        assert value(asked, "mlops_requests_in_flight") == 2
        assert value(asked, "mlops_model_info") == 1
    first.close()


def test_a_dead_worker_leaves_what_it_counted_but_not_what_it_had(tmp_path: Path, slot: Slot) -> None:
    dead, alive = Metrics(tmp_path, 0), Metrics(tmp_path, 1)
    dead.swapped(None, slot)
    answered(dead)
    dead.in_flight.inc()
    dead.close()
    long_ago = time.time() - GONE_SECONDS - 1
    os.utime(tmp_path / "0.json", (long_ago, long_ago))
    assert value(alive, "mlops_requests_total") == 1
    assert value(alive, "mlops_requests_in_flight") == 0
    heir = Metrics(tmp_path, 0)
    heir.swapped(None, slot)
    answered(heir)
    heir.close()
    assert value(heir, "mlops_requests_total") == 2
    assert value(alive, "mlops_requests_total") == 2
    alive.close()


def test_a_new_server_begins_anew_and_a_torn_file_is_no_worker(tmp_path: Path, slot: Slot) -> None:
    metrics = Metrics(tmp_path, 0)
    metrics.swapped(None, slot)
    answered(metrics)
    metrics.close()
    wipe(tmp_path)
    (tmp_path / "1.json").write_text('{"mlops_re')
    anew = Metrics(tmp_path, 0)
    assert samples(anew, "mlops_requests_total") == []
    anew.close()


def test_gpus_are_told_of_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the driver, which machines that run tests seldom have; its functions are those of nvidia-ml-py."""
    (tmp_path / "pynvml.py").write_text(
        "from types import SimpleNamespace as Told\n"
        "class NVMLError(Exception): ...\n"
        "def nvmlInit(): ...\n"
        "def nvmlDeviceGetCount(): return 2\n"
        "def nvmlDeviceGetHandleByIndex(index): return index\n"
        "def nvmlDeviceGetMemoryInfo(device): return Told(used=10 + device, total=100)\n"
        "def nvmlDeviceGetUtilizationRates(device):\n"
        "    if device: raise NVMLError('not supported')\n"
        "    return Told(gpu=50)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    metrics = Metrics()
    assert value(metrics, "mlops_gpu_memory_used_bytes", gpu="1") == 11
    assert samples(metrics, "mlops_gpu_utilization_ratio") == [({"gpu": "0"}, 0.5)]
    first, second = (Metrics(tmp_path / "shared", worker) for worker in (0, 1))
    second.close()
    assert value(first, "mlops_gpu_memory_total_bytes", gpu="0") == 100  # both see the same
    first.close()
    del sys.modules["pynvml"]
