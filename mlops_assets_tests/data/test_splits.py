import datetime as dt
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.data.splits import PARTS, SplitError, assign

SHARES = {"salt": "iris", "test": 0.2, "validation": 0.1}


def test_the_parts_of_known_keys_never_move() -> None:
    keys = pl.Series(list("abcdefghijklmnopqrstuvwxyz"))
    parts = assign(keys, **SHARES)
    assert "".join(keys.filter(parts == "validation")) == "h"
    assert "".join(keys.filter(parts == "test")) == "lnuy"


def test_shares_come_out_as_asked() -> None:
    n = 100_000
    counts = dict(assign(pl.Series(range(n)), **SHARES).value_counts().iter_rows())
    for part, share in zip(PARTS, (0.7, 0.1, 0.2), strict=True):
        assert abs(counts[part] - n * share) < 5 * math.sqrt(n * share * (1 - share))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.data())
def test_a_row_keeps_its_part_whatever_lies_around_it(keys: list[int], data: st.DataObject) -> None:
    kept = data.draw(st.permutations(keys))[: len(keys) // 2 + 1]
    parts = dict(zip(keys, assign(pl.Series(keys, dtype=pl.Int64), **SHARES), strict=True))
    assert [parts[key] for key in kept] == assign(pl.Series(kept, dtype=pl.Int64), **SHARES).to_list()


def test_numbers_and_their_text_are_the_same_keys() -> None:
    numbers = pl.Series(range(-500, 500))
    expected = assign(numbers, **SHARES)
    for dtype in (pl.String, pl.Int16, pl.Categorical):
        keys = numbers.cast(pl.String).cast(dtype) if dtype == pl.Categorical else numbers.cast(dtype)
        assert assign(keys, **SHARES).equals(expected)


def test_enumerations_and_dates_are_keys() -> None:
    enumerated = pl.Series(["a", "b"], dtype=pl.Enum(["b", "a"]))
    assert assign(enumerated, **SHARES).equals(assign(enumerated.cast(pl.String), **SHARES))
    dates = pl.date_range(dt.date(2020, 1, 1), dt.date(2020, 12, 31), eager=True)
    assert assign(dates, **SHARES).equals(assign(dates.dt.strftime("%Y-%m-%d"), **SHARES))


def test_another_salt_is_independent() -> None:
    keys = pl.Series(range(20_000))
    one = (assign(keys, **SHARES) == "test").to_numpy()
    other = (assign(keys, **{**SHARES, "salt": "other"}) == "test").to_numpy()
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05


def test_a_larger_test_share_keeps_the_test_rows() -> None:
    keys = pl.Series(range(5_000))
    small, large = assign(keys, salt="x", test=0.1, validation=0.1), assign(keys, salt="x", test=0.3, validation=0.1)
    assert large.filter(small == "test").unique().to_list() == ["test"]


def test_no_keys_give_no_parts() -> None:
    parts = assign(pl.Series("id", [], dtype=pl.Int64), **SHARES)
    assert (parts.name, parts.dtype, len(parts)) == ("split", pl.String, 0)


def test_a_null_key_is_refused_with_its_row() -> None:
    with pytest.raises(SplitError, match="'id': row 2 has no key"):
        assign(pl.Series("id", [1, None, 3, None]), **SHARES)


@pytest.mark.parametrize("keys", [pl.Series([1.0]), pl.Series([True]), pl.Series([[1]])])
def test_keys_whose_text_is_not_one_of_a_kind_are_refused(keys: pl.Series) -> None:
    with pytest.raises(SplitError, match="must be integers, text or dates"):
        assign(keys, **SHARES)


@pytest.mark.parametrize(
    ("test", "validation"), [(0, 0.1), (0.1, 0), (0.5, 0.5), (-0.1, 0.5), (1.0, 0.1), (math.nan, 0.1), (0.1, math.nan)]
)
def test_shares_that_leave_a_part_empty_are_refused(test: float, validation: float) -> None:
    with pytest.raises(SplitError, match="no split"):
        assign(pl.Series([1]), salt="x", test=test, validation=validation)
