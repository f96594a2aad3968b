import datetime as dt
import gzip
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.data.readers import (
    ReadError,
    cast_text,
    from_parquet_bytes,
    read_table,
    table_digest,
    to_parquet_bytes,
)
from mlops_assets.data.samples import iris


def written(tmp_path: Path, content: bytes, name: str = "table.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def text(tmp_path: Path, content: bytes, name: str = "table.csv") -> dict[str, list[str | None]]:
    return read_table(written(tmp_path, content, name)).to_dict(as_series=False)


def test_iris_comes_back_from_csv_as_it_was(tmp_path: Path) -> None:
    iris().write_csv(tmp_path / "iris.csv")
    types = {"id": pl.Int64, "^(sepal|petal)_.*$": pl.Float64, "species": pl.String}
    assert read_table(tmp_path / "iris.csv", types).equals(iris())


def test_iris_comes_back_from_parquet_with_its_own_types(tmp_path: Path) -> None:
    iris().write_parquet(tmp_path / "iris.parquet")
    assert read_table(tmp_path / "iris.parquet", {"id": pl.Float64}).equals(iris())


def test_undeclared_columns_stay_text(tmp_path: Path) -> None:
    frame = read_table(written(tmp_path, b"a,b\n1,2\n"), {"b": pl.Int8})
    assert frame.schema == {"a": pl.String, "b": pl.Int8}


def test_one_bad_value_leaves_the_whole_column_text_and_loses_nothing(tmp_path: Path) -> None:
    frame = read_table(written(tmp_path, b"a,b\n1,1\nabc,2\n3,\n"), {"a": pl.Float64, "b": pl.Int64})
    assert frame.to_dict(as_series=False) == {"a": ["1", "abc", "3"], "b": [1, 2, None]}


def test_a_plain_name_takes_precedence_over_a_regex(tmp_path: Path) -> None:
    frame = read_table(written(tmp_path, b"x1,x2\n1,1\n"), {"^x.*$": pl.Int64, "x2": pl.Float64})
    assert frame.schema == {"x1": pl.Int64, "x2": pl.Float64}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", {}),
        (b"\n\r\n", {}),
        (b"a,b", {"a": [], "b": []}),
        (b"a,b\r\n", {"a": [], "b": []}),
        (b"\xef\xbb\xbfa,b\n1,2", {"a": ["1"], "b": ["2"]}),
        (b"a,b\r1,2\r3,4", {"a": ["1", "3"], "b": ["2", "4"]}),
        (b"age, sex\n39, Male \n\n ,Female\n", {"age": ["39", None], "sex": ["Male", "Female"]}),
        (b'a,b\n"x,""y""\nz",""\n', {"a": ['x,"y"\nz'], "b": [None]}),
        (b'a,b\n5" pipe,1\n', {"a": ['5" pipe'], "b": ["1"]}),
        (b",a\n0,NA\n", {"": ["0"], "a": ["NA"]}),
    ],
)
def test_shapes_of_csv(tmp_path: Path, content: bytes, expected: dict[str, list[str | None]]) -> None:
    assert text(tmp_path, content) == expected


def test_tabs_and_gzip_go_by_the_name(tmp_path: Path) -> None:
    assert text(tmp_path, gzip.compress(b"a\tb\n1,5\t2\n"), "T.TSV.gz") == {"a": ["1,5"], "b": ["2"]}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", b"a,b\n1,2\n3\n", "line 3: 1 of 2 values"),
        ("t.csv", b'a,b\n"x\ny",2\n\n3,4,5\n', "line 5: 3 of 2 values"),
        ("t.csv", b'a,b\n1,2\n3,"x\n4,5\n', "line 3: a quotation mark opens here"),
        ("t.csv", b"a,b,a\n1,2,3\n", "repeats 'a'"),
        ("t.csv", b"a,a \n1,2\n", "repeats 'a'"),
        ("t.csv", b"a\n1\n\xff\n", r"not UTF-8 text \(line 3\)"),
        ("t.csv", b"a\n1\0\n", "zero byte in line 2"),
        ("t.csv", b'"a,b\n1,2\n', "header cannot be read"),
        ("t.csv.gz", b"a\n1\n", "not a gzip file"),
        ("t.csv.gz", gzip.compress(b"a\n1\n", mtime=0)[:-4], "not a gzip file"),
        ("t.parquet", b"", "not a Parquet file"),
        ("t.parquet", b"PAR1 nothing PAR1", "not a Parquet file"),
        ("t.parquet", to_parquet_bytes(pl.DataFrame({"a": range(100)}))[:-9], "not a Parquet file"),
        ("t.xlsx", b"", r"must end in \.csv, .*\.parquet"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = written(tmp_path, content, name)
    with pytest.raises(ReadError, match=says) as caught:
        read_table(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_or_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "folder.parquet").mkdir()
    for name in ("none.csv", "none.parquet", "folder.csv", "folder.parquet"):
        with pytest.raises(ReadError, match=name):
            read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (pl.Int64, {"-7": -7, "3.0": 3, "1e+05": 100_000, "2.5": None, "nan": None, "9007199254740993.0": None}),
        (pl.Int64, {"9007199254740993": 9007199254740993, "9223372036854775808": None, "0x10": None, "1_000": None}),
        (pl.UInt8, {"255": 255, "256": None, "-1": None, "1e2": 100}),
        (pl.Float64, {"1.5": 1.5, "1e3": 1000.0, "inf": float("inf"), "1,5": None, "abc": None}),
        (pl.Boolean, {"TRUE": True, "true": True, "1": True, "F": False, "0": False, "yes": None, "2": None}),
        (pl.Date, {"2011-01-31": dt.date(2011, 1, 31), "31/01/2011": None, "2011-02-30": None}),
        (pl.Datetime, {"2011-01-31": dt.datetime(2011, 1, 31), "2011-01-31T10:05": dt.datetime(2011, 1, 31, 10, 5)}),  # noqa: DTZ001
        (pl.Datetime("ms"), {"2011-01-31 10:05:01.5": dt.datetime(2011, 1, 31, 10, 5, 1, 500_000), "x": None}),  # noqa: DTZ001
        (pl.Time, {"10:05:01": dt.time(10, 5, 1), "25:00:00": None}),
        (pl.Enum(["a"]), {"a": "a", "b": None}),
        (pl.Categorical, {"a": "a"}),
        (pl.List(pl.Int64), {"[1]": None}),
    ],
)
def test_what_text_stands_for(dtype: pl.DataType, expected: dict[str, object]) -> None:
    cast = cast_text(pl.Series("v", list(expected)), dtype)
    assert cast.dtype == dtype
    assert cast.to_list() == list(expected.values())


