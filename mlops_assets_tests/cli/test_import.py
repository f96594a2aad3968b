"""`mlops data import` through each door, as a person types it."""

import shutil
import sqlite3
from pathlib import Path

import polars as pl
import pytest

from mlops_assets import doors
from mlops_assets.cli import intake
from mlops_assets.cli.new_query import write_queried_pipeline
from mlops_assets.data import samples
from mlops_assets.data.config import SourceConfig
from mlops_assets.data.query import QueryError
from mlops_assets.data.readers import read_table
from mlops_assets.intake import commit
from mlops_assets.oxen.repository import Repository
from mlops_assets.pipeline import Pipeline
from mlops_assets.settings import Settings, settings
from mlops_assets.spec import SourceSpec
from mlops_assets.spec_file import load_spec
from mlops_assets_tests.cli.conftest import Ended, Mlops
from mlops_assets_tests.cli.pipelines import defs, here
from mlops_assets_tests.data.test_download import serving

__all__ = ["defs", "here"]


def repository() -> Repository:
    return settings().repository("iris")


def head(place: Path) -> pl.DataFrame:
    return read_table(repository().materialize("iris.csv", repository().resolve("main"), place / "cache"))


def sentence(done: Ended) -> str:
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert "hunter" not in done.out + done.err
    return done.err.strip()


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    """Three tables of 50 flowers each, a hidden file and a note."""
    folder = tmp_path / "exports"
    folder.mkdir()
    for number, name in enumerate(("b.csv", "a.csv", "c.csv")):
        samples.iris().slice(50 * number, 50).write_csv(folder / name)
    (folder / ".a.csv.swp").write_text("x")
    (folder / ".hidden.csv").write_text("x\n1\n")
    (folder / "notes.txt").write_text("mine")
    return folder


def test_a_folder_is_one_table_in_the_order_of_names(mlops: Mlops, exports: Path, tmp_path: Path) -> None:
    done = mlops("data", "import", "iris", exports)
    assert (done.code, "no rows before, 150 now" in done.out) == (0, True)
    assert repository().log()[0].message == "import 3 files of exports"
    numbers = (*range(51, 101), *range(1, 51), *range(101, 151))
    assert head(tmp_path)["id"].to_list() == [str(number) for number in numbers]
    assert "nothing changed" in mlops("data", "import", "iris", *sorted(exports.glob("[a-c].csv"))).out


