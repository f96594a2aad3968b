"""PostgreSQL's databases: dumped as of one moment, and loaded again, by PostgreSQL's own programs.

Belongs here: single databases. Passwords reach the programs by their environment, never by a command line.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from mlops_assets.backup.errors import BackupError

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

_OBJECTS = """
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'
"""


class PostgresError(BackupError):
    """A database cannot be reached, dumped or loaded."""


@contextmanager
def frozen(url: SecretStr, name: str) -> Iterator[Callable[[Path], None]]:
    """Hold the state that a database has now; yields what writes that state into a file.

    Whoever writes the database goes on meanwhile: a dump of many minutes needs no lock but the one for this moment.

    Raises:
        PostgresError: The database cannot be reached.
    """
    import sqlalchemy

    with ExitStack() as stack:
        with _reaching(name):
            connection = stack.enter_context(_engine(url).connect())
            connection.execution_options(isolation_level="REPEATABLE READ")
            snapshot = connection.execute(sqlalchemy.text("SELECT pg_export_snapshot()")).scalar_one()

        def dump(target: Path) -> None:
            arguments = ["--format=custom", "--no-owner", "--no-privileges", f"--file={target}"]
            _call("pg_dump", url, name, [*arguments, f"--snapshot={snapshot}"])

        yield dump


def load(url: SecretStr, name: str, dump: Path) -> None:
    """Load a dump into an empty database, whole or not at all.

    Raises:
        PostgresError: It cannot be loaded.
    """
    arguments = [
        "--single-transaction",
        "--no-owner",
        "--no-privileges",
        f"--dbname={_parsed(url).database}",
        str(dump),
    ]
    _call("pg_restore", url, name, arguments)


def is_empty(url: SecretStr, name: str) -> bool:
    """Whether nobody has made a table in a database.

    Raises:
        PostgresError: It cannot be reached.
    """
    import sqlalchemy

    with _reaching(name), _engine(url).connect() as connection:
        return not connection.execute(sqlalchemy.text(f"SELECT count(*) {_OBJECTS}")).scalar_one()


def clear(url: SecretStr, name: str) -> None:
    """Take a load back: drop the tables of a database that was empty before it.

    Not by `DROP OWNED`, which takes the user's rights as well, and which a superuser may not.

    Raises:
        PostgresError: The database cannot be reached.
    """
    import sqlalchemy

    tables = f"SELECT string_agg(pg_class.oid::regclass::text, ', ') {_OBJECTS} AND relkind IN ('r', 'p')"
    with _reaching(name), _engine(url).begin() as connection:
        if found := connection.execute(sqlalchemy.text(tables)).scalar_one():
            connection.exec_driver_sql(f"DROP TABLE {found} CASCADE")


def clearing(url: SecretStr) -> str:
    """The command by which a person empties a database of everything that its user owns; it asks for the password."""
    parsed = _parsed(url)
    known = {"-h": parsed.host, "-p": parsed.port, "-U": parsed.username, "-d": parsed.database}
    options = [part for option, value in known.items() if value for part in (option, str(value))]
    return shlex.join(["psql", *options, "-c", "DROP OWNED BY CURRENT_USER"])


def revision(url: SecretStr, name: str) -> str:
    """The revision of a database's schema; empty where it has none.

    Raises:
        PostgresError: It cannot be reached.
    """
    import sqlalchemy

    with _reaching(name), _engine(url).connect() as connection:
        if not connection.execute(sqlalchemy.text("SELECT to_regclass('alembic_version')")).scalar_one():
            return ""
        return str(connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar_one())


def address(url: SecretStr) -> str:
    """A database's URL for SQLAlchemy, with its password, by the driver that is installed.

    Raises:
        PostgresError: It is no URL of PostgreSQL's.
    """
    return _parsed(url).render_as_string(hide_password=False)


def require(program: str) -> None:
    """Check that one of PostgreSQL's programs is installed.

    Raises:
        PostgresError: It is not.
    """
    if shutil.which(program) is None:
        raise PostgresError(
            f"{program} is not installed here; install PostgreSQL's client, of the server's version or a newer one "
            "(Debian: `apt-get install postgresql-client`)"
        )


def _parsed(url: SecretStr) -> URL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url.get_secret_value())
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.get_backend_name() != "postgresql":
        raise PostgresError(
            "a database's URL is none of PostgreSQL's; write MLOPS_DAGSTER_DATABASE and MLOPS_MLFLOW_DATABASE as "
            "postgresql+psycopg2://USER:PASSWORD@HOST/NAME"
        )
    return parsed.set(drivername="postgresql+psycopg2")  # which is what is installed, whatever the default is


def _engine(url: SecretStr) -> Engine:
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    return create_engine(_parsed(url), poolclass=NullPool, connect_args={"connect_timeout": 10})


@contextmanager
def _reaching(name: str) -> Iterator[None]:
    """Turn what goes wrong on the way to a database into one sentence; drivers do not quote passwords."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ImportError as error:
        raise PostgresError(f"{error.name} is not installed; `pip install 'mlops-assets[server]'`") from None
    except SQLAlchemyError as error:
        said = " ".join(str(getattr(error, "orig", error)).split())
        raise PostgresError(
            f"{name}'s database cannot be reached ({said}); start it, or mend MLOPS_{name.upper()}_DATABASE"
        ) from None


def _call(program: str, url: SecretStr, name: str, arguments: list[str]) -> None:
    require(program)
    parsed = _parsed(url)
    known = {
        "PGHOST": parsed.host,
        "PGPORT": parsed.port and str(parsed.port),
        "PGUSER": parsed.username,
        "PGPASSWORD": parsed.password,
        "PGDATABASE": parsed.database,
        "PGSSLMODE": parsed.query.get("sslmode"),
    }
    environment = {**os.environ, **{key: str(value) for key, value in known.items() if value}}
    done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise PostgresError(f"{program} of {name}'s database failed ({said}); mend what it names, then try again")
