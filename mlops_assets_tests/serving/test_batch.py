import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from mlops_assets.data.config import ImagesConfig
from mlops_assets.data.images import SourceFile, read_images
from mlops_assets.data.readers import ReadError
from mlops_assets.serving import batch_images, batch_tables
from mlops_assets.serving.batch import PROVENANCE, score, score_images, score_table
from mlops_assets.serving.checks import InvalidInput
from mlops_assets.serving.slot import Slot
from mlops_assets_tests.serving.made import loaded, publish_images, publish_table

ROWS = 1000


@pytest.fixture
def flowers(tmp_path: Path) -> Slot:
    return loaded(tmp_path / "home", publish_table(tmp_path / "home"))


@pytest.fixture
def scans(tmp_path: Path) -> Callable[..., Slot]:
    def load(**changed: Any) -> Slot:
        return loaded(tmp_path / "home", publish_images(tmp_path / "home", **changed))

    return load


def table(rows: int = ROWS) -> pl.DataFrame:
    random = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "id": np.arange(rows) + 5,
            "length": random.uniform(1, 9, rows),
            "width": random.uniform(1, 9, rows),
            "count": random.integers(0, 9, rows),
            "colour": random.choice(["red", "blue"], rows),
            "remark": "not for the model",
        }
    )


def pictures(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def write_folder(folder: Path, pixels: NDArray[np.uint8]) -> None:
    folder.mkdir()
    for number, each in enumerate(pixels):
        Image.fromarray(each[..., 0]).save(folder / f"{number:03d}.png")


def write(frame: pl.DataFrame, path: Path) -> None:
    if path.suffix == ".parquet":
        frame.write_parquet(path, row_group_size=300)
        return
    text = frame.write_csv(separator="\t" if ".tsv" in path.name else ",").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.parquet"])
def test_a_table_gets_the_answers_of_the_slot_in_its_order(name: str, flowers: Slot, tmp_path: Path) -> None:
    rows, target = table(), tmp_path / "out.parquet"
    write(rows, tmp_path / name)

    scored = score_table(flowers, tmp_path / name, target, chunk_rows=128)

    answer = flowers.answer(flowers.from_frame(rows))
    found = pl.read_parquet(target)
    assert found.columns == ["key", "label", "probability", "p_setosa", "p_versicolor", "p_virginica", "model_version"]
    assert found["key"].cast(pl.Int64).to_list() == rows["id"].to_list()
    assert found["label"].to_list() == answer.labels
    np.testing.assert_allclose(found.select("^p_.*$").to_numpy(), answer.probabilities, atol=1e-6)
    np.testing.assert_allclose(found["probability"], answer.probabilities.max(axis=1), atol=1e-6)
    assert found["model_version"].unique().to_list() == [1]
    assert scored.rows == ROWS
    assert scored.labels == {label: answer.labels.count(label) for label in sorted(set(answer.labels))}


def test_rows_without_a_key_are_numbered(flowers: Slot, tmp_path: Path) -> None:
    write(table(10).drop("id"), tmp_path / "a.csv")

    score(flowers, tmp_path / "a.csv", tmp_path / "out.parquet")

    assert pl.read_parquet(tmp_path / "out.parquet")["row"].to_list() == list(range(1, 11))


def test_predictions_say_what_made_them(flowers: Slot, tmp_path: Path) -> None:
    write(table(10), tmp_path / "a.csv")

    score(flowers, tmp_path / "a.csv", tmp_path / "out.parquet", facts={"input": "abc"})

    told = json.loads(pq.read_metadata(tmp_path / "out.parquet").metadata[PROVENANCE.encode()])
    assert told["input"] == "abc"
    assert (told["pipeline"], told["version"], told["model_digest"]) == ("flowers", 1, flowers.model_digest)
    assert told["contract"] == flowers.folder.name


def test_the_size_of_chunks_changes_nothing(flowers: Slot, tmp_path: Path) -> None:
    write(table(50), tmp_path / "a.parquet")

    for chunk_rows in (1, 7, 100_000):
        score_table(flowers, tmp_path / "a.parquet", tmp_path / f"{chunk_rows}.parquet", chunk_rows=chunk_rows)

    one, seven, all_at_once = (pl.read_parquet(tmp_path / f"{rows}.parquet") for rows in (1, 7, 100_000))
    assert one.drop("^p.*$").equals(all_at_once.drop("^p.*$"))
    np.testing.assert_allclose(one["probability"], all_at_once["probability"], atol=1e-6)
    np.testing.assert_allclose(seven["probability"], all_at_once["probability"], atol=1e-6)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_refused_row_is_named_by_its_place_in_the_file(name: str, flowers: Slot, tmp_path: Path) -> None:
    rows = table().with_columns(pl.when(pl.col("id") == 705).then(-3.0).otherwise("width").alias("width"))
    write(rows, tmp_path / name)

    with pytest.raises(InvalidInput, match=r"^new/it, row 701, column 'width': -3.0 is refused by in_range") as caught:
        score_table(flowers, tmp_path / name, tmp_path / "out.parquet", name="new/it", chunk_rows=64)

    assert (caught.value.row, caught.value.field) == (700, "width")
    assert {path.name for path in tmp_path.iterdir()} == {"home", name}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a.csv is empty"),
        (b"length,width,length\n1,2,3\n", "a.csv: the header repeats 'length'"),
        (b"length,width,colour\n1,2,red\n1,2\n", "a.csv, line 3: 2 of 3 values"),
        (b"length,width,colour\n1,2,red\n1,2,\xff\n", "a.csv is not UTF-8"),
        (b"length,width,colour\n1,2,r\0d\n", "a.csv is not text: it has a zero byte"),
        (b'length,width,remark\n1,2,red\n1,2,"red\n1,2,red\n', "a.csv, line 3: a quotation mark opens here"),
        (b"length,colour\n1,red\n", "a.csv: column 'width' is missing"),
        (b"length,width,colour\n1,2,red\n1,x,red\n", "a.csv, row 2, column 'width': 'x' is not Float64"),
        (b"length,width,colour\n1,2,red\n1,,red\n", "a.csv, row 2, column 'width': a value is needed"),
    ],
)
def test_what_is_no_table_for_the_version_is_refused(content: bytes, said: str, flowers: Slot, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)

    with pytest.raises((ReadError, InvalidInput)) as caught:
        score_table(flowers, tmp_path / "a.csv", tmp_path / "out.parquet", name="a.csv")

    assert str(caught.value).startswith(said)
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(("name", "said"), [("a.csv.gz", "not a gzip file"), ("a.parquet", "not a Parquet file")])
def test_a_damaged_file_is_refused(name: str, said: str, flowers: Slot, tmp_path: Path) -> None:
    write(table(), tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-40])

    with pytest.raises(ReadError, match=said):
        score_table(flowers, tmp_path / name, tmp_path / "out.parquet")


