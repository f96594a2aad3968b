"""A pipeline of images: what is decoded, what is told, and what stops it."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_assets.data import samples
from mlops_assets.pipeline import STAGES, Pipeline
from mlops_assets.provenance import asset_key, latest_metadata, read_state
from mlops_assets.store import Store
from mlops_assets_tests.loop import Loop, made, trainings

pytestmark = [
    pytest.mark.slow,
    # Observable source assets are beta in Dagster 1.13; `dg.load_from_defs_folder` silences the same warnings.
    pytest.mark.filterwarnings(
        "ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning"
    ),
    pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning"),  # Dagster's own use of it
]


def scans(images: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"scans/{path}": image for path, image in images.items()}


def told(loop: Loop, stage: str) -> dict[str, object]:
    (found,) = latest_metadata(loop.instance, [asset_key("digits", stage)])  # type: ignore[arg-type]
    return {name: value.value for name, value in found.items()}


def test_only_what_changed_is_decoded_and_a_revert_decodes_nothing(digits: Loop) -> None:
    first = samples.digits()
    dataset = told(digits, "dataset")
    assert (dataset["images decoded"], dataset["images reused"]) == (1797, 0)
    assert dataset["dagster/row_count"] == 1797
    state = read_state(digits.instance, "digits")

    changed = samples.digits_changed()
    assert len(changed) == 18
    digits.repository.commit("18 scans made again", files=scans(changed))
    assert digits.settle() == list(STAGES)
    dataset = told(digits, "dataset")
    assert (dataset["images decoded"], dataset["images reused"]) == (18, 1779)
    assert (dataset["files added"], dataset["files removed"], dataset["files changed"]) == (0, 0, 18)

    digits.repository.commit("back", files=scans(first))
    assert digits.settle() == list(STAGES)
    again = read_state(digits.instance, "digits")
    assert {stage: again[stage].digest for stage in STAGES[:4]} == {stage: state[stage].digest for stage in STAGES[:4]}
    assert trainings(digits) == 2


def test_a_test_image_among_the_training_images_is_a_warning(digits: Loop) -> None:
    images = samples.digits()
    content = images["5/" + _first(images, "5/")]
    digits.repository.commit("copies", files=scans({f"5/copy{number}.png": content for number in range(20)}))
    result = digits.run([asset_key("digits", "dataset"), asset_key("digits", "features")])
    assert result.success
    checks = {one.check_name: one for one in result.get_asset_check_evaluations()}
    assert set(checks) == {"schema", "target", "label_shift", "features", "leaks"}
    assert not checks["leaks"].passed
    assert not checks["leaks"].blocking
    assert "equal training images" in str(checks["leaks"].description)


def test_files_added_and_removed_are_told(digits: Loop) -> None:
    images = samples.digits()
    gone = sorted(path for path in images if path.startswith("3/"))[:2]
    digits.repository.commit(
        "two went, one came",
        files={"scans/4/new.png": images["4/" + next(p for p in images if p.startswith("4/")).removeprefix("4/")]},
        remove=[f"scans/{path}" for path in gone],
    )
    digits.run([asset_key("digits", "dataset")])
    dataset = told(digits, "dataset")
    assert (dataset["files added"], dataset["files removed"], dataset["files changed"]) == (1, 2, 0)
    assert all(path in str(dataset["changed files"]) for path in ["scans/4/new.png", *(f"scans/{one}" for one in gone)])
    assert dataset["images decoded"] == 0, "the new file has the content of one that was there"


def test_a_damaged_image_is_named_and_stops_everything(digits: Loop) -> None:
    images = samples.digits()
    before = read_state(digits.instance, "digits")
    digits.repository.commit("half a file", files=scans({"7/broken.png": images["7/" + _first(images, "7/")][:40]}))
    request = digits.tick()
    assert not isinstance(request, str)
    result = digits.run(list(request.asset_selection or []), request.tags)
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_failure_data.user_failure_data
    assert "7/broken.png" in str(failure.step_failure_data.user_failure_data.description)
    assert read_state(digits.instance, "digits")["champion"].event_id == before["champion"].event_id


def test_a_blank_scan_fails_the_schema_and_the_champion_stays(digits: Loop) -> None:
    from PIL import Image

    blank = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(blank, "PNG")
    digits.repository.commit("a blank one", files=scans({"0/blank.png": blank.getvalue()}))
    request = digits.tick()
    assert not isinstance(request, str)
    result = digits.run(list(request.asset_selection or []), request.tags)
    (failed,) = [one for one in result.get_asset_check_evaluations() if not one.passed and one.blocking]
    assert failed.check_name == "schema"
    assert "mean" in str(failed.description)
    assert made(result) == ["dataset"]
    assert "blocked: " in str(digits.tick())


def test_another_decoding_decodes_everything_again_and_is_not_shown_to_the_champion(digits: Loop) -> None:
    digits.edit("defs.yaml", "{layout: folder, mode: L}", "{layout: folder, mode: L, size: [16, 16]}")
    assert digits.settle() == list(STAGES)
    assert told(digits, "dataset")["images decoded"] == 1797
    assert told(digits, "features")["image shape"] == "(1797, 16, 16, 1)"
    assert "paired rows" in str(told(digits, "champion")["outcome"]), "by its own stored predictions"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("images[:5]", "returned uint8 (5, 8, 8, 1); return a numpy array of uint8, (1797, height, width, channels)"),
        ("images / 255", "returned float64 (1797, 8, 8, 1)"),
        ("None", "returned NoneType"),
    ],
)
def test_a_features_function_that_returns_no_images_is_one_sentence(digits: Loop, body: str, said: str) -> None:
    digits.edit("features.py", "return images", f"return {body}")
    result = digits.run([asset_key("digits", "dataset"), asset_key("digits", "features")])
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_failure_data.user_failure_data
    assert said in str(failure.step_failure_data.user_failure_data.description)


def test_a_damaged_last_version_is_decoded_again(digits: Loop) -> None:
    images = samples.digits()
    entry = Store(digits.here.store_url).get("digits/dataset", read_state(digits.instance, "digits")["dataset"].recipe)
    for file in Path(entry.url).rglob("images.safetensors"):
        file.chmod(0o644)
        file.write_bytes(b"rubbish")
    digits.repository.commit("one more", files=scans({"1/more.png": images["1/" + _first(images, "1/")]}))
    result = digits.run([asset_key("digits", "dataset")])
    assert result.success
    assert told(digits, "dataset")["images decoded"] == 1797


def test_a_source_that_changes_before_the_training_leaves_no_checkpoint(
    digits: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits.edit("defs.yaml", "epochs: 3", "epochs: 4")
    load = Pipeline.function

    def edited_meanwhile(pipeline: Pipeline, kind: str) -> Any:
        if kind == "model":
            digits.edit("model.py", "dropout=dropout", "dropout=0.9")
        return load(pipeline, kind)  # type: ignore[arg-type]

    monkeypatch.setattr(Pipeline, "function", edited_meanwhile)
    monkeypatch.setattr("mlops_assets.training.trainer._prepared", None)  # whoever trains fails otherwise
    result = digits.run([asset_key("digits", "model")])
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_failure_data.user_failure_data
    assert "changed while it ran" in str(failure.step_failure_data.user_failure_data.description)
    assert not list((digits.here.home / "checkpoints").glob("*"))


def _first(images: Mapping[str, bytes], folder: str) -> str:
    return next(path for path in sorted(images) if path.startswith(folder)).removeprefix(folder)
