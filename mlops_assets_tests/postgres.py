"""A real PostgreSQL for tests: Debian's server on a free port, with the databases of a server set-up."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlops_assets_tests.processes.conftest import free_ports

USER = "postgres"
"""The system's user that Debian's package makes: the server refuses to run as root."""


@dataclass(frozen=True)
class Postgres:
    """A running server; the users `dagster` and `mlflow` own the databases of their names, and nobody else gets in."""

    binaries: Path
    port: int
    passwords: dict[str, str]

    def url(self, name: str) -> str:
        """What MLOPS_DAGSTER_DATABASE and MLOPS_MLFLOW_DATABASE say: the database of a user's name.

        The driver is named: from 2.1 on SQLAlchemy takes another one for `postgresql://`, which is not installed.
        """
        return f"postgresql+psycopg2://{name}:{self.passwords[name]}@127.0.0.1:{self.port}/{name}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """What a statement answers to the server's owner, columns separated by `|`."""
        done = self._psql("-v", "ON_ERROR_STOP=1", "-d", database, "-c", statement)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def answers(self) -> bool:
        """Whether the server takes connections by now."""
        return self._psql("-d", "postgres", "-c", "SELECT 1").returncode == 0

    def create(self, name: str) -> None:
        """A user, and an empty database of its own."""
        self.passwords[name] = secrets.token_hex(16)
        self.sql(f"CREATE USER {name} PASSWORD '{self.passwords[name]}'")
        self.sql(f"CREATE DATABASE {name} OWNER {name}")

    def empty(self, name: str) -> None:
        """Replace a database by an empty one; whoever is connected to it is thrown out."""
        self.sql(f"DROP DATABASE {name} WITH (FORCE)")
        self.sql(f"CREATE DATABASE {name} OWNER {name}")

    def _psql(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [self.binaries / "psql", "-X", "-q", "-A", "-t", *arguments]
        where = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": USER, "PGPASSWORD": self.passwords[USER]}
        return subprocess.run(command, env=os.environ | where, capture_output=True, text=True, check=False)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server of this moment, with the databases `dagster` and `mlflow`; skips the test where none is installed."""
    binaries = _binaries()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # not pytest's, which other users cannot enter
    (port,) = free_ports(1)
    server = Postgres(binaries, port, {USER: secrets.token_hex(16)})
    secret = folder / "password"
    secret.write_text(server.passwords[USER])
    account = None if os.geteuid() else USER
    if account:
        for path in (folder, secret):
            shutil.chown(path, USER, USER)
    initdb = [binaries / "initdb", "--pgdata", folder / "data", "--username", USER, "--pwfile", secret, "--no-sync"]
    initdb += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"]
    # Only a test's data: what a power cut would lose is worth no waiting for the disk.
    serve = [binaries / "postgres", "-D", folder / "data", "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
    serve += ["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "max_connections=100"]
    try:
        with (folder / "log").open("ab") as log:
            done = subprocess.run(initdb, cwd=folder, stdout=log, stderr=log, user=account, group=account, check=False)
            assert done.returncode == 0, (folder / "log").read_text()
            # Without a test's variables: `Project.alive`, which ends what has a home, must not find the server.
            process = subprocess.Popen(
                serve, cwd=folder, env={}, stdout=log, stderr=log, user=account, group=account, start_new_session=True
            )
        try:
            deadline = time.monotonic() + 180
            while not server.answers():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
            server.create("dagster")
            server.create("mlflow")
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown: whoever is connected is thrown out
            process.wait()
    finally:
        shutil.rmtree(folder)


def _binaries() -> Path:
    """Where the server's programs lie; Debian keeps them off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    place = str(found[-1]) if found else shutil.which("initdb")
    if place is None:
        pytest.skip("no PostgreSQL server is installed (Debian: postgresql)")
    return Path(place).resolve().parent
