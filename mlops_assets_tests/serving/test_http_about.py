"""What the server says of itself: readiness, health, metrics, its description."""

import logging
from pathlib import Path

import pytest

from mlops_assets.serving.app import ModelServer, create_app
from mlops_assets.serving.limits import Limits
from mlops_assets.serving.metrics import Metrics
from mlops_assets.serving.slots import Slots
from mlops_assets_tests.serving.asking import app_of, ask
from mlops_assets_tests.serving.made import publish_images, publish_table

ROW = {"length": 5.1, "width": 3.5, "colour": "red"}


@pytest.fixture
def flowers(table_home: Path) -> ModelServer:
    return app_of(table_home)


@pytest.fixture
def both(tmp_path: Path) -> ModelServer:
    publish_table(tmp_path)
    publish_images(tmp_path)
    return app_of(tmp_path)


def test_readiness_follows_what_is_served(tmp_path: Path) -> None:
    nothing = app_of(tmp_path)
    assert ask(nothing, "GET", "/v2/health/live").json() == {"live": True}
    ready = ask(nothing, "GET", "/v2/health/ready")
    assert (ready.status_code, ready.json()["ready"]) == (503, False)
    publish_table(tmp_path)
    app = app_of(tmp_path)
    assert ask(app, "GET", "/v2/health/ready").json() == {"ready": True}
    assert ask(app, "GET", "/v2/models/flowers/ready").json() == {"name": "flowers", "ready": True}
    app.condition.draining = True
    stopping = ask(app, "GET", "/v2/health/ready")
    assert (stopping.status_code, stopping.headers["connection"]) == (503, "close")
    assert ask(app, "GET", "/v2/health/live").status_code == 200


def test_champion_that_does_not_load_makes_the_process_unready(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish_images(tmp_path)
    pointer = publish_table(tmp_path)
    (tmp_path / "serving" / "flowers" / pointer.key / "model.onnx").write_bytes(b"damaged")
    with caplog.at_level(logging.ERROR):
        app = app_of(tmp_path)
    assert ask(app, "GET", "/v2/health/ready").status_code == 503
    health = ask(app, "GET", "/health").json()
    assert health["pipelines"]["scans"]["version"] == 1
    assert health["pipelines"]["flowers"]["version"] is None
    assert health["pipelines"]["flowers"]["problem"]
    index = {one["name"]: one["state"] for one in ask(app, "POST", "/v2/repository/index").json()}
    assert index == {"flowers": "UNAVAILABLE", "scans": "READY"}
    answer = ask(app, "POST", "/models/flowers/predict", json={"rows": [ROW]})
    assert answer.status_code == 503


def test_requests_are_counted_by_how_they_ended(table_home: Path) -> None:
    metrics = Metrics()
    slots = Slots(table_home, on_swap=metrics.swapped)
    slots.refresh()
    app = create_app(slots, limits=Limits(), log=None, metrics=metrics)
    ask(app, "POST", "/models/flowers/predict", json={"rows": [ROW]})
    ask(app, "POST", "/v2/models/flowers/infer", json={})
    ask(app, "POST", "/models/iris/predict", json={"rows": [ROW]})
    page = ask(app, "GET", "/metrics")
    assert page.headers["content-type"].startswith("text/plain")

    def count(**labels: str) -> str:
        inside = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
        return f"mlops_requests_total{{{inside}}} 1.0"

    assert count(outcome="ok", pipeline="flowers", protocol="json", version="1") in page.text
    assert count(outcome="invalid", pipeline="flowers", protocol="v2", version="1") in page.text
    assert count(outcome="not_served", pipeline="", protocol="json", version="") in page.text
    assert "mlops_requests_in_flight 0.0" in page.text


def test_unknown_paths_and_methods_are_refused_in_json(flowers: ModelServer) -> None:
    assert "nothing at /nowhere" in ask(flowers, "GET", "/nowhere").json()["error"]
    wrong = ask(flowers, "GET", "/models/flowers/predict")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "does not take GET" in wrong.json()["error"]


def test_examples_of_the_openapi_document_are_answered(both: ModelServer) -> None:
    document = ask(both, "GET", "/openapi.json").json()
    asked = 0
    for path, item in document["paths"].items():
        content = item.get("post", {}).get("requestBody", {}).get("content", {})
        example = content.get("application/json", {}).get("example")
        if example is not None and not path.endswith("/feedback"):
            assert ask(both, "POST", path, json=example).status_code == 200, path
            asked += 1
    assert asked == 8
    assert both.openapi() == document


def test_openapi_document_follows_the_version(table_home: Path) -> None:
    slots = Slots(table_home)
    slots.refresh()
    app = create_app(slots, limits=Limits(), log=None, metrics=None)
    assert "/v2/models/flowers/versions/1/infer" in ask(app, "GET", "/openapi.json").json()["paths"]
    publish_table(table_home, 2)
    slots.refresh()
    paths = ask(app, "GET", "/openapi.json").json()["paths"]
    assert "/v2/models/flowers/versions/2/infer" in paths
    assert "/v2/models/flowers/versions/1/infer" not in paths


def test_documentation_loads_nothing_from_elsewhere(flowers: ModelServer) -> None:
    page = ask(flowers, "GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in page.text.replace("// ", "")
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
        assert f"docs/{name}" in page.text
        assert ask(flowers, "GET", f"/docs/{name}").status_code == 200


def test_root_says_what_is_served(both: ModelServer) -> None:
    told = ask(both, "GET", "/").json()
    assert sorted(told["pipelines"]) == ["flowers", "scans"]
    for link in (*told["links"].values(), *(one["metadata"] for one in told["pipelines"].values())):
        assert ask(both, "GET", link).status_code == (404 if link == "/metrics" else 200)
