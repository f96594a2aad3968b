"""The Open Inference Protocol's tensors, requests and answers, over bytes."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_assets.serving import v2
from mlops_assets.serving.checks import InvalidInput, shown
from mlops_assets.serving.http_v2 import encode, parse
from mlops_assets.serving.slot import Slot
from mlops_assets.serving.slots import Slots
from mlops_assets.serving.v2 import V2Error


@pytest.fixture
def scans(image_home: Path) -> Slot:
    slots = Slots(image_home)
    slots.refresh()
    return slots["scans"]


@pytest.fixture
def flowers(table_home: Path) -> Slot:
    slots = Slots(table_home)
    slots.refresh()
    return slots["flowers"]


def request(*inputs: dict[str, Any], raw: bytes = b"", **rest: Any) -> tuple[bytes, int | None]:
    header = json.dumps({"inputs": list(inputs), **rest}).encode()
    return header + raw, len(header) if raw else None


def values(data: list[Any], shape: list[int], datatype: str = "FP32", name: str = "x") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def sized(size: int, shape: list[int], datatype: str = "FP32", name: str = "x") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


@pytest.mark.parametrize("datatype", [name for name in v2.DATATYPES if name != "BYTES"])
def test_raw_tensor_of_each_datatype_is_read_back(datatype: str) -> None:
    wanted = np.array([[0, 1, 1], [1, 0, 1]], v2.DATATYPES[datatype])
    parsed = parse(*request(sized(wanted.nbytes, [2, 3], datatype), raw=wanted.tobytes()))
    assert parsed.tensors["x"].dtype == wanted.dtype
    np.testing.assert_array_equal(parsed.tensors["x"], wanted)


def test_raw_tensor_is_a_view_of_the_body() -> None:
    pixels = np.arange(64, dtype=np.uint8)
    body, length = request(sized(64, [1, 8, 8, 1], "UINT8"), raw=pixels.tobytes())
    assert np.shares_memory(parse(body, length).tensors["x"], np.frombuffer(body, np.uint8))


@pytest.mark.parametrize("datatype", [name for name in v2.DATATYPES if name not in {"BYTES", "BOOL"}])
@pytest.mark.parametrize("data", [[0, 1, 2, 3, 4, 5], [[0, 1, 2], [3, 4, 5]]], ids=["flat", "nested"])
def test_json_tensor_of_each_datatype_is_read(datatype: str, data: list[Any]) -> None:
    read = parse(*request(values(data, [2, 3], datatype))).tensors["x"]
    assert read.dtype == v2.DATATYPES[datatype]
    np.testing.assert_array_equal(read, np.arange(6).reshape(2, 3))


def test_texts_are_read_from_json_and_from_bytes() -> None:
    packed = struct.pack("<I", 3) + b"red" + struct.pack("<I", 0) + struct.pack("<I", 2) + "ä".encode()
    assert parse(*request(sized(len(packed), [3], "BYTES"), raw=packed)).tensors["x"].tolist() == [
        b"red",
        b"",
        "ä".encode(),
    ]
    assert parse(*request(values(["red", None, "ä"], [3], "BYTES"))).tensors["x"].tolist() == ["red", None, "ä"]
    assert v2.to_raw(np.array(["red", "", "ä"], dtype=object)) == packed


def test_null_among_floats_is_not_a_number_and_among_integers_refused() -> None:
    assert np.isnan(parse(*request(values([1.5, None], [2], "FP64"))).tensors["x"]).tolist() == [False, True]
    with pytest.raises(V2Error, match="tensor 'x' is INT64, and null is none"):
        parse(*request(values([1, None], [2], "INT64")))


def test_two_raw_tensors_and_one_in_json_are_told_apart() -> None:
    one, other = np.array([1.5, 2.5], "<f8"), np.array([7, 8], "<i2")
    body, length = request(
        sized(16, [2], "FP64", "a"), values(["x", "y"], [2], "BYTES", "b"), sized(4, [2, 1], "INT16", "c"),
        raw=one.tobytes() + other.tobytes(),
    )  # fmt: skip
    tensors = parse(body, length).tensors
    assert tensors["a"].tolist() == [1.5, 2.5]
    assert tensors["b"].tolist() == ["x", "y"]
    assert tensors["c"].tolist() == [[7], [8]]


REFUSED = {
    "datatype": (request(values([1], [1], "FP99")), "tensor 'x' has the datatype 'FP99'"),
    "no datatype": (request({"name": "x", "shape": [1], "data": [1]}), "tensor 'x' has no 'datatype'"),
    "no shape": (request({"name": "x", "datatype": "FP32", "data": [1]}), "tensor 'x' has no 'shape'"),
    "no name": (request({"shape": [1], "datatype": "FP32", "data": [1]}), "'inputs' must be an object with 'name'"),
    "no data": (request({"name": "x", "shape": [1], "datatype": "FP32"}), "tensor 'x' has neither"),
    "negative": (request(values([1], [-1])), r"tensor 'x' has shape \[-1\]"),
    "true as a size": (request(values([1], [True])), r"tensor 'x' has shape \[True\]"),
    "scalar": (request(values([1], [])), r"tensor 'x' has shape \[\]"),
    "too many": (request(values([1], [1] * 9)), "1 to 8 whole numbers"),
    "absurd": (request(values([1], [1 << 40, 1 << 40])), "more than a request may hold"),
    "absurd with nothing": (request(values([], [1 << 62, 0])), "more than a request may hold"),
    "fewer values": (request(values([1, 2], [3])), r"tensor 'x' has 2 values, but shape \[3\] takes 3"),
    "ragged": (request(values([[1, 2], [3]], [2, 2])), r"not nested as its shape \[2, 2\]"),
    "half nested": (request(values([[1, 2], 3], [2, 2])), r"not nested as its shape"),
    "fraction": (request(values([1.5], [1], "INT8")), "tensor 'x' is INT8, and 1.5 is none"),
    "too large": (request(values([1, 300], [2], "UINT8")), "tensor 'x' is UINT8, and 300 is none"),
    "text": (request(values(["1"], [1])), "tensor 'x' is FP32, and '1' is none"),
    "number": (request(values([1], [1], "BYTES")), "tensor 'x' is BYTES, and 1 is none"),
    "no bool": (request(values([1], [1], "BOOL")), "tensor 'x' is BOOL, and 1 is none"),
    "size": (request(sized(8, [3]), raw=b"8 bytes."), r"tensor 'x' has 8 bytes, but FP32 \[3\] takes 12"),
    "beyond": (request(sized(12, [3]), raw=b"8 bytes."), "binary_data_size 12, but 8 bytes of the body are left"),
    "overlap": (
        request(sized(8, [2], name="a"), sized(8, [2], name="b"), raw=b"8 bytes."),
        "tensor 'b' says binary_data_size 8, but 0 bytes",
    ),
    "left over": (request(sized(4, [1]), raw=b"8 bytes."), "4 bytes follow after the last tensor"),
    "both": (request({**values([1], [1]), **sized(4, [1])}, raw=b"four"), "both 'data' and 'binary_data_size'"),
    "twice": (request(values([1], [1]), values([1], [1])), "tensor 'x' is there twice"),
    "short text": (request(sized(7, [1], "BYTES"), raw=b"\x09\0\0\0abc"), "1 times a 4-byte length"),
    "absurd texts": (request(sized(4, [1 << 30], "BYTES"), raw=b"\0\0\0\0"), "times a 4-byte length"),
    "output": (request(values([1], [1]), outputs=[{"name": "scores"}]), "output 'scores' is none of the model"),
    "output twice": (request(values([1], [1]), outputs=[{"name": "label"}] * 2), "output 'label' is asked for twice"),
    "classification": (
        request(values([1], [1]), outputs=[{"name": "label", "parameters": {"classification": 3}}]),
        "cannot be had as 'classification'",
    ),
    "id": (request(values([1], [1]), id=7), "'id' must be a text"),
    "flag": (request(values([1], [1]), parameters={"binary_data_output": "yes"}), "'binary_data_output' must be true"),
    "no inputs": (request(), "'inputs' must be a list"),
    "no object": ((b"[1]", None), "must be a JSON object"),
    "no json": ((b"{", None), "not JSON"),
    "header": ((b"{}", 3), "Inference-Header-Content-Length is 3"),
    "no header": ((b"{}", 0), "Inference-Header-Content-Length is 0"),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_request_is_refused_by_a_sentence(sent: tuple[bytes, int | None], sentence: str) -> None:
    with pytest.raises(V2Error, match=sentence) as refused:
        parse(*sent)
    assert "\n" not in str(refused.value)


def test_answer_has_what_was_asked_for_in_the_form_it_was_asked_for(scans: Slot) -> None:
    batch = v2.to_batch(scans, {"input": scans.contract.sample_rows()})
    answer = scans.answer(batch)
    wanted = {"label": False, "probabilities": True}
    body, length = encode("scans", 1, "id-1", v2.outputs(scans, answer, wanted), wanted)
    assert length is not None
    told = json.loads(body[:length])
    assert (told["model_name"], told["model_version"], told["id"]) == ("scans", "1", "id-1")
    label, probabilities = told["outputs"]
    assert label == {"name": "label", "datatype": "BYTES", "shape": [3], "data": answer.labels}
    assert probabilities["shape"] == [3, 10]
    assert probabilities["parameters"] == {"binary_data_size": 120}
    np.testing.assert_array_equal(np.frombuffer(body[length:], "<f4").reshape(3, 10), answer.probabilities)


def test_json_answer_keeps_every_bit_of_a_probability(scans: Slot) -> None:
    answer = scans.answer(scans.contract.sample_rows())
    wanted = {"probabilities": False}
    body, length = encode("scans", 1, "id-1", v2.outputs(scans, answer, wanted), wanted)
    assert length is None
    read = np.array(json.loads(body)["outputs"][0]["data"], np.float32).reshape(3, 10)
    np.testing.assert_array_equal(read, answer.probabilities)


def test_columns_come_as_vectors_or_as_single_columns(flowers: Slot) -> None:
    tensors = {
        "length": np.array([[5.1], [6.2]]),
        "width": np.array([3.5, 2.2], np.float32),
        "colour": np.array([b"red", "blue"], dtype=object),
    }
    assert v2.to_batch(flowers, tensors).to_dicts() == [
        {"length": 5.1, "width": 3.5, "colour": "red"},
        {"length": 6.2, "width": pytest.approx(2.2), "colour": "blue"},
    ]


def test_not_a_number_stands_for_null(flowers: Slot) -> None:
    tensors = {"length": np.array([5.1, np.nan]), "width": np.array([3.5, 2.2])}
    with pytest.raises(InvalidInput, match="row 1, column 'length': a value is needed"):
        v2.to_batch(flowers, tensors)


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        ("height", np.array([1.0]), "there is no column 'height'"),
        ("width", np.array([1.0, 2.0]), "differ in length"),
        ("width", np.array([[1.0, 2.0]]), "shape"),
        ("width", np.array([[[np.nan]]]), "shape"),
        ("width", np.array([b"\xff"], dtype=object), "UTF-8"),
    ],
)
def test_tensor_that_is_no_column_is_refused(flowers: Slot, name: str, tensor: Any, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        v2.to_batch(flowers, {"length": np.array([5.1]), name: tensor})


def test_missing_or_unknown_image_tensor_is_refused(scans: Slot) -> None:
    with pytest.raises(InvalidInput, match="'input' is missing"):
        v2.to_batch(scans, {})
    with pytest.raises(InvalidInput, match="there is no tensor 'image'"):
        v2.to_batch(scans, {"image": np.zeros((1, 8, 8, 1), np.uint8)})


def test_metadata_name_tensors_and_classes(flowers: Slot, scans: Slot) -> None:
    table, images = v2.model_metadata(flowers), v2.model_metadata(scans)
    assert [(one["name"], one["datatype"], one["shape"]) for one in table["inputs"]] == [
        ("length", "FP64", [-1]),
        ("width", "FP64", [-1]),
        ("count", "INT64", [-1]),
        ("colour", "BYTES", [-1]),
    ]
    assert table["outputs"][0]["parameters"]["classes"] == list(flowers.contract.classes)
    assert images["inputs"] == [{"name": "input", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}]
    assert images["outputs"][0]["shape"] == [-1, 10]
    assert images["versions"] == ["1"]


def test_a_value_is_cut_before_it_is_written_out() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "[[[[...]]]]"
    assert shown("ab") == "'ab'"
    assert len(shown([["x" * 1_000_000] * 100_000])) == 60
