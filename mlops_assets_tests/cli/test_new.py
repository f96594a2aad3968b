import os
import random
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import yaml

from mlops_assets.cli import new
from mlops_assets.cli.derive import DeriveError, derive
from mlops_assets.cli.new import NewError, Table, copy_pipeline, edited, write_pipeline
from mlops_assets.cli.sources import literal, margin
from mlops_assets.data import samples
from mlops_assets.data.readers import ReadError, read_table
from mlops_assets.data.splits import PARTS, assign
from mlops_assets.data.validation import dtypes
from mlops_assets.gate.condition import parse
from mlops_assets.pipeline import Pipeline
from mlops_assets.settings import PROJECT, Settings, settings
from mlops_assets_tests.cli.conftest import Mlops
from mlops_assets_tests.cli.pipelines import defs, here, instance, run

__all__ = ["defs", "here", "instance"]

pytestmark = [
    # Observable source assets are beta in Dagster 1.13; `dg.load_from_defs_folder` silences the same warnings.
    pytest.mark.filterwarnings(
        "ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning"
    ),
    pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning"),  # Dagster's own use of it
]


def commit_iris(here: Settings, rows: pl.DataFrame | None = None) -> None:
    repository = here.repository("iris")
    repository.init()
    frame = samples.iris() if rows is None else rows
    repository.commit("first", files={"iris.csv": frame.write_csv().encode()})


def mixed(rows: int = 400, seed: int = 1) -> pl.DataFrame:
    """People with all that real tables have: gaps, marks for gaps, categories, dates, running numbers, names."""
    chance = random.Random(seed)
    ages = [chance.randint(17, 90) for _ in range(rows)]
    return pl.DataFrame(
        {
            "person": [f"p{row:05}" for row in range(rows)],
            "number": range(1000, 1000 + rows),
            "age": ages,
            "hours per week": [chance.choice([None, 20.5, 40.0]) for _ in range(rows)],
            "gain": [chance.choice(["?", "0", "2174", "1e3"]) for _ in range(rows)],
            "work=class": [chance.choice([None, "?", 'self "emp"', "it's", "state\\gov"]) for _ in range(rows)],
            "country": ["Earth"] * rows,
            "joined": [date(2020, 1, 1 + row % 28) for row in range(rows)],
            "seen": [f"2020-01-01 10:00:{row % 60:02}" for row in range(rows)],
            "split": [chance.randint(0, 9) for _ in range(rows)],
            "empty": [None] * rows,
            "income": [(">50K" if age + chance.gauss(0, 8) > 50 else "<=50K") for age in ages],
        },
        schema_overrides={"empty": pl.String},
    )


def sources_of(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir() if file.is_file()}


def test_a_copy_differs_in_what_must_differ(here: Settings, defs: Path) -> None:
    folder = copy_pipeline("churn", "iris", here, defs=defs)
    assert folder == defs / "churn"
    old, made = sources_of(defs / "iris"), sources_of(folder)
    old_yaml, new_yaml = old.pop("defs.yaml").splitlines(), made.pop("defs.yaml").splitlines()
    assert made == old
    assert [line for line in new_yaml if line not in old_yaml] == ["    repository: iris", "    salt: churn-1"]
    assert [line for line in old_yaml if line not in new_yaml] == ["    salt: iris-1"]
    pipeline = Pipeline.load(folder)
    assert pipeline.repository == "iris"
    assert sorted(path.name for path in defs.parent.iterdir()) == ["defs"]


@pytest.mark.parametrize("rows", [150, 30])
def test_the_margin_is_one_that_the_test_rows_can_decide(here: Settings, defs: Path, rows: int) -> None:
    commit_iris(here, samples.iris().head(rows))
    spec = Pipeline.load(copy_pipeline("churn", "iris", here, defs=defs)).spec
    first, second = parse(spec.gate.condition).clauses
    assert first.threshold == -margin(rows * 0.34, spec.gate, 2)
    assert str(second) == "n > 0.75"
    assert margin(30 * 0.34, spec.gate, 2) > margin(150 * 0.34, spec.gate, 2)


