"""What requests are refused for, against pandera's own verdicts and the reading of files."""

import datetime as dt
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandera.polars as pa
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.data.validation import validate
from mlops_assets.serving.checks import Checks, Declared, InvalidInput
from mlops_assets.serving.contract import Check, Input, RawContract
from mlops_assets.serving.contract_making import _input, _is_built_in
from mlops_assets.serving.verdicts import FEW_ROWS

QUICK = settings(max_examples=120, derandomize=True)

INTEGERS = {
    name: (-(2 ** (bits - 1)) if signed else 0, 2 ** (bits - signed) - 1)
    for bits in (8, 16, 32, 64)
    for signed, name in ((1, f"Int{bits}"), (0, f"UInt{bits}"))
}
WORDS = st.text(st.sampled_from("abAB0é𝄞 .^\n"), max_size=4)
NUMBERS = st.one_of(st.integers(-5, 5), st.floats(-5, 5), st.sampled_from([0.1, -0.1, 0.3, 2.5, 1e300, -1e300]))


def checks_of(
    *inputs: Input, schema: Callable[[], pa.DataFrameSchema] | None = None, left_out: Sequence[str] = ()
) -> Checks:
    contract = RawContract(
        pipeline="p", kind="table", inputs=inputs, key="id", target="species", sources={}, functions={}, sample=()
    )
    return Checks(contract, schema or (lambda: pytest.fail("the schema is of no use here")), left_out)


def refusal(ask: Callable[[], Any]) -> tuple[str, int | None, str]:
    with pytest.raises(InvalidInput) as refused:
        ask()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600
    return refused.value.field, refused.value.row, str(refused.value)


@st.composite
def numeric_checks(draw: st.DrawFn, values: st.SearchStrategy[Any] = NUMBERS) -> pa.Check:
    name = draw(st.sampled_from(["eq", "ne", "gt", "ge", "lt", "le", "in_range", "isin", "notin"]))
    if name == "in_range":
        low, high = sorted((draw(values), draw(values)))
        ends = {"include_min": draw(st.booleans()), "include_max": draw(st.booleans())}
        return pa.Check.in_range(low, high if high > low else abs(low) * 2 + 1, **ends)
    if name in {"isin", "notin"}:
        # of one kind: Polars makes no list of others
        kind = draw(st.sampled_from([int, float]))
        some = [kind(max(-1e15, min(1e15, one))) for one in draw(st.lists(values, min_size=1, max_size=4))]
        return getattr(pa.Check, name)(draw(st.sampled_from([list, tuple, set, frozenset]))(some))
    return getattr(pa.Check, name)(draw(values))


@st.composite
def text_checks(draw: st.DrawFn) -> pa.Check:
    name = draw(
        st.sampled_from(["eq", "ne", "gt", "le", "isin", "notin", "str_startswith", "str_endswith", "str_length"])
        | st.sampled_from(["str_matches", "str_contains"])
    )
    if name in {"isin", "notin"}:
        return getattr(pa.Check, name)(draw(st.lists(WORDS, max_size=4)) or draw(WORDS) or ["a"])
    if name == "str_length":
        low, high = sorted((draw(st.integers(0, 3)), draw(st.integers(0, 3))))
        told = [{"min_value": low, "max_value": high}, {"min_value": low}, {"max_value": high}, {"exact_value": low}]
        return pa.Check.str_length(**draw(st.sampled_from(told)))
    if name in {"str_matches", "str_contains"}:
        pattern = draw(st.sampled_from(["a", "^a", "a|b", "[ab]+$", r"\.", "(?i)A", "", "^", "^^a", "é"]))
        return getattr(pa.Check, name)(pattern)
    return getattr(pa.Check, name)(draw(WORDS))


