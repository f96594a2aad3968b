"""A training that goes on after a kill gives the weights of one that was never interrupted."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlops_assets.training import trainer
from mlops_assets.training.architectures import MLP, SmallCNN
from mlops_assets.training.checkpoint import Checkpoint
from mlops_assets.training.config import Augmentation, TrainingConfig
from mlops_assets.training.export import weights_digest
from mlops_assets.training.trainer import Epoch, Rows, Trained, train
from mlops_assets_tests.training.problems import LONGER, digits_images, dropping, iris_rows

SHORT = TrainingConfig(epochs=6, patience=None, accelerator="cpu")
EVERYTHING = {
    "learning_rate_schedule": "one-cycle",
    "warmup_epochs": 1,
    "label_smoothing": 0.1,
    "gradient_clip": 1.0,
    "augmentation": Augmentation(flip=True, crop=1, erase=2),
}


class Noisy(nn.Module):
    """Draws from every generator that there is, shares a weight, and lies in memory otherwise than usual."""

    def __init__(self) -> None:
        super().__init__()
        self.network = SmallCNN((8, 8, 1), 10, channels=(4, 3), dropout=0.3)
        self.tied = self.network.layers[-1]
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        noise = random.random() + np.random.rand() + torch.rand(()) if self.training else 0
        return self.network(x) + noise * torch.arange(10)


def outcome(result: Trained) -> object:
    told = [
        (each.number, each.train_loss, each.validation_loss, each.validation_recall, each.learning_rate)
        for each in result.history
    ]
    return weights_digest(result.weights), result.best_epoch, result.stopped_early, told


class Killed(BaseException):
    pass


def interrupted(build, rows: tuple[Rows, Rows], config: TrainingConfig, path: Path, after: int) -> None:
    """Train until an epoch is told: the file is then that of the epoch before."""

    def stop(epoch: Epoch) -> None:
        if epoch.number == after:
            raise Killed

    with pytest.raises(Killed):
        train(build, *rows, config, on_epoch=stop, checkpoint=path, checkpoint_seconds=0, identity="r")


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 4, 6])
@pytest.mark.parametrize("changes", [{}, EVERYTHING, {"precision": "bf16-mixed", "patience": 1}])
def test_all_that_the_next_epoch_starts_from_is_kept(tmp_path: Path, after: int, changes: dict[str, object]) -> None:
    config, rows, path = SHORT.model_copy(update=changes), digits_images(), tmp_path / "c"
    whole = train(Noisy, *rows, config)
    interrupted(Noisy, rows, config, path, min(after, len(whole.history)))
    told: list[Epoch] = []
    result = train(Noisy, *rows, config, on_epoch=told.append, checkpoint=path, checkpoint_seconds=0, identity="r")
    assert outcome(result) == outcome(whole)
    assert result.resumed_from == min(after, len(whole.history)) - 1 > 0
    assert tuple(told) == result.history[result.resumed_from :]
    assert whole.resumed_from == 0


def test_a_training_that_was_over_is_over(tmp_path: Path) -> None:
    config = TrainingConfig(epochs=300, learning_rate=0.1, patience=3, accelerator="cpu")
    arguments = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0}
    first = train(lambda: MLP(4, 3), *iris_rows(), config, **arguments)
    again = train(lambda: MLP(4, 3), *iris_rows(), config, on_epoch=pytest.fail, **arguments)
    assert outcome(again) == outcome(first)
    assert again.resumed_from == len(first.history) < 300
    assert again.stopped_early


def test_writing_files_changes_no_result_and_respects_its_interval(tmp_path: Path) -> None:
    alone = train(Noisy, *digits_images(), SHORT)
    for seconds, there in ((0, True), (3600, False)):
        path = tmp_path / str(seconds)
        result = train(Noisy, *digits_images(), SHORT, checkpoint=path, checkpoint_seconds=seconds)
        assert outcome(result) == outcome(alone)
        assert path.exists() is there


def test_where_writing_takes_long_it_is_done_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: an epoch takes a second, and a writing 0.07 s, of which 2 % are 3.5 s."""
    written: list[int] = []
    write, now = Checkpoint.write, 0.0

    def tell(_epoch: Epoch) -> None:
        nonlocal now
        now += 1

    def slow(self: Checkpoint, tensors: dict[str, Tensor], facts: dict[str, object]) -> None:
        nonlocal now
        written.append(len(facts["history"]))
        write(self, tensors, facts)
        now += 0.07

    monkeypatch.setattr(Checkpoint, "write", slow)
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter))
    options = {"on_epoch": tell, "checkpoint": tmp_path / "c", "checkpoint_seconds": 1e-6}
    train(lambda: MLP(4, 3), *iris_rows(), SHORT, **options)
    assert written == [1, 5]


