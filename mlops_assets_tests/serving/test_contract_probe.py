"""Functions whose features are of training alone where five rows do not show it, and columns that may be missing."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandera.polars as pa
import polars as pl
import polars.selectors as cs
import pytest
from numpy.typing import NDArray

from mlops_assets.serving.contract_probe import compositions, probe_rows
from mlops_assets_tests.serving.made import loaded, publish, table_contract
from mlops_assets_tests.serving.test_contract import by_row, contract_of, inputs_of, table
from mlops_assets_tests.serving.test_contract_kept import image_contract_of

Features = Callable[[pl.DataFrame], pl.DataFrame]
ROWS = 1000


def people() -> pl.DataFrame:
    random = np.random.default_rng(7)
    return pl.DataFrame(
        {
            "id": [f"r{index}" for index in range(ROWS)],
            "age": random.normal(40, 9, ROWS),
            "fare": random.normal(10, 2, ROWS),
            "species": [f"{index % 3}" for index in range(ROWS)],
        }
    )


def made_of(age: pl.Expr) -> Features:
    return lambda frame: frame.select("id", "species", "fare", x=age)


AGE = pl.col("age")
FEW = pl.int_range(pl.len()) % 10 == 9
"""Rows that are no sample: that begins with the first ones."""


@pytest.mark.parametrize(
    ("odd", "features"),
    [
        (pl.when(~FEW).then(AGE), AGE.fill_null(AGE.mean())),
        (pl.when(~FEW).then(AGE), AGE.fill_null(strategy="forward")),
        (pl.when(pl.int_range(pl.len()) != 777).then(AGE), AGE.fill_null(AGE.median())),
        (pl.when(~FEW).then(AGE).otherwise(float("nan")), AGE.fill_nan(AGE.fill_nan(None).mean())),
        (AGE, AGE.clip(upper_bound=AGE.quantile(0.99))),
        (AGE, AGE.clip(lower_bound=AGE.quantile(0.01))),
        (AGE, pl.when((AGE - AGE.mean()) > 2 * AGE.std()).then(AGE.mean()).otherwise(AGE)),
        (AGE, pl.when((AGE > 45).mean() < 0.4).then(AGE).otherwise(AGE + (AGE > 55))),
    ],
)
def test_what_rare_rows_take_of_others_is_told(odd: pl.Expr, features: pl.Expr) -> None:
    contract, _ = contract_of(made_of(features), people().with_columns(odd.alias("age")))
    assert "depend on other rows" in contract.unservable
    assert contract.sample == ()


def test_what_is_done_to_each_row_for_itself_is_served() -> None:
    frame = people().with_columns(pl.when(~FEW).then(AGE).alias("age"))
    contract, _ = contract_of(made_of(AGE.fill_null(40.0).clip(20, 60)), frame)
    assert contract.unservable == ""
    assert len(contract.sample) == 5


def test_each_kind_of_row_is_tried_alone_and_all_are_in_groups() -> None:
    day = pl.lit(dt.date(2020, 1, 1)) + pl.duration(days=(pl.int_range(pl.len()) * 7) % 991)
    frame = people().with_columns(pl.when(~FEW).then(AGE).alias("age"), day.alias("day"), odd=pl.concat_list("fare"))
    frame = frame.with_columns(
        pl.when(pl.int_range(pl.len()) == 500).then(float("nan")).otherwise("fare").alias("fare")
    )
    columns = ["age", "fare", "day", "odd"]
    rows, count = probe_rows(frame, "species", columns)
    assert count == 5
    alone = [group for group in compositions(rows.height) if len(group) == 1]
    told = rows[[place for (place,) in alone]]
    assert told["age"].null_count()
    assert told["fare"].is_nan().any()
    for name in ("age", "fare", "day"):
        values = frame[name].fill_nan(None) if name != "day" else frame[name]
        assert {values.max(), values.min()} <= set(told[name]), name
    groups = [group for group in compositions(rows.height) if 1 < len(group) < 10]
    assert {place for group in groups for place in group} == set(range(rows.height))
    assert rows.equals(probe_rows(frame, "species", columns)[0])
    wide = pl.DataFrame({f"c{index}": np.arange(2000.0) for index in range(300)}).with_columns(species=pl.lit("a"))
    assert sum(1 for _ in compositions(probe_rows(wide, "species", wide.columns[:-1])[0].height)) < 100


def greatest(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("id", "species", x=pl.max_horizontal(cs.float()))


def test_a_column_that_decides_no_row_of_training_is_needed_all_the_same() -> None:
    contract, _ = contract_of(greatest, people())
    assert {one.name for one in contract.inputs if one.required} == {"age", "fare"}


def test_a_column_that_the_function_does_not_look_at_may_be_missing_whatever_its_values() -> None:
    columns = {"note": pa.Column(pl.String), "width": pa.Column(pl.Float64)}
    found = inputs_of(contract_of(lambda frame: frame.select("id", "species", "length"), table(), columns)[0])
    assert {name: one.required for name, one in found.items()} == {"length": True, "note": False, "width": False}


def test_a_column_of_which_a_missing_one_fails_later_is_needed() -> None:
    """Without the column and with other values it makes the same; with nulls it does not."""

    def strict(frame: pl.DataFrame) -> pl.DataFrame:
        if "width" in frame.columns and frame["width"].null_count():
            raise ValueError
        return by_row(frame.with_columns(width=1.0))

    columns = {"width": pa.Column(pl.Float64)}
    assert inputs_of(contract_of(strict, table(), columns)[0])["width"].required


def test_every_value_of_a_request_reaches_the_function(tmp_path: Path) -> None:
    code = (
        "import polars as pl\n\n\ndef features(frame):\n"
        "    assert frame.columns == ['length', 'width', 'count', 'colour', 'id', 'species']\n"
        "    return frame.select('id', 'species', 'length', 'width', area=pl.col('length') * pl.col('width'),\n"
        "        red=pl.when(pl.col('count') > 100).then(9)\n"
        "        .otherwise(pl.col('colour').eq_missing('red').cast(pl.Int8)))\n"
    )
    contract, model = table_contract()
    sources = {**contract.sources, "flowers/features.py": code}
    slot = loaded(tmp_path, publish(tmp_path, contract.model_copy(update={"sources": sources}), model))
    row = {"length": 5.0, "width": 2.0}
    rows = [row, {**row, "count": 500}, {**row, "count": 3}]
    assert [slot.features(slot.from_records([one]))[0, 3] for one in rows] == [0, 9, 0]
    assert slot.features(slot.from_records(rows[1:]))[:, 3].tolist() == [9, 0]


@pytest.mark.parametrize("left_out", [[], ["note"]])
def test_what_a_function_says_of_private_rows_is_not_kept(left_out: list[str]) -> None:
    def telling(frame: pl.DataFrame) -> pl.DataFrame:
        if frame.height < 20:
            raise ValueError(f"cannot make anything of {frame['note'][0]}")
        return by_row(frame)

    contract, _ = contract_of(telling, left_out=left_out)
    assert "(ValueError" in contract.unservable
    assert ("note " in contract.to_bytes().decode()) == (not left_out)


def test_images_that_are_judged_beside_the_others_are_told() -> None:
    def without_outliers(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        brightness = images[:, 0].mean(axis=(1, 2))
        odd = np.abs(brightness - brightness.mean()) > 1.6 * brightness.std()  # of three images none is
        return np.where(odd[:, None, None, None], 0, images).astype(np.uint8)

    assert "something else of an image alone" in image_contract_of(without_outliers)[0].unservable
