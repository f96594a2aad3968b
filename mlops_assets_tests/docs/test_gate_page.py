"""The reference of the gate's language says what the language does."""

import re

import pytest

from mlops_assets.gate.clauses import BINARY, METRICS, OF_A_CLASS, OVER_GROUPS
from mlops_assets.gate.condition import ConditionError, parse
from mlops_assets_tests.docs.pages import DOCS, Page

PAGE = Page(DOCS / "gate.md").text
SECTION = PAGE.partition("### Errors")[2].partition("## The verdict")[0]
ERRORS = re.findall(r"^\| `([^`]+)` \| ([^|`]+) \|$", SECTION, re.MULTILINE)
LATER = re.findall(r"^\| `([^`]+)` \| (classes|slices) ([^|]+) \| ([^|`]+) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("condition", "says"), ERRORS)
def test_an_error_is_as_the_page_says(condition: str, says: str) -> None:
    with pytest.raises(ConditionError) as error:
        parse(condition)
    assert says in str(error.value).splitlines()[0]


@pytest.mark.parametrize(("condition", "kind", "names", "says"), LATER)
def test_an_error_of_names_is_as_the_page_says(condition: str, kind: str, names: str, says: str) -> None:
    given = {"classes": ["a", "b"], "slices": [], kind: names.split(", ")}
    with pytest.raises(ConditionError) as error:
        parse(condition).require(given["classes"], given["slices"])
    assert says in str(error.value).splitlines()[0]


def test_the_tables_are_found() -> None:
    assert len(ERRORS) > 20
    assert len(LATER) == 3


def test_every_metric_is_in_the_table_with_its_range() -> None:
    rows = re.findall(r"^\| (`[^|]+) \| (\d) and (\w+) \| ([^|]+) \|", PAGE, re.MULTILINE)
    told = {name: (low, high, of) for names, low, high, of in rows for name in re.findall(r"`(\w+)`", names)}
    assert {*told} == {*METRICS}
    for name, (low, high, of) in told.items():
        assert (float(low), float("inf" if high == "infinity" else high)) == METRICS[name]
        assert ("two classes" in of) == (name in BINARY)
        assert ("groups" in of) == (name in OVER_GROUPS)
        assert ("_CLASS" in of) == (name in OF_A_CLASS)
