"""The server set-up under test: its containers, and what answers through nginx.

Belongs here: asking and waiting. Not here: what must hold (`__main__.py`). The standard library is enough.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final = "mlops-test"
TAG: Final = os.environ.get("MLOPS_TAG") or "acceptance"


class Failed(Exception):
    """Something that must hold does not."""


class Stack:
    """The set-up under test."""

    def __init__(self) -> None:
        self.docker = os.environ.get("DOCKER", "docker")
        plugin = subprocess.run([self.docker, "compose", "version"], capture_output=True, check=False).returncode == 0
        compose = [self.docker, "compose"] if plugin else ["docker-compose"]
        if shutil.which(compose[0]) is None:
            raise Failed("there is no Compose: install Docker's compose plugin, or docker-compose")
        self._compose = compose
        self.files = ["compose.yaml"]
        free = iter(free_ports(2))
        self.https = int(os.environ.get("MLOPS_HTTPS_PORT") or next(free))
        self.http = int(os.environ.get("MLOPS_HTTP_PORT") or next(free))
        self.url = f"https://localhost:{self.https}"
        self.environment = os.environ | {
            "MLOPS_HTTPS_PORT": str(self.https),
            "MLOPS_HTTP_PORT": str(self.http),
            "MLOPS_PUBLIC_URL": self.url,
            "MLOPS_HOSTNAME": "localhost",
            "MLOPS_BIND": "127.0.0.1",
            "MLOPS_TAG": TAG,
        }

    def engine(self, *arguments: str, timeout: float = 600) -> str:
        """What a `docker` command prints."""
        return called([self.docker, *arguments], timeout, self.environment)

    def command(self, *arguments: str, worker: bool = False) -> list[str]:
        """A Compose command line, for the main host or for the worker's."""
        files = ["compose.worker.yaml"] if worker else self.files
        flags = [flag for file in files for flag in ("--file", str(ROOT / "docker" / file))]
        return [*self._compose, "--project-name", f"{PROJECT}-worker" if worker else PROJECT, *flags, *arguments]

    def compose(self, *arguments: str, worker: bool = False, timeout: float = 600) -> str:
        """What a Compose command prints."""
        return called(self.command(*arguments, worker=worker), timeout, self.environment)

    def mlops(self, *arguments: str) -> str:
        """What a command of the platform prints."""
        return self.compose("exec", "-T", "code", "mlops", *arguments)

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return self.compose("ps", "-q", service).strip()

    def size(self, image: str) -> int:
        """An image's size in bytes."""
        return int(self.engine("image", "inspect", "--format", "{{.Size}}", image))

    def inspected(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's container."""
        (found,) = json.loads(self.engine("inspect", self.container(service)))
        return dict(found)

    def healthy(self, service: str) -> bool:
        """Whether it runs and its health check is content."""
        state = self.inspected(service)["State"]
        return state["Running"] and state["Health"]["Status"] == "healthy"

    @cached_property
    def password(self) -> str:
        """That of the first user."""
        return self.compose("exec", "-T", "nginx", "cat", "/etc/mlops/web/first-password").strip()

    @cached_property
    def trusting(self) -> ssl.SSLContext:
        """Trusts the certificate that the first start made, and no other."""
        return ssl.create_default_context(
            cadata=self.compose("exec", "-T", "nginx", "cat", "/etc/mlops/web/certificate.pem")
        )

    def ask(
        self, path: str, body: Any = None, *, user: str = "admin", password: str | None = "", origin: str = ""
    ) -> tuple[int, str]:
        """Status and text of an answer through nginx; None as password: no login at all."""
        request = urllib.request.Request(f"{self.url}{path}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if origin:
            request.add_header("Origin", origin)
        if password is not None:
            request.add_header("Authorization", basic(user, password or self.password))
        handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.trusting)
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=30) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    def graphql(self, query: str) -> Any:
        """The data that Dagster's GraphQL answers with, through nginx."""
        status, text = self.ask("/dagster/graphql", {"query": query})
        if status != 200:
            raise OSError(f"Dagster's GraphQL answers {status}")
        return json.loads(text)["data"]

    def runs(self) -> list[dict[str, Any]]:
        """All runs, the newest first."""
        query = "{runsOrError{... on Runs{results{runId status tags{key value} stepStats{stepKey status}}}}}"
        return list(self.graphql(query)["runsOrError"]["results"])


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves a redirection to whoever asked."""

    def redirect_request(self, *_: Any) -> None:
        return None


def called(command: list[str], timeout: float, environment: dict[str, str]) -> str:
    """What a command prints.

    Raises:
        Failed: It ended with another code than 0; quotes the end of what it said.
    """
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment,
        cwd=ROOT,
    )
    if done.returncode != 0:
        raise Failed(
            f"`{' '.join(command[:8])} ...` ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}"
        )
    return done.stdout


def wait(condition: Callable[[], T], what: str, seconds: float) -> T:
    """The condition's value, once it is true; what it raises meanwhile is waited out.

    Raises:
        Failed: It took too long.
    """
    deadline, last = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except (OSError, ValueError, KeyError, TypeError, Failed) as error:
            last = f" ({error})"
        time.sleep(0.5)
    raise Failed(f"waited {seconds:.0f} s for {what}{last}")


def require(holds: bool, otherwise: str) -> None:
    """Stop with a sentence unless something holds."""
    if not holds:
        raise Failed(otherwise)


def basic(user: str, password: str) -> str:
    """The value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def seconds_of(stamp: str) -> float:
    """Seconds since the epoch of a time as Docker writes it, to whole seconds."""
    return datetime.fromisoformat(re.sub(r"\.\d+", "", stamp)).timestamp()


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
