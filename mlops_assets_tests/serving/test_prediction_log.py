"""The prediction log: what is kept, what is not, and what happens when it cannot be written."""

import hashlib
import json
import logging
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops_assets.serving import prediction_log
from mlops_assets.serving.config import LogSpec, ServingSpec
from mlops_assets.serving.metrics import Metrics
from mlops_assets.serving.prediction_log import PredictionLog, read
from mlops_assets.serving.slot import Answer, Slot
from mlops_assets_tests.serving.made import TABLE_SAMPLE, loaded, publish_images, publish_table
from mlops_assets_tests.serving.test_metrics import value

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC).timestamp()


def table_slot(home: Path, **log: Any) -> Slot:
    return loaded(home, publish_table(home, serving=ServingSpec(log=LogSpec(**log))))


def record(log: PredictionLog, slot: Slot, batch: Any, request_id: str = "a", received: float = NOON) -> Answer:
    answer = slot.answer(batch)
    log.record(request_id=request_id, slot=slot, batch=batch, answer=answer, seconds=0.002, received=received)
    return answer


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def files(home: Path, kind: str = "predictions") -> list[Path]:
    return sorted((home / kind).glob("*/*/*.parquet"))


def test_each_row_of_each_answer_is_kept_in_order(tmp_path: Path) -> None:
    slot = table_slot(tmp_path)
    log = PredictionLog(tmp_path, 3, Metrics())
    first = record(log, slot, slot.from_records(TABLE_SAMPLE))
    second = record(log, slot, slot.from_records(TABLE_SAMPLE[1:2]), "b", NOON + 1.5)
    log.close()
    (file,) = files(tmp_path)
    assert file.parent == tmp_path / "predictions" / "flowers" / "date=2026-03-04"
    assert file.name.startswith("3-")
    kept = read(tmp_path, "flowers").collect()
    assert kept["request_id"].to_list() == ["a", "a", "a", "b"]
    assert kept["row"].to_list() == [0, 1, 2, 0]
    assert kept["received"].to_list() == [datetime.fromtimestamp(NOON + more, UTC) for more in (0, 0, 0, 1.5)]
    assert kept["label"].to_list() == [*first.labels, *second.labels]
    scores = np.concatenate([first.probabilities, second.probabilities])
    np.testing.assert_array_equal(np.array(kept["scores"].to_list(), np.float32), scores)
    np.testing.assert_array_equal(kept["probability"].to_numpy(), scores.max(axis=1))
    assert kept["seconds"].to_list() == pytest.approx([0.002] * 4)
    told = kept.select("pipeline", "version", "model").unique().row(0)
    assert told == ("flowers", slot.version, slot.model_digest)
    assert [json.loads(text) for text in kept["inputs"]] == [*TABLE_SAMPLE, TABLE_SAMPLE[1]]
    assert kept["truth"].null_count() == 4


