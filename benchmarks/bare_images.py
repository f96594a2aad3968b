"""The training of a network for images as a script by hand, in two ways. Run as a file of its own.

Arguments: the way (`tensors`: all images in one tensor, batched by index, varied a batch at a time; `loader`: a
`DataLoader` over a dataset that varies one image at a time, with two worker processes), the images (.npz), the
network's name, epochs, batch size and threads. Prints as JSON the seconds of each epoch, and the last validation loss.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mlops_assets.training import architectures
from mlops_assets.training.augmentation import Augmenter
from mlops_assets.training.config import Augmentation

CROP = 4
SCORED = 341
WORKERS = 2

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def tensors(data: dict[str, Tensor], batch_size: int) -> tuple[Batches, Batches]:
    x, y = data["x"], data["y"]
    augment = Augmenter.fitted(Augmentation(flip=True, crop=CROP), x, torch.device("cpu"))
    order = torch.Generator().manual_seed(0)

    def train() -> Iterator[tuple[Tensor, Tensor]]:
        permutation = torch.randperm(len(y), generator=order)
        chances = augment.draw(len(y), order)
        for batch in permutation.split(batch_size):  # type: ignore[no-untyped-call]
            yield augment(x[batch], chances[batch]), y[batch]

    def judge() -> Iterator[tuple[Tensor, Tensor]]:
        return zip(data["validation_x"].split(SCORED), data["validation_y"].split(SCORED), strict=True)  # type: ignore[no-untyped-call]

    return train, judge


class Varied(Dataset[tuple[Tensor, Tensor]]):
    """One image at a time: padded, cut, mirrored, made float and scaled, as torchvision's transforms do."""

    def __init__(self, x: Tensor, y: Tensor, mean: Tensor, std: Tensor) -> None:
        self.x, self.y, self.mean, self.std = x, y, mean, std

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.x[index].permute(2, 0, 1)
        height, width = image.shape[1:]
        down, right = torch.randint(0, 2 * CROP + 1, (2,)).tolist()
        image = nn.functional.pad(image, (CROP, CROP, CROP, CROP))[:, down : down + height, right : right + width]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image.float() - self.mean) / self.std, self.y[index]


def loader(data: dict[str, Tensor], batch_size: int, pixels: architectures.Pixels) -> tuple[Batches, Batches]:
    mean, std = pixels.mean[:, None, None].clone(), pixels.std[:, None, None].clone()
    train = DataLoader(
        Varied(data["x"], data["y"], mean, std),
        batch_size,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    scaled = (data["validation_x"].permute(0, 3, 1, 2).float() - mean) / std
    judge = DataLoader(TensorDataset(scaled, data["validation_y"]), SCORED)
    return lambda: iter(train), lambda: iter(judge)


def score(model: nn.Module, batches: Batches) -> tuple[float, float]:
    model.eval()
    loss, hits, n = 0.0, 0, 0
    with torch.no_grad():
        for x, y in batches():
            logits = model(x)
            loss += nn.functional.cross_entropy(logits, y, reduction="sum").item()
            hits += int((logits.argmax(dim=1) == y).sum())
            n += len(y)
    return loss / n, hits / n


def main(way: str, file: str, network: str, *numbers: str) -> dict[str, Any]:
    epochs, batch_size, threads = (int(one) for one in numbers)
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    data = {name: torch.from_numpy(array) for name, array in np.load(Path(file)).items()}
    model = getattr(architectures, network)(tuple(data["x"].shape[1:]), int(data["y"].max()) + 1)
    model.layers[0].adapt(data["x"])
    if way == "tensors":
        train, judge = tensors(data, batch_size)
    else:
        train, judge = loader(data, batch_size, model.layers[0])
        model.layers[0] = nn.Identity()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01 if network == "ResNet9" else 0.001, fused=True)
    seconds, best, weights = [], float("inf"), {}
    for _ in range(epochs):
        began = time.perf_counter()
        model.train()
        for x, y in train():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        loss, _ = score(model, judge)
        if loss < best:
            best, weights = loss, {name: value.clone() for name, value in model.state_dict().items()}
        seconds.append(time.perf_counter() - began)
    assert weights
    return {"seconds": seconds, "loss": loss}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
