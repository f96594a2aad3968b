"""The training of iris as a script by hand: read, split, train, save; nothing else. Run as a file of its own.

Arguments: the CSV file, where to save, epochs, and the rows of the training and of the validation part.
"""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import nn

BATCH = 16
CLASSES = ("setosa", "versicolor", "virginica")


class Network(nn.Module):
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, x: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", x.mean(dim=0))
        self.register_buffer("std", x.std(dim=0, correction=0))
        self.layers = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.0), nn.Linear(32, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled = (x - self.mean) / self.std
        logits: torch.Tensor = self.layers(scaled)
        return logits


def score(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    model.eval()
    with torch.no_grad():
        logits = model(x)
        return nn.functional.cross_entropy(logits, y).item(), (logits.argmax(dim=1) == y).double().mean().item()


def main(file: str, target: str, epochs: int, n_train: int, n_validation: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    frame = pl.read_csv(file).with_columns(
        sepal_area=pl.col("sepal_length") * pl.col("sepal_width"),
        petal_area=pl.col("petal_length") * pl.col("petal_width"),
    )
    y = torch.tensor([CLASSES.index(name) for name in frame["species"]])
    x = torch.tensor(frame.drop("id", "species").to_numpy().astype(np.float32))
    train, validation, test = torch.randperm(len(y)).split(  # type: ignore[no-untyped-call]
        [n_train, n_validation, len(y) - n_train - n_validation]
    )
    model = Network(x[train])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01, fused=True)
    best, weights = float("inf"), {}
    for _ in range(epochs):
        model.train()
        for batch in train[torch.randperm(len(train))].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        loss, _ = score(model, x[validation], y[validation])
        if loss < best:
            best, weights = loss, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    torch.save(weights, Path(target))
    print(f"accuracy {score(model, x[test], y[test])[1]:.3f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(one) for one in sys.argv[3:6]))