def test_a_folder_that_cannot_be_one_table_is_one_sentence(mlops: Mlops, exports: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no table (.csv" in sentence(mlops("data", "import", "iris", tmp_path / "empty"))
    (exports / "b.csv").write_text("id,species\n1,setosa\n")
    assert "b.csv has no column 'sepal_length', which a.csv has" in sentence(mlops("data", "import", "iris", exports))
    (exports / "b.csv").write_bytes(b"\xff\xfe\x00")
    assert "b.csv is not UTF-8 text" in sentence(mlops("data", "import", "iris", exports))
    (exports / "b.csv").unlink()
    (exports / "b.csv").symlink_to(exports / "nowhere")
    (exports / "a.csv").unlink()
    (exports / "c.csv").unlink()
    assert "has no table" in sentence(mlops("data", "import", "iris", exports))
    assert not repository().exists()


def test_a_query_is_imported_and_says_where_it_came_from(
    mlops: Mlops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(tmp_path / "flowers.db") as made:
        made.execute(f"CREATE TABLE flowers ({', '.join(samples.iris().columns)})")
        made.executemany("INSERT INTO flowers VALUES (?, ?, ?, ?, ?, ?)", samples.iris().reverse().rows())
    made.close()
    monkeypatch.setenv("FLOWERS", f"sqlite:///{tmp_path}/flowers.db")
    monkeypatch.chdir(tmp_path)
    Path("flowers.sql").write_text("SELECT *\nFROM flowers\n")
    asked = ("data", "import", "iris", "--sql", "@flowers.sql", "--database", "FLOWERS")
    done = mlops(*asked)
    assert (done.code, "no rows before, 150 now" in done.out) == (0, True)
    assert head(tmp_path).equals(samples.iris().select(pl.all().cast(pl.String)))
    message = repository().log()[0].message
    assert message == f"import 150 rows from sqlite:///{tmp_path}/flowers.db (FLOWERS): SELECT * FROM flowers"
    assert "(FLOWERS): SELECT" in mlops("data", "log", "iris").out
    assert "nothing changed" in mlops(*asked).out

    assert "no column 'id' to be the key" in sentence(
        mlops("data", "import", "iris", "--sql", "SELECT species FROM flowers", "--database", "FLOWERS")
    )
    assert len(repository().log()) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sql", "SELECT 1"), "`sql` needs `database`"),
        (("--database", "FLOWERS"), "give one of folder, sql and url (got none)"),
        (("--sql", "SELECT 1", "--database", "postgresql://u:hunter2@h/d"), "--database: the name of an environment"),
        (("--sql", "SELECT 1", "--database", "NOT_SET"), "the environment variable NOT_SET is not set; it must hold"),
        (("--sql", "@nowhere.sql", "--database", "FLOWERS"), "nowhere.sql cannot be read (No such file"),
        (("--url", "https://u:hunter2@h/x.csv"), "--url: user and password do not belong into an address"),
        (("--url", "http://127.0.0.1:1/x.parquet"), "'x.parquet' at the address ends in '.parquet', which cannot"),
        (("--url", "http://h/x.csv", "--token", "NOT_SET"), "the environment variable NOT_SET is not set"),
        (("x.csv", "--url", "http://h/x.csv"), "x.csv and --sql or --url are both given"),
    ],
)
def test_options_that_lead_nowhere_are_one_sentence(mlops: Mlops, options: tuple[str, ...], said: str) -> None:
    assert said in sentence(mlops("data", "import", "iris", *options))
    assert not repository().exists()


@pytest.mark.slow
def test_an_address_may_hold_a_table_json_lines_or_an_archive(
    mlops: Mlops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    place = tmp_path / "data" / "below"
    place.mkdir(parents=True)
    for number in range(3):
        samples.iris().slice(50 * number, 50).write_csv(place / f"{number}.csv")
    archive = Path(shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path / "data"))
    rows = samples.iris().with_columns(pl.col("sepal_length").round(1))
    contents = {
        "iris.csv": rows.write_csv().encode(),
        "export": rows.write_csv().encode(),
        "iris.jsonl": rows.write_ndjson().encode(),
        "iris.zip": archive.read_bytes(),
    }
    with serving() as server:
        for name, content in contents.items():
            server.content = content
            done = mlops("data", "import", "iris", "--url", server.url.replace("file.tar.gz", name))
            assert done.code == 0, done.err
            assert head(tmp_path).equals(rows.select(pl.all().cast(pl.String))), name
        again = mlops("data", "import", "iris", "--url", server.url.replace("file.tar.gz", "iris.zip"))
        assert "nothing changed: the address has what iris has already" in again.out
        server.content, server.etag = b"\x00", '"two"'
        assert "is damaged, or no archive" in sentence(
            mlops("data", "import", "iris", "--url", server.url.replace("file.tar.gz", "iris.zip"))
        )
    assert not [path for path in (settings().home / "downloads").rglob("*") if path.suffix == ".csv"]


def test_a_query_becomes_a_pipeline_that_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defs: Path, here: Settings
) -> None:
    with sqlite3.connect(tmp_path / "flowers.db") as made:
        made.execute(f"CREATE TABLE flowers ({', '.join(samples.iris().columns)})")
        made.executemany("INSERT INTO flowers VALUES (?, ?, ?, ?, ?, ?)", samples.iris().rows())
    made.close()
    monkeypatch.setenv("FLOWERS", f"sqlite:///{tmp_path}/flowers.db")
    source = SourceConfig(sql="SELECT *\nFROM flowers", database="FLOWERS")
    folder = write_queried_pipeline("flowers", "iris", source, here, columns=("species", ""), defs=defs)
    data = load_spec(folder / "defs.yaml").data
    assert (data.path, data.key, data.target) == ("flowers.parquet", "id", "species")
    assert data.source == SourceSpec(sql="SELECT *\nFROM flowers", database="FLOWERS")
    (first,) = here.repository("flowers").log()
    assert first.message.endswith("(FLOWERS): SELECT * FROM flowers")
    pipeline = Pipeline.load(folder)
    with doors.opened(
        pipeline, data.source, here.repository("flowers"), here.home, tell=print, meter=intake.meter
    ) as found:
        assert found is not None
        assert commit(here.repository("flowers"), pipeline, found, "again") is None
    with pytest.raises(QueryError, match="no column 'customer' to be the key"):
        write_queried_pipeline("others", "iris", source, here, columns=("species", "customer"), defs=defs)
    assert not (defs / "others").exists()


def test_new_says_what_a_query_needs(mlops: Mlops) -> None:
    done = mlops("new", "flowers", "--sql", "SELECT 1", "--database", "FLOWERS")
    assert "--sql needs --target COLUMN" in sentence(done)
