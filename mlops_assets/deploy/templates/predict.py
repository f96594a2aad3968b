"""Classify with the model in this folder: Python with onnxruntime and numpy is all it takes.

    python predict.py FILE... [--json]

Files of images: PNG, JPEG and so on where Pillow is installed, or .npy with pixels, uint8, (rows, height, width,
channels), without it. Files of tables: CSV whose header names the features; or the raw columns, where Polars is
installed or the features are the raw columns as they are. `preprocessing.json` has the names and sizes.

It writes one line per row: where the row is from, its class, and the probability of that class.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
PASS_VALUES = 1 << 20
"""Input values that go through the network in one pass: a convolution's outputs are tens of times its input."""


class Refused(Exception):
    """A file that cannot be classified."""


def main() -> int:
    """Classify the files that the command line names; exit code 1 when one of them cannot be."""
    sys.path.insert(0, str(HERE))
    parser = argparse.ArgumentParser(description="Classify rows or images with the model in this folder.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="one JSON object per row, with the probabilities of all")
    arguments = parser.parse_args()
    about = json.loads((HERE / "preprocessing.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
    read = images if about["kind"] == "images" else table
    try:
        for file in arguments.files:
            x = read(file, about)
            for number, shares in enumerate(probabilities(session, x)):
                print(line(f"{file.name}[{number}]", about["classes"], shares, as_json=arguments.json))
    except (Refused, OSError, UnicodeError, csv.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def line(row: str, classes: list[str], shares: np.ndarray, *, as_json: bool) -> str:
    """Write the answer to one row."""
    best = int(shares.argmax())
    if not as_json:
        return f"{row}\t{classes[best]}\t{shares[best]:.4f}"
    every = {name: round(float(share), 7) for name, share in zip(classes, shares, strict=True)}
    return json.dumps({"row": row, "label": classes[best], "probabilities": every}, ensure_ascii=False)


def probabilities(session: onnxruntime.InferenceSession, x: np.ndarray) -> np.ndarray:
    """Give the probabilities of the classes, (rows, classes)."""
    name, rows = session.get_inputs()[0].name, max(1, PASS_VALUES // max(1, x[0].size)) if len(x) else 1
    parts = [session.run(None, {name: x[start : start + rows]})[0] for start in range(0, len(x), rows)]
    if not parts:
        return np.zeros((0, 1), dtype=np.float64)
    logits = np.concatenate(parts).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    normal: np.ndarray = shares / shares.sum(axis=1, keepdims=True)
    return normal


def images(file: Path, about: dict[str, Any]) -> np.ndarray:
    """Read pixels from an image file or from .npy, and compute the network's input."""
    wanted = about["image"]
    shape = (wanted["height"], wanted["width"], wanted["channels"])
    if file.suffix == ".npy":
        try:
            pixels = np.load(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise Refused(f"{file} is no .npy file of numbers: {error}") from None
        pixels = pixels[None] if pixels.ndim == len(shape) else pixels
    else:
        pixels = decoded(file, wanted)[None]
    if pixels.dtype != np.uint8 or pixels.shape[1:] != shape:
        wished = ", ".join(map(str, ("rows", *shape)))
        raise Refused(f"{file} has {pixels.dtype} of shape {pixels.shape}, not uint8 of shape ({wished})")
    x: np.ndarray = computed(about, pixels) if about["code"] else pixels
    return x


def decoded(file: Path, wanted: dict[str, Any]) -> np.ndarray:
    """Decode an image file as in training."""
    try:
        image_files = importlib.import_module("image_files")
        size = (wanted["height"], wanted["width"]) if wanted["resize"] else None
        values: np.ndarray = image_files.decode(file.read_bytes(), wanted["mode"], size).values
    except ImportError as error:
        raise Refused(f"{file} needs {error.name} to be decoded: install Pillow, or give pixels as .npy") from None
    except ValueError as error:
        raise Refused(f"{file} cannot be decoded: {error}") from None
    return values


def table(file: Path, about: dict[str, Any]) -> np.ndarray:
    """Read features from CSV, or compute them from raw columns."""
    with file.open(newline="", encoding="utf-8-sig") as opened:
        rows = list(csv.reader(opened))
    header = rows[0] if rows else []
    missing = [name for name in about["features"] if name not in header]
    lacking = [name for name in about["columns"] if name not in header]
    if missing and (lacking or not about["code"]):
        raise Refused(f"{file} lacks {', '.join(lacking or missing)}; its header must name the columns")
    x = from_raw(file, about) if missing else numbers(file, rows, [header.index(name) for name in about["features"]])
    finite = np.isfinite(x)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise Refused(f"{file}, row {row}: feature '{about['features'][column]}' is not a finite number")
    return x


def numbers(file: Path, rows: list[list[str]], columns: list[int]) -> np.ndarray:
    """Read the features of each row."""
    x = np.zeros((len(rows) - 1, len(columns)), dtype=np.float32)
    for number, row in enumerate(rows[1:]):
        for place, column in enumerate(columns):
            try:
                x[number, place] = float(row[column])
            except (IndexError, ValueError):
                raise Refused(f"{file}, row {number}: '{rows[0][column]}' is no number") from None
    return x


def from_raw(file: Path, about: dict[str, Any]) -> np.ndarray:
    """Compute features from raw rows, by the code that did so in training."""
    try:
        import polars as pl
    except ImportError:
        names = ", ".join(about["features"])
        raise Refused(f"{file} has raw columns: install polars, or give the features ({names})") from None
    types = {
        name: pl.Enum(one["categories"]) if one["type"] == "Enum" else getattr(pl, one["type"])
        for name, one in about["columns"].items()
    }
    try:
        frame = pl.read_csv(file, columns=list(types), schema_overrides=types)
    except pl.exceptions.PolarsError as error:
        raise Refused(f"{file} cannot be read: {error}") from None
    keys = pl.int_range(frame.height, eager=True).cast(getattr(pl, about["key_type"]), strict=False)
    target = pl.lit(None, pl.String).alias(about["target"])
    made = computed(about, frame.with_columns(keys.alias(about["key"]), target))
    if made.height != frame.height:
        raise Refused(f"the features code made {made.height} rows of {frame.height}")
    ordered = made.sort(pl.col(about["key"]).cast(pl.Int64, strict=False))  # the code may give rows in another order
    x: np.ndarray = ordered.select(pl.col(about["features"]).cast(pl.Float32)).to_numpy()
    return x


def computed(about: dict[str, Any], rows: Any) -> Any:
    """Call the features function that was trained with; its folder is the package that its imports expect."""
    package = ModuleType("mlops_pipelines")
    package.__path__ = [str(HERE / "source")]
    sys.modules[package.__name__] = package
    file, _, name = about["code"].partition(":")
    try:
        module = importlib.import_module(".".join([package.__name__, *Path(file).with_suffix("").parts]))
        return getattr(module, name)(rows)
    except ImportError as error:
        raise Refused(f"the features code needs {error.name}: install it") from None
    except Exception as error:  # noqa: BLE001  what it raises is the finding
        raise Refused(f"the features code fails: {type(error).__name__}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
