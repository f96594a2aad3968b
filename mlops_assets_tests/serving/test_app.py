"""Predictions in each form, and the published clients."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from mlops_assets.serving.app import ModelServer, create_app
from mlops_assets.serving.batcher import Batcher
from mlops_assets.serving.config import ServingSpec
from mlops_assets.serving.limits import Limits
from mlops_assets.serving.metrics import Metrics
from mlops_assets.serving.prediction_log import PredictionLog, read
from mlops_assets.serving.slot import Slot
from mlops_assets.serving.slots import Slots
from mlops_assets.settings import PROJECT
from mlops_assets_tests.serving.asking import app_of, ask, client_of, listening
from mlops_assets_tests.serving.made import IMAGE_FEATURES, TABLE_SAMPLE, publish_images, publish_table

ROW = {"length": 5.1, "width": 3.5, "colour": "red"}


@pytest.fixture
def flowers(table_home: Path) -> ModelServer:
    return app_of(table_home)


@pytest.fixture
def scans(image_home: Path) -> ModelServer:
    return app_of(image_home)


@pytest.fixture
def both(tmp_path: Path) -> ModelServer:
    publish_table(tmp_path)
    publish_images(tmp_path)
    return app_of(tmp_path)


def slot_of(home: Path, name: str) -> Slot:
    slots = Slots(home)
    slots.refresh()
    return slots[name]


def png(grey: int = 100, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side), grey).save(file, "png")
    return file.getvalue()


def test_rows_by_column_name_are_answered(flowers: ModelServer, table_home: Path) -> None:
    answer = ask(flowers, "POST", "/models/flowers/predict", json={"rows": list(TABLE_SAMPLE)})
    contract = slot_of(table_home, "flowers").contract
    assert answer.status_code == 200
    told = answer.json()
    assert (told["model_name"], told["model_version"]) == ("flowers", "1")
    for prediction, wanted in zip(told["predictions"], contract.answers, strict=True):
        shares = [prediction["probabilities"][name] for name in contract.classes]
        np.testing.assert_allclose(shares, wanted, atol=1e-6)
        assert prediction["label"] == contract.classes[int(np.argmax(wanted))]
        assert prediction["probability"] == max(shares)


def test_every_answer_names_version_and_request(flowers: ModelServer) -> None:
    answer = ask(flowers, "POST", "/models/flowers/predict", json={"rows": [ROW]})
    refused = ask(flowers, "POST", "/models/flowers/predict", json={"rows": []})
    other = ask(flowers, "GET", "/nothing")
    for one in (answer, refused):
        assert (one.headers["x-model-name"], one.headers["x-model-version"]) == ("flowers", "1")
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert len({one.headers["x-request-id"] for one in (answer, refused, other)}) == 3


@pytest.mark.parametrize(("given", "kept"), [("abc-1", True), ("a b", False), ("x" * 129, False), ("", False)])
def test_request_id_of_the_client_is_kept_when_it_is_sane(flowers: ModelServer, given: str, kept: bool) -> None:
    answer = ask(flowers, "POST", "/models/flowers/predict", json={"rows": [ROW]}, headers={"x-request-id": given})
    assert (answer.headers["x-request-id"] == given) is kept
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"rows": [ROW, {**ROW, "width": -1}]}, 422, {"field": "width", "row": 1}),
        ({"rows": [{"width": 1}]}, 422, {"field": "length"}),
        ({"rows": [{**ROW, "hight": 1}]}, 422, {"field": "hight"}),
        ({"rows": {}}, 422, {"field": "rows"}),
        ([], 422, {}),
    ],
)
def test_refusal_names_field_and_row(flowers: ModelServer, body: Any, status: int, named: dict[str, Any]) -> None:
    answer = ask(flowers, "POST", "/models/flowers/predict", json=body)
    assert answer.status_code == status
    told = answer.json()
    assert told.pop("error")
    assert told == named


def test_what_is_no_json_is_refused(flowers: ModelServer) -> None:
    for path in ("/models/flowers/predict", "/v2/models/flowers/infer", "/invocations"):
        answer = ask(flowers, "POST", path, content=b"{rows}")
        assert answer.status_code == 400
        assert "not JSON" in answer.json()["error"]


def test_example_of_the_documentation_is_answered_with_the_type_that_curl_sends(tmp_path: Path) -> None:
    """`curl -d @FILE` sends it as a form, with its line breaks left out."""
    publish_images(tmp_path, pipeline="digits", sources={"digits/features.py": IMAGE_FEATURES})
    body = (PROJECT / "docs" / "examples" / "digits.json").read_text().replace("\n", "")
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = ask(app_of(tmp_path), "POST", "/v2/models/digits/infer", content=body, headers=headers)
    assert answer.status_code == 200
    assert answer.json()["outputs"][0]["shape"] == [1, 10]


@pytest.mark.parametrize("offset", range(8))
def test_raw_tensors_are_answered_wherever_they_begin(flowers: ModelServer, table_home: Path, offset: int) -> None:
    columns = [np.array([row[name] for row in TABLE_SAMPLE]) for name in ("length", "width")]
    sizes = [{"binary_data_size": column.nbytes} for column in columns]
    inputs = [
        {"name": name, "datatype": "FP64", "shape": [3], "parameters": size}
        for name, size in zip(("length", "width"), sizes, strict=True)
    ]
    inputs.append({"name": "colour", "datatype": "BYTES", "shape": [3], "data": ["red", "blue", None]})
    header = json.dumps({"id": "me", "inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    header += b" " * ((offset - len(header)) % 8)
    body = header + b"".join(column.tobytes() for column in columns)
    answer = ask(
        flowers,
        "POST",
        "/v2/models/flowers/versions/1/infer",
        content=body,
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == "me"
    length = int(answer.headers["Inference-Header-Content-Length"])
    told = json.loads(answer.content[:length])
    assert told["id"] == "me"
    assert told["outputs"][0]["parameters"] == {"binary_data_size": 36}
    shares = np.frombuffer(answer.content[length : length + 36], "<f4").reshape(3, 3)
    np.testing.assert_allclose(shares, slot_of(table_home, "flowers").contract.answers, atol=1e-6)


def test_large_requests_are_answered_row_by_row_in_their_order(scans: ModelServer, image_home: Path) -> None:
    """Large enough to be read, answered and written in threads, in several passes."""
    pixels = np.random.default_rng(5).integers(50, 200, (6000, 8, 8, 1), dtype=np.uint8)
    tensor = {"name": "input", "datatype": "UINT8", "shape": [6000, 8, 8, 1]}
    header = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": pixels.size}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    answer = ask(scans, "POST", "/v2/models/scans/infer", content=header + pixels.tobytes(), headers=headers)
    wanted = slot_of(image_home, "scans").answer(pixels)
    shares, labels = (one["data"] for one in answer.json()["outputs"])
    np.testing.assert_allclose(np.reshape(shares, (6000, 10)), wanted.probabilities, atol=1e-6)
    assert labels == wanted.labels


@pytest.mark.parametrize("length", ["-1", "x", "9" * 30, "1e3", "0"])
def test_bad_header_length_is_refused(scans: ModelServer, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length}
    answer = ask(scans, "POST", "/v2/models/scans/infer", content=b"{}", headers=headers)
    assert answer.status_code == 400
    assert "Inference-Header-Content-Length" in answer.json()["error"]


def test_version_that_is_not_served_is_refused(flowers: ModelServer) -> None:
    for method, path in (("POST", "/infer"), ("GET", ""), ("GET", "/ready")):
        answer = ask(flowers, method, f"/v2/models/flowers/versions/2{path}")
        assert answer.status_code == 404
        assert answer.json()["error"] == "version '2' of 'flowers' is not served; version 1 is"


def test_pipeline_that_is_not_served_is_refused(flowers: ModelServer) -> None:
    for path in ("/models/iris/predict", "/v2/models/iris/infer", "/models/iris/invocations", "/models/iris/images"):
        answer = ask(flowers, "POST", path, json={})
        assert answer.status_code == 404
        assert "'iris' is not served (served: flowers)" in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["length", "width"], "index": [7], "data": [[5.1, 3.5]]}},
        {"dataframe_records": [{"length": 5.1, "width": 3.5}]},
        {"instances": [{"length": 5.1, "width": 3.5}]},
        {"inputs": {"length": [5.1], "width": [3.5]}},
        {"inputs": [{"length": 5.1, "width": 3.5}], "params": {}},
    ],
    ids=lambda body: next(iter(body)),
)
def test_each_form_of_the_scoring_protocol_is_answered(flowers: ModelServer, body: Any) -> None:
    wanted = ask(flowers, "POST", "/models/flowers/predict", json={"rows": [{"length": 5.1, "width": 3.5}]}).json()
    for path in ("/invocations", "/models/flowers/invocations"):
        answer = ask(flowers, "POST", path, json=body)
        assert answer.status_code == 200
        assert answer.json() == {"predictions": [wanted["predictions"][0]["label"]]}
        assert answer.headers["x-model-version"] == "1"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instances": [], "inputs": []},
        {"instances": 1},
        {"instances": [[5.1, 3.5]]},
        {"inputs": {"length": 5.1, "width": 3.5}},
        {"dataframe_records": {}},
        {"dataframe_split": []},
        {"dataframe_split": {"columns": ["length", "length"], "data": [[1, 2]]}},
        {"dataframe_split": {"columns": ["length", "width"], "data": [[1]]}},
        {"dataframe_split": {"columns": [1], "data": [[1]]}},
    ],
)
def test_what_is_not_of_the_scoring_protocol_is_refused(flowers: ModelServer, body: Any) -> None:
    answer = ask(flowers, "POST", "/invocations", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]


def test_images_come_by_the_scoring_protocol(scans: ModelServer) -> None:
    pixels = np.full((2, 8, 8, 1), 100).tolist()
    answers = [
        ask(scans, "POST", "/invocations", json=body).json()
        for body in ({"instances": pixels}, {"inputs": pixels}, {"inputs": {"input": pixels}})
    ]
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]["predictions"]) == 2


def test_bare_path_names_the_others_when_several_are_served(both: ModelServer) -> None:
    answer = ask(both, "POST", "/invocations", json={"instances": []})
    assert answer.status_code == 404
    assert "/models/flowers/invocations, /models/scans/invocations" in answer.json()["error"]


def test_csv_is_refused_with_what_to_send(flowers: ModelServer) -> None:
    answer = ask(flowers, "POST", "/invocations", content=b"length\n1", headers={"content-type": "text/csv"})
    assert answer.status_code == 415
    assert "dataframe_split" in answer.json()["error"]


def test_image_files_are_answered_as_pixels_are(scans: ModelServer) -> None:
    pixels = {"rows": [{"pixels": np.full((8, 8, 1), 100).tolist()}] * 2}
    wanted = ask(scans, "POST", "/models/scans/predict", json=pixels).json()["predictions"]
    path = "/models/scans/images"
    form = ask(scans, "POST", path, files=[("files", ("a.png", png())), ("files", ("b.png", png()))])
    plain = ask(scans, "POST", path, content=png(), headers={"content-type": "image/png"})
    assert form.json()["predictions"] == wanted
    assert plain.json()["predictions"] == wanted[:1]


def test_bad_image_files_are_refused(scans: ModelServer, both: ModelServer) -> None:
    path = "/models/scans/images"
    damaged = ask(scans, "POST", path, files=[("files", ("a.png", png())), ("files", ("b.png", b"not an image"))])
    assert (damaged.status_code, damaged.json()["row"]) == (422, 1)
    larger = ask(scans, "POST", path, files={"files": png(side=9)})
    assert "9 x 9 pixels" in larger.json()["error"]
    assert ask(scans, "POST", path, files={"file": png()}).json()["field"] == "file"
    assert ask(scans, "POST", path, files={"files": png()}, data={"more": "1"}).json()["field"] == "more"
    assert ask(scans, "POST", path, content=png()).status_code == 415
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert ask(scans, "POST", path, content=b"--y\r\nnothing", headers=headers).status_code in {400, 422}
    headers = {"content-type": "multipart/form-data"}
    assert ask(scans, "POST", path, content=b"nothing", headers=headers).status_code == 400
    table = ask(both, "POST", "/models/flowers/images", files={"files": png()})
    assert "takes rows of a table" in table.json()["error"]


def test_answers_and_later_labels_are_logged(table_home: Path) -> None:
    metrics = Metrics()
    log = PredictionLog(table_home, 0, metrics)
    app = app_of(table_home, log=log, metrics=metrics)
    answer = ask(app, "POST", "/models/flowers/predict", json={"rows": [ROW, ROW]}, headers={"x-request-id": "r1"})
    told = {"request_id": "r1", "row": 1, "label": "virginica"}
    assert ask(app, "POST", "/models/flowers/feedback", json=told).json() == {"accepted": True}
    log.close()
    rows = read(table_home, "flowers").sort("row").collect()
    assert rows["request_id"].to_list() == ["r1", "r1"]
    assert rows["version"].to_list() == [1, 1]
    assert rows["truth"].to_list() == [None, "virginica"]
    assert rows["label"].to_list() == [one["label"] for one in answer.json()["predictions"]]


@pytest.mark.parametrize(
    "changed", [{"label": "rose"}, {"label": 1}, {"row": -1}, {"row": True}, {"request_id": ""}, {"request_id": None}]
)
def test_label_that_cannot_be_is_refused(flowers: ModelServer, changed: dict[str, Any]) -> None:
    told = {"request_id": "r1", "row": 0, "label": "setosa"} | changed
    answer = ask(flowers, "POST", "/models/flowers/feedback", json=told)
    assert (answer.status_code, answer.json()["field"]) == (422, next(iter(changed)))


def test_a_request_is_answered_by_the_version_it_began_with(table_home: Path) -> None:
    slots = Slots(table_home)
    slots.refresh()
    app = create_app(slots, limits=Limits(), log=None, metrics=None)
    body = json.dumps({"rows": [ROW]}).encode()

    async def swap_meanwhile() -> tuple[httpx.Response, httpx.Response]:
        async def slow() -> Any:
            yield body[:5]
            publish_table(table_home, 2)
            await asyncio.to_thread(slots.refresh)
            yield body[5:]

        async with client_of(app) as client:
            during = await client.post("/models/flowers/predict", content=slow())
            after = await client.post("/models/flowers/predict", content=body)
        return during, after

    during, after = asyncio.run(swap_meanwhile())
    assert (during.headers["x-model-version"], during.json()["model_version"]) == ("1", "1")
    assert (after.headers["x-model-version"], after.json()["model_version"]) == ("2", "2")
    assert during.json()["predictions"] != after.json()["predictions"]


def test_requests_that_share_a_pass_get_their_own_answers(image_home: Path) -> None:
    publish_images(image_home, serving=ServingSpec(batching="on"))
    app = app_of(image_home, batcher=Batcher())
    bodies = [{"rows": [{"pixels": np.full((8, 8, 1), grey).tolist()}]} for grey in (50, 100, 150)]

    async def together() -> list[httpx.Response]:
        async with client_of(app) as client:
            return await asyncio.gather(*(client.post("/models/scans/predict", json=body) for body in bodies))

    joined = [one.json()["predictions"] for one in asyncio.run(together())]
    alone = [ask(app, "POST", "/models/scans/predict", json=body).json()["predictions"] for body in bodies]
    for one, other in zip(joined, alone, strict=True):
        assert one[0]["label"] == other[0]["label"]
        assert one[0]["probability"] == pytest.approx(other[0]["probability"], abs=1e-5)


def test_a_defect_gives_an_answer_without_its_traceback(
    flowers: ModelServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Slot, "answer", broken)
    answer = ask(flowers, "POST", "/models/flowers/predict", json={"rows": [ROW]})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] in answer.json()["error"]
    assert "secret" not in answer.text
    assert "ZeroDivisionError" in caplog.text


def test_tritons_client_works_unchanged(both: ModelServer) -> None:
    tritonclient = pytest.importorskip("tritonclient.http")
    pixels = np.random.default_rng(3).integers(50, 200, (5, 8, 8, 1), dtype=np.uint8)
    with listening(both) as address, tritonclient.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("scans")
        assert client.is_model_ready("scans", "1")
        assert not client.is_model_ready("scans", "2")
        assert client.get_model_metadata("scans")["outputs"][1]["name"] == "label"
        assert {one["name"] for one in client.get_model_repository_index()} == {"flowers", "scans"}
        tensor = tritonclient.InferInput("input", [5, 8, 8, 1], "UINT8")
        answers = []
        for binary in (True, False):
            tensor.set_data_from_numpy(pixels, binary_data=binary)
            wanted = [tritonclient.InferRequestedOutput(name, binary) for name in ("label", "probabilities")]
            answers.append(client.infer("scans", [tensor], outputs=wanted, request_id="triton"))
        answers.append(client.infer("scans", [tensor]))
        for one in answers:
            shares = one.as_numpy("probabilities")
            assert shares.shape == (5, 10)
            np.testing.assert_array_equal(shares, answers[0].as_numpy("probabilities"))
            labels = [text.decode() if isinstance(text, bytes) else text for text in one.as_numpy("label")]
            assert labels == [str(best) for best in shares.argmax(axis=1)]
        assert answers[0].get_response()["id"] == "triton"
        colour = tritonclient.InferInput("colour", [2, 1], "BYTES")
        colour.set_data_from_numpy(np.array([["red"], ["blue"]], dtype=object))
        columns = [colour]
        for name in ("length", "width"):
            columns.append(tritonclient.InferInput(name, [2, 1], "FP64"))
            columns[-1].set_data_from_numpy(np.array([[5.1], [3.5]]))
        assert client.infer("flowers", columns).as_numpy("probabilities").shape == (2, 3)
        with pytest.raises(Exception, match="'input' has the shape"):
            client.infer("scans", [tritonclient.InferInput("input", [1], "UINT8").set_data_from_numpy(pixels[0, 0, 0])])
