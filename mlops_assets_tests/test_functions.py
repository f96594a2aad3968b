"""A pipeline's functions are loaded as their files are now."""

import asyncio
import sys
from pathlib import Path

import pytest
from dagster import DagsterExecutionInterruptedError

from mlops_assets.functions import FunctionError, call, load_function


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "defs" / "flowers"
    made.mkdir(parents=True)
    (made / "helpers.py").write_text("FACTOR = 2\n")
    (made / "features.py").write_text("from .helpers import FACTOR\n\ndef features(x):\n    return x * FACTOR\n")
    return made


def test_an_edit_is_seen_at_once_even_within_one_tick_of_the_clock(folder: Path) -> None:
    for factor in range(1, 9):  # same size, same second: a bytecode cache would answer with the old factor
        (folder / "helpers.py").write_text(f"FACTOR = {factor}\n")
        assert load_function("features.py:features", folder)(10) == 10 * factor


def test_another_pipeline_can_be_imported(folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    (other / "features.py").write_text("from ..flowers.features import features\n")
    assert load_function("features.py:features", other)(3) == 6


def test_a_missing_file_says_where_to_look(folder: Path) -> None:
    with pytest.raises(FunctionError, match=r"model\.py does not exist.*defs\.yaml"):
        load_function("model.py:model", folder)


def test_a_missing_function_lists_what_there_is(folder: Path) -> None:
    with pytest.raises(FunctionError, match="has no function 'other'; it defines features"):
        load_function("features.py:other", folder)


def test_a_failing_import_names_the_file_and_keeps_the_cause(folder: Path) -> None:
    (folder / "helpers.py").write_text("raise RuntimeError('no licence')\n")
    with pytest.raises(FunctionError, match=r"importing .*features\.py failed: RuntimeError: no licence") as caught:
        load_function("features.py:features", folder)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_failing_call_names_the_line(folder: Path) -> None:
    (folder / "features.py").write_text("def features(x):\n    y = x\n    return y / 0\n")
    with pytest.raises(FunctionError, match=r"features\(\) failed at .*features\.py:3: ZeroDivisionError"):
        call(load_function("features.py:features", folder), 1)


def test_nothing_of_a_pipeline_stays_importable_by_chance(folder: Path) -> None:
    load_function("features.py:features", folder)
    assert "features" not in sys.modules
    assert str(folder) not in sys.path


PANIC = """
import polars as pl


def features(x=2147483647):
    return pl.select(pl.from_epoch(pl.lit(x), "d").dt.month_end())
"""


def test_a_panic_of_polars_is_a_failure_like_others(folder: Path) -> None:
    """Python takes it for no `Exception`."""
    (folder / "features.py").write_text(PANIC)
    with pytest.raises(FunctionError, match=r"features\(\) failed at .*features\.py:6: PanicException: .*out-of-range"):
        call(load_function("features.py:features", folder))
    (folder / "features.py").write_text(f"{PANIC}\n\nfeatures()\n")
    with pytest.raises(FunctionError, match=r"importing .*features\.py failed: PanicException"):
        load_function("features.py:features", folder)


@pytest.mark.parametrize(
    "ending", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, DagsterExecutionInterruptedError]
)
def test_an_order_to_end_is_no_failure(ending: type[BaseException]) -> None:
    def interrupted() -> None:
        raise ending

    with pytest.raises(ending):
        call(interrupted)
