"""Edge bundles: they answer as the served version does, with next to nothing installed, and overwrite no folder."""

import base64
import hashlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from mlops_assets.deploy import edge
from mlops_assets.deploy.edge import EdgeError, fresh_bundle, is_plain, write_onnx
from mlops_assets.serving.slot import Slot
from mlops_assets_tests.serving.made import IMAGE_FEATURES, TABLE_FEATURES, loaded, publish_images, publish_table

pytestmark = pytest.mark.slow

NEGATIVE = IMAGE_FEATURES.replace("return images", "return 255 - images")


def table_slot(home: Path, features: str | None = None) -> Slot:
    slot = loaded(home, publish_table(home))
    if features:  # as if the version had been trained with other code than it was loaded with
        sources = {**slot.contract.sources, "flowers/features.py": features}
        slot.contract = slot.contract.model_copy(update={"sources": sources})
    return slot


def write(slot: Slot, out: Path, *, force: bool = False) -> Path:
    with fresh_bundle(out, force=force) as folder:
        write_onnx(slot, (slot.folder / edge.MODEL).read_bytes(), folder)
    return out


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Slot, Path]:
    home = tmp_path_factory.mktemp("images")
    slot = loaded(home, publish_images(home))
    return slot, write(slot, home / "bundle")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Slot, Path]:
    home = tmp_path_factory.mktemp("table")
    slot = table_slot(home)
    return slot, write(slot, home / "bundle")


def bare(tmp_path: Path, *packages: str) -> dict[str, str]:
    """An environment for `python -S` in which nothing can be imported beside the standard library and packages."""
    place = tmp_path / "packages"
    place.mkdir(parents=True)
    for package in packages:
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        for part in (
            folder,
            folder.with_name(f"{package}.libs"),
            folder.with_name(f"{package.replace('PIL', 'pillow')}.libs"),
        ):
            if part.is_dir() and not (place / part.name).exists():
                (place / part.name).symlink_to(part)
    return {"PYTHONPATH": str(place), "PATH": os.environ["PATH"], "PYTHONIOENCODING": "utf-8"}


def predict(bundle: Path, *arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", *(["-S"] if env else []), str(bundle / "predict.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=env, timeout=120, check=False)


Refusal = Callable[[Path, Path], str]


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """What `predict.py` says of a file that it refuses, in this process: starting another takes a third of a second."""

    def call(bundle: Path, file: Path) -> str:
        monkeypatch.setattr(sys, "argv", ["predict.py", str(file)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "modules", dict(sys.modules))
        assert runpy.run_path(str(bundle / "predict.py"))["main"]() == 1
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    return call


def answers(bundle: Path, *files: object, env: dict[str, str] | None = None) -> np.ndarray:
    done = predict(bundle, *files, "--json", env=env)
    assert done.returncode == 0, done.stderr
    return np.array([list(json.loads(line)["probabilities"].values()) for line in done.stdout.splitlines()])


def test_a_bare_python_is_bare(tmp_path: Path) -> None:
    tried = (
        "import importlib.util as u; print([n for n in ('numpy', 'PIL', 'polars', 'mlops_assets') if u.find_spec(n)])"
    )
    command = [sys.executable, "-S", "-c", tried]
    env = bare(tmp_path, "onnxruntime", "numpy")
    assert (
        subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=True).stdout
        == "['numpy']\n"
    )


def test_images_are_classified_by_onnxruntime_and_numpy_alone(images: tuple[Slot, Path], tmp_path: Path) -> None:
    slot, bundle = images
    env = bare(tmp_path, "onnxruntime", "numpy")
    wanted = np.array(slot.contract.answers)
    np.testing.assert_allclose(answers(bundle, bundle / "sample.npy", env=env), wanted, atol=1e-5)
    shown = predict(bundle, bundle / "sample.npy", env=env).stdout
    assert shown.splitlines()[0].split("\t") == ["sample.npy[0]", str(wanted[0].argmax()), f"{wanted[0].max():.4f}"]
    assert shown in (bundle / "README.md").read_text()


