"""What is kept in a contract beside columns: images, the code, and the JSON itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandera.polars as pa
import polars as pl
import pytest
from numpy.typing import NDArray

from mlops_assets.assets.contract import SAMPLE_FEATURES, begun
from mlops_assets.data.config import ImagesConfig
from mlops_assets.fingerprint import PACKAGE_ROOT, SourceError
from mlops_assets.pipeline import Pipeline
from mlops_assets.serving import CONTRACT
from mlops_assets.serving.contract import Contract, ContractError, RawContract
from mlops_assets.serving.contract_making import collect_sources, images_contract
from mlops_assets_tests.serving.made import table_contract as made_contract
from mlops_assets_tests.serving.test_contract import REST, inputs_of, table

IMAGES = ImagesConfig(layout="folder", mode="L")


def image_contract_of(
    features: Callable[[NDArray[np.uint8]], Any],
    images: ImagesConfig = IMAGES,
    shape: tuple[int, ...] = (8, 8, 1),
    columns: dict[str, pa.Column] | None = None,
) -> tuple[RawContract, NDArray[np.uint8]]:
    pixels = np.random.default_rng(1).integers(0, 256, (30, *shape), dtype=np.uint8)
    pixels.setflags(write=False)
    frame = pl.DataFrame(
        {
            "row": [f"{index}.png" for index in range(30)],
            "label": [index % 3 for index in range(30)],
            "height": pl.repeat(28, 30, dtype=pl.Int32, eager=True),
            "width": pl.repeat(28, 30, dtype=pl.Int32, eager=True),
            "mean": pl.Series(pixels.reshape(30, -1).mean(axis=1), dtype=pl.Float32),
        }
    )
    return images_contract(
        pixels=pixels,
        made=np.ascontiguousarray(features(pixels)),
        table=frame,
        features=features,
        schema=pa.DataFrameSchema(columns or {}),
        images=images,
        key="row",
        target="label",
        **REST,
    )


def test_images_keep_a_sample_of_their_pixels() -> None:
    contract, x = image_contract_of(lambda images: 255 - images[:, ::2])
    rows = RawContract.model_validate_json(contract.to_bytes()).sample_rows()
    assert isinstance(rows, np.ndarray)
    assert (rows.shape, contract.image_shape, contract.unservable) == ((3, 8, 8, 1), (8, 8, 1), "")
    np.testing.assert_array_equal(255 - rows[:, ::2], x)
    large, _ = image_contract_of(lambda images: images, shape=(600, 600, 3))
    assert len(large.sample) == 2
    assert len(large.to_bytes()) < 4e6


def fails_on_few(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if len(images) < 20:
        raise RuntimeError("too few")
    return images


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (lambda images: (images - images.min(axis=0)).astype(np.uint8), "something else of an image alone"),
        (fails_on_few, "RuntimeError: too few"),
        (lambda images: images if len(images) > 1 else images[0], "made uint8"),
        (lambda images: images if len(images) > 20 else images.astype(float), "made float64"),
    ],
)
def test_image_features_that_an_image_alone_does_not_have(features: Any, reason: str) -> None:
    contract, _ = image_contract_of(features)
    assert reason in contract.unservable
    assert contract.sample == ()


def test_sizes_before_a_resize_are_not_asked_of_requests() -> None:
    columns = {"height": pa.Column(pl.Int32, pa.Check.ge(20)), "mean": pa.Column(pl.Float32, pa.Check.gt(1))}
    assert list(inputs_of(image_contract_of(lambda one: one, columns=columns)[0])) == ["height", "mean"]
    resized = ImagesConfig(layout="folder", mode="L", size=(8, 8))
    assert list(inputs_of(image_contract_of(lambda one: one, resized, columns=columns)[0])) == ["mean"]


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_code_is_kept_with_all_that_it_imports(tmp_path: Path) -> None:
    root = write(
        tmp_path / "defs",
        {
            "flowers/features.py": (
                "from .lib import scale\nfrom ..iris import shared\n\ndef f():\n    from . import late\n"
            ),
            "flowers/schema.py": "import numpy\n",
            "flowers/lib/__init__.py": "from .scaling import scale\n",
            "flowers/lib/scaling.py": "import math\r\n",
            "flowers/late.py": "",
            "flowers/unused.py": "",
            "flowers/__init__.py": "from .setup import ready\n",
            "flowers/setup.py": "ready = 'ä'\n",
            "iris/shared.py": "from . import deeper\n",
            "iris/deeper.py": "",
        },
    )
    found = collect_sources([root / "flowers/features.py", root / "flowers/schema.py"], root)
    expected = {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.py")}
    del expected["flowers/unused.py"]
    assert found == expected
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    "line",
    [
        "from mlops_assets.defs.iris.features import features",
        "import mlops_assets.defs.iris.features as other",
        "from mlops_assets.defs.iris import features",
        "from mlops_assets.defs import iris",
    ],
)
def test_other_pipelines_are_imported_relatively(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = PACKAGE_ROOT / "defs"
    file = write(tmp_path, {"features.py": f"{line}\n"}) / "features.py"
    with pytest.raises(ContractError, match="which is not below"):
        collect_sources([file], root)
    from mlops_assets.serving.contract_making import _require_relative

    with pytest.raises(ContractError, match=r"imports mlops_assets\.defs.*; import it relatively"):
        _require_relative("flowers/features.py", f"def f():\n    {line}\n", root)


def test_code_that_is_no_utf8_or_no_python(tmp_path: Path) -> None:
    root = write(tmp_path, {"flowers/broken.py": "def ("})
    (root / "flowers/latin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'ä'\n".encode("latin-1"))
    with pytest.raises(ContractError, match=r"flowers/latin.py is not UTF-8"):
        collect_sources([root / "flowers/latin.py"], root)
    with pytest.raises(SourceError, match="not valid Python"):
        collect_sources([root / "flowers/broken.py"], root)


SPEC = """
type: mlops_assets.component.ModelPipeline
attributes:
  data: {path: data.csv, key: id, target: species, classes: ["0", "1", "2"]}
  split: {salt: s, test: 0.2, validation: 0.2}
  gate: {condition: n > 0.5, reliability: 0.9}
