"""One version, loaded from its files alone."""

import gc
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest

from mlops_assets.functions import load_function
from mlops_assets.serving.checks import InvalidInput
from mlops_assets.serving.config import LogSpec, ServingSpec
from mlops_assets.serving.slot import Slot, SlotError, Unservable
from mlops_assets.training.predict import predict
from mlops_assets_tests.serving.made import (
    HELPERS,
    IMAGE_CLASSES,
    TABLE_CLASSES,
    TABLE_FEATURES,
    TABLE_SAMPLE,
    TABLE_SCHEMA,
    image_contract,
    loaded,
    publish,
    publish_images,
    publish_table,
    table_contract,
)

SOURCES = {
    "flowers/features.py": TABLE_FEATURES,
    "flowers/helpers.py": HELPERS,
    "flowers/schema.py": TABLE_SCHEMA,
}
LAZY = TABLE_FEATURES.replace("from .helpers import product\n", "").replace(
    '    """Two lengths', '    from .helpers import product\n\n    """Two lengths'
)


def with_code(home: Path, features: str, version: int = 1, **changed: Any) -> Slot:
    sources = {**SOURCES, "flowers/features.py": features}
    return loaded(home, publish_table(home, version, sources=sources, **changed))


def test_a_version_answers_as_it_did_in_training(tmp_path: Path) -> None:
    slot = loaded(tmp_path, publish_table(tmp_path))
    answer = slot.answer(slot.from_records(TABLE_SAMPLE))
    np.testing.assert_allclose(answer.probabilities, slot.contract.answers, atol=1e-6)
    assert answer.labels == [TABLE_CLASSES[place] for place in answer.probabilities.argmax(axis=1)]
    assert answer.probabilities.dtype == np.float32
    assert (slot.pipeline, slot.version, slot.accuracy) == ("flowers", 1, (0.95, 0.91, 0.98))
    assert 0 < slot.row_seconds < 30
    assert not slot.accelerated
    columns = {name: [row[name] for row in TABLE_SAMPLE] for name in TABLE_SAMPLE[0]}
    frame = pl.DataFrame(TABLE_SAMPLE).with_columns(pl.all().cast(pl.String), id=pl.lit("x"), more=pl.lit(1))
    for batch in (slot.from_columns(columns), slot.from_frame(frame), slot.contract.sample_rows()):
        np.testing.assert_array_equal(slot.answer(batch).probabilities, answer.probabilities)


def test_rows_are_answered_alike_alone_together_and_whatever_else_is_sent(tmp_path: Path) -> None:
    slot = loaded(tmp_path, publish_table(tmp_path))
    random = np.random.default_rng(2)
    rows = [
        {"length": float(a), "width": float(b), "colour": random.choice(["red", "blue"]) if a > 5 else None}
        for a, b in random.uniform(0.1, 15, (300, 2))
    ]
    together = slot.answer(slot.from_records(rows)).probabilities
    for place in (0, 7, 299):
        more = {"count": 3, "id": 99, "species": "setosa", **rows[place]}
        for row in (rows[place], more, dict(reversed(more.items()))):
            np.testing.assert_allclose(
                slot.answer(slot.from_records([row])).probabilities[0], together[place], atol=1e-6
            )


def test_images_are_answered_from_pixels_tensors_and_files(tmp_path: Path) -> None:
    import base64
    import io

    from PIL import Image

    slot = loaded(tmp_path, publish_images(tmp_path))
    rows = slot.contract.sample_rows()
    assert isinstance(rows, np.ndarray)
    files = []
    for one in rows:
        written = io.BytesIO()
        Image.fromarray(one[..., 0]).save(written, "png")
        files.append(written.getvalue())
    batches = {
        "pixels": slot.from_pixels(rows[..., 0]),
        "floats": slot.from_pixels(rows.astype(np.float64)),
        "lists": slot.from_records([{"pixels": one.tolist()} for one in rows]),
        "base64": slot.from_records([{"file": base64.b64encode(one).decode()} for one in files]),
        "files": slot.from_files(files),
        "tensor": slot.from_columns({"input": rows.astype(np.int64)}),
    }
    for batch in batches.values():
        np.testing.assert_array_equal(batch, rows)
        answer = slot.answer(batch)
        np.testing.assert_allclose(answer.probabilities, slot.contract.answers, atol=1e-6)
        assert set(answer.labels) <= set(IMAGE_CLASSES)


