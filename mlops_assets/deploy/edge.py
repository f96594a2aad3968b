"""An edge bundle: a folder that classifies with ONNX Runtime and NumPy alone.

Belongs here: what such a folder holds, that it answers as the served version does, and that nobody's other folder is
overwritten. Not here: making the model smaller (`quantize.py`), the page for browsers (`browser.py`), and which version
is exported (`cli/export.py`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    import polars as pl
    from jinja2 import Environment
    from numpy.typing import NDArray

    from mlops_assets.serving.slot import Slot

TEMPLATES: Final = Path(__file__).parent / "templates"
MODEL: Final = "model.onnx"
ABOUT: Final = "preprocessing.json"
SUMS: Final = "SHA256SUMS"
FORMAT: Final = "mlops edge bundle 1"
TOLERANCE: Final = 1e-5
"""How far a probability of the bundle's own `predict.py` may lie from the platform's: the arithmetic is the same."""

SECONDS: Final = 120.0
"""How long `predict.py` may take for the sample."""

PROBES: Final = 8
"""Images of noise."""

_PLATFORM_ERROR: Final = "from mlops_assets.data.readers import ReadError\n"


class EdgeError(MlopsError):
    """A bundle cannot be made."""


class Lighter(NamedTuple):
    """What is told of a model that was made smaller than the registered one.

    Attributes:
        method: How, with the source.
        reason: Why the loss of accuracy is allowed: the gate's sentence.
        before: Bytes of the registered model.
        latency_ratio: Its time for one row over the registered model's, medians, on the machine that exported.
    """

    method: str
    reason: str
    before: int
    latency_ratio: float


def require_replaceable(out: Path, *, force: bool) -> None:
    """Refuse a place where something else is.

    Args:
        out: Where a bundle is to go.
        force: Whether it may replace an earlier one.

    Raises:
        EdgeError: It may not.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    strange = _strange_file(out)
    if strange:
        raise EdgeError(f"{out} is not replaced: {strange}; choose another --out")
    if not force:
        raise EdgeError(f"{out} is there already; --force replaces the bundle, or choose another --out")


