import time

import numpy as np
import pandera.pandas
import pandera.polars as pa
import polars as pl
import pytest
from numpy.typing import NDArray
from pandera.config import config_context

from mlops_assets.data.readers import read_table
from mlops_assets.data.samples import iris
from mlops_assets.data.validation import (
    KEPT_CLASSES,
    KEPT_ROWS,
    OTHER_CLASSES,
    Report,
    SchemaError,
    check_features,
    check_images,
    check_target,
    class_counts,
    dtypes,
    label_shift,
    leaks,
    validate,
)

SPECIES = ["setosa", "versicolor", "virginica"]


def iris_schema(**options: object) -> pa.DataFrameSchema:
    columns = {
        "id": pa.Column(int, unique=True),
        "^(sepal|petal)_.*$": pa.Column(float, pa.Check.in_range(0, 10), regex=True),
        "species": pa.Column(str, pa.Check.isin(SPECIES)),
    }
    return pa.DataFrameSchema(columns, **options)


def one_column(values: list[object], column: pa.Column, dtype: object = None) -> Report:
    return validate(
        pl.DataFrame({"x": values}, schema={"x": dtype} if dtype else None), pa.DataFrameSchema({"x": column})
    )


def at(frame: pl.DataFrame, row: int, **values: object) -> pl.DataFrame:
    """Puts values into one row, counted from 1."""
    here = pl.int_range(1, pl.len() + 1) == row
    return frame.with_columns(
        pl.when(here).then(pl.lit(value)).otherwise(name).alias(name) for name, value in values.items()
    )


def test_iris_passes() -> None:
    report = validate(iris(), iris_schema(strict=True, ordered=True))
    assert report.passed
    assert report.sentence() == "all 150 rows pass"


def test_types_of_a_schema_serve_the_reader(tmp_path) -> None:
    iris().write_csv(tmp_path / "iris.csv")
    assert dtypes(iris_schema()) == {"id": pl.Int64, "^(sepal|petal)_.*$": pl.Float64, "species": pl.String}
    assert dtypes(pa.DataFrameSchema({"a": pa.Column(int), "b": pa.Column()}, dtype=float)) == {
        "a": pl.Float64,
        "b": pl.Float64,
    }
    assert validate(read_table(tmp_path / "iris.csv", dtypes(iris_schema())), iris_schema()).passed


def test_a_value_of_the_wrong_type_is_named_with_its_row(tmp_path) -> None:
    (tmp_path / "t.csv").write_text(
        "id,petal_length,species\n1,1.4,setosa\n2,abc,setosa\n3,99,setosa\n4,,setosa\n5,1x,setosa\n"
    )
    frame = read_table(tmp_path / "t.csv", dtypes(iris_schema()))
    assert frame.schema["petal_length"] == pl.String
    wrong, empty, outside = validate(frame, iris_schema()).failures
    assert (wrong.column, wrong.check, wrong.count, wrong.rows) == ("petal_length", "type", 2, (2, 5))
    assert wrong.values == ("'abc'", "'1x'")
    assert wrong.message == "column 'petal_length': 2 rows are not Float64 (row 2: 'abc', row 5: '1x')"
    assert (empty.check, empty.rows, empty.values) == ("null", (4,), ("null",))
    assert (outside.check, outside.rows, outside.values) == ("in_range(0, 10)", (3,), ("99.0",))


def test_text_that_would_cast_is_still_of_the_wrong_type() -> None:
    report = one_column(["1", "2"], pa.Column(float))
    assert report.sentence() == "column 'x' is String, not Float64"


def test_a_wrong_type_of_no_text_is_one_failure() -> None:
    report = one_column([1, 2], pa.Column(float, pa.Check.gt(5)))
    assert [failure.message for failure in report.failures] == ["column 'x' is Int64, not Float64"]


def test_missing_columns_are_named() -> None:
    schema = pa.DataFrameSchema(
        {"a": pa.Column(int), "b.*": pa.Column(int, regex=True), "c": pa.Column(int, required=False)},
        checks=pa.Check(lambda data: data.lazyframe.select(pl.col("a") > 0)),
    )
    assert validate(pl.DataFrame(), schema).sentence() == "column 'a' is missing; no column matches 'b.*'"


def test_undeclared_columns_and_order() -> None:
    frame = pl.DataFrame({"b": [1], "a": [1], "c": [1]})
    columns = {"a": pa.Column(int), "b": pa.Column(int)}
    assert validate(frame, pa.DataFrameSchema(columns)).passed
    assert validate(frame, pa.DataFrameSchema(columns, strict=True)).sentence() == "column 'c' is not in the schema"
    assert validate(frame, pa.DataFrameSchema(columns, ordered=True)).failures[0].check == "order"