@pytest.mark.parametrize(
    ("pixels", "row", "reason"),
    [
        (np.full((2, 8, 8, 1), 256), 0, "whole numbers from 0 to 255"),
        (np.concatenate([np.ones((1, 8, 8, 1)), np.full((1, 8, 8, 1), 0.5)]), 1, "whole numbers"),
        (np.full((1, 8, 8, 1), np.nan), 0, "whole numbers"),
        (np.full((1, 8, 8, 1), -1), 0, "whole numbers"),
        (np.ones((1, 8, 8, 1), bool), None, "whole numbers"),
        (np.full((1, 8, 8, 1), 10**30, object), None, "whole numbers"),
        (np.full((1, 8, 8, 1), "7"), None, "whole numbers"),
        (np.zeros((1, 8, 8, 3)), None, "[1, 8, 8, 3]; an image's is [rows, 8, 8, 1]"),
        (np.zeros((8, 8)), None, "an image's is"),
        (np.uint8(3), None, "an image's is"),
        (np.zeros((0, 8, 8, 1)), None, "there are no images"),
        ([[[1, 2], [3]]], None, "not all of one shape"),
        ([], None, "an image's is"),
        (None, None, "an image's is"),
        ("pixels", None, "an image's is"),
        (np.concatenate([np.full((1, 8, 8, 1), 9), np.zeros((1, 8, 8, 1))]).astype(np.uint8), 1, "in_range"),
    ],
)
def test_pixels_that_are_none(pixels: Any, row: int | None, reason: str, tmp_path: Path) -> None:
    slot = loaded(tmp_path, publish_images(tmp_path))
    for ask in (slot.from_pixels, lambda given: slot.from_columns({"input": given})):
        with pytest.raises(InvalidInput) as refused:
            ask(pixels)
        assert reason in str(refused.value)
        assert refused.value.row == row
    for wrong in ({}, {"pixels": pixels}, {"input": pixels, "other": pixels}):
        with pytest.raises(InvalidInput, match="tensor"):
            slot.from_columns(wrong)


def test_image_rows_and_files_that_are_none(tmp_path: Path) -> None:
    slot = loaded(tmp_path, publish_images(tmp_path))
    wrong: list[tuple[Any, str, int | None]] = [
        ([], "", None),
        ([{"pixels": [[1]]}], "pixels", None),
        ([{"pixels": np.full((8, 8), 300).tolist()}], "pixels", 0),
        ([{"file": "é"}], "file", 0),
        ([{"file": "\ud800"}], "file", 0),
        ([{"file": ""}], "files", 0),
        ([{"file": "AAAA"}], "files", 0),
        ([{"pixels": [], "file": ""}], "", 0),
        ([{"pixels": []}, {"file": ""}], "", 1),
        ([3], "", 0),
    ]
    for rows, field, row in wrong:
        with pytest.raises(InvalidInput) as refused:
            slot.from_records(rows)
        assert (refused.value.field, refused.value.row) == (field, row), rows
    with pytest.raises(InvalidInput, match="there are no images"):
        slot.from_files([])
    with pytest.raises(InvalidInput, match="takes rows of a table"):
        loaded(tmp_path, publish_table(tmp_path)).from_files([b""])


def test_answers_stay_whatever_becomes_of_the_pipelines_folder(tmp_path: Path) -> None:
    folder = tmp_path / "defs" / "flowers"
    folder.mkdir(parents=True)
    for name, text in SOURCES.items():
        (folder / Path(name).name).write_text(text)
    load_function("features.py:features", folder)
    slot = with_code(tmp_path, LAZY)
    (folder / "helpers.py").write_text("raise RuntimeError('the code of today')\n")
    np.testing.assert_allclose(
        slot.answer(slot.from_records(TABLE_SAMPLE)).probabilities, slot.contract.answers, atol=1e-6
    )
    shutil.rmtree(folder)
    again = loaded(tmp_path, publish_table(tmp_path, sources={**SOURCES, "flowers/features.py": LAZY}))
    assert again.answer(again.from_records(TABLE_SAMPLE)).labels == slot.answer(slot.from_records(TABLE_SAMPLE)).labels


