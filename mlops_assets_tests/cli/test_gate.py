"""`mlops gate`, by the real command."""

import json

import numpy as np
import polars as pl
import pytest

from mlops_assets.gate import simulation

ACCEPTED = "n - o > 0.02 +/- 0.01 and n > 0.9 +/- 0.02"


@pytest.fixture
def predictions(tmp_path):
    """3,000 rows; the new model is right on 94 %, the old one on 90 %, and both on 89 %."""

    def write(labelled=3_000, name="predictions.parquet", **columns):
        kinds = np.repeat([0, 1, 2, 3], [2_670, 150, 30, 150])
        np.random.default_rng(0).shuffle(kinds)
        new, old = np.isin(kinds, (0, 1)), np.isin(kinds, (0, 2))
        label = [1 if row < labelled else None for row in range(3_000)]
        frame = pl.DataFrame({"id": np.arange(3_000), "label": label, "old": old * 1, "new": new * 1, **columns})
        path = tmp_path / name
        (frame.write_csv if name.endswith("csv") else frame.write_parquet)(path)
        return path

    return write


@pytest.mark.parametrize("name", ["predictions.parquet", "predictions.csv"])
def test_check_promotes(predictions, mlops, name):
    told = mlops("gate", "check", ACCEPTED, "--predictions", predictions(name=name))

    assert (told.code, told.err) == (0, "")
    assert "promote (the condition is true)" in told.out
    assert "n - o > 0.02 +/- 0.01 holds: difference 0.040" in told.out
    assert "97.5 %" in told.out


def test_check_says_no_with_exit_code_1(predictions, mlops):
    told = mlops("gate", "check", "n - o > 0.1 and n > 0.9", "--predictions", predictions())
    assert (told.code, told.err) == (1, "")
    assert "do not promote (the condition is false)" in told.out
    assert "n - o > 0.1 fails" in told.out

    told = mlops("gate", "check", "n - o > 0.039", "--predictions", predictions(), "--json")
    stored = json.loads(told.out)
    assert (told.code, stored["verdict"], stored["rows"]) == (1, "unknown", 3_000)
    assert stored["clauses"][0]["more_rows"] > 10_000
    assert mlops("gate", "check", "n - o > 0.039", "--predictions", predictions(), "--mode", "fn-free").code == 0


def test_check_leaves_out_rows_without_a_label(predictions, mlops):
    told = mlops("gate", "check", ACCEPTED, "--predictions", predictions(labelled=1_000), "--method", "certified")
    assert "2000 rows without a label were left out, 1000 were judged" in told.out
    assert "Clopper-Pearson" in told.out


@pytest.mark.parametrize(
    ("condition", "columns", "said"),
    [
        ("n - > 0", {}, "line 1, column 5: expected a number"),
        ("banana > 0.02 +/- 0.005", {}, "line 1, column 1: unknown name 'banana'"),
        ("n - o > 0.02 +/-", {}, "line 1, column 17: expected a positive number"),
        ("n[sex=F] > 0", {}, "line 1, column 1: there is no slice column 'sex'"),
        ("n > 0 and n[sex=X] > 0", {"sex": "F"}, "column 11: no test row has sex=X"),
        ("n > 0.5", {"new": "high"}, "types that cannot be compared"),
    ],
)
def test_check_points_at_what_is_wrong_with_exit_code_2(predictions, mlops, condition, columns, said):
    columns = {name: [value] * 3_000 for name, value in columns.items()}
    told = mlops("gate", "check", condition, "--predictions", predictions(**columns))

    assert (told.code, told.out) == (2, "")
    assert said in told.err
    assert "Traceback" not in told.err


def test_check_needs_a_file(tmp_path, mlops):
    told = mlops("gate", "check", "n > 0.5")
    assert (told.code, told.err) == (2, "error: there are no predictions to judge: name a file with --predictions\n")
    told = mlops("gate", "check", "n > 0.5", "--predictions", tmp_path / "gone.parquet")
    assert (told.code, "gone.parquet cannot be read: No such file" in told.err) == (2, True)


