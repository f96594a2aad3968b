"""Refusals of values that must not leave the data."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandera.polars as pa
import polars as pl

from mlops_assets.serving.contract import Check, Input
from mlops_assets_tests.serving.test_checks import checks_of, refusal


def test_values_of_left_out_columns_are_in_no_sentence() -> None:
    def own() -> pa.DataFrameSchema:
        def failing(data: Any) -> pl.LazyFrame:
            raise ValueError(data.lazyframe.collect()["own"].to_list())

        short = pa.Check(lambda value: len(value) < 3, element_wise=True, name="short")
        return pa.DataFrameSchema({"own": pa.Column(pl.String, [short, pa.Check(failing)])})

    at_most = Check(name="less_than", statistics={"max_value": 100})
    known = Check(name="isin", statistics={"allowed_values": ["x"]})
    inputs = [
        Input(name="pay", dtype="Int64", required=False, checks=(at_most,)),
        Input(name="name", dtype="String", required=False, checks=(known,)),
        Input(name="born", dtype="Date", required=False),
        Input(name="own", dtype="String", required=False, custom=True, custom_places=(0,)),
        Input(name="town", dtype="Int64", required=False),
    ]
    private = [one.name for one in inputs if one.name != "town"]
    checks = checks_of(*inputs, schema=own, left_out=private)
    failing = checks_of(*inputs[:3], inputs[3].model_copy(update={"custom_places": (1,)}), schema=own, left_out=private)
    secret = "Anna 123456"
    asked: dict[str, Callable[[], Any]] = {
        "row 0 is a value, not an object": lambda: checks.from_records([[secret]]),  # type: ignore[list-item]
        "row 0, column 'pay': a value is refused by less_than": lambda: checks.from_records([{"pay": 123456}]),
        "row 0, column 'pay': a value is not Int64": lambda: checks.from_records([{"pay": secret}]),
        "row 1, column 'pay': a value is not Int64": lambda: checks.from_frame(pl.DataFrame({"pay": ["1", secret]})),
        "row 0, column 'name': a value is refused by isin": lambda: checks.from_records([{"name": secret}]),
        "column 'name' is a value, not a list": lambda: checks.from_columns({"name": secret}),
        "row 0, column 'born': a value is not Date": lambda: checks.from_records([{"born": secret}]),
        "row 0, column 'own': a value is refused by short": lambda: checks.from_records([{"own": secret}]),
        "column 'own' is refused by failing": lambda: failing.from_records([{"own": secret}]),
        "a value is refused by less_than ": lambda: checks.require_arrays(
            {"pay": np.array([123456]), "name": np.array(["x"])}
        ),
    }
    for sentence, ask in asked.items():
        said = refusal(ask)[2]
        assert sentence in said
        assert "Anna" not in said
        assert "123456" not in said
    assert refusal(lambda: checks.from_records([{"town": secret}]))[2].endswith(f"'{secret}' is not Int64")
