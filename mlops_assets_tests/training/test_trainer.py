import random

import numpy as np
import pytest
import torch
from torch import nn

from mlops_assets.training.architectures import MLP, AlexNet, ResNet9
from mlops_assets.training.config import environment
from mlops_assets.training.export import weights_digest
from mlops_assets.training.trainer import (
    Epoch,
    ModelMismatch,
    Rows,
    TrainingDiverged,
    TrainingError,
    train,
)
from mlops_assets_tests.training.problems import (
    SHORT,
    Digits,
    child,
    digits_images,
    digits_rows,
    iris_rows,
    small,
    trained,
)


@pytest.mark.slow
def test_iris_is_learned() -> None:
    result = trained(epochs=100)
    assert result.history[result.best_epoch - 1].validation_accuracy > 0.9
    assert result.history[0].train_loss > 3 * result.history[-1].train_loss
    assert result.environment == environment(SHORT)


@pytest.mark.slow
def test_digits_are_learned_by_a_convolutional_network() -> None:
    result = trained(Digits, digits_rows(), epochs=10)
    assert result.history[-1].validation_accuracy > 0.9


def test_images_are_learned_and_scaled_by_the_training_images() -> None:
    rows = digits_images()
    result = trained(small, rows, epochs=10)
    assert result.history[-1].validation_accuracy > 0.9
    plain = rows[0].x.astype(np.float64)
    np.testing.assert_allclose(result.weights["layers.0.mean"], [plain.mean()], rtol=1e-6)
    np.testing.assert_allclose(result.weights["layers.0.std"], [plain.std()], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("network", [AlexNet, ResNet9])
def test_the_larger_networks_learn_colour_photographs_of_one_colour(network: type[nn.Module]) -> None:
    y = np.arange(96) % 3
    x = np.random.default_rng(0).integers(0, 100, (96, 16, 16, 3))
    x[np.arange(96), :, :, y] += 100
    rows = Rows(x.astype(np.uint8), y)
    result = trained(lambda: network((16, 16, 3), 3), (rows, rows), epochs=8, learning_rate=1e-3)
    assert max(epoch.validation_accuracy for epoch in result.history) > 0.9


def test_the_weights_are_those_of_the_best_epoch() -> None:
    _, validation = iris_rows()
    result = trained(epochs=60, learning_rate=0.1)
    losses = [epoch.validation_loss for epoch in result.history]
    assert result.best_epoch == losses.index(min(losses)) + 1 < 60
    module = MLP(4, 3).eval()
    module.load_state_dict(result.weights)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(module(torch.tensor(validation.x)), torch.tensor(validation.y))
    assert loss.item() == pytest.approx(min(losses), rel=1e-5)


def test_patience_stops_early() -> None:
    result = trained(epochs=500, learning_rate=0.1, patience=7)
    assert result.stopped_early
    assert len(result.history) == result.best_epoch + 7 < 500
    assert not trained().stopped_early


def test_every_epoch_is_told_in_order() -> None:
    told: list[Epoch] = []
    result = trained(on_epoch=told.append, learning_rate=0.03)
    assert tuple(told) == result.history
    assert [epoch.number for epoch in told] == [1, 2, 3, 4, 5]
    assert all(epoch.learning_rate == 0.03 and 0 < epoch.seconds < result.seconds for epoch in told)


def test_an_epoch_tells_recall_by_class_and_memory() -> None:
    rows, validation = iris_rows()
    none = validation.y != 1
    result = trained(lambda: MLP(4, 4), (rows, Rows(validation.x[none], validation.y[none])), epochs=2)
    module = MLP(4, 4).eval()
    module.load_state_dict(result.weights)
    with torch.no_grad():
        found = module(torch.tensor(validation.x)).argmax(dim=1).numpy()
    share = {label: float((found[validation.y == label] == label).mean()) for label in (0, 2)}
    epoch = result.history[result.best_epoch - 1]
    assert epoch.validation_recall == (share[0], None, share[2], None)
    assert epoch.validation_accuracy == pytest.approx((found == validation.y)[none].mean())
    assert 50e6 < epoch.peak_memory_bytes < 100e9


def test_a_large_validation_set_is_scored_whole() -> None:
    rows, validation = iris_rows()
    many = Rows(np.tile(validation.x, (50, 1)), np.tile(validation.y, 50))
    one, other = trained(rows=(rows, validation)), trained(rows=(rows, many))
    assert [each.validation_loss for each in one.history] == pytest.approx(
        [each.validation_loss for each in other.history], rel=1e-5
    )
    assert [each.validation_recall for each in one.history] == [each.validation_recall for each in other.history]


def test_the_scale_is_fitted_on_the_training_rows_only() -> None:
    rows = iris_rows()
    result = trained(rows=rows)
    np.testing.assert_allclose(result.weights["layers.0.mean"], rows[0].x.mean(axis=0, dtype=np.float64), rtol=1e-6)


def test_the_seed_decides_and_nothing_before_it() -> None:
    first = trained(lambda: MLP(4, 3, dropout=0.3))
    torch.manual_seed(99)
    random.seed(99)
    again = trained(lambda: MLP(4, 3, dropout=0.3))
    other = trained(lambda: MLP(4, 3, dropout=0.3), seed=1)
    assert weights_digest(first.weights) == weights_digest(again.weights) != weights_digest(other.weights)
    same = [(epoch.train_loss, epoch.validation_loss) for epoch in first.history]
    assert same == [(epoch.train_loss, epoch.validation_loss) for epoch in again.history]


def test_seeded_randomness_of_python_and_numpy_is_fixed_too() -> None:
    def build() -> nn.Module:
        module = MLP(4, 3)
        nn.init.constant_(module.layers[1].bias, random.random() + np.random.rand())
        return module

    assert weights_digest(trained(build).weights) == weights_digest(trained(build).weights)


PROGRAM = """
import sys
from mlops_assets.training.architectures import MLP, SmallCNN
from mlops_assets.training.config import TrainingConfig
from mlops_assets.training.export import weights_digest
from mlops_assets.training.trainer import train
from mlops_assets_tests.training.problems import digits_images, iris_rows
network = lambda: SmallCNN((8, 8, 1), 10, dropout=0.2)
for threads in (1, 2):
    config = TrainingConfig(epochs=3, accelerator="cpu", threads=threads)
    varied = TrainingConfig(**{**config.model_dump(), "augmentation": {"flip": True, "crop": 1, "erase": 2}})
    print(weights_digest(train(lambda: MLP(4, 3, dropout=0.2), *iris_rows(), config).weights))
    print(weights_digest(train(network, *digits_images(), varied).weights))
train(network, *digits_images(), config.model_copy(update={"precision": "bf16-mixed"}))
"""


@pytest.mark.slow
def test_two_processes_give_the_same_weights_bit_for_bit_and_print_nothing_else() -> None:
    ran = [child(PROGRAM, PYTHONWARNINGS="error") for _ in range(2)]
    assert [each.stderr for each in ran] == ["", ""]
    assert ran[0].stdout == ran[1].stdout
    assert [len(line) for line in ran[0].stdout.splitlines()] == [32] * 4


def test_it_is_said_how_far_a_training_repeats_itself() -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    assert trained().reproducible == f"bit for bit on {capability} with 1 thread, on the same kind of CPU"
    assert f"{capability} with 2 threads" in trained(threads=2).reproducible


def test_the_callers_state_is_put_back_even_after_a_failure() -> None:
    threads = torch.get_num_threads()

    def state() -> tuple[object, ...]:
        torch_state = torch.get_rng_state().tolist()
        return (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch_state, random.getstate(),
                torch.utils.deterministic.fill_uninitialized_memory, np.random.get_state()[1].tolist())  # fmt: skip

    before = state()
    trained(threads=threads + 1)
    assert state() == before

    def stop(epoch: Epoch) -> None:
        assert torch.get_num_threads() == threads + 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(threads=threads + 1, on_epoch=stop)
    assert state() == before


@pytest.mark.parametrize(("n", "batch_size"), [(33, 32), (65, 32), (3, 2), (2, 2), (2, 64)])
def test_a_single_row_left_over_does_not_break_batch_normalization(n: int, batch_size: int) -> None:
    train_rows, validation = iris_rows()
    seen: list[int] = []

    class Counting(nn.BatchNorm1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.append(len(x))
            return super().forward(x)

    rows = Rows(train_rows.x[:n], train_rows.y[:n]), validation
    trained(lambda: nn.Sequential(Counting(4), nn.Linear(4, 3)), rows, batch_size=batch_size, epochs=1)
    assert sum(seen) == n
    assert min(seen) >= 2


def test_a_diverging_training_names_epoch_and_remedy() -> None:
    class Exploding(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (torch.inf if self.training else 1.0)

    with pytest.raises(TrainingDiverged, match=r"in epoch 1 .* lower learning_rate, now 0\.01"):
        trained(lambda: Exploding(4, 3))


class NoTensor(nn.Linear):
    def forward(self, x: torch.Tensor) -> object:
        return [super().forward(x)]


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: MLP(5, 3), r"MLP does not take features of shape \(4,\): RuntimeError"),
        (lambda: nn.Linear(5, 3), r"Linear does not take features of shape \(4,\)"),
        (lambda: MLP(4, 2), r"gave \(2, 2\) for 2 rows of 3 classes"),
        (lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), r"gave \(2,\) for 2 rows of 3 classes"),
        (lambda: nn.Sequential(nn.Flatten(0), nn.Linear(8, 3)), r"gave \(3,\)"),
        (lambda: NoTensor(4, 3), "gave list for 2 rows"),
        (lambda: nn.Embedding(10, 3), "Embedding does not take features"),
        (nn.Identity, "Identity has no parameters to train"),
        (lambda: None, "gave a NoneType, not a torch.nn.Module"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_before_the_first_epoch(build, says: str) -> None:
    told: list[Epoch] = []
    with pytest.raises(ModelMismatch, match=says):
        trained(build, on_epoch=told.append)
    assert not told


def test_more_logits_than_classes_seen_are_fine() -> None:
    assert trained(lambda: MLP(4, 7)).weights["layers.4.bias"].shape == (7,)


def test_lazy_and_frozen_modules_train() -> None:
    def build() -> nn.Module:
        frozen = nn.Linear(4, 4)
        frozen.requires_grad_(requires_grad=False)
        return nn.Sequential(frozen, nn.LazyLinear(3))

    result = trained(build)
    torch.manual_seed(SHORT.seed)
    assert torch.equal(result.weights["0.weight"], build()[0].weight)
    assert result.weights["1.weight"].shape == (3, 4)


def test_weights_that_are_shared_come_out_apart() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.two(self.one(x)))

    weights = trained(Tied).weights
    assert torch.equal(weights["one.weight"], weights["two.weight"])
    assert weights["one.weight"].data_ptr() != weights["two.weight"].data_ptr()


def test_arrays_that_must_not_be_written_are_taken() -> None:
    rows = iris_rows()
    for part in rows:
        part.x.flags.writeable = part.y.flags.writeable = False
    trained(rows=rows)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (np.zeros((3, 2)), np.zeros(3, np.int64), "must be float32, or uint8 if they are images"),
        (np.zeros((3, 2, 2), np.uint8), np.zeros(3, np.int64), r"must be \(n, height, width, channels\)"),
        (np.zeros((3, 2), np.float32), np.zeros(3, np.int32), "must be float32"),
        (np.zeros((3, 2), np.float32), np.zeros(2, np.int64), "do not pair up"),
        (np.zeros(3, np.float32), np.zeros(3, np.int64), "do not pair up"),
        (np.zeros((0, 2), np.float32), np.zeros(0, np.int64), "n of at least 1"),
        (np.array([[0], [np.nan]], np.float32), np.zeros(2, np.int64), "row 2 has a feature that is not finite"),
        (np.zeros((2, 2), np.float32), np.array([0, -1]), "must start at 0"),
    ],
)
def test_rows_that_make_no_sense_are_refused(x: np.ndarray, y: np.ndarray, says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        Rows(x, y)


def test_rows_that_do_not_go_together_are_refused() -> None:
    rows, validation = iris_rows()
    with pytest.raises(TrainingError, match="rows of one shape"):
        trained(rows=(rows, Rows(validation.x[:, :3], validation.y)))
    images = Rows(np.zeros((2, 1, 1, 4), np.uint8), np.zeros(2, np.int64))
    with pytest.raises(TrainingError, match="uint8"):
        trained(rows=(images, Rows(images.x.astype(np.float32), images.y)))
    with pytest.raises(TrainingError, match="at least 2 training rows"):
        trained(rows=(Rows(rows.x[:1], rows.y[:1]), validation))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_an_error_and_never_another_device() -> None:
    with pytest.raises(TrainingError, match="torch cannot use cuda on this machine"):
        trained(accelerator="cuda")


def test_a_cluster_job_trains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = trained()
    for name, value in {
        "NTASKS": "4",
        "JOB_ID": "1",
        "JOB_NAME": "x",
        "PROCID": "2",
        "LOCALID": "2",
        "NODEID": "0",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert weights_digest(trained().weights) == weights_digest(alone.weights)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_a_gpu_repeats_itself() -> None:
    results = [
        trained(Digits, digits_rows(), accelerator="cuda", precision=p) for p in ("32-true", "32-true", "16-mixed")
    ]
    digests = [weights_digest(result.weights) for result in results]
    assert digests[0] == digests[1] != digests[2]
    assert results[0].environment["device"] == "cuda"
    assert all(value.device.type == "cpu" for value in results[0].weights.values())


def test_every_step_is_told():
    told = []
    config = SHORT.model_copy(update={"epochs": 2, "patience": None})
    train(lambda: MLP(4, 3), *iris_rows(), config, on_step=lambda *step: told.append(step))
    steps = told[0][2]
    assert told == [(epoch, step, steps) for epoch in (1, 2) for step in range(1, steps + 1)]
    assert steps > 1