@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=1))
def test_every_integer_survives_text(values: list[int | None]) -> None:
    texts = pl.Series(values, dtype=pl.Int64).cast(pl.String)
    assert cast_text(texts, pl.Int64).to_list() == values


def a_frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "i": [1, 2, None, 4] * 50,
            "s": ["x", "a text too long to lie inline", None, ""] * 50,
            "f": [1.0, float("nan"), None, -0.5] * 50,
            "b": [True, None, False, True] * 50,
            "l": [[1, 2], None, [], [3]] * 50,
        }
    )


def test_parquet_bytes_give_the_table_back() -> None:
    for frame in (a_frame(), a_frame().head(0), pl.DataFrame()):
        assert from_parquet_bytes(to_parquet_bytes(frame)).equals(frame)


def test_damaged_parquet_bytes_are_refused() -> None:
    with pytest.raises(ReadError, match="3 bytes"):
        from_parquet_bytes(b"abc")


def hidden_under_nulls() -> pl.DataFrame:
    """The same values, over buffers that differ where the values are null."""
    full = a_frame().with_columns(
        pl.col("i").fill_null(99), pl.col("s").fill_null("something else, and long"), pl.col("f").fill_null(7.0)
    )
    masked = [
        pl.when(a_frame()[name].is_not_null()).then(pl.col(name)).otherwise(None).alias(name)
        for name in ("i", "s", "f")
    ]
    return full.with_columns(masked)


@pytest.mark.parametrize(
    "same",
    [
        pl.concat([a_frame()[:3], a_frame()[3:77], a_frame()[77:]], rechunk=False),
        pl.concat([a_frame(), a_frame()])[200:],
        pl.concat([a_frame().reverse(), a_frame()], rechunk=False)[200:],
        a_frame().select(reversed(a_frame().columns)).select(a_frame().columns),
        hidden_under_nulls(),
        from_parquet_bytes(to_parquet_bytes(a_frame())),
    ],
)
def test_equal_tables_give_equal_bytes(same: pl.DataFrame) -> None:
    assert same.equals(a_frame())
    assert to_parquet_bytes(same) == to_parquet_bytes(a_frame())


def test_a_sort_flag_leaves_no_trace() -> None:
    frame = pl.DataFrame({"i": range(100)})
    assert to_parquet_bytes(frame.with_columns(pl.col("i").set_sorted())) == to_parquet_bytes(frame)


def test_any_change_changes_the_digest() -> None:
    frame = a_frame()
    variants = [
        frame,
        frame.with_columns(pl.when(pl.int_range(pl.len()) == 199).then(5).otherwise("i").alias("i")),
        frame.with_columns(pl.col("f").fill_nan(None)),
        frame.with_columns(pl.col("s").fill_null("")),
        frame.rename({"i": "j"}),
        frame.with_columns(pl.col("i").cast(pl.Int32)),
        frame.with_columns(pl.col("s").cast(pl.Categorical)),
        frame.reverse(),
        frame.head(199),
        frame.select(reversed(frame.columns)),
        frame.drop("b"),
    ]
    digests = [table_digest(to_parquet_bytes(variant)) for variant in variants]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 32 for digest in digests)


@settings(max_examples=25)
@given(st.lists(st.one_of(st.none(), st.text()), min_size=2, max_size=50), st.data())
def test_slices_of_any_text_give_the_bytes_of_a_fresh_column(values: list[str | None], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(values)))
    column = pl.Series("s", values, dtype=pl.String)
    assert to_parquet_bytes(column[cut:].to_frame()) == to_parquet_bytes(
        pl.Series("s", values[cut:], dtype=pl.String).to_frame()
    )


DIGEST = """
import polars as pl
from mlops_assets.data.readers import table_digest, to_parquet_bytes
n = 600_000
frame = pl.select(a=pl.int_range(n), b=(pl.int_range(n) * 7919 % 1000).cast(pl.String), c=pl.int_range(n).sin())
print(pl.thread_pool_size(), table_digest(to_parquet_bytes(frame)))
"""


def test_the_digest_does_not_depend_on_the_number_of_threads() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={"POLARS_MAX_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout.split()
        for threads in ("1", "2")
    ]
    assert [output[0] for output in outputs] == ["1", "2"]
    assert outputs[0][1] == outputs[1][1]
