"""`mlops new` for a directory or an archive of images."""

import io
import shutil
from pathlib import Path

import dagster as dg
import pytest
from PIL import Image

from mlops_assets.cli import new
from mlops_assets.cli.new import NewError, Table, write_pipeline
from mlops_assets.data import samples
from mlops_assets.errors import MlopsError
from mlops_assets.gate.condition import parse
from mlops_assets.pipeline import DEFS, Pipeline
from mlops_assets.settings import Settings, settings
from mlops_assets_tests.cli.pipelines import defs, here, instance, run

__all__ = ["defs", "here", "instance"]

pytestmark = [
    # Observable source assets are beta in Dagster 1.13; `dg.load_from_defs_folder` silences the same warnings.
    pytest.mark.filterwarnings(
        "ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning"
    ),
    pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning"),  # Dagster's own use of it
]


def write_scans(place: Path, count: int = 300, *, size: int = 8) -> None:
    """Some of the digits as files, each in its class's directory."""
    for path, content in list(samples.digits().items())[:: 1797 // count]:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        if size == 8:
            (place / path).write_bytes(content)
        else:
            Image.open(io.BytesIO(content)).resize((size, size + 2)).save(place / path)


@pytest.fixture
def image_defs(defs: Path) -> Path:
    shutil.copytree(DEFS / "digits", defs / "digits", ignore=shutil.ignore_patterns("__pycache__"))
    return defs


@pytest.mark.parametrize(("size", "said"), [(8, None), (300, [64, 64])])
def test_a_pipeline_for_images_says_what_they_are(
    here: Settings, image_defs: Path, tmp_path: Path, size: int, said: list[int] | None
) -> None:
    write_scans(tmp_path / "photos", 100, size=size)
    (tmp_path / "photos" / "README.txt").write_text("mine")
    folder = new.write_image_pipeline("shoes", "iris", tmp_path / "photos", here, defs=image_defs)
    pipeline = Pipeline.load(folder)
    images = pipeline.spec.data.images
    assert images is not None
    assert (images.layout, images.mode, images.size) == ("folder", "L", said)
    assert pipeline.spec.data.classes == [str(number) for number in range(10)]
    files = here.repository("shoes").entries("images", here.repository("shoes").resolve("main"))
    assert len(files) == len(list((tmp_path / "photos").rglob("*.png")))
    assert parse(pipeline.spec.gate.condition)


@pytest.mark.parametrize("kind", ["one class", "no class", "damaged", "empty"])
def test_images_that_teach_nothing_leave_nothing(here: Settings, image_defs: Path, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "photos"
    write_scans(place, 100)
    if kind == "one class":
        for number in range(1, 10):
            shutil.rmtree(place / str(number))
    elif kind == "no class":
        (place / "stray.png").write_bytes(next(place.rglob("*.png")).read_bytes())
    elif kind == "damaged":
        next(place.rglob("*.png")).write_bytes(b"\x89PNG")
    else:
        shutil.rmtree(place)
        place.mkdir()
    with pytest.raises(MlopsError) as refused:
        new.write_image_pipeline("shoes", "digits", place, here, defs=image_defs)
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in image_defs.iterdir()) == ["digits", "iris"]
    assert not here.repository("shoes").exists()


@pytest.mark.slow
def test_a_pipeline_for_images_runs_as_it_is(instance: dg.DagsterInstance, image_defs: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "photos", 600)
    archive = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "photos"))
    here = settings()
    checks = run(new.write_image_pipeline("shoes", "digits", archive, here, defs=image_defs), instance, here)
    assert all(passed for passed, _ in checks.values()), checks
    assert "n > 0.10 holds" in checks["gate"][1]


def test_a_table_is_not_learned_like_images(here: Settings, image_defs: Path, tmp_path: Path) -> None:
    samples.iris().write_csv(tmp_path / "flowers.csv")
    with pytest.raises(NewError, match=r"'digits' is a pipeline of images .* --like iris"):
        write_pipeline("flowers", "digits", Table(tmp_path / "flowers.csv", "species"), here, defs=image_defs)
    assert not (image_defs / "flowers").exists()