def test_left_out_columns_never_reach_the_disk_not_even_in_a_digest(tmp_path: Path) -> None:
    slot = table_slot(tmp_path, leave_out=["colour", "width"])
    log = PredictionLog(tmp_path, 0, Metrics())
    record(log, slot, slot.from_records(TABLE_SAMPLE))
    log.close()
    kept = read(tmp_path, "flowers").collect()["inputs"].to_list()
    assert [set(json.loads(text)) for text in kept] == [{"length", "count"}] * 3
    digests = [f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" for text in kept]

    shutil.rmtree(tmp_path / "predictions")
    slot = table_slot(tmp_path, leave_out=["colour", "width"], inputs="digest")
    log = PredictionLog(tmp_path, 0, Metrics())
    record(log, slot, slot.from_records([{**row, "colour": "blue", "width": 9.0} for row in TABLE_SAMPLE]))
    log.close()
    assert read(tmp_path, "flowers").collect()["inputs"].to_list() == digests


def test_everything_may_be_left_out(tmp_path: Path) -> None:
    slot = table_slot(tmp_path, leave_out=["length", "width", "count", "colour"])
    log = PredictionLog(tmp_path, 0, Metrics())
    record(log, slot, slot.from_records(TABLE_SAMPLE))
    log.close()
    assert read(tmp_path, "flowers").collect()["inputs"].to_list() == ["{}"] * 3
    slot = table_slot(tmp_path, inputs="none")
    log = PredictionLog(tmp_path, 1, Metrics())
    record(log, slot, slot.from_records(TABLE_SAMPLE), "b")
    log.close()
    kept = read(tmp_path, "flowers").filter(pl.col("request_id") == "b").collect()
    assert kept["inputs"].to_list() == [None] * 3


def test_columns_that_only_some_requests_have(tmp_path: Path) -> None:
    slot = table_slot(tmp_path)
    log = PredictionLog(tmp_path, 0, Metrics(), seconds=60)
    record(log, slot, slot.from_records(TABLE_SAMPLE[:1]))
    record(log, slot, slot.from_records([{"length": 2.0, "width": 1.0, "colour": "red"}]), "b")
    log.close()
    kept = [json.loads(text) for text in read(tmp_path, "flowers").collect()["inputs"]]
    assert [(row["length"], row["count"]) for row in kept] == [(5.1, 3), (2.0, None)]


def test_of_an_image_at_most_a_digest_is_kept(tmp_path: Path) -> None:
    slot = loaded(tmp_path, publish_images(tmp_path))
    images = slot.contract.sample_rows()
    log = PredictionLog(tmp_path, 0, Metrics())
    record(log, slot, images)
    log.close()
    kept = read(tmp_path, "scans").collect()
    assert kept["inputs"].to_list() == [f"sha256:{hashlib.sha256(one.tobytes()).hexdigest()}" for one in images]
    assert kept["scores"].list.len().to_list() == [10] * 3


def test_versions_with_other_classes_share_a_file(tmp_path: Path) -> None:
    one = table_slot(tmp_path)
    other = loaded(tmp_path, publish_table(tmp_path, 2))
    log = PredictionLog(tmp_path, 0, Metrics(), seconds=60)
    batch = one.from_records(TABLE_SAMPLE)
    record(log, one, batch)
    answer = Answer(["rose"] * 3, np.full((3, 5), 0.2, np.float32))
    log.record(request_id="b", slot=other, batch=batch, answer=answer, seconds=0.1, received=NOON)
    log.close()
    assert len(files(tmp_path)) == 1
    kept = read(tmp_path, "flowers").collect()
    assert kept["version"].to_list() == [1, 1, 1, 2, 2, 2]
    assert kept["scores"].list.len().to_list() == [3, 3, 3, 5, 5, 5]


def test_midnight_begins_another_file(tmp_path: Path) -> None:
    slot = table_slot(tmp_path)
    log = PredictionLog(tmp_path, 0, Metrics())
    midnight = datetime(2026, 3, 5, tzinfo=UTC).timestamp()
    batch = slot.from_records(TABLE_SAMPLE[:1])
    record(log, slot, batch, "before", midnight - 0.001)
    record(log, slot, batch, "after", midnight)
    log.close()
    assert [file.parent.name for file in files(tmp_path)] == ["date=2026-03-04", "date=2026-03-05"]

    def ids(**days: date) -> list[str]:
        return read(tmp_path, "flowers", **days).collect()["request_id"].to_list()

    assert ids() == ["before", "after"]
    assert ids(since=date(2026, 3, 5)) == ["after"]
    assert ids(until=date(2026, 3, 4)) == ["before"]


def test_the_last_label_that_is_told_counts(tmp_path: Path) -> None:
    slot = table_slot(tmp_path)
    log = PredictionLog(tmp_path, 0, Metrics())
    record(log, slot, slot.from_records(TABLE_SAMPLE))
    assert log.feedback(pipeline="flowers", request_id="a", row=1, label="setosa")
    assert log.feedback(pipeline="flowers", request_id="a", row=1, label="virginica")
    assert log.feedback(pipeline="flowers", request_id="never asked", row=0, label="setosa")
    assert log.feedback(pipeline="flowers", request_id="a", row=1 << 40, label="setosa")
    log.close()
    assert read(tmp_path, "flowers").collect()["truth"].to_list() == [None, "virginica", None]
    assert len(files(tmp_path, "feedback")) == 1


def test_of_a_pipeline_that_never_answered_there_are_no_rows(tmp_path: Path) -> None:
    nothing = read(tmp_path, "flowers").collect()
    assert nothing.is_empty()
    assert nothing.columns == [*prediction_log.PREDICTIONS, "truth"]


def test_a_quiet_day_is_one_file_that_readers_always_see_whole(tmp_path: Path) -> None:
    slot = table_slot(tmp_path)
    metrics = Metrics()
    log = PredictionLog(tmp_path, 0, metrics, seconds=0.01)
    batch = slot.from_records(TABLE_SAMPLE[:1])
    record(log, slot, batch)
    eventually(lambda: bool(files(tmp_path)))
    stop, seen = threading.Event(), [0]

    def look() -> None:
        while not stop.is_set():
            seen.append(read(tmp_path, "flowers").collect().height)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(60):
        record(log, slot, batch)
        if number < 4:
            eventually(lambda wanted=number + 2: seen[-1] == wanted)  # type: ignore[misc]
        time.sleep(0.005)
    stop.set()
    reader.join()
    log.close()
    assert seen == sorted(seen)  # a reader that failed has ended early, which pytest makes an error of
    assert len(set(seen)) > 3
    assert len(files(tmp_path)) == 1
    assert read(tmp_path, "flowers").collect().height == 61
    assert value(metrics, "mlops_prediction_log_rows_total") == 61
    assert not list((tmp_path / "predictions" / ".aside").iterdir())


def test_a_file_with_many_rows_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_log, "FILE_ROWS", 3)
    slot = table_slot(tmp_path)
    metrics = Metrics()
    log = PredictionLog(tmp_path, 0, metrics, seconds=0.01)
    for number in range(1, 4):
        record(log, slot, slot.from_records(TABLE_SAMPLE))
        eventually(lambda number=number: len(files(tmp_path)) == number)  # type: ignore[misc]
    log.close()
    assert [pl.read_parquet(file).height for file in files(tmp_path)] == [3, 3, 3]


