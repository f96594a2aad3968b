import math
import random
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from mlops_assets.cli import data, intake
from mlops_assets.data import samples
from mlops_assets.data.readers import read_table
from mlops_assets.data.row_changes import NotComparable, RowChanges
from mlops_assets.data.tables import encode
from mlops_assets.home import ensure_home
from mlops_assets.oxen.repository import Repository
from mlops_assets.pipeline import DEFS, Pipeline
from mlops_assets.settings import settings
from mlops_assets_tests.cli.conftest import Mlops


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "flowers.csv"
    samples.iris().write_csv(file)
    return file


def repository() -> Repository:
    return settings().repository("iris")


def head(place: Path) -> Path:
    """The table at the head, as it was committed."""
    return repository().materialize("iris.csv", repository().resolve("main"), place / "cache")


def one_sentence(err: str) -> str:
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.strip()


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = ("dagster", "polars", "numpy", "mlflow", "torch", "pandera", "httpx", "yaml")
    code = f"import sys, mlops_assets.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_sample_twice_commits_once(mlops: Mlops, tmp_path: Path) -> None:
    first = mlops("data", "import", "iris")
    (commit,) = repository().log()
    assert first.code == 0
    assert f"committed {commit.id} import the sample 'iris'" in first.out
    assert "no rows before, 150 now" in first.out
    assert "no Dagster webserver answers" in first.out
    assert read_table(head(tmp_path)).height == 150

    again = mlops("data", "import", "iris")
    assert (again.code, again.err) == (0, "")
    assert "nothing changed" in again.out
    assert repository().log() == [commit]


def test_a_table_without_the_key_gets_row_numbers_and_says_so(mlops: Mlops, tmp_path: Path) -> None:
    file = tmp_path / "flowers.csv"
    rows = samples.iris().drop("id").with_columns(note=pl.lit('a "quoted",\nnote'))
    rows.write_csv(file)
    done = mlops("data", "import", "iris", file, "-m", "from the field")
    assert "flowers.csv has no key column 'id': it gets one, the row's number from 1 on" in done.out
    made = read_table(head(tmp_path))
    assert made["id"].to_list() == [str(number) for number in range(1, 151)]
    assert made.drop("id").equals(read_table(file))


def test_a_table_with_the_key_is_committed_byte_for_byte(mlops: Mlops, table: Path, tmp_path: Path) -> None:
    table.write_bytes(table.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert mlops("data", "import", "iris", table).code == 0
    assert head(tmp_path).read_bytes() == table.read_bytes()


def test_commit_tells_id_message_rows_and_what_happens_next(mlops: Mlops, table: Path) -> None:
    mlops("data", "import", "iris")
    table.write_text("\n".join(table.read_text().splitlines()[:-10]))
    done = mlops("data", "commit", "iris", table, "-m", "ten [bold]fewer[/bold] [/]")
    newest = repository().log(limit=1)[0]
    assert (done.code, done.err) == (0, "")
    assert f"committed {newest.id} ten [bold]fewer[/bold] [/]" in done.out
    assert "150 rows before, 140 now" in done.out
    assert "`mlops run iris` runs what is stale now" in done.out
    assert "left to the sensor" in mlops("data", "import", "iris", "--no-push").out


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        (b"", "cannot read iris.csv as a table"),
        (b"\x00\xff\xfe", "no column 'id', the key of 'iris'"),
        (b"species,petal_length\nsetosa,1.4\n", "no column 'id', the key of 'iris'"),
        (b"id,petal_length\n1,1.4\n", "no column 'species', the target of 'iris'"),
    ],
)
def test_rubbish_is_committed_with_a_warning(mlops: Mlops, table: Path, content: bytes, warning: str) -> None:
    mlops("data", "import", "iris")
    table.write_bytes(content)
    done = mlops("data", "commit", "iris", table, "-m", "oops")
    assert done.code == 0
    assert repository().log(limit=1)[0].message == "oops"
    assert "warning: " in done.err
    assert warning in done.err


@pytest.mark.parametrize("command", ["import", "commit"])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere.csv", "nowhere.csv does not exist"),
        (".", "has no table (.csv"),
        ("flowers.parquet", "ends in '.parquet', but `path` in"),
        ("flowers.csv.gz", "give a .csv file"),
        ("flowers", "ends in ''"),
    ],
)
def test_a_wrong_file_is_one_sentence(mlops: Mlops, tmp_path: Path, command: str, name: str, sentence: str) -> None:
    repository().init()
    file = tmp_path / name
    if name.startswith("flowers"):
        file.write_bytes(b"id\n1\n")
    done = mlops("data", command, "iris", file, "-m", "wrong")
    assert done.code == 1
    assert sentence in one_sentence(done.err)
    assert repository().heads() == {}