@pytest.mark.parametrize(
    ("build", "changes", "identity"),
    [
        (lambda: MLP(4, 3), {}, "another"),
        (lambda: MLP(4, 3), {"learning_rate": 0.02}, "r"),
        (lambda: MLP(4, 3), {"threads": 2}, "r"),
        (lambda: MLP(4, 3, hidden=(31,)), {}, "r"),
    ],
)
def test_what_was_another_training_is_not_gone_on_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, build, changes: dict[str, object], identity: str
) -> None:
    path, config = tmp_path / "c", SHORT.model_copy(update=changes)
    interrupted(lambda: MLP(4, 3), iris_rows(), SHORT, path, 4)
    result = train(build, *iris_rows(), config, checkpoint=path, checkpoint_seconds=0, identity=identity)
    assert result.resumed_from == 0
    assert f"{path} is ignored, and the training starts from the beginning" in caplog.text
    assert outcome(result) == outcome(train(build, *iris_rows(), config))
    assert train(build, *iris_rows(), config, checkpoint=path, identity=identity).resumed_from == 6


def test_an_upgrade_of_torch_starts_from_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    interrupted(lambda: MLP(4, 3), iris_rows(), SHORT, path, 4)
    monkeypatch.setattr("mlops_assets.training.config._packages", lambda: {"torch": "99"})
    assert train(lambda: MLP(4, 3), *iris_rows(), SHORT, checkpoint=path, identity="r").resumed_from == 0


def test_a_damaged_file_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "c"
    interrupted(lambda: MLP(4, 3), iris_rows(), SHORT, path, 4)
    path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / ".c.tmp").write_bytes(b"half")
    result = train(lambda: MLP(4, 3), *iris_rows(), SHORT, checkpoint=path, identity="r")
    assert result.resumed_from == 0
    assert "is ignored" in caplog.text
    assert [each.name for each in tmp_path.iterdir()] == ["c"]


ROOT = Path(__file__).parents[2]  # where a child process finds the tests' problems
PROGRAM = """
import sys
from pathlib import Path
from mlops_assets.training.export import weights_digest
from mlops_assets.training.trainer import train
from mlops_assets_tests.training.problems import LONGER, dropping, digits_images
def tell(epoch):
    print(epoch.number, flush=True)
    sys.stdin.readline()  # until it may go on, so that it is killed in this epoch or the next one, and no later
result = train(
    dropping, *digits_images(), LONGER,
    on_epoch=tell, checkpoint=Path(sys.argv[1]), checkpoint_seconds=0, identity="recipe",
)
print(weights_digest(result.weights), result.best_epoch, len(result.history), result.stopped_early)
print(result.resumed_from)
"""


def child(checkpoint: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(checkpoint)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_ends_with_the_same_weights(tmp_path: Path) -> None:
    path = tmp_path / "c"
    whole = train(dropping, *digits_images(), LONGER)
    stop = len(whole.history)
    assert whole.stopped_early
    assert stop > 6
    # while it is told, about when the file is written, and in the next epoch
    for kill_at, seconds in ((1, None), (stop // 2, 0.0), (stop - 2, 0.01)):
        with child(path) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) == kill_at:
                    if seconds is not None:
                        process.stdin.write("\n")
                        time.sleep(seconds)
                    os.kill(process.pid, signal.SIGKILL)
                    break
                process.stdin.write("\n")
        assert process.returncode == -signal.SIGKILL
    with child(path) as process:
        *_, found, resumed_from = process.communicate(timeout=300)[0].splitlines()
    assert found == f"{weights_digest(whole.weights)} {whole.best_epoch} {stop} True"
    assert int(resumed_from) >= stop - 3
    assert process.returncode == 0