def test_versions_side_by_side_share_no_code_even_what_they_import_late(tmp_path: Path) -> None:
    doubled = {**SOURCES, "flowers/features.py": LAZY, "flowers/helpers.py": HELPERS.replace("(one) *", "(one) * 2 *")}
    contract, model = table_contract(2, sources=doubled)
    x = [
        [one["length"], one["width"], 2 * one["length"] * one["width"], one["colour"] == "red"] for one in TABLE_SAMPLE
    ]  # type: ignore[operator]
    answers = tuple(map(tuple, predict(model, np.array(x, np.float32)).tolist()))
    first = with_code(tmp_path, LAZY)
    second = loaded(tmp_path, publish(tmp_path, contract.model_copy(update={"answers": answers}), model, version=2))
    twin = with_code(tmp_path, LAZY)
    batch = first.from_records(TABLE_SAMPLE)
    for slot, factor in ((first, 1), (second, 2), (twin, 1), (second, 2), (first, 1)):
        assert slot.features(batch)[0, 2] == np.float32(factor * 5.1 * 3.5)


def test_code_that_is_imported_late_is_there_when_a_twin_has_come_and_gone(tmp_path: Path) -> None:
    rarely = LAZY.replace(
        "    from .helpers", "    if (frame['length'] == 9).any():\n        from . import rare\n    from .helpers"
    )
    sources = {**SOURCES, "flowers/features.py": rarely, "flowers/rare.py": "seen = True\n"}
    pointer = publish_table(tmp_path, sources=sources)
    slot, twin = loaded(tmp_path, pointer), loaded(tmp_path, pointer)
    del twin
    gc.collect()
    assert slot.features(slot.from_records([{"length": 9, "width": 2}]))[0, 2] == 18


def names_of_code() -> set[str]:
    return {name for name in sys.modules if name.startswith("mlops_served_")}


def test_a_slot_that_nobody_holds_leaves_nothing(tmp_path: Path) -> None:
    gc.collect()
    before = names_of_code()
    slot = with_code(tmp_path, LAZY)
    assert names_of_code() > before
    del slot
    gc.collect()
    assert names_of_code() == before


@pytest.mark.slow
def test_memory_does_not_grow_with_loads(tmp_path: Path) -> None:
    pointers = [publish_table(tmp_path, version) for version in (1, 2)]
    process = psutil.Process()
    for count in range(400):
        slot = loaded(tmp_path, pointers[count % 2])
        slot.answer(slot.from_records(TABLE_SAMPLE))
        if count == 100:
            warm = process.memory_info().rss
    assert process.memory_info().rss - warm < 30e6