@st.composite
def columns(draw: st.DrawFn) -> tuple[pl.Series, pa.Check]:
    kind = draw(st.sampled_from([*INTEGERS, "Float32", "Float64", "String", "Categorical", "Boolean"]))
    repeat = draw(st.sampled_from([1, 1, FEW_ROWS + 1]))
    if kind in INTEGERS:
        low, high = INTEGERS[kind]
        number = st.integers(max(low, -5), 5) | st.integers(max(low, -(2**53)), min(high, 2**53))
        values: list[Any] = draw(st.lists(number | st.none(), min_size=1, max_size=5))
        check = draw(numeric_checks())
    elif kind.startswith("Float"):
        real = (
            NUMBERS.map(float) if kind == "Float64" else st.floats(-5, 5, width=32) | st.sampled_from([0.1, 0.3, 1e30])
        )
        values = draw(st.lists(real | st.just(float("nan")) | st.none(), min_size=1, max_size=5))
        check = draw(numeric_checks())
    elif kind == "Boolean":
        values = draw(st.lists(st.booleans() | st.none(), min_size=1, max_size=5))
        check = draw(st.sampled_from([pa.Check.eq(True), pa.Check.isin([True]), pa.Check.ne(False)]))
    else:
        values = draw(st.lists(WORDS | st.none(), min_size=1, max_size=5))
        check = draw(text_checks())
    return pl.Series("x", values * repeat, getattr(pl, kind)), check


@QUICK
@given(columns(), st.booleans())
def test_a_check_says_what_pandera_says(drawn: tuple[pl.Series, pa.Check], nullable: bool) -> None:
    values, check = drawn
    schema = pa.DataFrameSchema({"x": pa.Column(values.dtype, check, nullable=nullable)})
    report = validate(values.to_frame(), schema)
    if any("could not run" in one.message for one in report.failures):
        return  # no data set passes it, so no version has it
    assert _is_built_in(check)
    column = _input("x", values, Declared(nullable, [check]), required=True)
    checks = checks_of(Input.model_validate_json(column.model_dump_json()))
    rows = {row - 1 for one in report.failures for row in one.rows}
    if rows:
        field, row, _ = refusal(lambda: checks.from_frame(values.to_frame()))
        assert field == "x"
        assert row in rows
    else:
        checks.from_frame(values.to_frame())


@pytest.mark.parametrize(
    ("values", "check"),
    [
        (pl.Series("x", [0.1], pl.Float32), pa.Check.le(0.1)),
        (pl.Series("x", [0.1], pl.Float32), pa.Check.isin([0.1])),
        (pl.Series("x", [1.0, float("nan")]), pa.Check.ge(0)),
        (pl.Series("x", [1.0, float("nan")]), pa.Check.le(9)),
        (pl.Series("x", ["b", "a"], pl.Enum(["b", "a"])), pa.Check.ge("b")),
        (pl.Series("x", [2**53 + 1]), pa.Check.le(2.0**53)),
        (pl.Series("x", [2.0**53]), pa.Check.lt(2**53 + 1)),
        (pl.Series("x", ["b"]), pa.Check.isin("abc")),
        (pl.Series("x", ["ab"]), pa.Check.isin("abc")),
    ],
)
def test_python_is_not_asked_where_polars_says_otherwise(values: pl.Series, check: pa.Check) -> None:
    report = validate(values.to_frame(), pa.DataFrameSchema({"x": pa.Column(values.dtype, check, nullable=True)}))
    column = _input("x", values, Declared(nullable=True, checks=[check]), required=True)
    few, many = values, pl.concat([values] * (FEW_ROWS + 1))
    for some in (few, many):
        if report.passed:
            checks_of(column).from_frame(some.to_frame())
        else:
            row = report.failures[0].rows[0] - 1
            assert refusal(lambda: checks_of(column).from_frame(some.to_frame()))[:2] == ("x", row)  # noqa: B023


@QUICK
@given(numeric_checks(), st.sampled_from(["Int32", "Float32"]), st.lists(st.integers(-5, 5), min_size=1, max_size=6))
def test_arrays_are_judged_as_pandera_does(check: pa.Check, kind: str, values: list[int]) -> None:
    series = pl.Series("x", values, getattr(pl, kind)) / (2 if kind == "Float32" else 1)
    series = series.cast(getattr(pl, kind))
    report = validate(series.to_frame(), pa.DataFrameSchema({"x": pa.Column(series.dtype, check)}))
    if any("could not run" in one.message for one in report.failures):
        return
    column = _input("x", series, Declared(nullable=False, checks=[check]), required=False)
    checks = checks_of(column)
    if report.passed:
        checks.require_arrays({"x": series.to_numpy()})
    else:
        field, row, _ = refusal(lambda: checks.require_arrays({"x": series.to_numpy()}))
        assert (field, row) == ("x", report.failures[0].rows[0] - 1)


