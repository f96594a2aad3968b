import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from mlops_assets.oxen.repository import Repository
from mlops_assets.serving import batch_run
from mlops_assets.serving.batch_plan import look
from mlops_assets.serving.batch_run import Round
from mlops_assets.serving.slot import Slot
from mlops_assets.spec import PipelineSpec
from mlops_assets.store import Store
from mlops_assets_tests.serving.made import loaded, publish_images, publish_table

pytestmark = pytest.mark.slow

# Oxen syncs every file it writes, which on a busy disk takes longer than all the rest of these tests.
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


@dataclass
class Batch:
    """A repository, a store and a pipeline, scored round by round."""

    home: Path
    spec: PipelineSpec

    @property
    def repository(self) -> Repository:
        return Repository(self.home / "oxen" / "it", timeout=60)

    @property
    def store(self) -> Store:
        return Store(str(self.home / "store"))

    def commit(self, **files: bytes | None) -> None:
        self.put({name.replace("_csv", ".csv"): content for name, content in files.items()})

    def put(self, files: dict[str, bytes | None]) -> None:
        added = {f"incoming/{name}": content for name, content in files.items() if content is not None}
        gone = [f"incoming/{name}" for name, content in files.items() if content is None]
        assert self.repository.commit("arrived", files=added, remove=gone)

    def run(self, slot: Slot) -> Round:
        return batch_run.run(slot, self.repository, self.spec, self.store, self.home)

    def predictions(self) -> dict[str, bytes]:
        commit = self.repository.resolve("main")
        entries = self.repository.entries("", commit)
        return {
            entry.path.removeprefix("predictions/"): self.repository.read(entry)
            for entry in entries
            if entry.path.startswith("predictions/")
        }

    def commits(self) -> int:
        return len(self.repository.log())


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A home with a repository of one commit."""
    with tempfile.TemporaryDirectory(prefix="mlops-test-", dir=MEMORY) as place:
        repository = Repository(Path(place) / "oxen" / "it")
        repository.init()
        repository.commit("first", files={"other.txt": b"another's"})
        yield Path(place)


@pytest.fixture
def folder(template: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mlops-test-", dir=MEMORY) as place:
        yield Path(shutil.copytree(template, place, dirs_exist_ok=True))


TABLE: dict[str, object] = {"path": "flowers.csv", "key": "id", "target": "species"}


@pytest.fixture
def flowers(folder: Path) -> Batch:
    return batch(folder, TABLE)


def batch(folder: Path, data: dict[str, object], path: str = "incoming") -> Batch:
    spec = PipelineSpec.model_validate(
        {
            "data": {"classes": ["a", "b"], **data},
            "split": {"salt": "s"},
            "gate": {"condition": "n > 0.5"},
            "predictions": {"path": path},
        }
    )
    return Batch(folder, spec)


def slot(made: Batch, version: int = 1) -> Slot:
    return loaded(made.home, publish_table(made.home, version))


def rows(count: int, *, first: int = 0, width: float = 2.0) -> bytes:
    lines = [f"{first + number},{1 + number % 7},{width},3,red" for number in range(count)]
    return "\n".join(["id,length,width,count,colour", *lines, ""]).encode()


def test_new_files_are_scored_into_one_commit_with_what_made_them(flowers: Batch) -> None:
    flowers.put({"a.csv": rows(5), "deep/b.csv": rows(7), "notes.txt": b"no table"})

    done = flowers.run(slot(flowers))

    assert done.commit is not None
    assert flowers.commits() == 3
    assert sorted(flowers.predictions()) == ["a.csv.parquet", "deep/b.csv.parquet", "manifest.json"]
    assert pl.read_parquet(flowers.predictions()["a.csv.parquet"])["key"].to_list() == ["0", "1", "2", "3", "4"]
    told = json.loads(flowers.predictions()["manifest.json"])["files"]
    (entry,) = flowers.repository.entries("incoming/a.csv", done.commit.id)
    assert told["incoming/a.csv"]["input"] == entry.hash
    assert told["incoming/a.csv"]["model_digest"] == slot(flowers).model_digest
    assert (told["incoming/deep/b.csv"]["rows"], told["incoming/deep/b.csv"]["version"]) == (7, 1)
    assert (done.rows, done.kept, done.look.others) == (12, 0, 1)
    assert not (flowers.home / "scoring" / "flowers").exists()


def test_nothing_new_commits_nothing(flowers: Batch) -> None:
    flowers.commit(a_csv=rows(5))
    flowers.run(slot(flowers))
    before = flowers.repository.resolve("main")

    done = flowers.run(slot(flowers))

    assert (done.commit, done.kept, done.rows) == (None, 1, 0)
    assert flowers.repository.resolve("main") == before


def test_without_the_path_there_is_nothing_to_do(flowers: Batch) -> None:
    done = flowers.run(slot(flowers))

    assert (done.commit, done.look.units, done.manifest.files) == (None, {}, {})
    assert flowers.commits() == 1


@pytest.mark.slow
def test_only_what_changed_is_scored(flowers: Batch) -> None:
    flowers.commit(a_csv=rows(5), b_csv=rows(6))
    flowers.run(slot(flowers))
    flowers.commit(b_csv=rows(60), c_csv=rows(100))

    done = flowers.run(slot(flowers))

    assert (done.rows, done.kept, sorted(done.records)) == (160, 1, ["incoming/b.csv", "incoming/c.csv"])
    assert pl.read_parquet(flowers.predictions()["b.csv.parquet"]).height == 60


def test_predictions_of_inputs_that_are_gone_go_too(flowers: Batch) -> None:
    flowers.put({"a.csv": rows(5), "deep/b.csv": rows(6)})
    flowers.run(slot(flowers))
    flowers.put({"deep/b.csv": None})

    done = flowers.run(slot(flowers))

    assert done.removed == ("predictions/deep/b.csv.parquet",)
    assert sorted(flowers.predictions()) == ["a.csv.parquet", "manifest.json"]
    assert done.rows == 0


@pytest.mark.slow
def test_the_last_input_gone_leaves_an_empty_manifest(flowers: Batch) -> None:
    flowers.commit(a_csv=rows(5))
    flowers.run(slot(flowers))
    flowers.commit(a_csv=None)

    assert flowers.run(slot(flowers)).commit
    assert flowers.run(slot(flowers)).commit is None
    assert sorted(flowers.predictions()) == ["manifest.json"]


def test_another_champion_scores_again_and_a_rollback_finds_what_it_scored(flowers: Batch) -> None:
    flowers.commit(a_csv=rows(5), b_csv=rows(6))
    flowers.run(slot(flowers, 1))
    first = flowers.predictions()

    second = flowers.run(slot(flowers, 2))
    assert second.rows == 11
    assert flowers.predictions()["a.csv.parquet"] != first["a.csv.parquet"]
    back = flowers.run(slot(flowers, 1))

    assert (back.rows, {*back.reused}) == (0, {"incoming/a.csv", "incoming/b.csv"})
    assert back.commit is not None
    assert flowers.predictions() == first


@pytest.mark.slow
def test_a_lost_manifest_costs_a_commit_and_no_scoring(flowers: Batch) -> None:
    flowers.commit(a_csv=rows(5))
    flowers.run(slot(flowers))
    before = flowers.predictions()
    for files in ({}, {"predictions/manifest.json": b"{"}):
        flowers.repository.commit("damage", files=files, remove=[] if files else ["predictions/manifest.json"])

        done = flowers.run(slot(flowers))

        assert (done.rows, {*done.reused}) == (0, {"incoming/a.csv"})
        assert flowers.predictions() == before


@pytest.mark.slow
def test_predictions_that_somebody_removed_come_back(flowers: Batch) -> None:
    flowers.commit(a_csv=rows(5))
    flowers.run(slot(flowers))
    flowers.repository.commit("oops", remove=["predictions/a.csv.parquet"])

    assert flowers.run(slot(flowers)).rows == 0

    assert "a.csv.parquet" in flowers.predictions()


@pytest.mark.slow
def test_damaged_predictions_in_the_store_are_made_again(flowers: Batch) -> None:
    flowers.commit(a_csv=rows(5))
    flowers.run(slot(flowers, 1))
    flowers.run(slot(flowers, 2))
    for stored in (flowers.home / "store").rglob("predictions.parquet"):
        stored.write_bytes(stored.read_bytes()[:-1] + b"x")

    back = flowers.run(slot(flowers, 1))

    assert (back.rows, len(back.reused)) == (5, 0)
    assert pl.read_parquet(flowers.predictions()["a.csv.parquet"]).height == 5


@pytest.mark.slow
def test_equal_files_are_scored_once(flowers: Batch) -> None:
    flowers.commit(a_csv=rows(5), b_csv=rows(5))

    assert flowers.run(slot(flowers)).rows == 5

    assert sorted(flowers.predictions()) == ["a.csv.parquet", "b.csv.parquet", "manifest.json"]


def test_a_bad_row_refuses_its_file_alone_and_once(flowers: Batch) -> None:
    flowers.commit(a_csv=rows(5), b_csv=rows(5, width=-1.0))

    done = flowers.run(slot(flowers))

    (sentence,) = done.refusals
    assert sentence.startswith("incoming/b.csv, row 1, column 'width': -1.0 is refused by in_range")
    assert sorted(flowers.predictions()) == ["a.csv.parquet", "manifest.json"]
    assert done.manifest.files["incoming/b.csv"].rows_refused == 5

    again = flowers.run(slot(flowers))
    assert (again.commit, again.records, again.refusals) == (None, {}, [sentence])

    flowers.commit(b_csv=rows(5, width=2.5))
    mended = flowers.run(slot(flowers))
    assert (mended.refusals, mended.rows) == ([], 5)


@pytest.mark.slow
def test_a_file_that_turns_bad_loses_its_old_predictions(flowers: Batch) -> None:
    flowers.commit(a_csv=rows(5))
    flowers.run(slot(flowers))
    flowers.commit(a_csv=rows(5, width=-1.0))

    assert flowers.run(slot(flowers)).removed == ("predictions/a.csv.parquet",)


@pytest.mark.slow
def test_what_others_commit_meanwhile_stays(flowers: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a file is scored, somebody adds one, replaces one and removes one, also of those that are scored."""
    flowers.commit(a_csv=rows(5), b_csv=rows(6), c_csv=rows(7))
    flowers.run(slot(flowers, 1))
    publish = batch_run._publish

    def others_first(*arguments: object) -> object:
        monkeypatch.undo()
        flowers.commit(a_csv=None, b_csv=rows(66), d_csv=rows(8))
        flowers.repository.commit("theirs", files={"other.txt": b"changed"}, remove=["predictions/a.csv.parquet"])
        return publish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(batch_run, "_publish", others_first)

    flowers.run(slot(flowers, 2))
    done = flowers.run(slot(flowers, 2))

    assert sorted(done.records) == ["incoming/b.csv", "incoming/d.csv"]
    assert sorted(flowers.predictions()) == ["b.csv.parquet", "c.csv.parquet", "d.csv.parquet", "manifest.json"]
    assert {one.version for one in done.manifest.files.values()} == {2}
    (other,) = flowers.repository.entries("other.txt", flowers.repository.resolve("main"))
    assert flowers.repository.read(other) == b"changed"


