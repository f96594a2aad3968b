"""A server that speaks as much of the Hugging Face Hub's API as a push of a Space takes.

It was written to fit the client: it proves what we ask, not what the Hub does with it.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_writing"


class Hub:
    """One Space, its commits, and what is to go wrong."""

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.large: dict[str, bytes] = {}
        self.fail: dict[str, int] = {}
        """Status by the name of a step: `create`, `commit`."""
        self.hold = threading.Event()
        """While cleared, a commit waits, before anything of it is done."""
        self.hold.set()
        self.committing = threading.Event()

    @property
    def head(self) -> str:
        return hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that was killed hears no answer."""


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    server = _Server(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Tell nothing."""

        def do_POST(self) -> None:  # noqa: PLR0911
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/api/validate-yaml":
                return self.tell(200, {"errors": [], "warnings": []})
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.tell(401, {"error": "Invalid username or password."})
            step = self.path.split("?")[0].split("/")[-2 if self.path.endswith("/main") else -1]
            if step in hub.fail:
                return self.tell(hub.fail[step], {"error": "so it is"})
            if self.path == "/api/repos/create":
                hub.created.append(json.loads(body))
                url = f"{hub.url}/spaces/me/flowers"
                return self.tell(409 if len(hub.created) > 1 else 200, {"url": url, "error": "You already created it"})
            if step == "preupload":
                asked = json.loads(body)["files"]
                mode = {one["path"]: "lfs" if one["path"].endswith(".onnx") else "regular" for one in asked}
                return self.tell(
                    200, {"files": [{"path": path, "uploadMode": mode[path], "shouldIgnore": False} for path in mode]}
                )
            if self.path.endswith("/info/lfs/objects/batch"):
                return self.tell(200, {"objects": [self.upload(one) for one in json.loads(body)["objects"]]})
            assert step == "commit", self.path
            hub.committing.set()
            hub.hold.wait()
            if step in hub.fail:
                return self.tell(hub.fail[step], {"error": "so it is"})
            lines = [json.loads(line) for line in body.splitlines()]
            if lines[0]["value"].get("parentCommit") != hub.head:
                return self.tell(412, {"error": "the head has moved"})
            hub.commit(lines)
            return self.tell(
                200,
                {
                    "commitUrl": f"{hub.url}/spaces/me/flowers/commit/{hub.head}",
                    "commitOid": hub.head,
                    "hookOutput": "",
                },
            )

        def upload(self, one: dict[str, Any]) -> dict[str, Any]:
            href = f"{hub.url}/large/{one['oid']}"
            return {"oid": one["oid"], "size": one["size"], "actions": {"upload": {"href": href}}}

        def do_PUT(self) -> None:
            hub.large[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
            self.tell(200, {})

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            if match := re.match(r"/spaces/me/flowers/resolve/\w+/(.+)", self.path):
                if match[1] not in hub.files:
                    return self.tell(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
                content = hub.files[match[1]]
                tag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": hub.head}
                return self.send(200, content, tag)
            if self.path.startswith("/api/spaces/me/flowers/tree/"):
                listed = [
                    {"type": "file", "path": path, "size": len(content), "oid": "0"}
                    for path, content in hub.files.items()
                ]
                return self.tell(200, listed)
            return self.tell(200, {"id": "me/flowers", "sha": hub.head, "private": False, "tags": [], "siblings": []})

        def tell(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            self.send(status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})

        def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler
