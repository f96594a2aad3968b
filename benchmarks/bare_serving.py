"""What `serving` measures against: `prepare HOME` registers a network, `loop HOME SECONDS` runs it without a server."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.serving import CHANNELS, CLASSES, NAME, SHAPE


def prepare(home: Path) -> None:
    """A registered version of a network that was never trained, with its contract, and the pointer that serves it."""
    import base64

    import torch

    from mlops_assets.registry import aliases
    from mlops_assets.serving.contract import Contract, RawContract, key_of
    from mlops_assets.serving.pointer import Pointer, unpack, write_pointer
    from mlops_assets.tracking.runs import Tracking
    from mlops_assets.training.architectures import SmallCNN
    from mlops_assets.training.export import to_onnx
    from mlops_assets.training.predict import predict

    torch.manual_seed(1)
    module = SmallCNN(SHAPE, CLASSES, channels=CHANNELS)
    sample = np.random.default_rng(1).integers(0, 256, size=(2, *SHAPE), dtype=np.uint8)
    tracking = Tracking.embedded(home)
    with tracking.training_run(experiment=NAME, name=NAME, params={}, tags={}) as run:
        uri = run.log_torch_model(module, sample)
    version = aliases.register(tracking, name=NAME, model_uri=uri, tags={})
    to_onnx(module, sample, home / "model.onnx")
    model = (home / "model.onnx").read_bytes()
    raw = RawContract(
        pipeline=NAME,
        kind="images",
        inputs=(),
        images={"layout": "folder", "mode": "RGB"},  # type: ignore[arg-type]
        image_shape=SHAPE,
        key="key",
        target="label",
        sources={f"{NAME}/features.py": "def features(images):\n    return images\n"},
        functions={"features": "features.py:features", "schema": "features.py:features"},
        sample=tuple(base64.b64encode(one.tobytes()).decode() for one in sample),
    )
    contract = Contract.of(
        raw,
        classes=[f"class{number}" for number in range(CLASSES)],
        features=(),
        shape=SHAPE,
        onnx=hashlib.sha256(model).hexdigest(),
        answers=predict(model, sample).tolist(),
    )
    unpack(home, NAME, contract.to_bytes(), model)
    write_pointer(
        home,
        Pointer(
            pipeline=NAME,
            key=key_of(contract),
            version=version.number,
            run_id=version.run_id,
            model_digest="",
            alias="champion",
        ),
    )


def loop(home: Path, seconds: float) -> float:
    """Rows/s of one image after the other."""
    from mlops_assets.training.predict import open_session

    session = open_session(next(home.glob(f"serving/{NAME}/*/model.onnx")), threads=1)
    image = np.random.default_rng(5).integers(0, 256, size=(1, *SHAPE), dtype=np.uint8)
    for _ in range(100):
        session.run(None, {"input": image})
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        session.run(None, {"input": image})
        done += 1
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]))
    else:
        print(loop(Path(sys.argv[2]), float(sys.argv[3])))
