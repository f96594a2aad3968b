import numpy as np
import polars as pl
import pytest

from mlops_assets.data.readers import ReadError
from mlops_assets.gate import GateError
from mlops_assets.gate.condition import parse
from mlops_assets.gate.decide import decide
from mlops_assets.gate.predictions import only_compares, read_predictions

DIFFERENCE = parse("n - o > 0 and d < 0.5")


@pytest.fixture
def write(tmp_path):
    def write(columns, name="predictions.parquet"):
        frame, path = pl.DataFrame(columns), tmp_path / name
        if name.endswith("csv"):
            frame.write_csv(path)
        else:
            frame.write_parquet(path)
        return path

    return write


@pytest.mark.parametrize("name", ["p.parquet", "p.csv"])
def test_classes_slices_and_keys_are_read(write, name):
    path = write(
        {
            "id": ["a", "b", "c"],
            "label": ["cat", "dog", None],
            "old": ["cat", "cat", "dog"],
            "new": ["cat", "dog", "cat"],
            "anchor": ["dog", "dog", "dog"],
            "sex": ["F", None, "M"],
        },
        name,
    )
    found = read_predictions(path)

    assert found.labelled.tolist() == [True, True, False]
    assert found.rows.label[:2].tolist() == ["cat", "dog"]
    assert found.rows.new.predicted.tolist() == ["cat", "dog", "cat"]
    assert found.rows.anchor.predicted.tolist() == ["dog"] * 3
    assert found.rows.slices["sex"].tolist() == ["F", "", "M"]
    assert found.label_first.tolist() == ["c"]
    assert found.judged(parse("n > 0.5")).keys.tolist() == ["a", "b"]


@pytest.mark.parametrize("name", ["p.parquet", "p.csv"])
@pytest.mark.parametrize(
    ("label", "new", "kind"),
    [
        ([0, 1], [0.0, 1.0], "i"),
        ([0.5, 1.0], [1, 2], "f"),
        ([True, False], [1, 0], "i"),
        (pl.Series(["7", "9"], dtype=pl.Categorical), [7, 8], "i"),
        (["1", "2"], [1, 3], "i"),
    ],
)
def test_numbers_are_numbers_however_they_are_written(write, name, label, new, kind):
    if name == "p.csv" and isinstance(label[0], bool):
        label = [1, 0]
    rows = read_predictions(write({"label": label, "new": new}, name)).rows

    assert (rows.label.dtype.kind, rows.new.predicted.dtype.kind) == (kind, kind)
    assert rows.label.tolist() == [float(value) for value in label]
    assert (rows.old, rows.keys) == (None, None)


@pytest.mark.parametrize(("label", "predicted"), [([0, 1, 0], [0, 1, 1]), (["no", "yes", "no"], ["no", "yes", "yes"])])
def test_scores_are_of_the_positive_class(write, label, predicted):
    rows = read_predictions(write({"label": label, "new_score": [0.1, 0.5, 0.9], "old_score": [0.0, 0.0, 1.0]})).rows

    assert rows.new.predicted.tolist() == predicted
    assert rows.new.scores[:, 1].tolist() == [0.1, 0.5, 0.9]
    assert rows.classes == tuple(str(one) for one in sorted(set(label)))
    estimates = {
        text: decide(parse(f"n.{text} < 1"), rows, reliability=0.9).clauses[0].estimate for text in ("auc", "brier")
    }
    assert estimates["auc"] == 0.5
    assert estimates["brier"] == pytest.approx(2 * (0.01 + 0.25 + 0.81) / 3)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"new": [1]}, "no column `label` (there are new)"),
        ({"label": [1], "old": [1]}, "no column `new` or `new_score`"),
        ({"label": pl.Series([], dtype=pl.Int64), "new": pl.Series([], dtype=pl.Int64)}, "has no rows"),
        ({"label": [1, 0], "new": [1, None]}, "rows without a value of `new`"),
        ({"label": [1, 0], "new_score": ["0.5", "high"]}, "1 values of `new_score` that are no probability"),
        ({"label": [1, 0], "new_score": [0.5, 1.5]}, "the first is 1.5"),
        ({"label": [1, 0], "new_score": [0.5, None]}, "the first is None"),
        ({"label": [1, 2, 3], "new_score": [0.5] * 3}, "two classes, and 3 classes (1, 2, 3)"),
        ({"label": ["a"], "new": [[1]]}, "types that cannot be compared (`label` has String, `new` has List(Int64))"),
        ({"label": ["a"], "new": [1]}, "types that cannot be compared (`label` has String, `new` has Int64)"),
        ({"id": [1, 1], "label": [1, 0], "new": [1, 0]}, "2 rows whose `id` is missing or there twice (1)"),
        ({"label": [None, None], "new": [1, 0], "old": [0, 1]}, "no row has a label"),
    ],
)
def test_what_cannot_be_judged_is_told_in_a_sentence(write, columns, said):
    with pytest.raises(GateError) as caught:
        read_predictions(write(columns)).judged(DIFFERENCE)

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "p.parquet").write_bytes(b"nothing of the kind")
    for name in ("p.parquet", "gone.csv", "p.xls"):
        with pytest.raises(ReadError, match=name):
            read_predictions(tmp_path / name)


def half_labelled(write, labels):
    """Of 200 rows, models differ on the first 40; `labels` says which have a label."""
    label = np.where(labels, 1, None).tolist()
    return read_predictions(write({"label": label, "old": [0] * 40 + [1] * 160, "new": [1] * 200}))


def test_rows_on_which_the_models_agree_need_no_label_for_a_difference(write):
    labels = np.zeros(200, dtype=bool)
    labels[:40] = True
    found = half_labelled(write, labels)

    decision = decide(DIFFERENCE, found.judged(DIFFERENCE), reliability=0.95)
    assert [clause.estimate for clause in decision.clauses] == [0.2, 0.2]
    with pytest.raises(GateError, match="100 % of the rows on which the models differ have a label and 0 % of the oth"):
        found.judged(parse("n - o > 0 and n > 0.5"))


def test_labels_where_the_models_differ_alone_are_no_fair_sample(write):
    labels = np.zeros(200, dtype=bool)
    labels[:30] = labels[40:60] = True
    found = half_labelled(write, labels)

    assert found.label_first.tolist() == list(range(30, 40))
    with pytest.raises(GateError, match=r"no fair sample: label the other 10 of them$"):
        found.judged(DIFFERENCE)
    with pytest.raises(GateError, match="label the other 10 of them, and the 140 without a label on which they agree"):
        found.judged(parse("n > 0.5"))
    assert len(half_labelled(write, np.arange(200) % 2 == 0).judged(DIFFERENCE)) == 100


@pytest.mark.parametrize(
    ("condition", "alone"),
    [
        ("n - o > 0", True),
        ("2*n - 2*o > 0.1 and d[sex=F] < 0.1", True),
        ("n[sex=F] - o[sex=F] > 0", True),
        ("n[sex=F] - o[sex=M] > 0", False),
        ("2*n - o > 0", False),
        ("n - a > 0", False),
        ("n.f1 - o.f1 > 0", False),
        ("n - o > 0 and n > 0.5", False),
    ],
)
def test_which_conditions_only_compare(condition, alone):
    assert only_compares(parse(condition)) == alone