@contextmanager
def fresh_bundle(out: Path, *, force: bool) -> Iterator[Path]:
    """Give a folder to fill; its sums are added and it becomes `out` when that went well, and is removed when not.

    Args:
        out: Where the bundle goes: nothing, an empty folder, or with `force` an earlier bundle.
        force: Replace an earlier bundle.

    Raises:
        EdgeError: Something else is there, or it cannot be written.
    """
    require_replaceable(out, force=force)
    name = f".{out.name}.{uuid.uuid4().hex}"
    aside, before = out.with_name(f"{name}.tmp"), out.with_name(f"{name}.old")
    try:
        aside.mkdir(parents=True)
        yield aside
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        sums = (
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(aside).as_posix()}" for path in files
        )
        (aside / SUMS).write_text("".join(f"{line}\n" for line in sums), encoding="utf-8")
        if out.exists():
            out.rename(before)
        try:
            aside.rename(out)
        except BaseException:
            if before.exists():
                before.rename(out)
            raise
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise EdgeError(
            f"{out} cannot be written: {error.strerror or error}; mend its rights or choose another place"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_onnx(slot: Slot, model: bytes, folder: Path, *, lighter: Lighter | None = None) -> None:
    """Fill a folder with a bundle for ONNX Runtime, and run its own `predict.py` over the contract's sample.

    Args:
        slot: The version.
        model: Its ONNX file, or a lighter one.
        folder: An empty folder.
        lighter: What is told of a lighter model.

    Raises:
        EdgeError: `predict.py` fails, or answers otherwise than the model does in the platform.
        SlotError: The version's sample rows have what must not leave the data.
    """
    from mlops_assets.training.predict import predict

    slot.require_shareable()
    contract = slot.contract
    rows = contract.sample_rows()
    x = slot.features(rows)
    described = describe(slot, x)
    (folder / MODEL).write_bytes(model)
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in contract.classes), encoding="utf-8")
    (folder / ABOUT).write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(TEMPLATES / "predict.py", folder / "predict.py")
    if contract.kind == "images":
        (folder / "image_files.py").write_text(_image_files(), encoding="utf-8")
    if described["code"]:
        for path, text in contract.sources.items():
            (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / path).write_text(text, encoding="utf-8")
    samples = _write_samples(slot, rows, x, folder, raw=bool(described["code"]))
    expected = predict(model, x)
    for sample in samples:
        _check(folder, sample, contract.classes, expected)
    shown = _run(folder, samples[0])
    readme = (
        environment()
        .get_template("README.md.j2")
        .render(
            about=described,
            slot=slot,
            contract=contract,
            samples=samples,
            shown=shown,
            size=len(model),
            lighter=lighter,
        )
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")


def describe(slot: Slot, x: NDArray[Any]) -> dict[str, Any]:
    """What a program must know that feeds the model: the content of `preprocessing.json`.

    Args:
        slot: The version.
        x: Features of the contract's sample.
    """
    contract = slot.contract
    about: dict[str, Any] = {
        "format": FORMAT,
        "pipeline": slot.pipeline,
        "version": slot.version,
        "run": slot.run_id,
        "accuracy": dict(zip(("estimate", "lower", "upper"), slot.accuracy, strict=True)) if slot.accuracy else None,
        "kind": contract.kind,
        "classes": list(contract.classes),
        "input": {"type": str(x.dtype), "shape": list(contract.shape)},
        "code": "" if is_plain(slot) else f"{contract.pipeline}/{contract.functions['features']}",
    }
    if contract.kind == "images":
        assert contract.images is not None
        height, width, channels = contract.image_shape
        about["image"] = {
            "mode": "L" if channels == 1 else "RGB",
            "height": height,
            "width": width,
            "channels": channels,
            "resize": contract.images.size is not None,
            "filter": "bilinear, antialiased",
        }
    else:
        about |= {
            "features": list(contract.features),
            "key": contract.key,
            "key_type": contract.key_type,
            "target": contract.target,
        }
        about["columns"] = {
            one.name: {"type": one.dtype, "categories": list(one.categories)} for one in contract.inputs if one.required
        }
    return about


def is_plain(slot: Slot) -> bool:
    """Whether the features are the raw columns, or the pixels, as they are.

    Seen on the contract's sample and on rows of the same shape that no data have: a function that limits a value, or
    fills a gap, changes those.
    """
    from mlops_assets.serving.checks import InvalidInput

    rows, names = slot.contract.sample_rows(), list(slot.contract.features)
    if isinstance(rows, np.ndarray):
        noise = np.random.default_rng(0).integers(0, 256, (PROBES, *rows.shape[1:]), dtype=np.uint8)
        odd: Any = np.concatenate([rows, noise])
    elif not set(names) <= set(rows.columns) or not all(rows[name].dtype.is_numeric() for name in names):
        return False
    else:
        odd = _odd_rows(rows, names)
    try:
        made = slot.features(odd)
    except InvalidInput:  # what has an opinion of odd values does not leave them as they are
        return False
    raw = odd if isinstance(odd, np.ndarray) else odd.select(names).to_numpy().astype(np.float32)
    return raw.shape == made.shape and np.array_equal(raw, made)


def _odd_rows(rows: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """The rows, and the same with numbers far beyond them; a type that cannot hold one keeps its own."""
    import polars as pl

    def changed(factor: float) -> pl.DataFrame:
        return rows.with_columns(
            (pl.col(name) * factor - 1).cast(rows.schema[name], strict=False).fill_null(pl.col(name)) for name in names
        )

    return pl.concat([rows, *(changed(factor) for factor in (-1e4, -0.5, 0.0, 100.0, 1e4))])


@cache
def environment() -> Environment:
    """The templates of Markdown; a name that is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(  # noqa: S701  Markdown, not HTML
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _strange_file(out: Path) -> str:
    """Why a place is not a bundle that may go; empty when it is one."""
    try:
        about = json.loads((out / ABOUT).read_text(encoding="utf-8"))
        lines = (out / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return "it is not a bundle of this command"
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        return "it is not a bundle of this release"
    listed = {line.partition("  ")[2] for line in lines} | {SUMS}
    files = (path.relative_to(out) for path in sorted(out.rglob("*")) if not path.is_dir())
    own = (path.as_posix() for path in files if path.as_posix() not in listed and "__pycache__" not in path.parts)
    added = next(own, "")
    return f"{added} in it is not of the bundle" if added else ""


def _image_files() -> str:
    """The platform's own decoder of image files, freed of its one first-party import, so that no copy can differ."""
    import inspect

    from mlops_assets.data import image_files

    source = inspect.getsource(image_files)
    assert source.count(_PLATFORM_ERROR) == 1
    return source.replace(
        _PLATFORM_ERROR, '\n\nclass ReadError(ValueError):\n    """An image that cannot be read."""\n\n'
    )


def _write_samples(slot: Slot, rows: Any, x: NDArray[Any], folder: Path, *, raw: bool) -> list[str]:
    """Write the contract's sample as `predict.py` takes it; returns the files' names, the first needs least."""
    if isinstance(rows, np.ndarray):
        np.save(folder / "sample.npy", rows, allow_pickle=False)
        return ["sample.npy"]
    import polars as pl

    features = pl.DataFrame(x, schema=list(slot.contract.features), orient="row")
    features.write_csv(folder / "sample.csv")
    if not raw:
        return ["sample.csv"]
    needed = [one.name for one in slot.contract.inputs if one.required]
    rows.select(needed).write_csv(folder / "sample-raw.csv")
    return ["sample.csv", "sample-raw.csv"]


def _check(folder: Path, sample: str, classes: tuple[str, ...], expected: NDArray[np.float32]) -> None:
    """Hold what `predict.py` says of a sample against the model's answers."""
    told = [json.loads(line)["probabilities"] for line in _run(folder, sample, "--json").splitlines()]
    given = np.array([[one[name] for name in classes] for one in told])
    if given.shape != expected.shape or not np.abs(given - expected).max() <= TOLERANCE:
        raise EdgeError(
            f"the bundle's predict.py answers {sample} otherwise than the platform does; nothing was written"
        )


def _run(folder: Path, *arguments: str) -> str:
    """What `predict.py` writes; without bytecode, which would be no file of the bundle."""
    command = [sys.executable, "-B", "-X", "utf8", "predict.py", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS, check=False
        )
        said = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason"])[-1]
    except subprocess.TimeoutExpired:
        said = f"it took over {SECONDS:.0f} s"
    if said:
        reason = said.removeprefix("error: ")
        raise EdgeError(f"the bundle's predict.py fails on {arguments[0]} ({reason}); nothing was written")
    return done.stdout