@pytest.mark.slow
def test_a_path_may_be_one_file(folder: Path) -> None:
    flowers = batch(folder, TABLE, "incoming/a.csv")
    flowers.commit(a_csv=rows(5), b_csv=rows(6))

    assert flowers.run(slot(flowers)).rows == 5

    assert sorted(flowers.predictions()) == ["a.csv.parquet", "manifest.json"]


@pytest.mark.slow
def test_what_is_wanted_is_told_without_scoring(flowers: Batch) -> None:
    flowers.commit(a_csv=rows(5), b_csv=rows(5, width=-1.0))
    version = slot(flowers)
    flowers.run(version)
    flowers.commit(c_csv=rows(9))
    found = look(flowers.repository, flowers.spec)

    (unit,) = found.wanted(version.model_digest, version.folder.name)

    assert (unit.path, unit.output) == ("incoming/c.csv", "predictions/c.csv.parquet")
    assert found.wanted(version.model_digest) == [unit]
    assert len(found.wanted("another", version.folder.name)) == 3
    assert len(found.wanted(version.model_digest, "another")) == 3
    assert found.gone == []
    flowers.commit(a_csv=None, b_csv=None)
    assert look(flowers.repository, flowers.spec).gone == ["incoming/a.csv", "incoming/b.csv"]


