"""What a training does otherwise when it is asked to."""

import shutil
from pathlib import Path

import pytest
import torch

from mlops_assets.training.architectures import MLP, SmallCNN
from mlops_assets.training.config import Augmentation
from mlops_assets.training.export import weights_digest
from mlops_assets.training.trainer import TrainingError
from mlops_assets_tests.training.problems import SHORT, child, digits_images, small, trained


@pytest.mark.slow
def test_a_schedule_is_followed_step_by_step() -> None:
    result = trained(learning_rate_schedule="cosine", learning_rate=0.1, warmup_epochs=1)
    rates = [epoch.learning_rate for epoch in result.history]
    assert rates[0] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.002
    assert weights_digest(result.weights) != weights_digest(trained(learning_rate=0.1).weights)


def test_smoothed_labels_are_for_training_alone() -> None:
    plain, smooth = trained(epochs=60), trained(epochs=60, label_smoothing=0.3)
    assert smooth.history[-1].train_loss > 0.5 > plain.history[-1].train_loss
    assert smooth.history[-1].validation_loss < smooth.history[-1].train_loss - 0.1


def test_a_gradient_is_cut_to_its_norm() -> None:
    # far below AdamW's epsilon, what is left of the gradient moves nothing
    still = trained(gradient_clip=1e-15, weight_decay=0.0, epochs=1)
    torch.manual_seed(SHORT.seed)
    torch.testing.assert_close(still.weights["layers.1.weight"], MLP(4, 3).layers[1].weight.detach(), atol=1e-6, rtol=0)
    assert weights_digest(trained(gradient_clip=1e9).weights) == weights_digest(trained().weights)


def test_augmentation_varies_training_images_and_no_others() -> None:
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}

    class Watching(SmallCNN):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen[self.training].append(x.clone())
            return super().forward(x)

    rows, validation = digits_images()
    augmentation = Augmentation(flip=True, crop=1, erase=2)
    trained(lambda: Watching((8, 8, 1), 10), (rows, validation), epochs=2, augmentation=augmentation)
    first, second = (torch.cat(seen[True][start : start + 16]) for start in (0, 16))
    originals = {image.tobytes() for image in rows.x}
    assert sum(image.numpy().tobytes() in originals for image in first) < 50
    assert first.dtype == torch.uint8
    assert {image.numpy().tobytes() for image in first} != {image.numpy().tobytes() for image in second}
    assert torch.equal(torch.cat(seen[False][1:])[-200:], torch.tensor(validation.x))


def test_augmentation_that_cannot_be_done_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"for images, .*, and these rows are float32 \(120, 4\): take it out"):
        trained(augmentation=Augmentation(flip=True))
    with pytest.raises(TrainingError, match=r"needs crop and erase below 8, .* not 8 and 0"):
        trained(small, digits_images(), augmentation=Augmentation(crop=8))


def test_half_precision_is_not_quietly_replaced_on_the_cpu() -> None:
    with pytest.raises(TrainingError, match="16-mixed needs a CUDA device, not cpu"):
        trained(precision="16-mixed")


def test_bfloat16_trains_and_keeps_float32_weights() -> None:
    result = trained(precision="bf16-mixed")
    assert {value.dtype for value in result.weights.values()} == {torch.float32}
    assert weights_digest(result.weights) != weights_digest(trained().weights)


COMPILING = """
from mlops_assets.training.architectures import MLP
from mlops_assets.training.config import TrainingConfig
from mlops_assets.training.export import weights_digest
from mlops_assets.training.trainer import TrainingError, train
from mlops_assets_tests.training.problems import iris_rows
config = TrainingConfig(epochs=3, batch_size=50, accelerator="cpu", compile=True)
try:
    result = train(lambda: MLP(4, 3), *iris_rows(), config)
except TrainingError as error:
    print(error)
else:
    plain = train(lambda: MLP(4, 3), *iris_rows(), config.model_copy(update={"compile": False}))
    print(*result.weights)
    print(result.reproducible)
    print(abs(result.history[-1].validation_loss - plain.history[-1].validation_loss) < 1e-3)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_learns_alike_under_its_own_names(tmp_path: Path) -> None:
    ran = child(COMPILING, TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    names, said, alike = ran.stdout.splitlines()
    assert names.split() == list(MLP(4, 3).state_dict())
    assert said.endswith("the code that torch.compile makes depends on this machine's compiler too")
    assert alike == "True"


@pytest.mark.slow
def test_without_a_compiler_the_remedy_is_told(tmp_path: Path) -> None:
    ran = child(COMPILING, TORCHINDUCTOR_CACHE_DIR=str(tmp_path), CXX=str(tmp_path / "none"))
    assert ran.stdout.startswith("torch.compile cannot compile MLP (No working C++ compiler found"), ran.stderr
    assert ran.stdout.endswith("install a C++ compiler, such as g++, or set compile to false.\n")
