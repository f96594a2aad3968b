"""Checks of PostgreSQL: whether it answers, has connections left, and has the schema of the installed packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr
from rich.filesize import decimal

from mlops_assets.doctor.examination import Examination, Finding
from mlops_assets.errors import MlopsError
from mlops_assets.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

OLDEST_MAJOR: Final = 14
"""The oldest release that its makers still mended in 2026."""

LEAST_CONNECTIONS: Final = 10
"""A run opens a few, and so does every process of the daemon."""

WAIT_SECONDS: Final = 5

_ABOUT: Final = """
    SELECT current_setting('server_version'), current_setting('server_version_num')::int / 10000,
        current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
        (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
        pg_database_size(current_database())
"""


class DatabaseError(MlopsError):
    """A database of the server set-up cannot be read."""


def databases(here: Settings) -> dict[str, SecretStr]:
    """The databases that are set, by the variables that name them."""
    every = {"MLOPS_DAGSTER_DATABASE": here.dagster_database, "MLOPS_MLFLOW_DATABASE": here.mlflow_database}
    return {variable: url for variable, url in every.items() if url.get_secret_value()}


@contextmanager
def connected(variable: str, secret: SecretStr) -> Iterator[Connection]:
    """A connection that cannot write.

    Raises:
        DatabaseError: There is none; the password is not told.
    """
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    bounds = f"-c statement_timeout={WAIT_SECONDS * 1000} -c default_transaction_read_only=on"
    try:
        url = sqlalchemy.make_url(secret.get_secret_value())
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg2")  # which is what is installed, whatever the default is
        arguments = {"connect_timeout": WAIT_SECONDS, "options": bounds}
        engine = sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=arguments)
    except ModuleNotFoundError as error:
        fix = "`pip install 'mlops-assets[server]'`"
        raise DatabaseError(f"{variable} needs the package {error.name}, which is not installed; {fix}") from None
    except (ArgumentError, NoSuchModuleError, ValueError):  # their texts may have parts of the password
        raise DatabaseError(f"{variable} is no URL of a database; write postgresql://USER:PASSWORD@HOST/NAME") from None
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        said = " ".join(str(error.orig).split())
        raise DatabaseError(f"{variable} cannot be used: {said}; start PostgreSQL, or mend {variable}") from None


def servers(look: Examination) -> Iterator[Finding]:
    """Whether each database answers, is of a supported release, and takes more connections."""
    for variable, secret in databases(look.here).items():
        with connected(variable, secret) as connection:
            release, major, most, taken, size = connection.exec_driver_sql(_ABOUT).one()
        what = f"{variable}: release {release}, {decimal(size)}, {most - taken} of {most} connections left"
        if major < OLDEST_MAJOR:
            fix = "`mlops backup`, then move to a newer PostgreSQL with pg_upgrade or pg_dumpall"
            yield Finding("PostgreSQL", "warning", f"{what}; that release gets no fixes any more", fix)
        elif most - taken < LEAST_CONNECTIONS:
            fix = "raise max_connections of PostgreSQL, or lower max_concurrent_runs in dagster.yaml"
            yield Finding("PostgreSQL", "warning", what, fix)
        else:
            yield Finding("PostgreSQL", "ok", what)


def mlflow(look: Examination) -> Iterator[Finding]:
    """Whether the schema of MLflow's database is that of the MLflow installed here."""
    from mlops_assets.doctor.databases import revisions

    url = databases(look.here).get("MLOPS_MLFLOW_DATABASE")
    if url is None:
        return
    found = revision("MLOPS_MLFLOW_DATABASE", url)
    known, head = revisions("mlflow", "store/db_migrations/versions")
    what = f"the database has schema {found or 'of nobody'}"
    if not found:
        yield Finding("MLflow's database", "warning", "the database has no tables yet", "start the MLflow server")
    elif found not in known:
        fix = "install the MLflow that wrote it, here and at the server"
        yield Finding("MLflow's database", "problem", f"{what}, of another MLflow than the one here", fix)
    elif found != head:
        fix = '`mlops backup`, stop the MLflow server, then `mlflow db upgrade "$MLOPS_MLFLOW_DATABASE"`'
        yield Finding("MLflow's database", "problem", f"{what}, not {head}", fix)
    else:
        yield Finding("MLflow's database", "ok", what)


def revision(variable: str, secret: SecretStr) -> str:
    """The schema's revision that Alembic left in a database; empty where there are no tables yet.

    Raises:
        DatabaseError: It cannot be read.
    """
    with connected(variable, secret) as connection:
        if connection.exec_driver_sql("SELECT to_regclass('alembic_version')").scalar_one() is None:
            return ""
        return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one_or_none() or "")
