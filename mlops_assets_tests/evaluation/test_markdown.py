import numpy as np

from mlops_assets.evaluation.markdown import cell, markdown_confusion, markdown_summary
from mlops_assets.evaluation.metrics import evaluate


def evaluated(label, predicted, names):
    probabilities = np.eye(len(names))[predicted] * 0.8 + 0.2 / len(names)
    return evaluate(np.array(label), probabilities, class_names=names, keys=[f"row {i}" for i in range(len(label))])


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]


def test_the_confusion_table_counts_true_by_predicted():
    table = cells(markdown_confusion(evaluated([0, 0, 1, 2], [0, 1, 1, 0], ["a", "b", "c"])))

    assert table[0] == ["true \\ predicted", "a", "b", "c"]
    assert table[2:] == [["**a**", "1", "1", "0"], ["**b**", "0", "1", "0"], ["**c**", "1", "0", "0"]]


def test_many_classes_are_told_by_what_is_confused_most():
    names = [f"c{index}" for index in range(30)]
    label, predicted = [1] * 5 + [2] * 3 + [3] * 9, [2] * 5 + [1] * 3 + [3] * 9

    table = cells(markdown_confusion(evaluated(label, predicted, names)))

    assert table[2:] == [["c1", "c2", "5"], ["c2", "c1", "3"]]


def test_many_classes_without_a_mistake_make_no_table():
    names = [f"c{index}" for index in range(30)]

    assert markdown_confusion(evaluated([1, 2], [1, 2], names)) == "No test row was confused."


def test_the_summary_tells_measures_classes_and_mistakes():
    text = markdown_summary(evaluated([0, 0, 1, 1], [0, 1, 1, 1], ["a", "b", "c"]))

    assert "| accuracy | 0.750 (0.301 to 0.954) |" in text
    assert "| a | 2 | 1.000 | 0.500 (0.095 to 0.905) | 0.667 |" in text
    assert "| c | 0 | none | none | none |" in text
    assert "| row 1 | a | b | 0.867 |" in text


def test_a_faultless_model_has_no_table_of_mistakes():
    assert "mistakes" not in markdown_summary(evaluated([0, 1], [0, 1], ["a", "b"]))


def test_of_very_many_classes_the_weakest_are_shown():
    names = [f"c{index:03}" for index in range(200)]

    text = markdown_summary(evaluated([*range(150)], [*range(140), *range(10)], names))

    assert "| c149 |" in text
    assert "| c199 |" not in text
    assert sum(line.startswith(("| c0", "| c1")) for line in text.splitlines()) == 50


def test_long_names_are_shortened():
    assert cell("a  b\n" + "x" * 1_000_000) == f"a b {'x' * 53}..."
    assert cell("|" * 1000) == "\\|" * 57 + "..."


def test_names_cannot_break_the_table():
    text = markdown_summary(evaluated([0, 1], [1, 0], ["a|b\n<b>*", "`x`_[y]"]))

    assert "| a\\|b \\<b>\\* | 1 |" in text
    assert "\\`x\\`\\_\\[y]" in text
