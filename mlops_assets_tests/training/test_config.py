import subprocess
import sys

import pytest
from pydantic import ValidationError

from mlops_assets.training.config import Augmentation, TrainingConfig, environment, environment_digest


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"learning_rate": 0},
        {"patience": 0},
        {"accelerator": "tpu"},
        {"epoch": 3},
        {"learning_rate_schedule": "step"},
        {"warmup_epochs": -1},
        {"label_smoothing": 1},
        {"gradient_clip": 0},
        {"augmentation": {"crop": -1}},
        {"augmentation": {"rotate": 3}},
        {"augmentation": None},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainingConfig(**wrong)


def test_every_field_says_what_it_is() -> None:
    fields = [*TrainingConfig.model_fields.values(), *Augmentation.model_fields.values()]
    assert all(field.description for field in fields)


def test_the_environment_names_what_results_depend_on() -> None:
    names = environment(TrainingConfig(threads=3, accelerator="cuda", precision="bf16-mixed"))
    assert set(names) == {"torch", "numpy", "polars", "python", "platform", "threads", "device", "precision"}
    assert (names["threads"], names["device"], names["precision"]) == ("3", "cuda", "bf16-mixed")


def test_packages_are_read_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainingConfig()
    first = environment(config)
    monkeypatch.setattr("importlib.metadata.version", lambda _name: pytest.fail("read again"))
    assert environment(config) == first


def test_the_digest_follows_the_environment_and_no_other_setting() -> None:
    base = TrainingConfig(accelerator="cpu")
    digests = {
        environment_digest(environment(base.model_copy(update=change)))
        for change in (
            {},
            {"epochs": 3, "seed": 9},
            {"threads": 2},
            {"accelerator": "cuda"},
            {"precision": "bf16-mixed"},
        )
    }
    assert len(digests) == 4


def test_the_environment_loads_no_heavy_package() -> None:
    code = (
        "import sys; from mlops_assets.training import config, trainer, export, predict;"
        "config.environment(config.TrainingConfig());"
        "heavy = {'torch', 'lightning_fabric', 'onnx', 'onnxruntime', 'safetensors', 'sklearn'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert ran.stdout.strip() == "[]"
