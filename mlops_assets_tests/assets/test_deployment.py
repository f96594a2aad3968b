"""What a deployment says of the model server, to a real HTTP server that stands for it; `test_serve.py` has ours."""

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from mlops_assets.assets import deployment
from mlops_assets.settings import settings

SLOT: Any = SimpleNamespace(pipeline="flowers", version=2)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that a server was asked for, which answers from the second one on."""
    paths: list[str] = []
    again = threading.Event()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            if len(paths) == 1:
                again.wait(180)
            again.set()
            body = json.dumps({"versions": ["2"]}).encode()
            with suppress(OSError):  # who asked first waits no longer
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        monkeypatch.setenv("MLOPS_SERVE_URL", f"http://127.0.0.1:{server.server_port}")
        settings.cache_clear()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield paths
        again.set()
        server.shutdown()
        thread.join()


def test_a_server_that_is_busy_is_waited_for(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(deployment, "SERVER_SECONDS", 180.0)
    assert deployment._seen(SLOT) == {"model server": "answers with version 2"}
    assert len(asked) > 1
    assert set(asked) == {"/v2/models/flowers"}


def test_one_that_stays_busy_is_told_of_and_fails_nothing(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(deployment, "SERVER_SECONDS", 0.0)
    assert deployment._seen(SLOT) == {"model server": "does not answer with version 2: it is up, and too busy to say"}
    assert asked == ["/v2/models/flowers"]
