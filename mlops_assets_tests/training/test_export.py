import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from mlops_assets.training.architectures import MLP, AlexNet, ResNet9, SmallCNN
from mlops_assets.training.export import (
    TOLERANCE,
    ExportError,
    ExportMismatch,
    load_weights,
    load_weights_bytes,
    save_weights,
    to_onnx,
    weights_digest,
)
from mlops_assets.training.predict import predict
from mlops_assets_tests.training.problems import Digits, digits_images, digits_rows, filled, iris_rows

pytestmark = pytest.mark.slow

MIXED = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "steps": torch.tensor(7),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "mask": torch.tensor([True, False]),
    "none": torch.zeros(0, 3),
}


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(MIXED, path)
    back = load_weights(path)
    assert {name: (value.dtype, value.shape) for name, value in back.items()} == {
        name: (value.dtype, value.shape) for name, value in MIXED.items()
    }
    assert weights_digest(back) == weights_digest(MIXED) == weights_digest(load_weights_bytes(path.read_bytes()))
    assert [each.name for each in tmp_path.iterdir()] == ["w.safetensors"]


def test_equal_weights_give_equal_files_whatever_their_layout(tmp_path: Path) -> None:
    turned = {name: MIXED[name] for name in reversed(MIXED)}
    turned["a"] = MIXED["a"].T.contiguous().T
    save_weights(MIXED, tmp_path / "one")
    save_weights(turned, tmp_path / "other")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert weights_digest(turned) == weights_digest(MIXED)


@pytest.mark.parametrize(
    "change",
    [
        {"a": MIXED["a"] + torch.eye(2, 3) * 1e-6},
        {"a": MIXED["a"].reshape(3, 2)},
        {"a": MIXED["a"].to(torch.float64)},
        {"mask": torch.tensor([1, 0], dtype=torch.uint8)},
        {"more": torch.tensor(0)},
    ],
)
def test_any_change_changes_the_digest(change: dict[str, Tensor]) -> None:
    assert weights_digest({**MIXED, **change}) != weights_digest(MIXED)


def test_the_digest_is_the_same_everywhere() -> None:
    assert weights_digest({"a": MIXED["a"]}) == "75d625ae322e3785e2f121121f9116fc"


def test_a_file_that_is_no_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"\x80\x04nothing")
    for name in ("w", "none"):
        with pytest.raises(ExportError, match=str(tmp_path / name)):
            load_weights(tmp_path / name)


def logits_of(module: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return copy.deepcopy(module).eval()(torch.tensor(x)).numpy()


def test_an_export_answers_like_the_module_for_any_number_of_rows(tmp_path: Path) -> None:
    rows, validation = digits_rows()
    module = filled(Digits()).train()
    before = weights_digest(module.state_dict())
    report = to_onnx(module, rows.x[:2], tmp_path / "m.onnx")
    assert report.max_difference < TOLERANCE * np.abs(logits_of(module, rows.x)).max()
    assert report.batch_sizes == (1, 2, 7, 32)
    assert module.training
    assert weights_digest(module.state_dict()) == before
    expected = torch.softmax(torch.tensor(logits_of(module, validation.x)), dim=1).numpy()
    for n in (1, 5, 200):
        np.testing.assert_allclose(predict(tmp_path / "m.onnx", validation.x[:n]), expected[:n], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (SmallCNN, (8, 8, 1)),
        (SmallCNN, (7, 5, 3)),
        (AlexNet, (32, 32, 3)),
        (ResNet9, (32, 32, 3)),
        (ResNet9, (9, 8, 1)),
    ],
)
def test_networks_for_images_take_raw_pixels_in_any_number(
    tmp_path: Path, network: type[nn.Module], shape: tuple[int, int, int]
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (70, *shape), dtype=np.uint8)
    torch.manual_seed(0)
    module = network(shape, 10)
    module.layers[0].adapt(torch.tensor(x))
    report = to_onnx(module, x[:2], tmp_path / "m.onnx")
    assert report.batch_sizes == (1, 2, 7, 32)
    session = onnx.load(tmp_path / "m.onnx")
    assert session.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    expected = torch.softmax(torch.tensor(logits_of(module, x)), dim=1).numpy()
    for n in (1, 5, 70):
        np.testing.assert_allclose(predict(tmp_path / "m.onnx", x[:n]), expected[:n], atol=1e-4)
    assert predict(tmp_path / "m.onnx", x[:0]).shape == (0, 10)


def test_pixels_of_trained_weights_are_scaled_in_the_exported_model(tmp_path: Path) -> None:
    rows, validation = digits_images()
    module = SmallCNN((8, 8, 1), 10, channels=(8,))
    to_onnx(module, rows.x, tmp_path / "before.onnx")
    module.layers[0].adapt(torch.tensor(rows.x))
    to_onnx(module, rows.x, tmp_path / "after.onnx")
    before, after = (predict(tmp_path / f"{name}.onnx", validation.x) for name in ("before", "after"))
    assert np.abs(before - after).max() > 0.01


def test_the_file_is_self_contained_and_speaks_of_no_machine(tmp_path: Path) -> None:
    rows, _ = iris_rows()
    report = to_onnx(filled(MLP(4, 3)), rows.x, tmp_path / "m.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert ([each.name for each in model.graph.input], [each.name for each in model.graph.output]) == (
        ["input"],
        ["logits"],
    )
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert report.opset == model.opset_import[0].version
    content = (tmp_path / "m.onnx").read_bytes()
    assert b".py" not in content
    to_onnx(filled(MLP(4, 3)), rows.x, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == content


class Noisy(nn.Linear):
    """Adds noise also when evaluated."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand_like(x[:, :1])


class Branching(nn.Linear):
    """Decides in Python by a value."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class FixedBatch(nn.Linear):
    """Takes two rows, no more and no fewer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(2, 4))


@pytest.mark.parametrize(
    ("module", "error"),
    [(Noisy(4, 3), ExportMismatch), (Branching(4, 3), ExportError), (FixedBatch(4, 3), ExportError)],
)
def test_what_would_answer_otherwise_is_never_written(
    tmp_path: Path, module: nn.Module, error: type[ExportError]
) -> None:
    with pytest.raises(error, match=type(module).__name__) as caught:
        to_onnx(module, iris_rows()[0].x, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_one_sample_row_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="at least 2 sample rows, not 1"):
        to_onnx(MLP(4, 3), iris_rows()[0].x[:1], tmp_path / "m.onnx")


ROOT = Path(__file__).parents[2]  # where a child process finds the tests' problems
PROGRAM = """
import sys
from pathlib import Path
from mlops_assets.training.architectures import MLP
from mlops_assets.training.export import to_onnx
from mlops_assets_tests.training.problems import filled, iris_rows
to_onnx(filled(MLP(4, 3)), iris_rows()[0].x, Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_an_export_prints_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path / "m.onnx")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
