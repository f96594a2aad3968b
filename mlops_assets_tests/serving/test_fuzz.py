"""Whatever is sent, the server refuses it by a sentence or answers it; it never fails."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_assets.serving.app import ModelServer
from mlops_assets.serving.v2 import DATATYPES
from mlops_assets_tests.serving.asking import app_of, ask, client_of, listening
from mlops_assets_tests.serving.made import TABLE_FEATURES, TABLE_SAMPLE, loaded, publish_images, publish_table

pytestmark = pytest.mark.slow

PATHS = (
    "/v2/models/scans/infer",
    "/v2/models/flowers/infer",
    "/models/flowers/predict",
    "/models/scans/predict",
    "/models/flowers/invocations",
    "/models/scans/invocations",
    "/models/flowers/feedback",
    "/models/scans/images",
    "/v2/repository/index",
)
TYPES = ("application/json", "application/octet-stream", "image/png", "multipart/form-data; boundary=x", "text/csv", "")

fuzz = settings(max_examples=80, derandomize=True, suppress_health_check=list(HealthCheck))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(width=64) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NUMBERS = st.integers(-3, 300) | st.sampled_from([1 << 31, 1 << 63, 1 << 64, -(1 << 63)])


class Fuzzed:
    """An application with one event loop for thousands of requests."""

    def __init__(self, app: ModelServer) -> None:
        self.app, self.loop = app, asyncio.new_event_loop()
        self.client = client_of(app)

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        return self.loop.run_until_complete(self.client.post(path, content=body, headers=headers))

    def check(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        answer = self.post(path, body, headers)
        assert answer.status_code < 500, (path, body, headers, answer.text)
        if answer.status_code != 200:
            sentence = answer.json()["error"]
            assert sentence
            assert "\n" not in sentence
            assert "Traceback" not in sentence


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    home = tmp_path_factory.mktemp("fuzz")
    publish_table(home)
    publish_images(home)
    made = Fuzzed(app_of(home))
    yield made
    made.loop.run_until_complete(made.client.aclose())
    made.loop.close()


@fuzz
@given(
    path=st.sampled_from(PATHS), body=st.binary(max_size=200), kind=st.sampled_from(TYPES), length=st.none() | NUMBERS
)
def test_random_bytes(fuzzed: Fuzzed, path: str, body: bytes, kind: str, length: int | None) -> None:
    headers = {"content-type": kind} | ({} if length is None else {"Inference-Header-Content-Length": str(length)})
    fuzzed.check(path, body, headers)


@fuzz
@given(
    path=st.sampled_from(PATHS),
    key=st.sampled_from(["rows", "inputs", "instances", "dataframe_split", "dataframe_records", "outputs", "label"]),
    value=JSON,
)
def test_random_json(fuzzed: Fuzzed, path: str, key: str, value: Any) -> None:
    fuzzed.check(path, json.dumps({key: value}).encode(), {"content-type": "application/json"})


@fuzz
@given(row=st.dictionaries(st.sampled_from([*TABLE_SAMPLE[0], "id", "species", "pixels", "file"]), JSON, max_size=6))
def test_random_values_in_rows(fuzzed: Fuzzed, row: dict[str, Any]) -> None:
    for path in ("/models/flowers/predict", "/models/scans/predict"):
        fuzzed.check(path, json.dumps({"rows": [row, TABLE_SAMPLE[0]]}).encode(), {})


TENSORS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["input", "length", "width", "count", "colour", "x"]),
            "datatype": st.sampled_from([*DATATYPES, "BF16", ""]),
            "shape": st.lists(NUMBERS, max_size=5) | JSON,
        },
        optional={
            "data": st.lists(NUMBERS | st.floats(allow_nan=False, allow_infinity=False) | st.text(), max_size=5) | JSON,
            "parameters": st.fixed_dictionaries({"binary_data_size": NUMBERS | JSON}) | JSON,
        },
    ),
    max_size=4,
)


@fuzz
@given(
    path=st.sampled_from(PATHS[:2]),
    tensors=TENSORS,
    raw=st.none() | st.binary(max_size=100),
    more=st.dictionaries(st.sampled_from(["id", "outputs", "parameters"]), JSON, max_size=2),
)
def test_random_tensors(fuzzed: Fuzzed, path: str, tensors: list[Any], raw: bytes | None, more: dict[str, Any]) -> None:
    header = json.dumps({"inputs": tensors, **more}).encode()
    if raw is None:
        fuzzed.check(path, header, {})
    else:
        fuzzed.check(path, header + raw, {"Inference-Header-Content-Length": str(len(header))})


@fuzz
@given(data=st.data())
def test_good_requests_that_were_damaged(fuzzed: Fuzzed, data: st.DataObject) -> None:
    """Bytes of a good request changed, removed or doubled."""
    if data.draw(st.booleans()):
        path, inputs, raw = PATHS[0], [("input", "UINT8", [2, 8, 8, 1], 128)], bytes(range(128))
    else:
        inputs = [("length", "FP64", [2], 16), ("width", "FP32", [2, 1], 8), ("colour", "BYTES", [2], 15)]
        numbers = np.array([5.1, 6.2]).tobytes() + np.array([3.5, 2.2], "<f4").tobytes()
        path, raw = PATHS[1], numbers + b"\x03\0\0\0red\x04\0\0\0blue"
    described = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
        for name, datatype, shape, size in inputs
    ]
    header = json.dumps({"inputs": described}).encode()
    length = {"Inference-Header-Content-Length": str(len(header))}
    assert fuzzed.post(path, header + raw, length).status_code == 200
    body = bytearray(header + raw)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(body) - 1)))
        match data.draw(st.sampled_from(["change", "cut", "double"])):
            case "change":
                body[at : at + 1] = data.draw(st.binary(min_size=1, max_size=4))
            case "cut":
                del body[at : at + data.draw(st.integers(1, 20))]
            case _:
                body[at:at] = body[at : at + 20]
    fuzzed.check(path, bytes(body), length)


DEEP: Any = "DEEP"


@pytest.mark.parametrize(
    "deep", [b"[" * 1000 + b"]" * 1000, b'{"a":' * 1000 + b"1" + b"}" * 1000], ids=["list", "object"]
)
@pytest.mark.parametrize(
    "body",
    [
        DEEP,
        {"rows": DEEP},
        {"rows": [DEEP]},
        {"rows": [{"length": DEEP, "width": DEEP, "pixels": DEEP}]},
        {"request_id": "a", "row": DEEP, "label": "setosa"},
        {"request_id": "a", "label": DEEP},
        {"instances": DEEP},
        {"inputs": {"input": DEEP, "length": DEEP}},
        {"dataframe_split": {"columns": ["length"], "data": [[DEEP]]}},
        {"inputs": [{"name": "input", "datatype": "UINT8", "shape": [DEEP], "data": []}]},
        {"inputs": [{"name": "length", "datatype": "BYTES", "shape": [1], "data": ["a", DEEP]}]},
        {"inputs": [{"name": "length", "datatype": "BYTES", "shape": [2], "data": ["a", DEEP]}]},
        {"inputs": [{"name": "length", "datatype": "FP64", "shape": [1], "data": DEEP}]},
        {"inputs": [{"name": "length", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": DEEP}}]},
        {"inputs": [{}], "parameters": {"binary_data_output": DEEP}},
    ],
)
def test_values_that_are_nested_deeper_than_python_writes_them(fuzzed: Fuzzed, body: Any, deep: bytes) -> None:
    for path in PATHS:
        fuzzed.check(path, json.dumps(body).encode().replace(b'"DEEP"', deep), {"content-type": "application/json"})


def test_features_code_that_panics_refuses_the_rows(tmp_path: Path) -> None:
    panicking = TABLE_FEATURES.replace(
        "    return frame",
        '    if (frame["length"] == 13).any():\n'
        '        pl.select(pl.from_epoch(pl.lit(2147483647), "d").dt.month_end())\n    return frame',
    )
    pointer = publish_table(tmp_path)
    sources = loaded(tmp_path, pointer).contract.sources
    publish_table(tmp_path, 2, sources={**sources, "flowers/features.py": panicking})
    row = {**TABLE_SAMPLE[0], "length": 13}
    answer = ask(app_of(tmp_path), "POST", "/models/flowers/predict", json={"rows": [row]})
    assert answer.status_code == 422
    assert answer.headers["x-request-id"]
    assert "features() failed" in answer.json()["error"]


@pytest.mark.slow
def test_openapi_document_holds(tmp_path: Path) -> None:
    """Requests that schemathesis makes of the document, good ones and bad ones, over a socket."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.specs.openapi import checks

    publish_table(tmp_path)
    publish_images(tmp_path)
    with listening(app_of(tmp_path)) as address:
        document = schemathesis.openapi.from_url(f"http://{address}/openapi.json")
        operations = [one.ok() for one in document.get_all_operations()]
        assert len(operations) > 15
        wanted = [
            schemathesis.checks.not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
        ]
        for operation in operations:

            @settings(max_examples=20, derandomize=True, suppress_health_check=list(HealthCheck))
            @given(
                case=operation.as_strategy()
                | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
            )
            def holds(case: Any) -> None:
                case.call_and_validate(base_url=f"http://{address}", checks=wanted, timeout=60)

            holds()