TYPES = {
    **{name: Input(name=name, dtype=name) for name in (*INTEGERS, "Float32", "Float64", "String", "Boolean", "Date")},
    "Datetime": Input(name="Datetime", dtype="Datetime", unit="ms"),
    "Time": Input(name="Time", dtype="Time"),
    "Categorical": Input(name="Categorical", dtype="Categorical"),
    "Enum": Input(name="Enum", dtype="Enum", categories=("red", "blue")),
}


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("Int64", [1, 3.0, -(2**63), 2**63 - 1], [1, 3, -(2**63), 2**63 - 1]),
        ("Int64", [9007199254740993, 2.0], [9007199254740993, 2]),
        ("UInt64", [2**64 - 1, 0], [2**64 - 1, 0]),
        ("UInt8", [255, 0.0], [255, 0]),
        ("Float64", [1, 2.5, 2**70, 10**300], [1.0, 2.5, 2.0**70, 1e300]),
        ("Float32", [1, 0.5], [1.0, 0.5]),
        ("Boolean", [True, False], [True, False]),
        ("String", ["", "é𝄞\0", "true"], ["", "é𝄞\0", "true"]),
        ("Date", ["2020-02-29"], [dt.date(2020, 2, 29)]),
        ("Datetime", ["2020-02-29T10:00:00.007", "2020-02-29 10:00", "2020-02-29"], None),
        ("Time", ["10:00:00"], [dt.time(10)]),
        ("Categorical", ["anything"], ["anything"]),
        ("Enum", ["blue", "red"], ["blue", "red"]),
    ],
)
def test_values_as_json_has_them(kind: str, values: list[Any], expected: list[Any] | None) -> None:
    checks = checks_of(TYPES[kind])
    made = checks.from_records([{kind: value} for value in values])[kind]
    assert made.dtype == TYPES[kind].polars_type
    if expected is not None:
        assert made.to_list() == expected
    assert checks.from_columns({kind: values})[kind].equals(made)
    field, row, sentence = refusal(lambda: checks.from_records([{kind: values[0]}, {kind: None}]))
    assert (field, row) == (kind, 1)
    assert "a value is needed" in sentence
    nullable = checks_of(TYPES[kind].model_copy(update={"nullable": True}))
    assert nullable.from_records([{kind: None}, {kind: values[0]}])[kind].null_count() == 1
    assert nullable.from_records([{kind: None}])[kind].dtype == TYPES[kind].polars_type
    assert nullable.from_records([{}, {}])[kind].to_list() == [None, None]


WRONG: dict[str, list[Any]] = {
    "Int64": [True, "3", 2.5, 10**30, 10**40, -(10**400), float("nan"), float("inf"), [], {}, 2**63],
    "UInt8": [-1, 256, 255.5, False, "x"],
    "Int8": [128, -129, 1e30],
    "Float64": [True, "3", "nan", [1.0], 10**400, {"a": 1}, b"1"],
    "Float32": [False, "", [[]]],
    "Boolean": [0, 1, "true", 1.0, []],
    "String": [1, True, 2.5, ["a"], b"a", "\ud800"],
    "Date": [20200229, "2020-02-30", "29.02.2020", "", "2020-02-29T10:00:00", True],
    "Datetime": ["now", 0, "2020-02-29T10:00:00Z", 1.5],
    "Time": ["25:00:00", 10],
    "Categorical": [1, None, False],
    "Enum": ["green", "", 0],
}


@pytest.mark.parametrize("kind", WRONG)
def test_values_of_another_type_are_named(kind: str) -> None:
    checks = checks_of(TYPES[kind])
    good = {"Float32": 1.0, "Float64": 1.0, "Boolean": True, "Enum": "red", "Date": "2020-01-01", "Time": "10:00:00"}
    fine = good.get(kind, "2020-01-01" if kind in {"Datetime", "String", "Categorical"} else 1)
    for value in WRONG[kind]:
        field, row, _ = refusal(lambda: checks.from_records([{kind: fine}, {kind: fine}, {kind: value}]))  # noqa: B023
        assert (field, row) == (kind, 2), value
        assert refusal(lambda: checks.from_columns({kind: [value]}))[:2] == (kind, 0)  # noqa: B023


