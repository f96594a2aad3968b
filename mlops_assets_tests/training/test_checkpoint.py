import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlops_assets.training.checkpoint import Checkpoint

TENSORS = {"a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b.steps": torch.tensor(7)}
FACTS = {"history": [{"loss": 0.1 + 0.2, "recall": [None, 1.0]}], "name": "ü"}


def written(path: Path) -> Checkpoint:
    checkpoint = Checkpoint(path, "one recipe")
    checkpoint.write(TENSORS, FACTS)
    return checkpoint


def names(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


def test_what_is_written_comes_back_exactly(tmp_path: Path) -> None:
    found = written(tmp_path / "new" / "folder" / "c.safetensors").read()
    assert found is not None
    tensors, facts = found
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert names(tmp_path / "new" / "folder") == ["c.safetensors"]


def test_no_file_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Checkpoint(tmp_path / "none" / "c", "x").read() is None
    assert not caplog.records


def test_a_file_of_another_identity_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tmp_path / "c")
    assert Checkpoint(tmp_path / "c", "another recipe").read() is None
    assert "of another recipe" in caplog.text


def test_tensors_that_share_memory_are_kept_apart(tmp_path: Path) -> None:
    weight = torch.ones(2, 2)
    checkpoint = Checkpoint(tmp_path / "c", "")
    checkpoint.write({"one": weight, "other": weight.T}, {})
    tensors, _ = checkpoint.read()
    assert torch.equal(tensors["one"], tensors["other"])


def test_any_damage_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = written(tmp_path / "c")
    whole = checkpoint.path.read_bytes()
    damaged = [b"", b"\x80\x04pickle", whole[:-1], whole + b"\0"]
    damaged += [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(len(whole))]
    for number, content in enumerate(damaged, start=1):
        checkpoint.path.write_bytes(content)
        assert checkpoint.read() is None, content
        assert len(caplog.records) == number
        assert f"{checkpoint.path} is ignored" in caplog.text
    checkpoint.path.write_bytes(whole)
    assert checkpoint.read() is not None


def test_a_place_that_is_no_file_is_ignored_and_not_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = Checkpoint(tmp_path / "c", "x")
    checkpoint.path.mkdir()
    assert checkpoint.read() is None
    checkpoint.write(TENSORS, FACTS)
    assert "cannot be written" in caplog.text
    assert names(tmp_path) == ["c"]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    checkpoint = written(tmp_path / "c")
    (tmp_path / ".c.tmp").write_bytes(b"half")
    checkpoint.discard_unfinished()
    assert names(tmp_path) == ["c"]


FULL_DISK = """
import logging, resource, signal, sys
from pathlib import Path
import torch
from mlops_assets.training.checkpoint import Checkpoint
logging.basicConfig(format="%(message)s")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
checkpoint = Checkpoint(Path(sys.argv[1]), "x")
checkpoint.write({"small": torch.ones(10)}, {"epoch": 1})
checkpoint.write({"large": torch.ones(10_000)}, {"epoch": 2})
print(checkpoint.read()[1]["epoch"])
"""


@pytest.mark.slow
def test_a_disk_without_room_costs_only_the_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", FULL_DISK, str(tmp_path / "c")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (ran.returncode, ran.stdout) == (0, "1\n"), ran.stderr
    assert "cannot be written, and the training goes on without it" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert names(tmp_path) == ["c"]
