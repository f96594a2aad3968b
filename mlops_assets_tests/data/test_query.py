"""Queries of a real SQLite and a real PostgreSQL, as files."""

import random
import sqlite3
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from mlops_assets.data import query
from mlops_assets.data.query import QueryError, run_query, shown
from mlops_assets.data.readers import read_table
from mlops_assets_tests.postgres import Postgres, postgres

ROWS = [(number, f"name {number}", number * 0.25 if number % 7 else None, "ab"[number % 2]) for number in range(1, 501)]


@pytest.fixture
def shop(tmp_path: Path) -> str:
    """The address of a SQLite database with 500 rows in no order."""
    file = tmp_path / "shop.db"
    with sqlite3.connect(file) as made:
        made.execute("CREATE TABLE orders (id INTEGER, name TEXT, price REAL, kind TEXT)")
        made.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", random.Random(1).sample(ROWS, len(ROWS)))
    made.close()
    return f"sqlite:///{file}"


def ask(sql: str, url: str, target: Path, *, timeout: float = 60.0) -> int:
    return run_query(sql, url, target, key="id", needed={"target": "kind"}, timeout=timeout)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.parquet"])
def test_the_same_rows_are_the_same_bytes_in_whatever_order(shop: str, tmp_path: Path, name: str) -> None:
    one, other = tmp_path / name, tmp_path / f"other-{name}"
    assert ask("SELECT * FROM orders", shop, one) == 500
    ask("SELECT * FROM orders ORDER BY random()", shop, other)
    assert one.read_bytes() == other.read_bytes()
    expected = pl.DataFrame(ROWS, schema=["id", "name", "price", "kind"], orient="row")
    assert read_table(one, expected.schema).equals(expected)
    assert {path.name for path in tmp_path.iterdir()} == {"shop.db", one.name, other.name}


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_batches_and_pieces_leave_no_trace(
    shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(query, "GROUP", 64)
    ask("SELECT * FROM orders", shop, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    monkeypatch.setattr(query, "BATCH", 37)
    monkeypatch.setattr(query, "PIECE", 64)
    told: list[int] = []
    run_query("SELECT * FROM orders", shop, tmp_path / name, key="id", needed={}, timeout=60.0, on_progress=told.append)
    assert told == [*range(37, 500, 37), 500]
    assert (tmp_path / name).read_bytes() == whole


def test_text_keys_are_ordered_too(shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "PIECE", 64)
    run_query("SELECT name, kind FROM orders", shop, tmp_path / "t.csv", key="name", needed={}, timeout=60.0)
    names = read_table(tmp_path / "t.csv")["name"].to_list()
    assert names == sorted(name for _, name, _, _ in ROWS)


def test_a_type_that_shows_late_is_that_of_the_column(
    shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "BATCH", 10)
    sql = (
        "SELECT id, kind, CASE WHEN id > 400 THEN name END AS late, CASE WHEN id > 400 THEN 0.5 ELSE id END AS number, "
        "NULL AS empty FROM orders ORDER BY id"
    )
    ask(sql, shop, tmp_path / "t.parquet")
    types = pl.read_parquet_schema(tmp_path / "t.parquet")
    assert (types["late"], types["number"], types["empty"]) == (pl.String, pl.Float64, pl.String)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT * FROM orders WHERE id > 999", "the query gives no rows from sqlite:///.*shop.db"),
        ("SELECT * FROM nowhere", r"the query fails on sqlite:.*\(no such table: nowhere\); correct it"),
        ("SELECT name, kind FROM orders", "no column 'id' to be the key, but name, kind; add it"),
        ("SELECT id FROM orders", "no column 'kind' to be the target, but id; add it"),
        ("SELECT id, kind, name, price AS name FROM orders", "the column 'name' more than once; name each with AS"),
        ("SELECT 7 AS id, kind FROM orders", "'id' is the key, and 7 is there more than once"),
        ("SELECT nullif(id, 7) AS id, kind FROM orders", "1 rows have no value in 'id', the key"),
        ("SELECT id, kind, CASE id WHEN 7 THEN 'x' ELSE 1 END AS mix FROM orders", "'mix' holds int and str, which no"),
        ("SELECT id, kind, x'00' AS raw FROM orders", "'raw' holds bytes, which no table keeps"),
        ("DELETE FROM orders", "attempt to write a readonly database"),
        ("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) AS id, 1 AS kind FROM n",
         r"\(interrupted\); make it faster, or raise `timeout` \(0.1 s\)"),
    ],
)  # fmt: skip
def test_what_is_no_table_for_a_pipeline_is_one_sentence(shop: str, tmp_path: Path, sql: str, said: str) -> None:
    with pytest.raises(QueryError, match=said) as caught:
        ask(sql, shop, tmp_path / "t.csv", timeout=0.1 if "interrupted" in said else 60.0)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"shop.db"}


def test_a_refused_query_leaves_no_lock_behind(shop: str, tmp_path: Path) -> None:
    with pytest.raises(QueryError) as raised:
        ask("SELECT id, name FROM orders", shop, tmp_path / "t.csv")
    database = sqlite3.connect(shop.removeprefix("sqlite:///"), timeout=0)
    database.execute("BEGIN EXCLUSIVE")
    database.close()
    assert "no column 'kind'" in str(raised.value)  # which has been alive until here, with all that it refers to