def test_a_value_is_shown_however_deep_and_long_it_is() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    for value in (deep, "x" * 10_000_000, [0] * 10_000_000, {str(index): index for index in range(1000)}):
        for kind in ("Float64", "Date"):
            field, row, sentence = refusal(lambda: checks_of(TYPES[kind]).from_records([{kind: value}]))  # noqa: B023
            assert (field, row) == (kind, 0)
            assert len(sentence) < 200
        refusal(lambda: checks_of(TYPES["Float64"]).from_records([value]))  # noqa: B023
    many = checks_of(*(Input(name=f"column{index}", dtype="Float64") for index in range(5000)))
    assert refusal(lambda: many.from_records([{"other": 1}]))[0] == "other"
    known = Check(name="isin", statistics={"allowed_values": [f"word {index}" for index in range(5000)]})
    chosen = checks_of(TYPES["String"].model_copy(update={"checks": (known,)}))
    assert refusal(lambda: chosen.from_records([{"String": "x" * 500}]))[:2] == ("String", 0)


AB = (
    Input(name="a", dtype="Float64"),
    Input(name="b", dtype="String", nullable=True),
    Input(name="c", dtype="Int64", required=False),
)


@pytest.mark.parametrize(
    ("rows", "field", "row", "reason"),
    [
        ([], "", None, "there are no rows"),
        ([{"a": 1.0}, 3], "", 1, "row 1 is 3, not an object"),
        ([["a", 1.0]], "", 0, "not an object"),
        ([{"b": "x"}], "a", None, "column 'a' is missing"),
        ([{}], "a", 0, "row 0, column 'a': a value is needed"),
        ([{"id": 3}], "a", 0, "row 0, column 'a': a value is needed"),
        ([{"a": 1.0}, {"b": "x"}], "a", 1, "row 1, column 'a': a value is needed"),
        ([{"a": 1.0, "d": 2}], "d", None, "there is no column 'd'; the columns are ['a', 'b', 'c']"),
        ([{"a": 1.0, "\ud800": 2}], "\ud800", None, r"there is no column '\ud800'"),
        ([{"a": 1.0, "c": 1}, {"a": 2.0}], "c", 1, "a value is needed"),
    ],
)
def test_rows_of_another_shape(rows: list[Any], field: str, row: int | None, reason: str) -> None:
    assert refusal(lambda: checks_of(*AB).from_records(rows))[:2] == (field, row)
    sentence = refusal(lambda: checks_of(*AB).from_records(rows))[2]
    assert reason in sentence
    sentence.encode()


def test_rows_come_in_the_order_of_training_whatever_the_clients() -> None:
    checks = checks_of(*AB)
    made = checks.from_records([{"species": "x", "c": 1, "a": 1.5, "id": None}, {"a": 2, "b": "y", "c": 2}])
    assert made.to_dicts() == [{"a": 1.5, "b": None, "c": 1}, {"a": 2.0, "b": "y", "c": 2}]
    assert made.columns == ["a", "b", "c"]
    assert checks.from_records([{"a": 1.0}]).columns == ["a", "b"]


def test_tensors_are_columns() -> None:
    checks = checks_of(*AB)
    made = checks.from_columns(
        {"a": np.array([[1], [2]], np.int32), "b": np.array(["é".encode(), "y"], object), "c": np.array([3.0, 4.0])}
    )
    assert made.to_dicts() == [{"a": 1.0, "b": "é", "c": 3}, {"a": 2.0, "b": "y", "c": 4}]
    assert made["c"].dtype == pl.Int64
    big = np.array([1.5, 2.5], ">f8")[::-1]
    assert checks.from_columns({"a": big})["a"].to_list() == [2.5, 1.5]
    assert checks.from_columns({"a": np.ones(2, np.float16), "b": np.array(["u", "v"])})["b"].to_list() == ["u", "v"]
    strange: list[tuple[dict[str, Any], str, int | None]] = [
        ({"a": np.ones((2, 2))}, "a", None),
        ({"a": np.float64(3)}, "a", None),
        ({"a": np.array(3.0)}, "a", None),
        ({"a": np.ones(2, complex)}, "a", None),
        ({"a": np.zeros(2, "m8[s]")}, "a", None),
        ({"a": np.zeros(2, "V3")}, "a", None),
        ({"a": np.array([True, False])}, "a", 0),
        ({"a": np.array([1.0, np.nan])}, "a", 1),
        ({"a": np.ones(2), "b": np.array([b"\xff", b""], object)}, "b", None),
        ({"a": np.ones(2), "b": np.array([b"x", 3], object)}, "b", None),
        ({"a": np.ones(2), "b": np.ones(2)}, "b", 0),
        ({"a": np.ones(2), "c": np.array([1.0, 1.5])}, "c", 1),
        ({"a": np.ones(2), "c": np.array([1, 2**63], np.uint64)}, "c", 1),
        ({"a": np.ones(2), "c": np.array([1, np.inf])}, "c", 1),
        ({"a": np.ones(2), "b": ["x"]}, "", None),
        ({"a": np.ones(0)}, "", None),
        ({"a": []}, "", None),
        ({"a": "12"}, "a", None),
        ({"a": 3}, "a", None),
        ({"a": None}, "a", None),
        ({}, "a", None),
    ]
    for columns_given, field, row in strange:
        assert refusal(lambda: checks.from_columns(columns_given))[:2] == (field, row), columns_given  # noqa: B023