def test_text_is_read_as_the_dataset_is(flowers: Slot, tmp_path: Path) -> None:
    """A byte order mark, blank lines, blanks around values, quoted line ends, no line end at the end."""
    text = '\ufeff\n\nlength, width ,colour,remark\n 1, 2.5 ,,"a\n""b"" 5"\n\n3,4,red,5" long'
    (tmp_path / "a.csv").write_text(text)

    score_table(flowers, tmp_path / "a.csv", tmp_path / "out.parquet")

    rows = pl.DataFrame({"length": [1.0, 3.0], "width": [2.5, 4.0], "colour": [None, "red"]})
    expected = flowers.answer(flowers.from_frame(rows)).probabilities
    np.testing.assert_allclose(pl.read_parquet(tmp_path / "out.parquet").select("^p_.*$"), expected, atol=1e-6)


def test_a_table_longer_than_a_block_is_read_whole(
    flowers: Slot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_tables, "_BLOCK", 1000)
    write(table(), tmp_path / "a.csv")

    score_table(flowers, tmp_path / "a.csv", tmp_path / "out.parquet")

    assert pl.read_parquet(tmp_path / "out.parquet")["key"].cast(pl.Int64).to_list() == table()["id"].to_list()


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_table_without_rows_gives_predictions_without_rows(name: str, flowers: Slot, tmp_path: Path) -> None:
    write(table(0), tmp_path / name)

    assert score_table(flowers, tmp_path / name, tmp_path / "out.parquet").rows == 0

    assert "p_setosa" in pl.read_parquet(tmp_path / "out.parquet").columns


def test_progress_counts_rows(flowers: Slot, tmp_path: Path) -> None:
    write(table(300), tmp_path / "a.parquet")
    told: list[int] = []

    score_table(flowers, tmp_path / "a.parquet", tmp_path / "out.parquet", chunk_rows=100, on_progress=told.append)

    assert told == [100, 200, 300]


@pytest.mark.parametrize("ending", ["idx3-ubyte", "idx3-ubyte.gz"])
def test_an_idx_file_is_scored_in_pieces(ending: str, scans: Callable[..., Slot], tmp_path: Path) -> None:
    slot, pixels = scans(images={"layout": "idx", "mode": "L"}), pictures(50)
    data = bytes([0, 0, 8, 3]) + b"".join(side.to_bytes(4, "big") for side in (50, 8, 8)) + pixels.tobytes()
    path = tmp_path / f"new-{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)

    scored = score(slot, path, tmp_path / "out.parquet")
    score_images(slot, path, tmp_path / "small.parquet", chunk_rows=7)

    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found["label"].to_list() == slot.answer(pixels).labels
    assert found.drop("^p.*$").equals(pl.read_parquet(tmp_path / "small.parquet").drop("^p.*$"))
    assert scored.rows == 50


@pytest.mark.parametrize(("cut", "said"), [(64, "49 images, not the 50"), (1, "ends within an image")])
def test_an_idx_file_that_is_cut_is_refused(cut: int, said: str, scans: Callable[..., Slot], tmp_path: Path) -> None:
    data = bytes([0, 0, 8, 3]) + b"".join(side.to_bytes(4, "big") for side in (50, 8, 8)) + pictures(50).tobytes()
    (tmp_path / "a-idx3-ubyte").write_bytes(data[:-cut])

    with pytest.raises(ReadError, match=said):
        score(scans(images={"layout": "idx", "mode": "L"}), tmp_path / "a-idx3-ubyte", tmp_path / "out.parquet")