def test_comments_order_and_unusual_yaml_survive(here: Settings, defs: Path) -> None:
    commit_iris(here)
    text = (defs / "iris" / "defs.yaml").read_text()
    text = text.replace("  data:\n", "  # what we learn from\n  data:  # Oxen\n    # the table\n")
    text = text.replace(
        "    salt: iris-1\n    test: 0.34\n    validation: 0.16\n", "    {test: 0.34, validation: 0.16, salt: 'a: b'}\n"
    )
    text = text.replace("n - o > -0.20 and n > 0.75", ">\n      n > 0.75 and\n      n - o >= -0.20 +/- 0.05")
    text = text.replace("description: Iris", 'description: "Iris').replace("a flower", 'a flower"  # one line')
    (defs / "iris" / "defs.yaml").write_text(text)
    folder = copy_pipeline("churn", "iris", here, description="Who leaves: us, or [them] # really?", defs=defs)
    made = (folder / "defs.yaml").read_text()
    for comment in ("  # what we learn from\n  data:  # Oxen\n    # the table\n", "  # one line"):
        assert comment in made
    spec = Pipeline.load(folder).spec
    assert spec.description == "Who leaves: us, or [them] # really?"
    assert (spec.split.salt, spec.data.repository) == ("churn-1", "iris")
    assert str(parse(spec.gate.condition)) == "n > 0.75 and n - o >= -0.21 +/- 0.05"
    assert list(yaml.safe_load(made)["attributes"]) == list(yaml.safe_load(text)["attributes"])


def test_a_copy_of_a_copy_keeps_the_repository_and_imports_between_pipelines(here: Settings, defs: Path) -> None:
    copy_pipeline("churn", "iris", here, defs=defs)
    (defs / "churn" / "features.py").write_text("from ..iris.features import features\n")
    (defs / "churn" / "__pycache__").mkdir()
    folder = copy_pipeline("churn_again", "churn", here, defs=defs)
    pipeline = Pipeline.load(folder)
    assert (pipeline.repository, pipeline.spec.split.salt) == ("iris", "churn_again-1")
    assert "sepal_area" in pipeline.function("features")(samples.iris()).columns
    assert not (folder / "__pycache__").exists()


def test_aliases_in_yaml_are_not_edited_wrongly(here: Settings, defs: Path) -> None:
    file = defs / "iris" / "defs.yaml"
    file.write_text(
        file.read_text()
        .replace("salt: iris-1", "salt: &name iris-1")
        .replace("description: Iris species from four measurements of a flower", "schedule: null")
    )
    file.write_text(file.read_text().replace("  gate:\n", "  gate: &gate\n"))
    assert Pipeline.load(copy_pipeline("churn", "iris", here, defs=defs)).spec.split.salt == "churn-1"


