"""Contracts, made of real tables and images by real features functions and pandera schemas."""

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandera.polars as pa
import polars as pl
import polars.selectors as cs
import pytest
from numpy.typing import NDArray

from mlops_assets.serving.contract import Input, RawContract
from mlops_assets.serving.contract_making import table_contract

Features = Callable[[pl.DataFrame], pl.DataFrame]

INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
REST: dict[str, Any] = {"pipeline": "flowers", "sources": {}, "functions": {}}


def table(rows: int = 30) -> pl.DataFrame:
    random = np.random.default_rng(3)
    return pl.DataFrame(
        {
            "id": [f"r{index}" for index in range(rows)],
            "length": random.normal(5, 2, rows),
            "width": random.normal(3, 1, rows),
            "colour": random.choice(["red", "blue", "green"], rows),
            "note": [f"note {index}" for index in range(rows)],
            "species": [f"{index % 3}" for index in range(rows)],
        }
    )


def contract_of(
    features: Features,
    frame: pl.DataFrame | None = None,
    columns: dict[str, pa.Column] | None = None,
    *,
    ignored: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> tuple[RawContract, NDArray[np.float32]]:
    frame = table() if frame is None else frame
    return table_contract(
        frame=frame,
        made=features(frame),
        features=features,
        schema=pa.DataFrameSchema(columns or {}),
        key="id",
        target="species",
        ignored=ignored,
        left_out=left_out,
        **REST,
    )


def by_row(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("id", "species", "length", area=pl.col("length") * pl.col("width"))


def inputs_of(contract: RawContract) -> dict[str, Input]:
    return {one.name: one for one in contract.inputs}


def row_sums(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("id", "species", total=pl.sum_horizontal(cs.float()))


def sorted_by_length(frame: pl.DataFrame) -> pl.DataFrame:
    return by_row(frame).sort("length")


def renumbered(frame: pl.DataFrame) -> pl.DataFrame:
    return by_row(frame).with_columns(pl.col("id").cast(pl.Categorical).cast(pl.String))


def long_ones_only(frame: pl.DataFrame) -> pl.DataFrame:
    return by_row(frame).filter(pl.col("length") > 4)


def shuffled(frame: pl.DataFrame) -> pl.DataFrame:
    return by_row(frame).sample(fraction=1.0, shuffle=True, seed=1)


@pytest.mark.parametrize("features", [by_row, row_sums, sorted_by_length, renumbered, long_ones_only, shuffled])
def test_features_of_rows_alone_are_those_of_training(features: Features) -> None:
    contract, x = contract_of(features)
    assert contract.unservable == ""
    rows = contract.sample_rows()
    assert isinstance(rows, pl.DataFrame)
    assert 2 <= rows.height <= 5
    assert np.isfinite(x).all()
    again = features(rows.with_columns(pl.int_range(pl.len()).cast(pl.String).alias("id"), pl.lit("").alias("species")))
    ordered = again.sort(pl.col("id").cast(pl.Int64)).drop("id", "species")
    np.testing.assert_array_equal(ordered.cast(pl.Float32).to_numpy(), x)


def centred(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("id", "species", pl.col("length") - pl.col("length").mean())


def shifted(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("id", "species", pl.col("length").shift(1).fill_null(0.0))


def told(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("id", "species", "length", leak=pl.col("species").eq("1").fill_null(value=False).cast(pl.Int8))


def keyed(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("id", "species", number=pl.col("id").str.strip_prefix("r").cast(pl.Int64))


def without_gaps(frame: pl.DataFrame) -> pl.DataFrame:
    return by_row(frame).drop_nulls()


def one_column_each(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("id", "species", "colour").to_dummies("colour")


def strict_target(frame: pl.DataFrame) -> pl.DataFrame:
    if frame["species"].null_count():
        raise ValueError("no target\nand a second line")
    return by_row(frame)


def lazy_for_few(frame: pl.DataFrame) -> Any:
    return by_row(frame) if frame.height > 10 else by_row(frame).lazy()


def other_keys(frame: pl.DataFrame) -> pl.DataFrame:
    return by_row(frame).with_columns(
        pl.concat_str(pl.lit("x"), "id").alias("id") if frame.height < 10 else pl.col("id")
    )


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (centred, "depend on other rows"),
        (shifted, "depend on other rows"),
        (told, "its key or its target"),
        (keyed, "its key or its target"),
        (without_gaps, "made 0 rows of 5"),
        (one_column_each, "made no column 'colour_"),
        (strict_target, r"\(ValueError: no target\)$"),
        (lazy_for_few, "made LazyFrame"),
        (other_keys, "other keys"),
    ],
)
def test_features_that_rows_alone_do_not_have_are_told(features: Features, reason: str) -> None:
    import re

    contract, _ = contract_of(features)
    assert re.search(reason, contract.unservable), contract.unservable
    assert "\n" not in contract.unservable
    assert contract.sample == ()
    RawContract.model_validate_json(contract.to_bytes())


def test_only_what_the_function_needs_is_asked_for() -> None:
    columns = {"note": pa.Column(pl.String, nullable=True), "width": pa.Column(pl.Float64, pa.Check.lt(100))}
    found = inputs_of(contract_of(by_row, columns=columns)[0])
    assert {name: (one.required, one.nullable) for name, one in found.items()} == {
        "length": (True, True),  # the schema does not speak of it
        "width": (True, False),
        "note": (False, True),
    }


def test_two_columns_that_stand_for_each_other_are_not_both_left_out() -> None:
    def either(frame: pl.DataFrame) -> pl.DataFrame:
        name = "length" if "length" in frame.columns else "twin"
        return frame.select("id", "species", pl.col(name).alias("x"))

    contract, _ = contract_of(either, table().with_columns(twin="length"))
    assert contract.unservable == ""
    assert len([one for one in contract.inputs if one.required]) == 1


def test_a_column_that_is_zero_in_the_sample_is_needed_all_the_same() -> None:
    frame = table().with_columns(corner=pl.when(pl.int_range(pl.len()) == 29).then(1.0).otherwise(0.0))
    assert inputs_of(contract_of(row_sums, frame)[0])["corner"].required


def test_the_datas_own_split_is_not_asked_for() -> None:
    frame = table().with_columns(part=pl.lit("train"))
    contract, _ = contract_of(by_row, frame, {"part": pa.Column(pl.String)}, ignored=["part"])
    assert "part" not in inputs_of(contract)

    def parted(given: pl.DataFrame) -> pl.DataFrame:
        return by_row(given.drop("part"))

    assert "ColumnNotFoundError" in contract_of(parted, frame, ignored=["part"])[0].unservable


def test_regular_expressions_name_columns_and_plain_names_go_first() -> None:
    columns = {
        "^(length|width)$": pa.Column(pl.Float64, pa.Check.gt(-50), regex=True),
        "^w.*$": pa.Column(pl.Float64, pa.Check.lt(50), nullable=True, regex=True),
        "length": pa.Column(pl.Float64, pa.Check.lt(99)),
    }
    found = inputs_of(contract_of(by_row, columns=columns)[0])
    assert [(one.name, one.statistics) for one in found["length"].checks] == [("less_than", {"max_value": 99})]
    assert [one.name for one in found["width"].checks] == ["greater_than", "less_than"]
    assert not found["width"].nullable


def test_checks_of_ones_own_count_where_they_judge_single_rows() -> None:
    def small(data: Any) -> pl.LazyFrame:
        return data.lazyframe.select(pl.col(data.key) < 1000)  # type: ignore[no-any-return]

    def mean_is_small(data: Any) -> pl.LazyFrame:
        return data.lazyframe.select(pl.col(data.key).mean() < 1000)  # type: ignore[no-any-return]

    def varied(data: Any) -> pl.LazyFrame:
        varies = (pl.col(data.key).max() > pl.col(data.key).min()) | (pl.col(data.key) < -1000)
        return data.lazyframe.select(varies)  # type: ignore[no-any-return]

    checks = {
        "length": [pa.Check(mean_is_small), pa.Check(small), pa.Check.lt(1000), pa.Check(varied)],
        "width": [pa.Check(mean_is_small), pa.Check.lt(1000, raise_warning=True)],
        "colour": [pa.Check.unique_values_eq({"red", "blue", "green"}), pa.Check.isin(["red", "blue", "green"])],
        "note": [pa.Check(lambda value: value.startswith("note"), element_wise=True, name="isin")],
        "when": [pa.Check.ge(dt.date(2000, 1, 1))],
        "size": [pa.Check.in_range(0, float("inf")), pa.Check.lt(9, ignore_na=False)],
    }
    frame = table().with_columns(when=pl.lit(dt.date(2020, 1, 1)), size=pl.lit(3.0))
    columns = {name: pa.Column(frame.schema[name], one) for name, one in checks.items()}
    found = inputs_of(contract_of(by_row, frame, columns)[0])
    assert {name: one.custom_places for name, one in found.items()} == {
        "length": (1,),
        "width": (),
        "colour": (),
        "note": (0,),
        "when": (0,),
        "size": (0, 1),
    }
    assert {name: [check.name for check in one.checks] for name, one in found.items() if one.checks} == {
        "length": ["less_than"],
        "colour": ["isin"],
    }
    assert [one.name for one in found.values() if one.custom] == ["length", "note", "when", "size"]


def test_types_come_back_as_they_were() -> None:
    day = pl.Series([dt.date(2020, 2, 29 - index % 20) for index in range(30)])
    number = pl.int_range(pl.len())
    frame = table().with_columns(
        *(number.cast(kind).alias(f"{kind}") for kind in INTEGERS),
        number.cast(pl.Float32).alias("single"),
        (number % 2 == 0).alias("even"),
        day.alias("day"),
        (day.cast(pl.Datetime("ms")) + dt.timedelta(hours=3, milliseconds=7)).alias("moment"),
        pl.lit(dt.time(3, 4, 5)).alias("hour"),
        pl.col("colour").cast(pl.Enum(["green", "red", "blue"])).alias("kind"),
        pl.col("colour").cast(pl.Categorical).alias("label"),
        pl.when(number % 2 == 0).then("length").alias("gaps"),
    )
    names = [name for name in frame.columns if name not in {"id", "species", "note", "colour"}]

    def all_of_them(given: pl.DataFrame) -> pl.DataFrame:
        temporal = cs.by_name("day", "moment", "hour").to_physical()
        texts = cs.by_name("kind", "label").cast(pl.String).str.len_chars()
        return given.select("id", "species", *names).with_columns(temporal, texts, pl.col("gaps").fill_null(-1))

    contract, x = contract_of(all_of_them, frame)
    assert contract.unservable == ""
    rows = RawContract.model_validate_json(contract.to_bytes()).sample_rows()
    assert isinstance(rows, pl.DataFrame)
    assert rows.schema == {name: frame.schema[name] for name in names}
    chosen = [frame.row(by_predicate=pl.col("Int64") == number, named=True) for number in rows["Int64"]]
    assert rows.to_dicts() == [{name: row[name] for name in names} for row in chosen]
    assert x.shape == (rows.height, len(names))


@pytest.mark.parametrize("kind", ["list", "zone", "bytes", "decimal", "struct", "duration"])
def test_a_type_that_no_request_can_carry(kind: str) -> None:
    made = {
        "list": pl.concat_list("length", "width"),
        "zone": pl.lit(dt.datetime(2020, 1, 1, tzinfo=dt.UTC)),
        "bytes": pl.col("note").cast(pl.Binary),
        "decimal": pl.col("length").cast(pl.Decimal(10, 2)),
        "struct": pl.struct("length"),
        "duration": pl.lit(dt.timedelta(days=1)),
    }[kind]
    frame = table().with_columns(made.alias("odd"))
    number = {"list": pl.col("odd").list.len(), "struct": pl.col("odd").struct.field("length")}.get(kind)
    number = number if number is not None else pl.col("odd").is_null()

    def odd(given: pl.DataFrame) -> pl.DataFrame:
        return given.select("id", "species", number.cast(pl.Float64).alias("x"))

    columns = {"odd": pa.Column(frame.schema["odd"])}
    contract, _ = contract_of(odd, frame, columns)
    assert "column 'odd' is of a type that no request can carry" in contract.unservable
    assert contract_of(by_row, frame, columns)[0].unservable == ""
    assert "odd" not in inputs_of(contract_of(by_row, frame, columns)[0])


def test_numbers_that_json_does_not_have_are_no_sample() -> None:
    odd = pl.when(pl.int_range(pl.len()) < 20).then(float("nan")).otherwise(pl.col("length"))

    def filled(given: pl.DataFrame) -> pl.DataFrame:
        return given.select("id", "species", pl.col("length").fill_nan(0))

    contract, _ = contract_of(filled, table().with_columns(length=odd))
    assert contract.unservable == ""
    assert all(np.isfinite(row["length"]) for row in contract.sample)


def test_personal_values_never_reach_the_contract() -> None:
    rows = 40
    random = np.random.default_rng(5)
    frame = table(rows).with_columns(
        age=pl.Series(random.integers(18, 90, rows) * 1000 + 7),
        salary=pl.Series(random.normal(50_000, 9_000, rows)),
        name=pl.Series([f"Person {index}" for index in range(rows)]),
        born=pl.Series([dt.date(1950, 1, 1) + dt.timedelta(days=97 * index) for index in range(rows)]),
        sex=pl.Series([("f", "m")[index % 2] for index in range(rows)]),
        town=pl.Series([f"Town{index}" for index in range(rows)], dtype=pl.Categorical),
    )
    private = ["age", "salary", "name", "born", "sex", "town"]

    def personal(given: pl.DataFrame) -> pl.DataFrame:
        return given.select(
            *("id", "species", "length", "age", "salary"),
            letters=pl.col("name").str.len_chars(),
            year=pl.col("born").dt.year(),
            woman=pl.col("sex") == "f",
            town=pl.col("town").cast(pl.String).str.len_chars(),
        )

    columns = {name: pa.Column(frame.schema[name], nullable=name == "name") for name in private}
    columns["sex"] = pa.Column(pl.String, pa.Check.isin(["f", "m"]))
    contract, x = contract_of(personal, frame, columns, left_out=private)
    assert (contract.unservable, np.isfinite(x).all()) == (
        "there are no features of made-up values of left-out columns",
        0,
    )

    columns["name"] = pa.Column(pl.String)
    contract, x = contract_of(personal, frame, columns, left_out=private)
    assert contract.unservable == ""
    text = contract.to_bytes().decode()
    for name in ("age", "salary", "born", "name", "town"):
        assert [value for value in frame[name].cast(pl.String) if value in text] == []
    assert {row["sex"] for row in contract.sample} == {"f"}
    assert {row["length"] for row in contract.sample} <= set(frame["length"])
    assert np.isfinite(x).all()


@pytest.mark.slow
def test_equal_inputs_give_equal_bytes_in_every_process() -> None:
    script = (
        "import polars as pl, pandera.polars as pa\n"
        "from mlops_assets.serving.contract import key_of\n"
        "from mlops_assets_tests.serving.test_contract import by_row, contract_of\n"
        "words = {'red', 'green', 'blue', 'pink', 'grey'}\n"
        "columns = {'colour': pa.Column(pl.String, [pa.Check.isin(words), pa.Check.notin(frozenset({'x', 'y'}))])}\n"
        "print(key_of(contract_of(by_row, columns=columns)[0]))\n"
    )
    keys = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(keys) == 1
