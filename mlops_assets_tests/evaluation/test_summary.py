"""The comparison as Markdown, read back by a Markdown parser."""

import dataclasses

import pytest
from markdown_it import MarkdownIt

from mlops_assets.evaluation.summary import Compared, markdown_comparison
from mlops_assets.gate.intervals import Interval
from mlops_assets_tests.evaluation.made import HOSTILE, by_hand, facts

BASE = facts(rows=4000)
COMPARED = Compared(
    BASE,
    promotes=True,
    sitting=False,
    new=BASE.evaluation,
    old=facts(rows=4000, seed=1).evaluation,
    difference=Interval(0.02, -0.01, 0.05),
    old_slices=BASE.slices,
)


def tables(text: str) -> list[list[str]]:
    """The number of cells of each table's rows, by table."""
    found: list[list[str]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "inline" and found and token.level >= 4:
            found[-1].append(token.content)
    return found


def test_what_is_told() -> None:
    text = markdown_comparison(COMPARED)
    assert text.startswith("## flowers: the gate would promote it\n")
    assert "champion, version 2" in text
    assert "+0.020 (-0.010 to +0.050)" in text
    assert "| commit" not in text  # what is not known is not told
    assert "<http://localhost:5000/#/experiments/1/runs/2>" in text
    assert text.count("<details>") == text.count("</details>") == 3
    assert "no look at the test rows was charged" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"promotes": False, "sitting": True}, "the champion already"),
        ({"promotes": False, "facts": dataclasses.replace(BASE, decision=by_hand())}, "left to a person"),
        ({"promotes": False, "facts": facts(condition="n > 0.99")}, "the gate would refuse it"),
        ({"promotes": False, "facts": facts(condition="n > 0.9", rows=60)}, "the test rows cannot decide"),
    ],
)
def test_the_headline(changes: dict[str, object], said: str) -> None:
    text = markdown_comparison(dataclasses.replace(COMPARED, **changes))
    assert text.partition("\n")[0] == f"## flowers: {said}"


def test_without_a_champion_there_is_no_column_for_it() -> None:
    alone = dataclasses.replace(BASE, champion=0, champion_accuracy=None)
    text = markdown_comparison(dataclasses.replace(COMPARED, facts=alone, old=None, difference=None, old_slices=()))
    assert "difference" not in text.partition("Slices")[0].partition("expected calibration error")[0].split("| on ")[1]


def test_a_champion_without_probabilities_is_told_by_its_accuracy_alone() -> None:
    text = markdown_comparison(dataclasses.replace(COMPARED, old=None))
    assert "| balanced accuracy |" not in text
    assert "0.880 (0.840 to 0.910)" in text


def test_hostile_names_break_nothing() -> None:
    hostile = facts(
        rows=400,
        names=[HOSTILE, "b", "c"],
        provenance={"Oxen commit": HOSTILE, "MLflow run": f"http://x/{HOSTILE}"},
    )
    calm = facts(rows=400, names=["a", "b", "c"], provenance={"Oxen commit": "1", "MLflow run": "http://x/"})
    texts = [
        markdown_comparison(dataclasses.replace(COMPARED, facts=each, new=each.evaluation)) for each in (hostile, calm)
    ]
    shapes = [[len(cells) for cells in tables(text)] for text in texts]
    assert shapes[0] == shapes[1]
    html = MarkdownIt("commonmark").enable("table").render(texts[0])
    assert "<script>" not in html