def test_image_files_need_pillow_and_become_pixels_as_on_the_platform(
    images: tuple[Slot, Path], tmp_path: Path
) -> None:
    slot, bundle = images
    rgba = np.random.default_rng(3).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    file, data = tmp_path / "scan.png", io.BytesIO()
    Image.fromarray(rgba).save(data, "PNG")
    file.write_bytes(data.getvalue())
    wanted = slot.answer(slot.from_files([data.getvalue()])).probabilities
    found = answers(bundle, file, env=bare(tmp_path, "onnxruntime", "numpy", "PIL"))
    np.testing.assert_allclose(found, wanted, atol=1e-5)

    done = predict(bundle, file, env=bare(tmp_path / "without", "onnxruntime", "numpy"))
    assert done.returncode == 1
    assert done.stderr == f"error: {file} needs PIL to be decoded: install Pillow, or give pixels as .npy\n"


@pytest.mark.parametrize("shape", [(2, 9, 8, 1), (2, 8, 8, 3), (8, 8)])
def test_pixels_of_another_shape_are_refused(
    images: tuple[Slot, Path], tmp_path: Path, refusal: Refusal, shape: tuple[int, ...]
) -> None:
    np.save(tmp_path / "odd.npy", np.zeros(shape, np.uint8))
    assert f"{shape}, not uint8 of shape (rows, 8, 8, 1)" in refusal(images[1], tmp_path / "odd.npy")


def test_what_is_no_image_is_refused(images: tuple[Slot, Path], tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "scan.npy").write_bytes(b"numbers, or so")
    assert "scan.npy is no .npy file of numbers: " in refusal(images[1], tmp_path / "scan.npy")
    (tmp_path / "scan.png").write_bytes(b"GIF87a, or so")
    assert "scan.png cannot be decoded: " in refusal(images[1], tmp_path / "scan.png")


def test_image_code_goes_with_the_bundle(tmp_path: Path) -> None:
    sources = {"scans/features.py": NEGATIVE}
    # answers are those of the images as they are; the sample is such that its features are
    images = np.random.default_rng(7).integers(0, 256, size=(3, 8, 8, 1), dtype=np.uint8)
    sample = [base64.b64encode((255 - one).tobytes()).decode() for one in images]
    pointer = publish_images(tmp_path, sources={**sources, "scans/schema.py": ""}, sample=sample)
    slot = loaded(tmp_path, pointer)
    assert not is_plain(slot)
    bundle = write(slot, tmp_path / "bundle")
    assert (bundle / "source/scans/features.py").read_text() == NEGATIVE
    env = bare(tmp_path, "onnxruntime", "numpy")
    np.testing.assert_allclose(answers(bundle, bundle / "sample.npy", env=env), slot.contract.answers, atol=1e-5)


def test_feature_rows_are_classified_by_onnxruntime_and_numpy_alone(table: tuple[Slot, Path], tmp_path: Path) -> None:
    slot, bundle = table
    env = bare(tmp_path, "onnxruntime", "numpy")
    np.testing.assert_allclose(answers(bundle, bundle / "sample.csv", env=env), slot.contract.answers, atol=1e-5)
    shuffled = pl.read_csv(bundle / "sample.csv").select("red", "area", pl.lit("x").alias("note"), "width", "length")
    shuffled.write_csv(tmp_path / "rows.csv")
    np.testing.assert_allclose(answers(bundle, tmp_path / "rows.csv", env=env), slot.contract.answers, atol=1e-5)