def test_nulls_and_nans_are_found() -> None:
    assert one_column([1.0, None, float("nan")], pa.Column(float)).failures[0].rows == (2, 3)
    assert one_column([1.0, None, float("nan")], pa.Column(float, nullable=True)).passed


def test_duplicates_are_found_in_a_column_and_across_columns() -> None:
    assert one_column([1, 2, 1], pa.Column(int, unique=True)).failures[0].rows == (1, 3)
    frame = pl.DataFrame({"a": [1, 1, 1], "b": [1, 2, 1]})
    schema = pa.DataFrameSchema({"a": pa.Column(int), "b": pa.Column(int)}, unique=["a", "b"])
    assert validate(frame, schema).failures[0].rows == (1, 3)


def test_a_check_of_the_whole_table_names_its_rows() -> None:
    schema = iris_schema(checks=pa.Check(lambda d: d.lazyframe.select(pl.col("petal_length") < pl.col("sepal_length"))))
    assert validate(iris(), schema).passed
    failure = validate(at(iris(), 7, petal_length=9.0), schema).failures[0]
    assert (failure.column, failure.rows) == (None, (7,))
    assert failure.values[0].startswith("{'id': 7, ")


def test_a_check_of_one_answer_has_no_rows() -> None:
    def mean_above_five(data: pa.PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(pl.col(data.key).mean() > 5)

    failure = one_column([1.0, 2.0], pa.Column(float, pa.Check(mean_above_five))).failures[0]
    assert (failure.count, failure.rows) == (0, ())
    assert failure.message == "column 'x' as a whole is refused by mean_above_five"


def broken(data: pa.PolarsData) -> pl.LazyFrame:
    raise KeyError("no such thing")


@pytest.mark.parametrize("check", [broken, lambda data: None, lambda data: data.lazyframe.select("y"), lambda: True])
def test_a_check_that_raises_is_a_failure_that_says_so(check) -> None:
    failure = one_column([1.0, 2.0], pa.Column(float, pa.Check(check))).failures[0]
    assert "could not run (" in failure.message


def test_the_message_of_a_broken_check_names_function_and_reason() -> None:
    sentence = one_column([1.0], pa.Column(float, pa.Check(broken))).sentence()
    assert sentence == "column 'x': the check broken could not run (KeyError: 'no such thing')"


def test_nothing_is_dropped_filled_or_coerced() -> None:
    lenient = {"drop_invalid_rows": True, "coerce": True}
    assert not validate(
        pl.DataFrame({"x": [1, 1]}), pa.DataFrameSchema({"x": pa.Column(int, unique=True)}, **lenient)
    ).passed
    assert not one_column([None, 1.0], pa.Column(float, default=0.0)).passed
    assert not one_column([1], pa.Column(float, coerce=True)).passed


def test_validation_cannot_be_switched_off() -> None:
    with config_context(validation_enabled=False):
        assert not one_column([1], pa.Column(int, pa.Check.gt(5))).passed


def test_a_check_that_only_warns_does_neither() -> None:
    assert one_column([1], pa.Column(int, pa.Check.gt(5, raise_warning=True))).passed


def test_many_bad_rows_stay_quick_and_bounded() -> None:
    n = 100_000
    frame = pl.DataFrame(
        {"id": [1] * n, "petal_width": ["bad"] * n, "sepal_width": [-1.0] * n, "species": ["rose"] * n}
    )
    schema = iris_schema(unique=["id", "species"])
    started = time.perf_counter()
    report = validate(frame, schema)
    assert time.perf_counter() - started < 60  # and not the hours of what compares each row with each
    assert len(report.failures) == 4
    assert all(failure.count == n and len(failure.rows) == KEPT_ROWS for failure in report.failures)
    assert len(report.sentence()) < 500
    assert report.sentence().endswith("and 1 more failure")


def test_long_values_are_shortened() -> None:
    failure = one_column(["x" * 10_000], pa.Column(str, pa.Check.isin(["a"]))).failures[0]
    assert len(failure.values[0]) == 60


@pytest.mark.parametrize("thing", [None, {"x": int}, pa.DataFrameSchema, pandera.pandas.DataFrameSchema({})])
def test_what_is_no_schema_for_polars_is_refused(thing) -> None:
    with pytest.raises(SchemaError, match=r"pandera\.polars\.DataFrameSchema"):
        validate(iris(), thing)


TARGET = {"key": "id", "target": "species", "classes": SPECIES, "salt": "iris", "test": 0.2, "validation": 0.15}


def test_the_target_of_iris_is_sound() -> None:
    assert check_target(iris(), **TARGET).passed


def test_the_target_needs_its_columns() -> None:
    assert check_target(iris().drop("id"), **TARGET).sentence() == "column 'id' is missing"
    assert check_target(iris().drop("species"), **TARGET).sentence() == "column 'species' is missing"
    assert [f.column for f in check_target(pl.DataFrame(), **TARGET).failures] == ["id", "species"]


def test_the_target_needs_keys_of_its_own() -> None:
    report = check_target(at(at(iris(), 5, id=4), 9, id=None), **TARGET)
    assert [(failure.check, failure.rows) for failure in report.failures] == [("null", (9,)), ("unique", (4, 5))]
    assert report.failures[1].message == "column 'id': 2 rows are not unique (row 4: 4, row 5: 4)"


def test_the_target_needs_known_classes() -> None:
    report = check_target(at(at(iris(), 3, species="rose"), 4, species=None), **TARGET)
    assert [(failure.check, failure.rows) for failure in report.failures] == [("null", (4,)), ("classes", (3,))]


def test_every_class_needs_a_row_in_every_part() -> None:
    few = iris().filter((pl.col("species") != "virginica") | (pl.col("id") == 101))
    (failure,) = check_target(few, **TARGET).failures
    assert failure.message.startswith("column 'species': no row of class 'virginica' in ")
    assert failure.message.count(" or ") == 1
    none = check_target(iris().filter(pl.col("species") != "virginica"), **TARGET)
    assert none.sentence() == "column 'species': no row of class 'virginica'"


def test_keys_that_cannot_be_split_by_are_a_failure() -> None:
    report = check_target(iris().with_columns(pl.col("id").cast(float)), **TARGET)
    assert "must be integers, text or dates" in report.sentence()


def test_classes_may_be_numbers() -> None:
    frame = pl.DataFrame({"id": range(200), "y": [0, 1] * 100})
    assert check_target(frame, **{**TARGET, "target": "y", "classes": [0, 1]}).passed
    assert check_target(frame, **{**TARGET, "target": "y", "classes": ["0"]}).failures[0].count == 100


FEATURES = {"key": "id", "target": "species", "split": "split", "classes": SPECIES}


def features() -> pl.DataFrame:
    return iris().with_columns(split=pl.Series(["train", "validation", "test"] * 50), flag=pl.col("id") > 75)


def test_sound_features_pass() -> None:
    assert check_features(features(), **FEATURES).passed


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (features().head(0), "the table has no rows"),
        (features().select("id", "species", "split"), "no feature column beside 'id', 'species' and 'split'"),
        (features().drop("split"), "column 'split' is missing"),
        (features().drop("id"), "column 'id' is missing"),
        (at(features(), 3, split="dev"), "column 'split': 1 row is none of train, validation, test (row 3: 'dev')"),
        (at(features(), 3, split=None), "column 'split': 1 row is null (row 3: null)"),
        (at(features(), 3, species=None), "column 'species': 1 row is null (row 3: null)"),
        (at(features(), 3, sepal_width=None), "column 'sepal_width': 1 row is null (row 3: null)"),
        (at(features(), 3, sepal_width=float("inf")), "column 'sepal_width': 1 row is not finite (row 3: inf)"),
        (at(features(), 3, sepal_width=float("nan")), "column 'sepal_width': 1 row is not finite (row 3: nan)"),
        (at(features(), 3, id=2), "column 'id': 2 rows are not unique (row 2: 2, row 3: 2)"),
        (features().with_columns(name=pl.lit("x")), "column 'name' is String, neither numeric nor Boolean"),
    ],
)
def test_features_that_cannot_be_trained_on(frame: pl.DataFrame, says: str) -> None:
    assert check_features(frame, **FEATURES).sentence() == says