@pytest.mark.parametrize("command", [("commit", __file__, "-m", "x"), ("log",), ("show",), ("diff",)])
def test_without_a_repository_the_sentence_says_how_to_make_one(mlops: Mlops, command: tuple[str, ...]) -> None:
    done = mlops("data", command[0], "iris", *command[1:])
    assert done.code == 1
    assert "`mlops data import iris` makes it" in one_sentence(done.err)
    assert not repository().exists()


def test_an_unknown_pipeline_is_one_sentence(mlops: Mlops) -> None:
    done = mlops("data", "log", "tulips")
    assert (done.code, "there is no pipeline 'tulips' (known: " in one_sentence(done.err)) == (1, True)


def test_without_a_file_and_without_an_origin_the_sentence_says_what_to_give(tmp_path: Path) -> None:
    pipeline = _iris_with(tmp_path, "    origin: {sample: iris}\n", "")
    said = r"'iris' has no data of its own .*`mlops data import iris PATH`$"
    with pytest.raises(intake.DataError, match=said), intake.from_origin(pipeline, ensure_home()):
        pass


def test_a_variable_of_the_origin_comes_first(tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = _iris_with(tmp_path, "origin: {sample: iris}", "origin: {sample: iris, variable: FLOWERS}")
    monkeypatch.setenv("FLOWERS", str(table.rename(table.with_name("iris.csv"))))
    with intake.from_origin(pipeline, ensure_home()) as found:
        assert found.files == {"iris.csv": table.with_name("iris.csv")}
    monkeypatch.setenv("FLOWERS", str(table))
    with pytest.raises(intake.DataError, match="does not exist"), intake.from_origin(pipeline, ensure_home()):
        pass


@pytest.mark.slow
def test_images_come_from_the_sample(mlops: Mlops) -> None:
    done = mlops("data", "import", "digits")
    assert (done.code, "no files before, 1,797 now" in done.out) == (0, True)
    shown = mlops("data", "show", "digits")
    assert (shown.code, "directory" in shown.out, "178" in shown.out) == (0, True, True)


@pytest.mark.slow
def test_images_come_from_a_directory_or_an_archive(mlops: Mlops, tmp_path: Path) -> None:
    scans = list(samples.digits().items())
    for name, images in (("forty", scans[:40]), ("thirty", scans[:30])):
        for path, image in images:
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(image)
    digits = settings().repository("digits")
    archive = shutil.make_archive(str(tmp_path / "scans"), "gztar", tmp_path / "thirty")

    done = mlops("data", "import", "digits", tmp_path / "forty")
    assert (done.code, "no files before, 40 now" in done.out) == (0, True)
    done = mlops("data", "commit", "digits", tmp_path / "thirty", "-m", "30 of them")
    assert (done.code, "40 files before, 30 now" in done.out) == (0, True)
    assert mlops("data", "diff", "digits").out.count("removed scans/") == 10
    thirty = digits.digest("scans", digits.resolve("main"))

    mlops("data", "commit", "digits", tmp_path / "forty", "-m", "all of them again")
    assert len(digits.entries("scans", digits.resolve("main"))) == 40
    assert mlops("data", "commit", "digits", archive, "-m", "30 again").code == 0
    assert digits.digest("scans", digits.resolve("main")) == thirty
    assert mlops("data", "log", "digits").out.count("30") >= 2
    missing = mlops("data", "commit", "digits", tmp_path / "nowhere", "-m", "x")
    assert "give a directory of images, or an archive of one" in one_sentence(missing.err)


def test_of_a_directory_only_the_images_are_committed(mlops: Mlops, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    for path, image in list(samples.digits().items())[:20]:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(image)
    (place / ".ssh").mkdir()
    (place / ".ssh" / "id_rsa").write_text("secret")
    (place / "notes.txt").write_text("mine")
    shutil.make_archive(str(place / "old"), "zip", place / "0")
    assert mlops("data", "import", "digits", place).code == 0
    digits = settings().repository("digits")
    kept = [one.path for one in digits.entries("", digits.resolve("main"))]
    assert kept == sorted(f"scans/{path}" for path in list(samples.digits())[:20])


def test_a_wrong_directory_commits_nothing(mlops: Mlops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "notes.txt").write_text("mine")
    monkeypatch.setenv("MLOPS_CIFAR10", str(tmp_path / "wrong"))
    done = mlops("data", "import", "cifar10")
    assert (done.code, "has no file of layout `cifar` among its 1 files" in one_sentence(done.err)) == (1, True)
    assert not settings().repository("cifar10").exists()


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.TSV.gz", "t.parquet"])
def test_a_table_is_written_as_its_name_says(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(encode(samples.iris(), name))
    assert read_table(tmp_path / name, samples.iris().schema).equals(samples.iris())
    assert encode(samples.iris(), name) == encode(samples.iris(), name)


def test_the_first_commit_to_another_branch(tmp_path: Path, mlops: Mlops) -> None:
    pipeline = _iris_with(tmp_path, "path: iris.csv", "path: iris.csv\n    branch: field")
    here = ensure_home()
    repository().init()
    for message, content in (("first", b"id,species\n1,a\n"), ("second", b"id,species\n1,b\n")):
        data._record(pipeline, here, intake.Intake({"iris.csv": content}, ""), message, launch=False)
    assert [commit.message for commit in repository().log("field")] == ["second", "first"]
    assert [commit.message for commit in repository().log("main")] == ["first"]


def test_log_and_show_by_branch_and_by_commit(mlops: Mlops, table: Path) -> None:
    mlops("data", "import", "iris")
    samples.iris().head(100).write_csv(table)
    mlops("data", "commit", "iris", table, "-m", "two species only")
    newest, oldest = repository().log()

    listed = mlops("data", "log", "iris").out
    assert listed.index(newest.id[:12]) < listed.index(oldest.id[:12])
    assert "two species only" in listed
    assert oldest.id[:12] not in mlops("data", "log", "iris", "-n", 1).out

    for revision, rows in ((newest.id, 100), ("main", 100), (oldest.id, 150), (oldest.id[:8], 150)):
        done = mlops("data", "show", "iris", "-r", revision, "-n", 2)
        assert (done.code, f"{rows} rows, 6 columns: id, sepal_length" in done.out) == (0, True)
        assert done.out.count("setosa") == 2
    assert mlops("data", "show", "iris").out.count("setosa") == 10
    assert "no branch or full commit id '0123abcd'" in one_sentence(mlops("data", "show", "iris", "-r", "0123abcd").err)
    assert "no branch or full commit id" in one_sentence(mlops("data", "show", "iris", "-r", oldest.id[:3]).err)


def test_diff_tells_files_and_rows_by_key(mlops: Mlops, table: Path) -> None:
    mlops("data", "import", "iris")
    assert "the first commit" in mlops("data", "diff", "iris").out
    samples.iris_uci().filter(pl.col("id") != 7).vstack(
        samples.iris().head(2).with_columns(id=pl.col("id") + 150)
    ).sample(fraction=1, shuffle=True, seed=1).write_csv(table)
    mlops("data", "commit", "iris", table, "-m", "changes")
    repository().commit("a note", files={"notes/README.md": b"hello", "old.txt": b"x"})
    first = repository().log()[-1].id

    newest = mlops("data", "diff", "iris").out
    assert "added notes/README.md" in newest
    assert "changed" not in newest

    lines = mlops("data", "diff", "iris", "--from", first[:8]).out.splitlines()
    assert "changed iris.csv" in lines
    assert "added old.txt" in lines
    assert "rows added: 2 (id 151, 152)" in lines or "rows added: 2 (id 152, 151)" in lines
    assert "rows removed: 1 (id 7)" in lines
    assert "rows changed: 2 (sepal_width in 1, petal_length in 1, petal_width in 1)" in lines
    assert "  id 35  petal_width: 0.2 -> 0.1" in lines
    assert "  id 38  sepal_width: 3.6 -> 3.1, petal_length: 1.4 -> 1.5" in lines

    assert "no difference" in mlops("data", "diff", "iris", "--from", "main").out


def test_diff_warns_where_rows_cannot_be_matched(mlops: Mlops, table: Path) -> None:
    mlops("data", "import", "iris")
    table.write_text("species\nsetosa\n")
    mlops("data", "commit", "iris", table, "-m", "without the key")
    done = mlops("data", "diff", "iris")
    assert (done.code, "changed iris.csv" in done.out) == (0, True)
    assert "rows cannot be compared: the later version has no key column 'id'" in done.err


def test_diff_does_not_read_what_is_too_large(mlops: Mlops, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlops("data", "import", "iris")
    samples.iris().head(99).write_csv(table)
    mlops("data", "commit", "iris", table, "-m", "fewer")
    monkeypatch.setattr(data, "LARGEST_DIFF", 1000)
    out = mlops("data", "diff", "iris").out
    assert "rows: 150 -> 99; " in out
    assert "removed:" not in out


def test_row_changes_agree_with_a_plain_comparison() -> None:
    chance = random.Random(3)
    for _ in range(50):
        before, after = (
            {key: (chance.choice([None, 1.5, math.nan]), chance.choice("ab")) for key in chance.sample(range(12), 8)}
            for _ in range(2)
        )
        frames = [
            pl.DataFrame(
                {"key": [*rows], "<key": [x for x, _ in rows.values()], "b": [y for _, y in rows.values()]},
                schema={"key": pl.Int64, "<key": pl.Float64, "b": pl.String},
            )
            for rows in (before, after)
        ]
        changes = RowChanges.between(frames[0], frames[1], "key")
        differing = {key for key in before.keys() & after.keys() if repr(before[key]) != repr(after[key])}
        assert set(changes.added) == {str(key) for key in after.keys() - before.keys()}
        assert set(changes.removed) == {str(key) for key in before.keys() - after.keys()}
        assert set(changes.changed["key"]) == {str(key) for key in differing}
        per_column = [sum(repr(before[key][i]) != repr(after[key][i]) for key in differing) for i in (0, 1)]
        assert changes.per_column == {name: n for name, n in zip(("<key", "b"), per_column, strict=True) if n}


def test_row_changes_are_bounded_for_the_eye() -> None:
    before = pl.DataFrame({"id": range(1000), **{f"c{n}": ["x" * 99] * 1000 for n in range(40)}})
    after = pl.DataFrame({"id": range(500, 1500), **{f"c{n}": ["y" * 99] * 1000 for n in range(40)}})
    lines = list(RowChanges.between(before, after, "id").lines(rows=10, columns=5, length=20))
    assert len(lines) == 2 + 1 + 10 + 1
    assert lines[0].startswith("rows added: 500 (id 1000, 1001,")
    assert lines[0].endswith("1009, and 490 more)")
    assert lines[2].endswith("c4 in 500, and 35 more)")
    assert lines[3].count("...") == 10
    assert lines[-1] == "  ... and 490 more"


def test_row_changes_over_other_columns_and_types() -> None:
    before = pl.DataFrame({"id": ["1", "2"], "a": ["1", "2"], "gone": ["", ""]})
    after = pl.DataFrame({"new": [0, 0], "a": [1, 3], "id": [1, 2]})
    lines = list(RowChanges.between(before, after, "id").lines(rows=10, columns=5, length=20))
    assert lines == ["columns added: new", "columns removed: gone", "rows changed: 1 (a in 1)", "  id 2  a: 2 -> 3"]
    same = list(RowChanges.between(before, before.reverse(), "id").lines(rows=10, columns=5, length=20))
    assert same == ["the same rows, in another order or written differently"]


@pytest.mark.parametrize(
    ("keys", "why"), [(["1", None], "without a value in the key"), (["1", "1"], "several rows of one key")]
)
def test_rows_without_a_key_of_their_own_are_not_matched(keys: list[str | None], why: str) -> None:
    good, bad = pl.DataFrame({"id": ["1", "2"]}), pl.DataFrame({"id": keys}, schema={"id": pl.String})
    with pytest.raises(NotComparable, match=f"the later version has .*{why}"):
        RowChanges.between(good, bad, "id")
    with pytest.raises(NotComparable, match=f"the earlier version has .*{why}"):
        RowChanges.between(bad, good, "id")


def _iris_with(tmp_path: Path, old: str, new: str) -> Pipeline:
    """The pipeline iris with another line in its YAML."""
    folder = tmp_path / "defs" / "iris"
    folder.mkdir(parents=True)
    text = (DEFS / "iris" / "defs.yaml").read_text()
    assert old in text
    (folder / "defs.yaml").write_text(text.replace(old, new))
    return Pipeline.load(folder)
