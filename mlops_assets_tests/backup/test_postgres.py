"""A server's set-up: Dagster and MLflow on a real PostgreSQL, dumped while both are there, and loaded again."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from mlops_assets.backup.archive import MANIFEST
from mlops_assets.backup.errors import BackupError, RestoreError
from mlops_assets.backup.postgresql import PostgresError
from mlops_assets.backup.restore import restore
from mlops_assets.backup.snapshot import snapshot
from mlops_assets.data import samples
from mlops_assets.settings import Settings
from mlops_assets_tests.backup.test_archive import contents, made, nothing, rewritten
from mlops_assets_tests.postgres import Postgres, postgres
from mlops_assets_tests.processes.conftest import free_ports
from mlops_assets_tests.processes.project import Project, is_answering

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def running() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
def server(running: Postgres) -> Postgres:
    running.empty("dagster")
    running.empty("mlflow")
    return running


def on(server: Postgres, home: Path) -> Settings:
    """A set-up with both databases on a server."""
    return Settings(home=home, dagster_database=server.url("dagster"), mlflow_database=server.url("mlflow"))


def test_a_server_comes_back(project: Project, server: Postgres, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    uri = f"http://127.0.0.1:{port}"
    # As people write it: SQLAlchemy would take a driver that is not installed.
    project.environment |= {"MLOPS_DAGSTER_DATABASE": server.url("dagster").replace("+psycopg2", "")}
    project.environment |= {"MLOPS_MLFLOW_DATABASE": server.url("mlflow"), "MLFLOW_TRACKING_URI": uri}
    (project.home / "mlflow" / "mlflow.db").unlink()
    project.start(
        *(sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"),
        *("--artifacts-destination", str(project.home / "mlflow" / "artifacts")),
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        MLFLOW_BACKEND_STORE_URI=server.url("mlflow"),
    )
    project.wait_for(lambda: is_answering(f"{uri}/health"), "the MLflow server")
    project.commit(samples.iris())
    trained = project.mlops("run", "iris")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    file = tmp_path / "out.tar.zst"
    done = project.mlops("backup", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    passwords = list(server.passwords.values())
    assert not any(password in done.stdout + done.stderr for password in passwords)
    assert not any(password.encode() in file.read_bytes() for password in passwords)

    empty = tmp_path / "restored"
    runs = server.sql("SELECT count(*) FROM runs", "dagster")
    project.kill()
    server.empty("dagster")
    server.empty("mlflow")
    done = project.mlops("restore", str(file), "--into", str(empty))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "proved by its hashes, MLflow and" in done.stdout
    assert server.sql("SELECT count(*) FROM runs", "dagster") == runs != "0"
    assert not (empty / "databases").exists()


def broken(members: dict[str, bytes]) -> None:
    """A dump of MLflow's database that PostgreSQL does not take, in an archive that knows of it."""
    name, manifest = "databases/mlflow.dump", json.loads(members.pop(MANIFEST))
    members[name] = members[name][: len(members[name]) // 2]
    manifest["files"][name] = {"bytes": len(members[name]), "hash": xxhash.xxh3_128_hexdigest(members[name])}
    members[MANIFEST] = json.dumps(manifest).encode()


def test_what_cannot_be_loaded_leaves_both_databases_empty(
    here: Settings, place: Path, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dagster", "mlflow"):
        server.sql(f'SET ROLE {name}; CREATE TABLE "Odd :name" (id serial PRIMARY KEY, value text)', name)
        server.sql(f'SET ROLE {name}; CREATE VIEW seen AS SELECT id FROM "Odd :name"', name)
        server.sql("INSERT INTO \"Odd :name\" (value) VALUES ('kept')", name)
    whole = made(on(server, here.home), place / "whole.tar")
    (place / "broken.tar").write_bytes(whole.read_bytes())
    rewritten(place / "broken.tar", broken)
    with whole.open("rb") as stream, pytest.raises(RestoreError, match="set MLOPS_DAGSTER_DATABASE to an empty one"):
        restore(stream, Settings(home=place / "laptop"), nothing)

    # What a restore leaves that is killed between the databases: the next one says how to go on.
    server.empty("mlflow")
    with whole.open("rb") as stream, pytest.raises(RestoreError, match=r"Dagster's .* is not empty") as refused:
        restore(stream, on(server, place / "empty"), nothing)
    assert server.passwords["dagster"] not in str(refused.value)
    command = shlex.split(str(refused.value).split("`")[1])
    subprocess.run(command, env=os.environ | {"PGPASSWORD": server.passwords["dagster"]}, check=True)

    with (place / "broken.tar").open("rb") as stream, pytest.raises(PostgresError, match="pg_restore of MLflow's"):
        restore(stream, on(server, place / "empty"), nothing)
    assert contents(place / "empty").keys() <= {"up.lock", "serve.lock"}
    with whole.open("rb") as stream:
        restore(stream, on(server, place / "empty"), nothing)
    for name in ("dagster", "mlflow"):
        assert server.sql('SELECT value FROM "Odd :name" JOIN seen USING (id)', name) == "kept"


def test_a_database_that_does_not_answer(here: Settings, server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    away = server.url("dagster").replace(f":{server.port}/", f":{free_ports(1)[0]}/")
    wrong = server.url("mlflow").replace(server.passwords["mlflow"], "guessed")
    for given in ({"dagster_database": away}, {"mlflow_database": wrong}):
        with (
            pytest.raises(BackupError, match="database cannot be reached") as refused,
            snapshot(Settings(home=here.home, **given), []),
        ):
            pass
        assert "guessed" not in str(refused.value)
        assert server.passwords["dagster"] not in str(refused.value)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BackupError, match="apt-get install postgresql-client"), snapshot(on(server, here.home), []):
        pass