def test_features_keep_what_the_dataset_was_checked_for() -> None:
    one = check_features(features().filter(pl.col("species") == "setosa"), **FEATURES)
    assert one.sentence() == (
        "column 'species': no row of class 'versicolor'; column 'species': no row of class 'virginica'"
    )
    untested = features().filter((pl.col("species") != "setosa") | (pl.col("split") == "train"))
    assert check_features(untested, **FEATURES).sentence() == (
        "column 'species': no row of class 'setosa' in validation or test"
    )
    renamed = check_features(features().with_columns(pl.col("species").str.to_uppercase()), **FEATURES)
    assert renamed.sentence().startswith(
        "column 'species': 150 rows are none of the classes setosa, versicolor, virginica (row 1: 'SETOSA', "
    )


PIXELS = np.random.default_rng(1).integers(0, 256, (150, 4, 5, 3), dtype=np.uint8)
ROWS = features().select("id", "species", "split")


def test_sound_images_pass() -> None:
    assert check_images(PIXELS, ROWS, **FEATURES).passed
    assert check_images(PIXELS[..., :1], ROWS, **FEATURES).passed


@pytest.mark.parametrize(
    ("pixels", "rows", "says"),
    [
        (PIXELS[:149], ROWS, "there are 149 images for 150 rows"),
        (PIXELS.astype(np.float32), ROWS, "the images are float32, not uint8"),
        (
            PIXELS[..., :2],
            ROWS,
            "the images have the shape (150, 4, 5, 2), not (rows, height, width, 1 or 3 channels)",
        ),
        (PIXELS[:, :0], ROWS, "the images have the shape (150, 0, 5, 3), not (rows, height, width, 1 or 3 channels)"),
        (PIXELS[..., 0], ROWS, "the images have the shape (150, 4, 5), not (rows, height, width, 1 or 3 channels)"),
        (PIXELS, at(ROWS, 3, id=2), "column 'id': 2 rows are not unique (row 2: 2, row 3: 2)"),
        (
            PIXELS,
            at(ROWS, 3, species="rose"),
            "column 'species': 1 row is none of the classes setosa, versicolor, virginica (row 3: 'rose')",
        ),
        (PIXELS, at(ROWS, 3, split="dev"), "column 'split': 1 row is none of train, validation, test (row 3: 'dev')"),
        (PIXELS, ROWS.drop("split"), "column 'split' is missing"),
        (PIXELS[:0], ROWS.head(0), "the table has no rows"),
        (
            PIXELS[:50],
            ROWS.head(50),
            "column 'species': no row of class 'versicolor'; column 'species': no row of class 'virginica'",
        ),
    ],
)
def test_images_that_cannot_be_trained_on(pixels: NDArray[np.uint8], rows: pl.DataFrame, says: str) -> None:
    assert check_images(pixels, rows, **FEATURES).sentence() == says