def test_a_refused_image_of_an_idx_file_is_named(scans: Callable[..., Slot], tmp_path: Path) -> None:
    pixels = pictures(50)
    pixels[30] = 0  # the schema wants a mean above 5
    data = bytes([0, 0, 8, 3]) + b"".join(side.to_bytes(4, "big") for side in (50, 8, 8)) + pixels.tobytes()
    (tmp_path / "a-idx3-ubyte").write_bytes(data)

    with pytest.raises(InvalidInput, match=r"^it, row 31, column 'mean': 0.0 is refused"):
        score_images(
            scans(images={"layout": "idx", "mode": "L"}),
            tmp_path / "a-idx3-ubyte",
            tmp_path / "out.parquet",
            name="it",
            chunk_rows=8,
        )


def test_a_binary_batch_of_cifar_is_read_as_the_dataset_is(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    records = random.integers(0, 256, (20, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (tmp_path / name).write_bytes(records.tobytes())
    files = [SourceFile(path.name, "", 0, path.read_bytes) for path in tmp_path.glob("*.bin")]
    for mode, channels in (("RGB", 3), ("L", 1)):
        expected = read_images(files, ImagesConfig(layout="cifar", mode=mode)).images.pixels[:20]
        with (tmp_path / "data_batch_1.bin").open("rb") as stream:
            found = np.concatenate([*batch_images._cifar(stream, "it", 6, channels, 1)])
        assert found.shape == (20, 32, 32, channels)
        np.testing.assert_array_equal(found, expected)


def test_image_files_are_scored_by_path_and_bad_ones_left_out(scans: Callable[..., Slot], tmp_path: Path) -> None:
    slot, pixels = scans(), pictures(70)
    write_folder(tmp_path / "new", pixels)
    (tmp_path / "new" / "040.png").write_bytes(b"no image")
    Image.new("L", (8, 9), 100).save(tmp_path / "new" / "041.png")
    Image.new("L", (8, 8), 0).save(tmp_path / "new" / "042.png")
    (tmp_path / "new" / "notes.txt").write_text("no image by its name")

    scored = score(slot, tmp_path / "new", tmp_path / "out.parquet")

    good = [number for number in range(70) if number not in {40, 41, 42}]
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found["key"].to_list() == [f"{number:03d}.png" for number in good]
    assert found["label"].to_list() == slot.answer(pixels[good]).labels
    assert scored.rows == 67
    assert [one.partition(" is refused")[0] for one in scored.refused] == [
        "040.png: cannot be read: not an image of a known kind",
        "041.png: has 9 x 8 pixels (height x width), not 8 x 8",
        "042.png, column 'mean': 0.0",
    ]


def test_images_that_were_scored_before_are_not_decoded_again(scans: Callable[..., Slot], tmp_path: Path) -> None:
    slot, pixels = scans(), pictures(10)
    write_folder(tmp_path / "new", pixels)
    files = batch_images.image_files(tmp_path / "new")
    score_images(slot, tmp_path / "new", tmp_path / "before.parquet")
    before = pl.read_parquet(tmp_path / "before.parquet")
    hashes = dict(before.select("key", "file").iter_rows())
    now = [one._replace(hash=hashes[one.path]) for one in files[:5]]

    def never() -> bytes:
        raise AssertionError("a known image was read")

    moved = now[0]._replace(path="moved.png", read=never)
    extra = io.BytesIO()
    Image.new("L", (8, 8), 77).save(extra, "png")
    added = now[0]._replace(path="added.png", hash="new", read=extra.getvalue)

    scored = score_images(slot, [moved, *now[1:], added], tmp_path / "after.parquet", known=before)

    after = pl.read_parquet(tmp_path / "after.parquet")
    assert after["key"].to_list() == ["moved.png", "001.png", "002.png", "003.png", "004.png", "added.png"]
    assert after["label"][:5].to_list() == before["label"][:5].to_list()
    assert (scored.rows, scored.known) == (6, 5)
    assert sum(scored.labels.values()) == 6


def test_a_file_of_no_known_kind_is_refused(scans: Callable[..., Slot], flowers: Slot, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for slot in (scans(), flowers):
        with pytest.raises(ReadError, match=r"a.txt .*name"):
            score(slot, tmp_path / "a.txt", tmp_path / "out.parquet")


def test_a_folder_of_bad_images_alone_gives_an_output_to_build_on(scans: Callable[..., Slot], tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.png").write_bytes(b"no image")

    assert score(scans(), tmp_path / "new", tmp_path / "out.parquet").rows == 0

    assert pl.read_parquet(tmp_path / "out.parquet").columns[:3] == ["key", "file", "label"]


def test_a_failure_while_writing_leaves_nothing(flowers: Slot, tmp_path: Path) -> None:
    write(table(), tmp_path / "a.csv")

    with pytest.raises(FileNotFoundError):
        score_table(flowers, tmp_path / "a.csv", tmp_path / "missing" / "out.parquet", chunk_rows=10)
