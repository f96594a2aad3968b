"""nginx as a real process, with the shipped configuration, over real services."""

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from mlops_assets.fingerprint import PACKAGE_ROOT
from mlops_assets_tests.processes.conftest import free_ports
from mlops_assets_tests.waiting import wait_for

SHIPPED = PACKAGE_ROOT.parent / "nginx"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
MISSING = [name for name in ("envsubst", "openssl", "flock") if not shutil.which(name)] + ([] if NGINX else ["nginx"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/proxy/" in item.nodeid and MISSING:
            item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(MISSING)}"))


@dataclass
class Entry:
    """An nginx that runs.

    Attributes:
        folder: With `web` (certificate and users), `run` (configuration), `access` and `errors`.
        process: The number of nginx's first process.
    """

    folder: Path
    process: int
    port: int
    http_port: int
    password: str

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def certificate(self) -> Path:
        return self.folder / "web" / "certificate.pem"

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))

    def client(self, user: str = "admin", password: str | None = None, **options: object) -> httpx.Client:
        """Somebody who logs in; an empty name does not."""
        auth = (user, self.password if password is None else password) if user else None
        settled = {"base_url": self.url, "verify": self.tls, "auth": auth, "trust_env": False, "timeout": 60, **options}
        return httpx.Client(**settled)

    @property
    def log(self) -> str:
        return (self.folder / "access").read_text()


def script(name: str, *arguments: object, given: str = "", **variables: str) -> "subprocess.CompletedProcess[str]":
    """One of the shell scripts."""
    command = [str(SHIPPED / name), *map(str, arguments)]
    environment = os.environ | variables
    return subprocess.run(command, input=given, env=environment, capture_output=True, text=True, check=False)


def render(folder: Path, **variables: str) -> None:
    done = script("render.sh", folder / "run", MLOPS_WEB=str(folder / "web"), **variables)
    assert (done.returncode, done.stderr) == (0, "")


@contextmanager
def entering(folder: Path, **variables: str) -> Iterator[Entry]:
    """An entry with a certificate and a user of its own; services are those that `variables` name."""
    done = script("setup.sh", folder / "web", "localhost")
    assert done.returncode == 0, done.stderr
    port, http_port, nobody = free_ports(3)
    names = ("PORTAL", "DAGSTER", "MLFLOW", "MODELS", "GRPC", "PLAYGROUND", "GRAFANA")
    dead = {f"MLOPS_{name}_UPSTREAM": f"127.0.0.1:{nobody}" for name in names}
    listen = {
        "MLOPS_LISTEN_HTTPS": f"127.0.0.1:{port}",
        "MLOPS_LISTEN_HTTP": f"127.0.0.1:{http_port}",
        "MLOPS_PUBLIC_URL": f"https://localhost:{port}",
    }
    render(folder, **(dead | listen | variables))
    password = (folder / "web" / "first-password").read_text().strip()
    with (folder / "access").open("ab") as access, (folder / "errors").open("ab") as errors:
        nginx = subprocess.Popen(command(folder), stdout=access, stderr=errors)
    try:
        wait_for(lambda: nginx.poll() is not None or answers(f"http://127.0.0.1:{http_port}/healthz"), "nginx")
        assert nginx.poll() is None, (folder / "errors").read_text()
        yield Entry(folder, nginx.pid, port, http_port, password)
    finally:
        nginx.terminate()
        nginx.wait(180)


def command(folder: Path, *more: str) -> list[str]:
    """nginx in the foreground; tests' folders are closed to the user that root's nginx gives its workers to."""
    user = " user root;" if os.geteuid() == 0 else ""
    run = folder / "run"
    return [str(NGINX), "-p", str(run), "-c", str(run / "nginx.conf"), "-g", f"daemon off;{user}", *more]


def answers(url: str, **options: object) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=5, **options).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    """An entry over a real model server, which answers by HTTP and gRPC; nothing else runs."""
    from mlops_assets_tests.serving.asking import app_of, listening
    from mlops_assets_tests.serving.grpc_servers import serving
    from mlops_assets_tests.serving.made import publish_table

    folder = tmp_path_factory.mktemp("entry")
    publish_table(folder / "home")
    with ExitStack() as stack:
        models = stack.enter_context(listening(app_of(folder / "home")))
        grpc = stack.enter_context(serving(folder / "home"))
        names = {"MLOPS_MODELS_UPSTREAM": models, "MLOPS_GRPC_UPSTREAM": grpc.address}
        yield stack.enter_context(entering(folder, **names))
