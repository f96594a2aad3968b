"""Checks of a real PostgreSQL."""

import re
import time
from collections.abc import Iterator

import pytest
import sqlalchemy
from pydantic import SecretStr

from mlops_assets.doctor import databases, server_clocks, server_dagster, server_postgres
from mlops_assets.doctor.databases import revisions
from mlops_assets.doctor.examination import Examination, Finding, examination, findings
from mlops_assets.home import ensure_home
from mlops_assets.settings import settings
from mlops_assets_tests.postgres import Postgres, postgres
from mlops_assets_tests.processes.conftest import free_ports

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture
def look(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Examination]:
    """An examination with both databases, which are empty."""
    for name in ("dagster", "mlflow"):
        server.empty(name)
        url = server.url(name).replace("postgresql://", "postgresql+psycopg2://")
        monkeypatch.setenv(f"MLOPS_{name.upper()}_DATABASE", url)
    settings.cache_clear()
    monkeypatch.setenv("DAGSTER_HOME", str(settings().dagster_home))
    with examination(ensure_home(settings())) as made:
        yield made


def test_databases_that_answer(look: Examination) -> None:
    found = list(server_postgres.servers(look))
    assert [one.result for one in found] == ["ok", "ok"]
    assert "of 97 connections left" in found[0].found


def test_a_url_without_a_driver_is_read_with_the_installed_one(look: Examination, server: Postgres) -> None:
    look.here.dagster_database = SecretStr(server.url("dagster"))
    assert [one.result for one in server_postgres.servers(look)] == ["ok", "ok"]


def test_few_connections_left_and_a_release_without_fixes(look: Examination, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_postgres, "LEAST_CONNECTIONS", 200)
    assert {one.result for one in server_postgres.servers(look)} == {"warning"}
    monkeypatch.setattr(server_postgres, "OLDEST_MAJOR", 99)
    (found, _) = server_postgres.servers(look)
    assert (found.result, "gets no fixes any more" in found.found) == ("warning", True)


def test_looking_cannot_write(look: Examination) -> None:
    with (
        pytest.raises(server_postgres.DatabaseError, match="read-only transaction"),
        server_postgres.connected("MLOPS_DAGSTER_DATABASE", look.here.dagster_database) as connection,
    ):
        connection.execute(sqlalchemy.text("CREATE TABLE here (id int)"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://dagster:hidden-word@127.0.0.1:{port}/dagster", "password authentication failed"),
        ("postgresql://dagster:hidden-word@127.0.0.1:{closed}/dagster", "Connection refused"),
        ("postgresql://dagster:hidden-word@127.0.0.1:hidden-word/dagster", "is no URL of a database"),
        ("nodatabase://dagster:hidden-word@127.0.0.1/dagster", "is no URL of a database"),
        ("hidden-word", "is no URL of a database"),
        ("postgresql+psycopg://dagster:hidden-word@127.0.0.1/dagster", "needs the package psycopg"),
    ],
)
def test_a_database_that_cannot_be_used(look: Examination, server: Postgres, url: str, said: str) -> None:
    (closed,) = free_ports(1)
    look.here.dagster_database = SecretStr(url.format(port=server.port, closed=closed))
    (found,) = findings("PostgreSQL", lambda: server_postgres.servers(look))
    assert (found.result, said in found.found) == ("problem", True), found
    assert "hidden-word" not in found.found + found.fix
    assert look.here.dagster_database.get_secret_value() not in str(found)


def test_a_database_that_is_down_is_told_soon_by_what_needs_it(look: Examination) -> None:
    (closed,) = free_ports(1)
    look.here.dagster_database = SecretStr(f"postgresql://dagster:word@127.0.0.1:{closed}/dagster")
    (found,) = findings("Dagster", lambda: databases.dagster(look))
    assert found.result == "problem"
    assert "MLOPS_DAGSTER_DATABASE cannot be used" in found.found


def test_dagsters_schema(look: Examination, server: Postgres) -> None:
    assert look.instance is not None
    (found,) = databases.dagster(look)
    assert found == Finding("Dagster", "ok", "dagster.yaml and the schema in MLOPS_DAGSTER_DATABASE are sound")
    assert [one.result for one in server_dagster.configuration(look)] == ["ok"]
    server.sql("UPDATE alembic_version SET version_num = '46b412388816'", "dagster")
    (found,) = databases.dagster(look)
    assert (found.result, "`dagster instance migrate`" in found.fix) == ("problem", True)
    assert "MLOPS_DAGSTER_DATABASE has schema 46b412388816, not " in found.found


def test_a_dagster_yaml_that_knows_of_no_postgresql(look: Examination) -> None:
    plain = "run_monitoring: {enabled: true, poll_interval_seconds: 120}\n"
    (look.dagster_home / "dagster.yaml").write_text(plain)
    found = [one.found for one in server_dagster.configuration(look)]
    assert [one.partition(":")[0] for one in found] == [
        "MLOPS_DAGSTER_DATABASE is set, but runs are kept in SQLite",
        "run_monitoring looks every 120 s only, 20 s are wanted",
        "run_retries is off",
        "no limit of concurrency has the key mlops/pipeline",
    ]


def test_mlflows_schema(look: Examination, server: Postgres) -> None:
    (found,) = server_postgres.mlflow(look)
    assert (found.result, found.found) == ("warning", "the database has no tables yet")
    made = "CREATE TABLE alembic_version (version_num varchar(32)); GRANT SELECT ON alembic_version TO mlflow"
    server.sql(made, "mlflow")
    _, head = revisions("mlflow", "store/db_migrations/versions")
    for revision, result, fix in (
        (head, "ok", ""),
        ("451aebb31d03", "problem", "mlflow db upgrade"),
        ("ffffffffffff", "problem", "install the MLflow that wrote it"),
    ):
        server.sql(f"DELETE FROM alembic_version; INSERT INTO alembic_version VALUES ('{revision}')", "mlflow")
        (found,) = server_postgres.mlflow(look)
        assert (found.result, fix in found.fix) == (result, True), found


def test_a_clock_that_is_not_ours(look: Examination, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = server_clocks.clocks(look)
    assert found.result == "ok"
    assert "PostgreSQL (MLOPS_MLFLOW_DATABASE)" in found.found
    ours = time.time
    monkeypatch.setattr(server_clocks.time, "time", lambda: ours() + 600)
    (found, _) = server_clocks.clocks(look)
    assert found.result == "warning"
    told = re.search(r"is (\d+) s behind ours", found.found)
    assert told
    assert 500 < int(told[1]) <= 600, "at least, for the answer takes a while"
