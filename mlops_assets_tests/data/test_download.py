import contextlib
import hashlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlops_assets.data import download
from mlops_assets.data.download import Mark, OriginError, fetch, fetch_new

CONTENT = bytes(range(256)) * 4000  # 1 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Sends `content`; the other attributes are how it misbehaves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag: str | None = '"one"'
        self.modified: str | None = None
        self.ranges = True
        self.length = True
        self.statuses: list[int] = []  # of the first answers, before good ones
        self.drops: list[int] = []  # bytes after which the first connections are lost
        self.pause = 0.0  # seconds between pieces
        self.goes_on = threading.Event()  # awaited after `most` bytes of an answer
        self.most = len(CONTENT)
        self.asked: list[dict[str, str]] = []
        self.type = "text/csv"
        self.moved = ""  # where to send everybody

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data/file.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(dict(self.headers))
        self.close_connection = True
        if server.statuses:
            self.send_response(server.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if server.moved:
            self.send_response(302)
            self.send_header("Location", server.moved)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        version = server.etag or server.modified
        if version in {self.headers.get("If-None-Match"), self.headers.get("If-Modified-Since")} - {None}:
            self.send_response(304)
            self.end_headers()
            return
        wanted = self.headers.get("Range", "")
        if wanted and server.ranges and self.headers.get("If-Range") == version:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Type", server.type)
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.modified:
            self.send_header("Last-Modified", server.modified)
        if server.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        stop = server.drops.pop(0) if server.drops else len(body)
        with contextlib.suppress(OSError):  # the client may be gone
            for place in range(0, stop, 50_000):
                if place >= server.most:
                    server.goes_on.wait(60)
                self.wfile.write(body[place : min(stop, place + 50_000)])
                time.sleep(server.pause)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(download, "_WAITS", (0.0, 0.01, 0.01))
    with serving() as made:
        yield made


def left(tmp_path: Path) -> set[str]:
    """What lies beside a target, but for the lock."""
    return {path.name for path in tmp_path.iterdir() if path.suffix != ".lock"}


def test_a_download_arrives_whole_and_is_not_repeated(server: Server, tmp_path: Path) -> None:
    target, steps = tmp_path / "new" / "file.bin", []
    assert fetch(server.url, SHA256, target, on_progress=lambda *step: steps.append(step)) == target
    assert target.read_bytes() == CONTENT
    assert left(target.parent) == {"file.bin"}
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    fetch(server.url, SHA256, target)
    assert len(server.asked) == 1


def test_a_target_with_other_content_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"old")
    assert fetch(server.url, SHA256, tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("version", ["etag", "modified"])
def test_lost_connections_are_resumed(server: Server, tmp_path: Path, version: str) -> None:
    if version == "modified":
        server.etag, server.modified = 'W/"weak"', "Wed, 21 Oct 2015 07:28:00 GMT"
    server.drops = [300_000, 200_000, 0, 100_000]
    steps: list[tuple[int, int]] = []
    if version == "modified":
        server.etag = None
    fetch(server.url, SHA256, tmp_path / "file.bin", on_progress=lambda *step: steps.append(step))
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    starts = [asked.get("Range") for asked in server.asked]
    assert starts == [None, "bytes=300000-", "bytes=500000-", "bytes=500000-", "bytes=600000-"]
    assert server.asked[1]["If-Range"] == (server.etag or server.modified)
    assert {total for _, total in steps} == {len(CONTENT)}
    assert left(tmp_path) == {"file.bin"}


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.drops = [300_000, 600_000]
    fetch(server.url, SHA256, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert len(server.asked) == 3


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_sure_version_nothing_is_resumed(server: Server, tmp_path: Path, etag: str | None) -> None:
    server.etag = etag
    server.drops = [300_000]
    fetch(server.url, SHA256, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert "Range" not in server.asked[1]


def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old_one(server: Server, tmp_path: Path) -> None:
    server.drops = [300_000] * 4
    server.ranges = False
    with pytest.raises(OriginError, match="the first 300000 bytes are kept"):
        fetch(server.url, SHA256, tmp_path / "file.bin")
    assert left(tmp_path) == {"file.bin.part", "file.bin.part.etag"}
    server.ranges = True
    server.content, server.etag = b"new" * 100_000, '"two"'
    fetch(server.url, hashlib.sha256(server.content).hexdigest(), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == server.content


def test_a_wrong_beginning_is_found_out_and_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    (tmp_path / "file.bin.part.etag").write_text('"one"')
    fetch(server.url, SHA256, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [asked.get("Range") for asked in server.asked] == ["bytes=1000-", None]


@pytest.mark.parametrize("part", [CONTENT + b"more", b"x" * len(CONTENT)])
def test_a_part_that_is_too_long_is_dropped(server: Server, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "file.bin.part").write_bytes(part)
    (tmp_path / "file.bin.part.etag").write_text('"one"')
    fetch(server.url, SHA256, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_whole_part_needs_no_server(tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    fetch("http://127.0.0.1:1/", SHA256, tmp_path / "file.bin")
    assert left(tmp_path) == {"file.bin"}


def test_a_mark_in_tatters_is_ignored(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    (tmp_path / "file.bin.part.etag").write_bytes(b"\0\0\xff\r\n")
    fetch(server.url, SHA256, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_passing_faults_of_the_server_are_waited_for(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429, 500]
    fetch(server.url, SHA256, tmp_path / "file.bin")
    assert len(server.asked) == 4


def test_faults_that_stay_are_told(server: Server, tmp_path: Path) -> None:
    server.statuses = [503] * 9
    with pytest.raises(OriginError, match=r"cannot be fetched \(status 503 Service Unavailable\): try again later"):
        fetch(server.url, SHA256, tmp_path / "file.bin")
    assert len(server.asked) == 4
    server.statuses = [404]
    with pytest.raises(OriginError, match=r"cannot be fetched \(status 404 Not Found\): correct the address"):
        fetch(server.url, SHA256, tmp_path / "file.bin")
    assert left(tmp_path) == set()


def test_another_file_is_deleted(server: Server, tmp_path: Path) -> None:
    server.content = b"a page that asks to log in"
    digest = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(OriginError, match=f"its SHA-256 is {digest}, not {SHA256}.* and was deleted"):
        fetch(server.url, SHA256, tmp_path / "file.bin")
    assert left(tmp_path) == set()
    assert len(server.asked) == 1


def test_addresses_that_lead_nowhere(tmp_path: Path, server: Server) -> None:
    with pytest.raises(OriginError, match="try again later"):
        fetch("http://127.0.0.1:1/file", SHA256, tmp_path / "file.bin")
    with pytest.raises(OriginError, match="correct the address"):
        fetch("ftp://127.0.0.1/file", SHA256, tmp_path / "file.bin")
    with pytest.raises(OriginError, match="the origin's url is no address"):
        fetch("http://127.0.0.1:port/file", SHA256, tmp_path / "file.bin")


def test_no_secret_of_the_address_is_told(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    url = server.url.replace("://", "://user:hunter2@") + "?token=hunter3"
    with pytest.raises(OriginError) as caught:
        fetch(url, SHA256, tmp_path / "file.bin")
    assert server.url in str(caught.value)
    assert "hunter" not in str(caught.value)


def test_a_server_that_falls_silent_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges, server.pause = False, 0.5
    with pytest.raises(OriginError, match="try again later"):
        fetch(server.url, SHA256, tmp_path / "file.bin", timeout=0.05)


@pytest.mark.parametrize("length", [True, False])
def test_a_disk_without_room_is_not_filled(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: bool
) -> None:
    server.length = length
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: SimpleNamespace(free=download.SPARE + 400_000))
    with pytest.raises(OriginError, match=r"has no room for http://127.*: free space"):
        fetch(server.url, SHA256, tmp_path / "file.bin")
    assert left(tmp_path) == set()


def test_a_place_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OriginError, match=r"cannot be written \((File exists|Not a directory)\)"):
        fetch(server.url, SHA256, tmp_path / "file" / "file.bin")


def started(server: Server, target: Path) -> "subprocess.Popen[bytes]":
    """Fetches in a process of its own."""
    call = f"download.fetch({server.url!r}, {SHA256!r}, pathlib.Path({str(target)!r}))"
    code = f"import pathlib; from mlops_assets.data import download; {call}"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)


def test_one_of_several_processes_fetches_and_the_others_wait(server: Server, tmp_path: Path) -> None:
    server.pause = 0.02
    processes = [started(server, tmp_path / "file.bin") for _ in range(3)]
    assert [process.communicate()[1] for process in processes] == [b""] * 3
    assert [process.returncode for process in processes] == [0] * 3
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert len(server.asked) == 1


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_process_leaves_what_the_next_goes_on_from(server: Server, tmp_path: Path, sent: int) -> None:
    server.most = 300_000
    target = tmp_path / "file.bin"
    process = started(server, target)
    part = tmp_path / "file.bin.part"
    while not (part.exists() and part.stat().st_size > 200_000):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(sent)
    _, told = process.communicate()
    assert process.returncode != 0
    assert (b"KeyboardInterrupt" in told) is (sent == signal.SIGINT)
    assert not target.exists()
    server.most = len(CONTENT)
    server.goes_on.set()
    fetch(server.url, SHA256, target)
    assert target.read_bytes() == CONTENT
    assert int(server.asked[-1]["Range"].removeprefix("bytes=").removesuffix("-")) > 200_000


@pytest.mark.parametrize(("etag", "modified"), [('W/"one"', None), (None, "Wed, 21 Oct 2015 07:28:00 GMT")])
def test_an_unchanged_file_costs_one_request(
    server: Server, tmp_path: Path, etag: str | None, modified: str | None
) -> None:
    server.etag, server.modified = etag, modified
    target = tmp_path / "file.bin"
    mark = fetch_new(server.url, target, known=Mark())
    assert mark == Mark(etag or "", modified or "")
    assert target.read_bytes() == CONTENT
    target.unlink()
    assert fetch_new(server.url, target, known=mark) is None
    assert len(server.asked) == 2
    assert left(tmp_path) == set()
    server.content, server.etag = b"new", '"two"'
    server.modified = None
    assert fetch_new(server.url, target, known=mark) == Mark('"two"')
    assert target.read_bytes() == b"new"


def test_a_file_of_unknown_content_is_resumed(server: Server, tmp_path: Path) -> None:
    server.drops = [300_000, 200_000]
    fetch_new(server.url, tmp_path / "file.bin", known=Mark('"zero"'))
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [asked.get("Range") for asked in server.asked] == [None, "bytes=300000-", "bytes=500000-"]
    assert [asked.get("If-None-Match") for asked in server.asked] == ['"zero"', None, None]


def test_a_new_file_may_have_to_be_a_certain_one(server: Server, tmp_path: Path) -> None:
    assert fetch_new(server.url, tmp_path / "file.bin", known=Mark(), sha256=SHA256)
    server.content = b"other"
    with pytest.raises(OriginError, match="is another file than expected"):
        fetch_new(server.url, tmp_path / "file.bin", known=Mark(), sha256=SHA256)


def test_a_page_for_browsers_is_no_data(server: Server, tmp_path: Path) -> None:
    server.type = "text/html; charset=utf-8"
    with pytest.raises(OriginError, match="is a page for browsers and no data"):
        fetch_new(server.url, tmp_path / "file.bin", known=Mark())
    assert left(tmp_path) == set()


def test_a_token_goes_to_its_server_alone(server: Server, tmp_path: Path) -> None:
    with serving() as other:
        server.moved = other.url
        fetch_new(server.url, tmp_path / "file.bin", known=Mark(), token="hunter2")
        assert server.asked[0]["Authorization"] == "Bearer hunter2"
        assert "Authorization" not in other.asked[0]
    server.moved, server.statuses = "", [403]
    with pytest.raises(OriginError, match=r"\(status 403 Forbidden\): correct the address or the token") as caught:
        fetch_new(server.url, tmp_path / "file.bin", known=Mark(), token="Basic hunter2")
    assert server.asked[-1]["Authorization"] == "Basic hunter2"
    assert "hunter2" not in str(caught.value)
    with pytest.raises(OriginError, match="the token is no text that a header can carry") as caught:
        fetch_new(server.url, tmp_path / "file.bin", known=Mark(), token="hunter2\nX: y")
    assert "hunter2" not in str(caught.value)