"""


def test_a_pipeline_whose_code_cannot_be_kept_is_trained_all_the_same(tmp_path: Path) -> None:
    kept = "from .late import by_row\n\n\ndef features(frame):\n    return by_row(frame)\n"
    stray = f"import mlops_assets_tests.serving.test_contract\n{kept}"
    late = "import polars as pl\n\n\ndef by_row(frame):\n    return frame.select('id', 'species', 'length')\n"
    schema = "import pandera.polars as pa\n\n\ndef schema():\n    return pa.DataFrameSchema({})\n"
    for name, text in (("kept", kept), ("stray", stray)):
        folder = write(tmp_path / name, {"features.py": text, "late.py": late, "schema.py": schema, "defs.yaml": SPEC})
        pipeline = Pipeline.load(folder)
        function = pipeline.function("features")
        files = begun(pipeline, table(), function(table()), None, function)
        contract = RawContract.model_validate_json(files[CONTRACT])
        assert set(files) == {CONTRACT, SAMPLE_FEATURES}
        if name == "kept":
            assert contract.unservable == ""
            assert set(contract.sources) == {"kept/features.py", "kept/late.py", "kept/schema.py"}
        else:
            assert "features.py imports mlops_assets_tests/__init__.py, which is not below" in contract.unservable
            assert (contract.sources, contract.sample) == ({}, ())


def test_a_contract_is_read_back_or_refused_in_one_sentence() -> None:
    contract, _ = made_contract()
    assert Contract.read(contract.to_bytes(), "here") == contract
    raw = json.loads(contract.to_bytes())
    damaged: dict[bytes, str] = {
        b"": "as a whole: Invalid JSON",
        b"\xff\xfe\x00": "as a whole: Invalid JSON",
        b"[]": "as a whole",
        b"{}": "pipeline: Field required",
        contract.to_bytes()[:-40]: "as a whole: Invalid JSON",
        json.dumps({**raw, "format": 2}).encode(): "format: Input should be 1",
        json.dumps({**raw, "answers": [["x"]]}).encode(): "answers.0.0: Input should be a valid number",
    }
    for data, reason in damaged.items():
        with pytest.raises(ContractError) as refused:
            Contract.read(data, "/home/contract.json")
        sentence = str(refused.value)
        assert sentence.startswith("/home/contract.json is no serving contract of this release")
        assert reason in sentence
        assert "\n" not in sentence