def test_percent_signs_and_colons_are_what_they_are(shop: str, tmp_path: Path) -> None:
    sql = "SELECT id, kind, ' :x 12:30 %s' AS text FROM orders WHERE name LIKE 'name 1%'"
    assert ask(sql, shop, tmp_path / "t.parquet") == 111
    assert pl.read_parquet(tmp_path / "t.parquet")["text"][0] == " :x 12:30 %s"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql+nowhere://u:hunter2@h/d", "no SQLAlchemy driver for mysql"),
        ("postgres://u:hunter2@127.0.0.1:1/d", "postgresql://127.0.0.1:1/d .*refused"),
        ("mssql+pymssql://u:hunter2@h/d", "needs the Python package 'pymssql'; install"),
        ("postgresql://u:hunter2@127.0.0.1:1/d?application_name=hunter3", "127.0.0.1:1/d .*refused"),
        ("postgresql://u:hunter2@127.0.0.1:port/d", "address is none that SQLAlchemy knows"),
        ("hunter2", "address is none that SQLAlchemy knows"),
        ("sqlite:////nowhere/at.db?password=hunter2", "there is no SQLite database /nowhere/at.db"),
    ],
)
def test_an_address_that_leads_nowhere_keeps_its_secrets(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(QueryError, match=said) as caught:
        ask("SELECT 1", url, tmp_path / "t.csv")
    assert "hunter" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_what_is_shown_of_an_address_is_where_it_leads() -> None:
    assert shown("postgresql+psycopg2://me:hunter2@db.example.com:5433/shop?sslpassword=x") == (
        "postgresql://db.example.com:5433/shop"
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        running.create("shop")
        yield running


@pytest.mark.slow
def test_postgresql_keeps_types(server: Postgres, tmp_path: Path) -> None:
    sql = """
        SELECT 2 AS id, 'a' AS kind, 12.50::numeric(10,2) AS price, 0.1::numeric AS ratio, true AS paid,
          date '2024-02-29' AS day, timestamp '2024-02-29 10:00:00.5' AS local,
          timestamptz '2024-02-29 10:00:00+02' AS at, time '10:30' AS clock, interval '90 minutes' AS took,
          '{"b": 1, "a": [2]}'::jsonb AS extra, '12345678-1234-5678-1234-567812345678'::uuid AS code, 1.5::real AS x
        UNION ALL
        SELECT 1, 'b', NULL::numeric(10,2), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL"""
    assert ask(sql, server.url("shop"), tmp_path / "t.parquet") == 2
    empty, full = pl.read_parquet(tmp_path / "t.parquet").to_dicts()
    assert set(empty.items()) == {("id", 1), ("kind", "b"), *((name, None) for name in [*full][2:])}
    assert full == {
        "id": 2,
        "kind": "a",
        "price": Decimal("12.50"),
        "ratio": 0.1,
        "paid": True,
        "day": date(2024, 2, 29),
        "local": datetime(2024, 2, 29, 10, 0, 0, 500_000),  # noqa: DTZ001
        "at": datetime(2024, 2, 29, 8, tzinfo=UTC),
        "clock": time(10, 30),
        "took": 5400.0,
        "extra": '{"a": [2], "b": 1}',
        "code": "12345678-1234-5678-1234-567812345678",
        "x": 1.5,
    }
    assert pl.read_parquet_schema(tmp_path / "t.parquet")["price"] == pl.Decimal(38, 2)
    ask(sql, server.url("shop"), tmp_path / "t.csv")
    assert "2,a,12.50,0.1,true,2024-02-29,2024-02-29T10:00:00.500000," in (tmp_path / "t.csv").read_text()


@pytest.mark.slow
def test_postgresql_streams_reads_only_and_is_given_up_in_time(server: Postgres, tmp_path: Path) -> None:
    url, target = server.url("shop"), tmp_path / "t.csv"
    # A cursor on the server: of all of these, the client could not hold a hundredth.
    sql = "SELECT g AS id, 'a' AS kind, repeat('x', 1000) AS text FROM generate_series(1, 50000) g ORDER BY random()"
    assert ask(sql, url, target) == 50_000
    assert read_table(target)["id"][49_999] == "50000"
    with pytest.raises(QueryError, match=r"statement timeout\); make it faster, or raise `timeout` \(0.2 s\)"):
        ask("SELECT 1 AS id, 'a' AS kind FROM pg_sleep(30)", url, target, timeout=0.2)
    server.sql("CREATE TABLE t (id int); ALTER TABLE t OWNER TO shop; INSERT INTO t VALUES (1)", "shop")
    server.sql(
        "CREATE FUNCTION harm() RETURNS int AS 'DELETE FROM t RETURNING id' LANGUAGE sql; "
        "ALTER FUNCTION harm() OWNER TO shop",
        "shop",
    )
    with pytest.raises(QueryError, match=r"cannot execute DELETE in a read-only transaction"):
        ask("SELECT harm() AS id, 'a' AS kind", url, target)
    assert server.sql("SELECT count(*) FROM t", "shop") == "1"


@pytest.mark.slow
def test_a_refused_password_is_not_told(server: Postgres, tmp_path: Path) -> None:
    url = server.url("shop").replace(server.passwords["shop"], "hunter2")
    with pytest.raises(QueryError, match="password authentication failed") as caught:
        ask("SELECT 1", url, tmp_path / "t.csv")
    assert "hunter2" not in str(caught.value)