def test_test_images_that_were_trained_on_are_found() -> None:
    parts = pl.Series(["train"] * 100 + ["validation"] * 20 + ["test"] * 30)
    assert leaks(PIXELS, parts).passed
    copied = PIXELS.copy()
    copied[130] = copied[[7, 50]] = PIXELS[7]
    copied[140] = PIXELS[110]  # of the validation part
    copied[141] = copied[142]  # both are test
    report = leaks(copied, parts)
    assert report.sentence() == "1 test image equals a training image (row 131 equals row 8)"
    (failure,) = report.failures
    assert (failure.check, failure.count, failure.rows, failure.values) == ("leak", 1, (131,), ("row 8",))
    copied[120:] = PIXELS[:30]
    (failure,) = leaks(copied, parts).failures
    assert failure.message == (
        "30 test images equal training images (row 121 equals row 1, row 122 equals row 2, row 123 equals row 3, ...)"
    )
    assert (failure.count, len(failure.rows), len(failure.values)) == (30, KEPT_ROWS, KEPT_ROWS)


def test_of_many_classes_the_most_frequent_are_counted() -> None:
    counts = class_counts(pl.DataFrame({"y": [f"c{i:03}" for i in range(300) for _ in range(i + 1)]}), "y")
    assert len(counts) == KEPT_CLASSES
    assert counts[OTHER_CLASSES] == sum(range(1, 202))
    assert {name for name in counts if name != OTHER_CLASSES} == {f"c{i}" for i in range(201, 300)}
    assert list(class_counts(pl.DataFrame({"y": ["x" * 1_000_000]}), "y")) == ["x" * 200]


def test_class_counts() -> None:
    assert class_counts(at(iris(), 1, species=None), "species") == {"setosa": 49, "versicolor": 50, "virginica": 50}
    assert list(class_counts(pl.DataFrame({"y": [1, 0, 1]}), "y").items()) == [("0", 1), ("1", 2)]
    assert class_counts(pl.DataFrame(), "species") == {}


@pytest.mark.parametrize(
    ("before", "after", "distance"),
    [
        ({"a": 1, "b": 1}, {"a": 10, "b": 10}, 0),
        ({"a": 1, "b": 1}, {"a": 1}, 0.5),
        ({"a": 1}, {"b": 1}, 1),
        ({"a": 6, "b": 4}, {"a": 4, "b": 5, "c": 1}, 0.2),
        ({}, {"a": 1}, 1),
        ({"a": 0}, {}, 0),
    ],
)
def test_label_shift_is_the_total_variation_distance(before, after, distance: float) -> None:
    assert label_shift(before, after) == pytest.approx(distance)
    assert label_shift(after, before) == pytest.approx(distance)