def test_plan_names_sizes_and_bounds(mlops):
    arguments = ("--reliability", "0.9999", "--steps", "32", "--adaptivity", "full")
    told = mlops("gate", "plan", "n - o > 0.02 +/- 0.01 /\\ d < 0.1 +/- 0.01", *arguments)
    assert (told.code, told.err) == (0, "")
    assert "67,706 by Bennett, two-sided, variance at most 0.1 (ease.ml/ci" in told.out
    assert "rows decide it, for 32 decisions, adaptivity full at reliability 0.9999 (1.2e-14 per clause)" in told.out

    stored = json.loads(mlops("gate", "plan", "n > 0.9 +/- 0.02", "--json").out)
    assert stored["efficient"] == stored["clauses"][0]["efficient"]["rows"]
    assert mlops("gate", "plan", "n > 0.9", "--steps", "90", "--adaptivity", "full").code == 1


def test_plan_says_which_rows_to_label_first(predictions, mlops):
    path = predictions(labelled=1_000)
    told = mlops("gate", "plan", "n - o > 0.035 +/- 0.01", "--predictions", path, "--steps", "1")
    assert told.code == 0, told.err
    assert "Today the condition is unknown." in told.out
    assert "more rows (a label is needed on about" in told.out
    stored = json.loads(mlops("gate", "plan", "n - o > 0.035", "--predictions", path, "--json").out)
    frame = pl.read_parquet(path).filter(pl.col("label").is_null(), pl.col("old") != pl.col("new"))
    assert stored["label_first"] == frame["id"].to_list()
    assert f"Label first all {frame.height} rows on which the models differ" in told.out
    assert stored["decision"]["clauses"][0]["more_rows"] > 0


def test_explain_reads_the_condition_back(mlops):
    told = mlops("gate", "explain", "n.f1[sex=F] - o.f1[sex=F] > -0.01 and n > 0.8")
    assert told.code == 0
    assert (
        "1. the f1 of the new model on rows with sex F is below the f1 of the champion on rows with sex F" in told.out
    )
    assert "2. the accuracy of the new model is more than 0.8\n" in told.out
    assert "without a champion, 'n > 0.8' alone decides" in told.out

    told = mlops("gate", "explain", "n - > 3")
    assert (told.code, told.err.splitlines()[-1]) == (1, "      ^")


@pytest.fixture
def few_worlds(monkeypatch):
    monkeypatch.setattr(simulation, "ROWS", (500,))
    monkeypatch.setattr(simulation, "DISAGREEMENTS", (0.05, 0.1))
    monkeypatch.setattr(simulation, "MARGINS", (0.0,))


def test_audit_prints_what_was_found(few_worlds, mlops):
    told = mlops("gate", "audit", "--sims", "200")
    assert told.code == 0, told.out
    assert told.out.count("holds  ") == 9
    assert "new >= old" in told.out


def test_audit_and_stress_fail_with_exit_code_1(few_worlds, mlops, monkeypatch):
    monkeypatch.setattr(simulation, "NAMED_POWER", 0.99)
    told = mlops("gate", "audit", "--sims", "100", "--json")
    failed = [finding["text"] for finding in json.loads(told.out)["findings"] if not finding["holds"]]
    assert (told.code, [text.split(":")[0] for text in failed]) == (1, ["power"])
    assert mlops("gate", "audit", "--sims", "5").code == 2
    assert mlops("gate", "stress", "--sequences", "5").code == 2


@pytest.mark.slow
def test_stress_prints_what_was_found(mlops):
    told = mlops("gate", "stress", "--noise-challengers", "50", "--sequences", "100")
    assert told.code == 0, told.out
    assert told.out.count("holds  ") == 5
    assert "decay, without it" in told.out


def test_help_has_examples(mlops):
    for command in ("check", "plan", "explain", "audit", "stress"):
        assert f"Example: mlops gate {command}" in " ".join(mlops("gate", command, "--help").out.split())