def test_a_file_has_text_and_other_columns() -> None:
    checks = checks_of(*TYPES.values())
    texts = dict.fromkeys(INTEGERS, "3.0")
    texts |= {"Float32": "1.5", "Float64": "1e3", "String": "3", "Boolean": "T", "Date": "2020-02-29"}
    texts |= {"Datetime": "2020-02-29 10:00", "Time": "10:00:00", "Categorical": "a", "Enum": "red", "more": "x"}
    read = pl.DataFrame([texts, texts])
    made = checks.from_frame(read)
    assert dict(made.schema) == {one.name: one.polars_type for one in TYPES.values()}
    assert made["UInt16"].to_list() == [3, 3]
    kept = made.with_columns(
        pl.col("String").cast(pl.Categorical),
        pl.col("Enum").cast(pl.Categorical),
        pl.col("Datetime").cast(pl.Datetime("ns")),
        pl.col("Int64").cast(pl.Decimal(10, 2)),
    )
    assert checks.from_frame(kept).equals(made)
    for name, wrong in (("Int8", "200"), ("Float64", "1,5"), ("Boolean", "yes"), ("Enum", "green"), ("Date", "1.2.20")):
        broken = pl.DataFrame([texts, {**texts, name: wrong}])
        field, row, sentence = refusal(lambda: checks.from_frame(broken))  # noqa: B023
        assert (field, row) == (name, 1)
        assert repr(wrong) in sentence
    assert refusal(lambda: checks.from_frame(read.drop("Time")))[:2] == ("Time", None)
    assert refusal(lambda: checks.from_frame(read.head(0)))[2] == "there are no rows; send at least one"


def test_checks_of_ones_own_are_asked_and_no_others() -> None:
    def even(data: Any) -> pl.LazyFrame:
        return data.lazyframe.select(pl.col(data.key) % 2 == 0)  # type: ignore[no-any-return]

    def schema() -> pa.DataFrameSchema:
        own = [
            pa.Check.unique_values_eq({2, 4}),
            pa.Check.ge(0),
            pa.Check(even),
            pa.Check(lambda x: x < 9, element_wise=True),
        ]
        return pa.DataFrameSchema(
            {"x": pa.Column(pl.Int64, own), "^x.*$": pa.Column(pl.Int64, pa.Check(even), regex=True)}
        )

    at_least = Check(name="greater_than_or_equal_to", statistics={"min_value": 0})
    column = Input(name="x", dtype="Int64", nullable=True, checks=(at_least,), custom=True, custom_places=(2, 3))
    checks = checks_of(column, Input(name="xy", dtype="Int64", custom=True, custom_places=(0,)), schema=schema)
    assert checks.from_records([{"x": 2, "xy": 2}, {"x": None, "xy": 2}]).height == 2
    field, row, sentence = refusal(lambda: checks.from_records([{"x": 2, "xy": 2}, {"x": 3, "xy": 2}]))
    assert (field, row, sentence) == ("x", 1, "row 1, column 'x': 3 is refused by even")
    assert refusal(lambda: checks.from_records([{"x": 10, "xy": 2}]))[:2] == ("x", 0)
    assert refusal(lambda: checks.from_records([{"x": 8, "xy": 3}]))[:2] == ("xy", 0)
    assert refusal(lambda: checks.from_records([{"x": -2, "xy": 2}]))[2].endswith(
        "-2 is refused by greater_than_or_equal_to ('min_value': 0)"
    )


@QUICK
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=6))
def test_whatever_json_has_is_answered_or_refused(value: Any) -> None:
    checks = checks_of(*(one.model_copy(update={"nullable": True, "required": False}) for one in TYPES.values()))
    for name in TYPES:
        for rows in ([{name: value}], [{name: value}, {name: None}], [value]):
            try:
                checks.from_records(rows)
            except InvalidInput as refused:
                json.dumps(str(refused)).encode()