@pytest.mark.slow
def test_only_new_images_of_a_directory_are_scored(folder: Path) -> None:
    made = batch(folder, {"path": "scans", "images": {"layout": "folder", "mode": "L"}})
    version = loaded(folder, publish_images(folder))
    made.put({f"mon/{number}.png": picture(number) for number in range(4)})
    assert made.run(version).rows == 4
    made.put({"mon/4.png": picture(4), "mon/bad.png": b"no image", "mon/0.png": None, "top.png": picture(9)})

    done = made.run(version)

    assert done.rows == 2
    assert sorted(made.predictions()) == ["images.parquet", "manifest.json", "mon/images.parquet"]
    scored = pl.read_parquet(made.predictions()["mon/images.parquet"])
    assert sorted(scored["key"]) == ["1.png", "2.png", "3.png", "4.png"]
    assert done.refusals == ["incoming/mon/bad.png: cannot be read: not an image of a known kind"]
    assert done.manifest.files["incoming/mon"].rows_refused == 1


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(50, 200, (8, 8), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


SCORE = """
import sys
from pathlib import Path
from mlops_assets.serving import batch
from mlops_assets.serving.pointer import read_pointer
from mlops_assets.spec import PipelineSpec
from mlops_assets_tests.serving.test_batch_run import Batch, loaded
home, score = Path(sys.argv[1]), batch.score
def slowly(*arguments, **keywords):
    done = score(*arguments, **keywords)
    print("scored", flush=True)
    sys.stdin.readline()
    return done
batch.score = slowly
made = Batch(home, PipelineSpec.model_validate_json(sys.argv[2]))
made.run(loaded(home, read_pointer(home / "serving/flowers/current.json")))
"""


@pytest.mark.slow
def test_a_kill_at_any_point_loses_at_most_the_unfinished_file(flowers: Batch) -> None:
    flowers.put({f"{number}.csv": rows(10, first=number * 100) for number in range(6)})
    slot(flowers)
    for _ in range(2):  # each is killed before it keeps the third file that it has scored
        with started(flowers) as process:
            assert process.stdin
            assert process.stdout
            for number in range(3):
                assert process.stdout.readline().strip() == "scored"
                if number < 2:
                    print(file=process.stdin, flush=True)  # it goes on
            os.kill(process.pid, signal.SIGKILL)
    with started(flowers) as process:
        output, _ = process.communicate(timeout=60)

    assert output.count("scored") == 2  # of 6: each killed one had finished two
    assert len(flowers.predictions()) == 7
    assert not (flowers.home / "scoring" / "flowers").exists()


def started(made: Batch) -> subprocess.Popen[str]:
    call = [sys.executable, "-c", SCORE, str(made.home), made.spec.model_dump_json(by_alias=True)]
    pipe = subprocess.PIPE
    return subprocess.Popen(call, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[2])