def test_what_was_changed_on_the_disk_is_refused(tmp_path: Path) -> None:
    pointer = publish_table(tmp_path)
    folder = tmp_path / "serving" / "flowers" / pointer.key
    kept = shutil.copytree(folder, tmp_path / "kept")
    contract = json.loads((folder / "contract.json").read_bytes())
    changes: dict[str, bytes | None] = {
        "contract.json": json.dumps({**contract, "unservable": "x"}).encode(),
        "model.onnx": table_contract(2)[1],
        "source/flowers/features.py": TABLE_FEATURES.replace('"red"', '"blue"').encode(),
        "source/flowers/helpers.py": None,
    }
    for name, data in changes.items():
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        (folder / name).unlink()
        if data is not None:
            (folder / name).write_bytes(data)
        with pytest.raises(SlotError, match=f"{name} (was changed|cannot be read).*; delete .*{pointer.key}"):
            loaded(tmp_path, pointer)
    shutil.rmtree(folder)
    with pytest.raises(SlotError, match=r"contract\.json cannot be read"):
        loaded(tmp_path, pointer)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"answers": [[1.0, 0.0, 0.0]] * 3}, "answers otherwise than in training; compare the packages"),
        ({"answers": [[0.5, 0.5]] * 3}, "answers otherwise than in training; compare the packages"),
        ({"features": ["length", "width", "red", "area"]}, "answers otherwise than in training"),
        ({"features": ["length", "width", "area", "gone"]}, "made no column 'gone'"),
        ({"features": ["length", "width", "area"]}, "does not take rows"),
        ({"functions": {"features": "features.py:other", "schema": "schema.py:schema"}}, "has no function 'other'"),
    ],
)
def test_a_version_that_answers_otherwise_is_refused(changed: dict[str, Any], reason: str, tmp_path: Path) -> None:
    contract, model = table_contract()
    pointer = publish(tmp_path, contract.model_validate({**contract.model_dump(), **changed}), model)
    with pytest.raises(SlotError) as refused:
        loaded(tmp_path, pointer)
    assert reason in str(refused.value)
    assert "version 1 of flowers" in str(refused.value)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_package\n", "No module named 'no_such_package'"),
        ("def features(:\n", "SyntaxError"),
        ("def features(frame):\n    return frame.select('id')\n", "made no column 'length'"),
        ("def features(frame):\n    return frame.lazy()\n", "made LazyFrame"),
        ("def features(frame):\n    return 1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_code_that_does_not_work_here_is_refused(code: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(SlotError, match=reason):
        with_code(tmp_path, code)
    images, model = image_contract(sources={"scans/features.py": code, "scans/schema.py": ""})
    if "length" not in reason and "Lazy" not in reason:
        with pytest.raises(SlotError, match=reason):
            loaded(tmp_path, publish(tmp_path, images, model))


def test_a_contract_that_says_so_is_not_served(tmp_path: Path) -> None:
    pointer = publish_table(tmp_path, unservable="features depend on the weather")
    with pytest.raises(Unservable, match=r"version 1 of flowers cannot be served: features depend on the weather$"):
        loaded(tmp_path, pointer)


@pytest.mark.parametrize(
    ("change", "reason", "row"),
    [
        ("made.filter(pl.col('length') < 9)", "made 2 rows of 3", None),
        ("made.with_columns(area=pl.when(pl.col('length') > 9).then(None).otherwise('area'))", "'area' is nan", 1),
        ("made.with_columns(area=pl.col('area') / (pl.col('length') != 10))", "'area' is inf", 1),
        ("made if made['length'].max() < 9 else made.drop('red')", "no column 'red'", None),
        ("made if made['length'].max() < 9 else made.with_columns(id=pl.lit(0))", "other keys", None),
        ("made if made['length'].max() < 9 else 1 / 0", "ZeroDivisionError", None),
        ("made if made['length'].max() < 9 else made.with_columns(pl.col(pl.Float64) * 0 + 3e38)", "not finite", None),
    ],
)
def test_rows_that_the_code_makes_nothing_of(change: str, reason: str, row: int | None, tmp_path: Path) -> None:
    slot = with_code(tmp_path, TABLE_FEATURES.replace("return frame", "made = frame") + f"    return {change}\n")
    batch = slot.from_records([{"length": length, "width": 2} for length in (3, 10, 4)])
    with pytest.raises(InvalidInput) as refused:
        slot.answer(batch)
    assert reason in str(refused.value)
    assert refused.value.row == row


def test_no_refusal_tells_a_value_that_is_left_out(tmp_path: Path) -> None:
    telling = TABLE_FEATURES.replace(
        "    return frame", "    if frame['colour'][0] == 'blue' and frame['width'][0] > 9:\n"
        "        raise ValueError(frame['colour'][0])\n    return frame"
    )  # fmt: skip
    row = {"length": 1.0, "width": 10.0, "colour": "blue"}
    open_slot = with_code(tmp_path, telling)
    with pytest.raises(InvalidInput, match="ValueError: blue"):
        open_slot.features(open_slot.from_records([row]))
    slot = with_code(tmp_path, telling, serving=ServingSpec(log=LogSpec(leave_out=["colour"])))
    with pytest.raises(InvalidInput, match=r"^the features function fails on these rows \(ValueError\)$") as refused:
        slot.features(slot.from_records([row]))
    assert refused.value.__suppress_context__
    for asked in (slot.from_records, lambda rows: slot.from_frame(pl.DataFrame(rows))):
        with pytest.raises(InvalidInput, match="row 0, column 'colour': a value is refused by isin"):
            asked([{**row, "colour": "Anna"}])


def test_rows_come_back_in_their_order(tmp_path: Path) -> None:
    ordered = loaded(tmp_path, publish_table(tmp_path))
    rows = [{"length": length, "width": 2} for length in (9, 3, 12, 4, 11, 10, 2, 1, 8, 7, 6, 5)]
    expected = ordered.answer(ordered.from_records(rows))
    for key_type in ("Int64", "String", "Float64"):
        shuffled = with_code(tmp_path, TABLE_FEATURES.rstrip() + ".sort('length')\n", version=1, key_type=key_type)
        given = shuffled.answer(shuffled.from_records(rows))
        assert given.labels == expected.labels
        np.testing.assert_array_equal(given.probabilities, expected.probabilities)


def test_what_is_left_out_later_is_not_shown(tmp_path: Path) -> None:
    later = ServingSpec(log=LogSpec(leave_out=["colour"]))
    slot = loaded(tmp_path, publish_table(tmp_path, serving=later))
    assert slot.exposed == ["colour"]
    assert {row["colour"] for row in slot.public.sample} == {None}
    with pytest.raises(SlotError, match="have values of colour, which is left out by now"):
        slot.require_shareable()
    again = loaded(tmp_path, publish_table(tmp_path, 2, serving=later, hidden=["colour"]))
    assert again.exposed == []
    again.require_shareable()
