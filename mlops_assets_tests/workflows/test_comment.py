"""The script that comments, as the workflow runs it, against a real HTTP server that stands for GitHub's API."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from mlops_assets.settings import PROJECT

TOKEN = "very-secret"
BOT = "github-actions[bot]"
HEAD = {"HEAD": "ann:my/branch&state=closed", "HEAD_SHA": "a" * 40}


@dataclass
class GitHub:
    """A repository with a pull request, number 7, of a branch of ann's fork."""

    port: int = 0
    sha: str = HEAD["HEAD_SHA"]
    refuses: bool = False
    comments: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, content: Any, token: str) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        if self.refuses or token != f"Bearer {TOKEN}":
            return 403, {"message": "no"}
        if (method, parts.path) == ("GET", "/repos/us/ours/pulls"):
            mine = query == {"state": ["open"], "head": [HEAD["HEAD"]]}
            return 200, [{"number": 7, "head": {"sha": self.sha}}] if mine else []
        if (method, parts.path) == ("GET", "/repos/us/ours/issues/7/comments"):
            first = (int(query["page"][0]) - 1) * 100
            return 200, self.comments[first : first + 100]
        if (method, parts.path) == ("POST", "/repos/us/ours/issues/7/comments"):
            self.comments.append(by(BOT, content["body"], len(self.comments)))
            return 201, {}
        if method == "PATCH" and parts.path.startswith("/repos/us/ours/issues/comments/"):
            self.comments[int(parts.path.rpartition("/")[2])]["body"] = content["body"]
            return 200, {}
        return 404, {}


def by(author: str, body: str, number: int) -> dict[str, Any]:
    return {"id": number, "user": {"login": author}, "body": body}


@pytest.fixture
def github() -> Iterator[GitHub]:
    stands = GitHub()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            content = json.loads(self.rfile.read(size)) if size else None
            code, told = stands.answer(self.command, self.path, content, self.headers["Authorization"])
            body = json.dumps(told).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = handle_any  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        stands.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield stands
        server.shutdown()
        thread.join()


def comment(github: GitHub, folder: Path) -> "subprocess.CompletedProcess[str]":
    variables = {
        "GITHUB_API_URL": f"http://127.0.0.1:{github.port}",
        "GITHUB_REPOSITORY": "us/ours",
        "GITHUB_TOKEN": TOKEN,
        **HEAD,
    }
    command = ["make", "--silent", "ci-comment", f"PYTHON={sys.executable}", f"REPORTS={folder}"]
    done = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=180, check=False
    )
    assert TOKEN not in done.stdout + done.stderr
    return done


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    (tmp_path / "iris.md").write_text("## iris: the gate would promote it\n")
    (tmp_path / "digits.md").write_text("## digits: no model\n")
    return tmp_path


def test_one_comment_is_renewed(github: GitHub, reports: Path) -> None:
    assert comment(github, reports).returncode == 0
    (reports / "iris.md").write_text("## iris: the gate would refuse it\n")
    assert comment(github, reports).returncode == 0
    (only,) = github.comments
    assert only["body"].startswith("<!-- mlops-report -->")
    assert only["body"].index("## digits: no model") < only["body"].index("## iris: the gate would refuse it")
    assert "would promote" not in only["body"]


def test_a_comment_of_others_is_left_alone(github: GitHub, reports: Path) -> None:
    copied = by("mallory", "<!-- mlops-report -->", 0)
    talk = [by("ann", f"remark {number}", number) for number in range(1, 150)]
    github.comments = [copied, *talk, by(BOT, "another workflow's", 150)]
    for _ in range(2):
        assert comment(github, reports).returncode == 0
    assert len(github.comments) == 152
    assert github.comments[0] == copied
    assert github.comments[151]["body"].startswith("<!-- mlops-report -->")


def test_an_older_commits_report_is_not_told(github: GitHub, reports: Path) -> None:
    github.sha = "b" * 40
    done = comment(github, reports)
    assert done.returncode == 0
    assert "no open pull request" in done.stdout
    assert not github.comments


def test_a_hostile_report_is_only_text(github: GitHub, reports: Path, tmp_path: Path) -> None:
    (reports / "iris.md").write_bytes(b"@everyone \xff" + b"x" * 500_000)
    (reports / "leak.md").symlink_to("/etc/hostname")
    assert comment(github, reports).returncode == 0
    (only,) = github.comments
    assert len(only["body"]) < 65_536
    assert "@everyone" not in only["body"]
    assert "everyone" in only["body"]
    assert (Path("/etc/hostname").read_text().strip() or "\0") not in only["body"]


def test_without_reports_it_says_so(github: GitHub, tmp_path: Path) -> None:
    assert comment(github, tmp_path / "none").returncode == 0
    assert "made no report" in github.comments[0]["body"]


def test_a_refusal_is_a_failure_in_one_line(github: GitHub, reports: Path) -> None:
    github.refuses = True
    done = comment(github, reports)
    assert done.returncode != 0
    assert "GitHub answered 403" in done.stderr
    assert "Traceback" not in done.stderr