def test_raw_rows_need_polars_and_the_code_of_the_version(table: tuple[Slot, Path], tmp_path: Path) -> None:
    slot, bundle = table
    np.testing.assert_allclose(answers(bundle, bundle / "sample-raw.csv"), slot.contract.answers, atol=1e-5)
    done = predict(bundle, bundle / "sample-raw.csv", env=bare(tmp_path, "onnxruntime", "numpy"))
    assert done.returncode == 1
    assert "install polars, or give the features (length, width, area, red)" in done.stderr


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("length,width,area\n1,2,2\n", "lacks colour"),
        ("length,width,area,red\n1,2,2,1\n1,wide,2,1\n", "row 1: 'width' is no number"),
        ("length,width,area,red\n1,2\n", "row 0: 'area' is no number"),
        ("length,width,area,red\n1,2,inf,1\n", "row 0: feature 'area' is not a finite number"),
        ("length,width,colour\n1,wide,red\n", "cannot be read: "),
        ("", "lacks length, width, colour"),
        (b"length,width\xff\n", "can't decode byte"),
    ],
)
def test_rows_that_cannot_be_read_are_refused(
    table: tuple[Slot, Path], tmp_path: Path, refusal: Refusal, text: str | bytes, reason: str
) -> None:
    (tmp_path / "rows.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    assert reason in refusal(table[1], tmp_path / "rows.csv")


def test_sums_are_of_all_files_and_equal_versions_give_equal_bundles(table: tuple[Slot, Path], tmp_path: Path) -> None:
    slot, bundle = table
    lines = (bundle / edge.SUMS).read_text().splitlines()
    told = {name: digest for digest, name in (line.split("  ") for line in lines)}
    there = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert set(told) == there - {edge.SUMS}
    assert all(hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest for name, digest in told.items())
    assert (write(slot, tmp_path / "again") / edge.SUMS).read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (
            TABLE_FEATURES.replace('area=product("length", "width")', 'area=pl.col("length")'),
            "predict.py answers sample-raw.csv otherwise than the platform does; nothing was written",
        ),
        ("import not_there\n", "fails on sample-raw.csv (the features code needs not_there: install it)"),
        ("def features(frame):\n    return frame['size']\n", "the features code fails: ColumnNotFoundError"),
    ],
)
def test_what_answers_otherwise_than_the_platform_is_not_written(tmp_path: Path, features: str, reason: str) -> None:
    with pytest.raises(EdgeError, match=re.escape(reason)):
        write(table_slot(tmp_path, features), tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["serving"]


@pytest.mark.parametrize(
    ("features", "plain"),
    [
        ("frame", True),
        ("frame.select('id', 'red', 'area', 'width', 'length')", True),
        ("frame.with_columns(pl.col('length').clip(0, 15))", False),
        ("frame.with_columns(pl.col('length').abs())", False),
        ("frame.with_columns(pl.col('length') / (pl.col('length') > 0))", False),
    ],
)
def test_features_are_plain_when_no_row_changes(tmp_path: Path, features: str, plain: bool) -> None:
    names = ("length", "width", "area", "red")
    rows = ((5.1, 3.5, 5.1 * 3.5, 1.0), (6.2, 2.2, 6.2 * 2.2, 0.0), (4.0, 1.0, 4.0, 0.0))
    code = f"import polars as pl\n\n\ndef features(frame):\n    return {features}\n"
    pointer = publish_table(
        tmp_path,
        inputs=[{"name": name, "dtype": "Float64"} for name in names],
        sample=[dict(zip(names, row, strict=True)) for row in rows],
        sources={"flowers/features.py": code, "flowers/schema.py": ""},
    )
    assert is_plain(loaded(tmp_path, pointer)) is plain


def fill(out: Path, text: str, *, force: bool = False) -> None:
    with fresh_bundle(out, force=force) as folder:
        (folder / edge.ABOUT).write_text(json.dumps({"format": edge.FORMAT, "text": text}))


def test_only_a_bundle_is_replaced_and_only_on_demand(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "bundle"
    fill(out, "first")
    with pytest.raises(EdgeError, match=r"is there already; --force replaces the bundle"):
        fill(out, "second")
    fill(out, "second", force=True)
    assert "second" in (out / edge.ABOUT).read_text()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(EdgeError, match=r"is not replaced: notes.txt in it is not of the bundle; choose another --out"):
        fill(out, "third", force=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("all I have")
    with pytest.raises(EdgeError, match="it is not a bundle of this command"):
        fill(tmp_path / "thesis", "third", force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeError, match="it is not a bundle of this command"):
        fill(tmp_path / "file", "third", force=True)
    assert "second" in (out / edge.ABOUT).read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "file", "thesis"]
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_a_failure_leaves_the_earlier_bundle(tmp_path: Path) -> None:
    def fail(out: Path) -> None:
        with fresh_bundle(out, force=True) as folder:
            (folder / "half").write_text("")
            raise KeyboardInterrupt

    out = tmp_path / "bundle"
    fill(out, "first")
    with pytest.raises(KeyboardInterrupt):
        fail(out)
    assert "first" in (out / edge.ABOUT).read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_place_below_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeError, match=r"cannot be written: .*; mend its rights or choose another place"):
        fill(tmp_path / "file" / "bundle", "first")