def test_an_unwritable_disk_fails_nobody_and_is_made_up_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = table_slot(tmp_path)
    (tmp_path / "predictions").write_text("a file where a folder should be")
    recorded, replace = threading.Event(), prediction_log._replace

    def replace_then(path: Path, frame: pl.DataFrame, aside: Path) -> None:
        recorded.wait()
        replace(path, frame, aside)

    monkeypatch.setattr(prediction_log, "_replace", replace_then)  # the first complaint comes after the last row
    metrics = Metrics()
    log = PredictionLog(tmp_path, 0, metrics, seconds=0.01, most_rows=7)
    batch = slot.from_records(TABLE_SAMPLE)
    with caplog.at_level(logging.ERROR):
        for request_id in "abcd":  # twelve rows, of which six find room
            record(log, slot, batch, request_id)
        recorded.set()
        eventually(lambda: value(metrics, "mlops_prediction_log_errors_total") > 3)
    assert [one.message for one in caplog.records] == [  # once, however often it is tried
        f"the prediction log cannot be written to {tmp_path}/predictions/flowers/date=2026-03-04 (Not a directory): "
        "6 rows wait in memory and 6 were dropped since this was last told; free space there or mend its rights"
    ]
    assert value(metrics, "mlops_prediction_log_dropped_total") == 6
    assert value(metrics, "mlops_prediction_log_pending_rows") == 6
    (tmp_path / "predictions").unlink()
    eventually(lambda: value(metrics, "mlops_prediction_log_pending_rows") == 0)
    record(log, slot, batch, "e")
    log.close()
    assert read(tmp_path, "flowers").collect()["request_id"].unique().sort().to_list() == ["a", "b", "e"]
    assert value(metrics, "mlops_prediction_log_rows_total") == 9