@pytest.mark.parametrize(
    ("name", "like", "sentence"),
    [
        ("Churn", "iris", r"'Churn' is no name for a pipeline: .* \(known: iris\)"),
        ("../x", "iris", r"is no name for a pipeline"),
        ("", "iris", r"is no name for a pipeline"),
        ("iris", "iris", r"iris exists already; choose another name \(known: iris\)"),
        ("churn", "tulips", r"no pipeline 'tulips' to begin from \(known: iris\)"),
        ("churn", "../defs/iris", r"no pipeline"),
    ],
)
def test_names_are_refused_in_one_sentence(here: Settings, defs: Path, name: str, like: str, sentence: str) -> None:
    with pytest.raises(Exception, match=sentence) as refused:
        copy_pipeline(name, like, here, defs=defs)
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in defs.iterdir()) == ["iris"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(here: Settings, defs: Path) -> None:
    defs.parent.chmod(0o500)
    with pytest.raises(NewError, match="cannot be written"):
        copy_pipeline("churn", "iris", here, defs=defs)


def test_nothing_stays_when_writing_fails(here: Settings, defs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new, "edited", lambda text, _changes: text)
    with pytest.raises(NewError, match="copy the folder by hand"):
        copy_pipeline("churn", "iris", here, defs=defs)
    assert [path.name for path in defs.parent.rglob("*") if "churn" in path.name or ".new" in path.name] == []


def test_edited_sets_values_only() -> None:
    text = "type: x\nattributes:\n  a: 1 # one\n  s: {b: 2}\n"
    assert edited(text, {("s", "b"): "x, y", ("s", "c"): "3", ("", "a"): "no"}) == (
        "type: x\nattributes:\n  a: 'no' # one\n  s: {c: '3', b: 'x, y'}\n"
    )


def test_a_pipeline_for_a_table_of_all_kinds(here: Settings, defs: Path, tmp_path: Path) -> None:
    file = tmp_path / "people (2).csv"
    lines = mixed().write_csv().splitlines()  # as pandas writes it: an index without a name comes first
    file.write_text("\n".join([f",{lines[0]}", *[f"{row},{line}" for row, line in enumerate(lines[1:])]]))
    folder = write_pipeline("people", "iris", Table(file, "income"), here, defs=defs)
    pipeline = Pipeline.load(folder)
    data = pipeline.spec.data
    assert (data.path, data.key, data.target, data.classes) == ("people.csv", "id", "income", ["<=50K", ">50K"])
    assert pipeline.spec.training.epochs == 200
    assert pipeline.spec.parameters == {"hidden": [32]}

    repository = here.repository("people")
    stored = repository.materialize("people.csv", repository.resolve("main"), tmp_path / "cache")
    frame = read_table(stored, dtypes(pipeline.function("schema")()))
    assert frame["id"].to_list() == list(range(1, 401))
    made = pipeline.function("features")(frame)
    assert made.columns == [
        "id",
        "income",
        "age",
        "hours per week",
        "gain",
        "work=class=?",
        "work=class=it's",
        'work=class=self "emp"',
        "work=class=state\\gov",
    ]
    assert made["age"].to_list() == mixed()["age"].to_list()
    assert made["hours per week"].null_count() == made["gain"].null_count() == 0
    unknown = mixed()["work=class"].is_null()
    assert made.filter(unknown).select(pl.col(r"^work=class=.*$").any()).row(0) == (False, False, False, False)
    left_out = (folder / "features.py").read_text()
    for note in (
        '"person", text with 400 different values',
        '"number", a running number',
        "\"country\", always 'Earth'",
        '"joined", of type Date',
        '"seen", of type Datetime',
        '"split", named like',
        '"empty", empty',
        '"", without a name',
    ):
        assert f"# - {note}" in left_out
    assert "churn" not in left_out
    assert "iris" not in "".join(sources_of(folder).values())


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_generated_files_pass_ruff(here: Settings, defs: Path, tmp_path: Path, kind: str) -> None:
    wide = mixed().with_columns(
        **{f"a_rather_long_column_name_{n}": pl.int_range(0, 400) % (n + 2) for n in range(9)},
        many=pl.Series([f"category number {n % 30}" for n in range(400)]),
    )
    file = tmp_path / f"people.{kind}"
    wide.write_csv(file) if kind == "csv" else wide.write_parquet(file)
    folder = write_pipeline("people", "iris", Table(file, "income", "person"), here, defs=defs)
    assert Pipeline.load(folder).spec.data.key == "person"
    place = tmp_path / "mlops_assets" / "defs" / "people"
    shutil.copytree(folder, place)
    (tmp_path / "mlops_assets" / "training").mkdir()
    (tmp_path / "mlops_assets" / "training" / "architectures.py").touch()  # ruff looks for what is first-party
    shutil.copyfile(PROJECT / "pyproject.toml", tmp_path / "pyproject.toml")
    for command in (("check",), ("format", "--check")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", place],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_parquet_keeps_its_types(here: Settings, defs: Path, tmp_path: Path) -> None:
    rows = 200
    frame = pl.DataFrame(
        {
            "small": pl.Series([n % 7 for n in range(rows)], dtype=pl.UInt8),
            "real": pl.Series([None if n % 9 == 0 else float("inf") if n % 10 == 0 else n / 3 for n in range(rows)]),
            "flag": [None if n % 5 == 0 else n % 2 == 0 for n in range(rows)],
            "kind": pl.Series(["a" if n % 3 else "b" for n in range(rows)], dtype=pl.Categorical),
            "when": [date(2020, 1, 1)] * rows,
            "list": [[1, 2]] * rows,
            "y": [n % 2 for n in range(rows)],
        }
    )
    frame.write_parquet(tmp_path / "t.parquet")
    folder = write_pipeline("typed", "iris", Table(tmp_path / "t.parquet", "y"), here, defs=defs)
    pipeline = Pipeline.load(folder)
    assert pipeline.spec.data.classes == ["0", "1"]
    made = pipeline.function("features")(frame.with_columns(id=pl.int_range(1, rows + 1)))
    assert made.columns == ["id", "y", "small", "real", "flag", "kind=a", "kind=b"]
    assert made["real"].is_finite().all()
    assert '"small": pa.Column(pl.UInt8)' in (folder / "schema.py").read_text()


def test_missing_numbers_are_filled_with_the_median_of_the_training_rows() -> None:
    frame = pl.DataFrame(
        {"id": range(100), "x": [None if n % 2 else float(n) for n in range(100)], "y": ["a", "b", "b", "a"] * 25}
    )
    derived = derive(frame, name="t", key="id", target="y", text=False)
    parts = assign(frame["id"], salt=derived.salt, test=derived.test, validation=0.15)
    (filled,) = derived.of("filled")
    assert filled.fill == frame.filter(parts == "train")["x"].median()
    assert filled.nullable


def test_the_salt_puts_every_class_in_every_part() -> None:
    keys = pl.Series("id", range(200))
    rare = (assign(keys, salt="t-1", test=0.3, validation=0.15) == "train").arg_true().head(4).to_list()
    labels = ["rare" if row in rare else "common" for row in range(200)]
    frame = pl.DataFrame({"id": keys, "x": [n % 13 for n in range(200)], "count": labels})
    derived = derive(frame, name="t", key="id", target="count", text=False)
    parts = assign(keys, salt=derived.salt, test=derived.test, validation=0.15)
    assert set(parts.gather(rare)) == set(PARTS)
    assert derived.salt != "t-1"
    assert derived.commonest == 0.98


@pytest.mark.parametrize(
    ("target", "key", "sentence"),
    [
        ("nothing", "", r"no column 'nothing' to be the target; its columns are id, person"),
        ("income", "nothing", r"no column 'nothing' to be the key"),
        ("income", "income", r"must be two columns"),
        ("income", "gain", r"'gain' cannot be the key: .* is there more than once; leave --key out to add one"),
        ("income", "empty", r"'empty' cannot be the key: row 1 has no value"),
        ("person", "", r"column 'person' has 400 different values; a target is a class, of at most 50"),
        ("country", "", r"column 'country' has 1 class\(es\) in 400 rows"),
        ("hours per week", "", r"column 'hours per week' has no class in \d+ rows \(the first is row \d+\)"),
    ],
)
def test_what_cannot_be_target_or_key(  # noqa: PLR0917 - pytest reads them by name
    here: Settings, defs: Path, tmp_path: Path, target: str, key: str, sentence: str
) -> None:
    mixed().write_csv(tmp_path / "people.csv")
    with pytest.raises(DeriveError, match=sentence):
        write_pipeline("people", "iris", Table(tmp_path / "people.csv", target, key), here, defs=defs)
    assert not (defs / "people").exists()
    assert not here.repository("people").exists()


def test_tables_that_teach_nothing(here: Settings, defs: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    for content, error, sentence in (
        (b"", DeriveError, "no column 'y' to be the target"),
        (b"x,y\n", DeriveError, r"has 0 class"),
        (b"x,y\n1,a\n2,b\n3,a\n", DeriveError, r"class '.' of column 'y' has \d of 3 rows, too few"),
        (b"x,y\n" + b"1,a\n1,b\n" * 40, DeriveError, r"can become a number: 'x' is always 1"),
        (b"y\n" + b"a\nb\n" * 40, DeriveError, r"can become a number: there is none"),
        (b"x,y\n1,a,b\n", ReadError, "must have as many as the header"),
    ):
        file.write_bytes(content)
        with pytest.raises(error, match=sentence):
            write_pipeline("t", "iris", Table(file, "y"), here, defs=defs)
    with pytest.raises(ReadError, match="cannot be read"):
        write_pipeline("t", "iris", Table(tmp_path / "nowhere.csv", "y"), here, defs=defs)


def test_another_table_in_the_repository_is_not_overwritten(here: Settings, defs: Path, tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    mixed().write_csv(file)
    write_pipeline("people", "iris", Table(file, "income"), here, defs=defs)
    shutil.rmtree(defs / "people")  # as after an interruption between the import and the last step
    write_pipeline("people", "iris", Table(file, "income"), here, defs=defs)
    assert len(here.repository("people").log()) == 1

    shutil.rmtree(defs / "people")
    mixed(seed=2).write_csv(file)
    with pytest.raises(NewError, match="the Oxen repository 'people' exists already"):
        write_pipeline("people", "iris", Table(file, "income"), here, defs=defs)
    assert not (defs / "people").exists()


@pytest.mark.parametrize("text", ["a", 'a"b', "it's", "a\\b", "tab\tnew\nline", "both \"'", "ünï 😀", "\u2028", "{x}"])
def test_literals_are_python(text: str) -> None:
    assert eval(literal(text)) == text


def test_options_that_do_not_go_together(mlops: Mlops, tmp_path: Path) -> None:
    assert "add --data FILE" in mlops("new", "x", "--target", "y").err
    assert "--data needs --target COLUMN" in mlops("new", "x", "--data", tmp_path / "t.csv").err
    assert "exists already" in mlops("new", "iris").err


def test_the_command_names_files_and_the_next_step(mlops: Mlops, defs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for function in (copy_pipeline, write_pipeline):
        monkeypatch.setitem(function.__kwdefaults__, "defs", defs)
    done = mlops("new", "churn", "--like", "iris")
    assert (done.code, done.err) == (0, "")
    assert f"wrote {defs / 'churn' / 'defs.yaml'}" in done.out
    assert "next: mlops data import churn && mlops run churn" in done.out
    commit_iris(settings())
    assert "next: mlops run tulips" in mlops("new", "tulips").out


@pytest.mark.slow
def test_a_copy_runs_as_it_is(instance: dg.DagsterInstance, defs: Path) -> None:
    here = settings()
    commit_iris(here)
    checks = run(copy_pipeline("churn", "iris", here, defs=defs), instance, here)
    assert all(passed for passed, _ in checks.values()), checks
    assert "n > 0.75 holds" in checks["gate"][1]


@pytest.mark.slow
def test_a_pipeline_for_a_mixed_table_runs_as_it_is(instance: dg.DagsterInstance, defs: Path, tmp_path: Path) -> None:
    here = settings()
    mixed(rows=1500).write_csv(tmp_path / "people.csv")
    folder = write_pipeline("people", "iris", Table(tmp_path / "people.csv", "income"), here, defs=defs)
    checks = run(folder, instance, here)
    assert all(passed for passed, _ in checks.values()), checks
    assert "all 1500 rows pass" in checks["schema"][1]
