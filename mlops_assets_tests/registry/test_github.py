"""Deliveries of MLflow that are told to GitHub, to a real HTTP server that stands for its API."""

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from mlflow.entities.webhook import WebhookAction, WebhookEntity

from mlops_assets.pipeline import find_pipeline
from mlops_assets.registry.github import GitHubUnusable, event_of, teller
from mlops_assets.registry.webhook import application
from mlops_assets.settings import SettingsError, settings
from mlops_assets_tests.registry.test_webhook import SECRET, signed

TOKEN = "very-secret"
VERSION = str(WebhookEntity.MODEL_VERSION)
ALIAS = str(WebhookEntity.MODEL_VERSION_ALIAS)
CREATED = str(WebhookAction.CREATED)


def delivery(entity: str = VERSION, action: str = CREATED, **data: Any) -> bytes:
    return json.dumps({"entity": entity, "action": action, "data": {"name": "iris", "version": "4", **data}}).encode()


PROMOTED = delivery(ALIAS, alias="champion")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, dict[str, str], Any]]]:
    """What the server was asked; it answers 204, and 422 for a version 9."""
    found: list[tuple[str, dict[str, str], Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.append((self.path, dict(self.headers), content))
            self.send_response(422 if content["client_payload"]["version"] == 9 else 204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("MLOPS_GITHUB_REPOSITORY", "us/ours")
        monkeypatch.setenv("MLOPS_GITHUB_TOKEN", TOKEN)
        monkeypatch.setenv("MLOPS_GITHUB_API", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr("mlops_assets.registry.github.SECONDS", 120.0)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def tell(body: bytes) -> None:
    telling = teller(settings())
    assert telling is not None

    async def told() -> None:
        await telling(body)

    asyncio.run(told())


def test_what_is_told() -> None:
    iris = [find_pipeline("iris")]
    assert event_of(delivery(), iris) == ("model-registered", "iris", 4)
    assert event_of(PROMOTED, iris) == ("champion-promoted", "iris", 4)


@pytest.mark.parametrize(
    "body",
    [
        delivery(tags={"mlops.recipe": "abc"}),
        delivery(name="others"),
        delivery(name=["iris"]),
        delivery(version="4; reboot"),
        delivery(version=None),
        delivery(action="deleted"),
        delivery(ALIAS, alias="challenger"),
        delivery("registered_model"),
        b"[]",
        b"{}",
        b"\xff",
        b'{"entity": 1, "action": 2, "data": []}',
        delivery(tags=["mlops.recipe"]),
    ],
)
def test_what_is_not(body: bytes) -> None:
    assert event_of(body, [find_pipeline("iris")]) is None


def test_github_is_told_a_name_and_a_number(asked: list[tuple[str, dict[str, str], Any]]) -> None:
    tell(delivery(description="$(reboot)", source="evil"))
    ((path, headers, content),) = asked
    assert path == "/repos/us/ours/dispatches"
    assert content == {"event_type": "model-registered", "client_payload": {"pipeline": "iris", "version": 4}}
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    tell(delivery(name="others"))
    assert len(asked) == 1


def test_a_signed_delivery_goes_all_the_way(asked: list[tuple[str, dict[str, str], Any]], tmp_path: Any) -> None:
    import httpx

    app = application(SECRET, tmp_path / "changed", teller(settings()))

    async def deliver() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            sent = [({}, PROMOTED), (signed(PROMOTED), PROMOTED)]
            return [(await client.post("/webhook", headers=each, content=body)).status_code for each, body in sent]

    assert asyncio.run(deliver()) == [401, 204]
    assert [content["event_type"] for _, _, content in asked] == ["champion-promoted"]


def test_a_refusal_is_logged_without_the_token(
    asked: list[tuple[str, dict[str, str], Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        tell(delivery(version="9"))
    assert "iris version 9 is model-registered: it answered 422" in caplog.text
    assert TOKEN not in caplog.text


def test_nobody_there_is_logged_without_the_token(
    asked: list[tuple[str, dict[str, str], Any]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_assets.registry.github.ATTEMPTS", 1)  # httpx waits half a second before the third
    with socket.socket() as silent, caplog.at_level(logging.WARNING):
        silent.bind(("127.0.0.1", 0))  # nobody listens there, nor can anybody begin to
        monkeypatch.setenv("MLOPS_GITHUB_API", f"http://127.0.0.1:{silent.getsockname()[1]}")
        tell(delivery())
    assert "ConnectError" in caplog.text
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("token", ["", "two words", "über-secret"])
def test_a_token_that_cannot_be_sent_is_refused(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("MLOPS_GITHUB_REPOSITORY", "us/ours")
    monkeypatch.setenv("MLOPS_GITHUB_TOKEN", token)
    with pytest.raises(GitHubUnusable, match="MLOPS_GITHUB_TOKEN holds no token") as refused:
        teller(settings())
    assert "secret" not in str(refused.value)


def test_without_a_repository_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert teller(settings()) is None
    monkeypatch.setenv("MLOPS_GITHUB_REPOSITORY", "no-owner")
    settings.cache_clear()
    with pytest.raises(SettingsError, match="MLOPS_GITHUB_REPOSITORY"):
        settings()