def test_what_cannot_be_written_before_the_end_is_counted_as_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slot = table_slot(tmp_path)
    (tmp_path / "predictions").write_text("a file where a folder should be")
    metrics = Metrics()
    log = PredictionLog(tmp_path, 0, metrics)
    record(log, slot, slot.from_records(TABLE_SAMPLE))
    log.close()
    assert value(metrics, "mlops_prediction_log_dropped_total") == 3
    assert caplog.records[-1].message.startswith("3 rows of the prediction log are lost")


def test_memory_is_bounded_in_bytes_too(tmp_path: Path) -> None:
    slot = loaded(tmp_path, publish_images(tmp_path))
    metrics = Metrics()
    log = PredictionLog(tmp_path, 0, metrics, seconds=60, most_bytes=20_000)
    images = np.repeat(slot.contract.sample_rows(), 100, axis=0)
    answer = slot.answer(images)
    for _ in range(2):
        log.record(request_id="a", slot=slot, batch=images, answer=answer, seconds=0.1, received=NOON)
    assert value(metrics, "mlops_prediction_log_dropped_total") == 600  # 19,200 bytes of pixels and 12,000 of scores
    small = images[:3]
    record(log, slot, small)
    log.close()
    assert read(tmp_path, "scans").collect().height == 3


def test_a_torn_file_is_passed_over(tmp_path: Path) -> None:
    slot = table_slot(tmp_path)
    log = PredictionLog(tmp_path, 0, Metrics())
    record(log, slot, slot.from_records(TABLE_SAMPLE))
    log.close()
    (file,) = files(tmp_path)
    (file.parent / "9-torn.parquet").write_bytes(file.read_bytes()[:100])
    (file.parent / "9-empty.parquet").touch()
    assert read(tmp_path, "flowers").collect().height == 3


@pytest.mark.slow
def test_a_killed_process_leaves_whole_files_and_its_successor_cleans_up(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from mlops_assets.serving.metrics import Metrics
from mlops_assets.serving.prediction_log import PredictionLog
from mlops_assets_tests.serving.made import TABLE_SAMPLE
from mlops_assets_tests.serving.test_prediction_log import record, table_slot
home = Path(sys.argv[1])
slot, log = table_slot(home), PredictionLog(home, 0, Metrics(), seconds=0.001)
batch = slot.from_records(TABLE_SAMPLE)
while True:
    record(log, slot, batch)
"""
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) as process:
        try:
            eventually(lambda: len(files(tmp_path)) > 0)
            time.sleep(0.2)
        finally:
            process.send_signal(signal.SIGKILL)
    before = read(tmp_path, "flowers").collect().height
    assert before > 0
    assert before % 3 == 0
    left = tmp_path / "predictions" / ".aside" / "0-000000000000-1.parquet"
    left.write_bytes(b"half")
    log = PredictionLog(tmp_path, 0, Metrics())
    slot = table_slot(tmp_path)
    record(log, slot, slot.from_records(TABLE_SAMPLE))
    log.close()
    assert not left.exists()
    assert read(tmp_path, "flowers").collect().height == before + 3


def test_recording_never_raises_and_an_answer_that_makes_no_rows_harms_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slot = table_slot(tmp_path)
    other = table_slot(tmp_path)
    metrics = Metrics()
    log = PredictionLog(tmp_path, 0, metrics, seconds=60)
    batch = slot.from_records(TABLE_SAMPLE)
    answer = slot.answer(batch)
    log.record(request_id="bad", slot=other, batch=batch[:2], answer=answer, seconds=0.1, received=NOON)
    record(log, slot, batch, "good")
    log.close()
    assert read(tmp_path, "flowers").collect()["request_id"].to_list() == ["good"] * 3
    assert value(metrics, "mlops_prediction_log_dropped_total") == 3
    assert "this is a defect" in caplog.text
