"""A web page that classifies in the browser with onnxruntime-web: files alone, no server of ours, no other host.

Belongs here: which pipelines can do without their features code, the page's files, and the runtime that it needs. Not
here: what the page does (`templates/page.js`), and writing a bundle (`edge.py`).
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tarfile
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.deploy.edge import ABOUT, MODEL, TEMPLATES, EdgeError, describe, environment, is_plain

if TYPE_CHECKING:
    from mlops_assets.serving.slot import Slot

PACKAGE: Final = "onnxruntime-web"
RELEASE: Final = "1.30.0"
"""Of the npm package, fetched when none is given."""

RUNTIME: Final = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""What the page needs of the package's folder `dist`: the build without WebGPU and WebNN, and its machine code."""

PAGE: Final = ("index.html", "page.css", "page.js", "pixels.js")
LICENCES: Final = ("LICENSE", "ThirdPartyNotices.txt")
SECONDS: Final = 600.0


def write_page(slot: Slot, model: bytes, folder: Path, runtime: Mapping[str, bytes]) -> None:
    """Fill a folder with the page.

    Args:
        slot: The version.
        model: Its ONNX file.
        folder: An empty folder.
        runtime: As `runtime_files` gives it.

    Raises:
        EdgeError: The pipeline computes features in Python, which a browser does not run.
        SlotError: The version's sample rows have what must not leave the data.
    """
    slot.require_shareable()
    if not is_plain(slot):
        raise EdgeError(
            f"{slot.pipeline} computes features by Python code, which a browser does not run; use the playground "
            "or the model server (`mlops serve`), or --target onnx"
        )
    contract = slot.contract
    rows = contract.sample_rows()
    x = slot.features(rows)
    about = describe(slot, x)
    (folder / MODEL).write_bytes(model)
    _write_json(folder / ABOUT, about)
    if contract.kind == "images":
        given: Any = [base64.b64encode(row.tobytes()).decode() for row in x]
    else:
        given = x.astype(str).astype(float).tolist()  # as people write them: 6.2, not 6.199999809265137
    _write_json(folder / "sample.json", {"rows": given, "answers": contract.answers})
    for name in PAGE:
        shutil.copyfile(TEMPLATES / name, folder / name)
    (folder / "runtime").mkdir()
    for name, data in {**runtime, **_licences()}.items():
        (folder / "runtime" / name).write_bytes(data)
    readme = environment().get_template("BROWSER.md.j2").render(about=about, package=PACKAGE)
    (folder / "README.md").write_text(readme, encoding="utf-8")


def runtime_files(given: Path | None, downloads: Path) -> dict[str, bytes]:
    """The files of onnxruntime-web that the page needs, by name.

    Args:
        given: The package's folder or tarball; None has npm fetch the tested release, once.
        downloads: Where fetched packages are kept.

    Raises:
        EdgeError: A file is missing, or npm is, or it fails.
    """
    place = given.expanduser() if given else downloads / f"{PACKAGE}-{RELEASE}.tgz"
    if given is None and not place.is_file():
        _fetch(place)
    try:
        if place.is_dir():
            return {name: (place / "dist" / name).read_bytes() for name in RUNTIME}
        with tarfile.open(place, "r:gz") as archive:
            return {name: _member(archive, f"package/dist/{name}") for name in RUNTIME}
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip("'\"")
        remedy = "give the folder or the .tgz of the npm package" if given else "delete it, and it is fetched again"
        raise EdgeError(f"{place} has not what {PACKAGE} {RELEASE} has ({reason}); {remedy}") from None


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is no file")
    return file.read()


def _fetch(place: Path) -> None:
    """Have npm bring the package; it checks what it brings."""
    npm = shutil.which("npm")
    if npm is None:
        raise EdgeError(
            f"{PACKAGE} is needed and npm, which fetches it, is not installed; install npm, or give the package's "
            ".tgz with --runtime"
        )
    aside = place.with_name(f".{uuid.uuid4().hex}.tmp")
    command = [npm, "pack", f"{PACKAGE}@{RELEASE}", "--silent", "--pack-destination", str(aside)]
    try:
        aside.mkdir(parents=True)
        done = subprocess.run(command, cwd=aside, capture_output=True, text=True, timeout=SECONDS, check=False)
        fetched = aside / place.name
        if done.returncode or not fetched.is_file():
            said = next((line for line in done.stderr.splitlines() if "error" in line), "it brought nothing")
            raise EdgeError(
                f"`npm pack {PACKAGE}@{RELEASE}` failed ({said}); mend that, or give its .tgz with --runtime"
            )
        fetched.replace(place)
    except subprocess.TimeoutExpired:
        raise EdgeError(
            f"`npm pack {PACKAGE}@{RELEASE}` took over {SECONDS:.0f} s; give its .tgz with --runtime"
        ) from None
    except OSError as error:
        raise EdgeError(
            f"{place} cannot be written: {error.strerror or error}; mend its rights or free space"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _licences() -> dict[str, bytes]:
    """ONNX Runtime's licences, which its npm package lacks, from the Python package of the same project."""
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent
    return {name: (folder / name).read_bytes() for name in LICENCES}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
