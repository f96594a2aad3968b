"""A Hugging Face Space for one version: its folder, and pushing it in one commit.

Belongs here: what lies in such a folder, and what is asked of the Hub. Not here: the app itself (`space_app.py`), and
which version it is. The Space has no copy of the platform but the modules that answer, found by what they import.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mlops_assets.deploy.space_app import asked, measured
from mlops_assets.errors import MlopsError
from mlops_assets.fingerprint import PACKAGE_ROOT
from mlops_assets.serving import CONTRACT, MODEL
from mlops_assets.serving.contract import SOURCE
from mlops_assets.serving.pointer import POINTER, Accuracy, Pointer

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from mlops_assets.serving.slot import Slot

CHECKSUMS: Final = "SHA256SUMS"
"""Every other file with its SHA-256, as `sha256sum -c` reads it: also what tells an earlier Space from this one."""

APP: Final = '''\
"""The playground of one version; README.md says which."""

from pathlib import Path

from mlops_assets.deploy.space_app import main

main(Path(__file__).parent)
'''
REQUIRED: Final = ("gradio", "numpy", "onnxruntime", "pillow", "polars", "pydantic")
"""What the modules of the app load."""

TOKEN: Final = "HF_TOKEN"  # noqa: S105  the variable's name
_SHORT: Final = 60  # characters that the Hub takes for a short description


class SpaceError(MlopsError):
    """A Space that cannot be made or pushed to."""


class Pushed(NamedTuple):
    """What a push has done.

    Attributes:
        url: Of the commit; of the Space when there was nothing to commit.
        files: How many were written or removed; 0 when the Space had all of them already.
    """

    url: str
    files: int


def build(slot: Slot, folder: Path, description: str = "") -> dict[str, int]:
    """Write the folder of a version's Space.

    Args:
        slot: The version.
        folder: An empty folder.
        description: What the pipeline is for, from its author.

    Returns:
        Sizes in bytes by path, the checksums included.

    Raises:
        SlotError: Its sample rows have what must not leave the data.
    """
    slot.require_shareable()
    contract = slot.contract
    texts = {
        "app.py": APP,
        "requirements.txt": "".join(f"{one}\n" for one in _requirements(slot)),
        "README.md": _readme(slot, description),
        POINTER: json.dumps(_pointer(slot).model_dump(mode="json"), indent=1),
        **{f"{SOURCE}/{path}": text for path, text in contract.sources.items()},
        **{path.relative_to(PACKAGE_ROOT.parent).as_posix(): path.read_text("utf-8") for path in _modules()},
    }
    files = {path: text.encode() for path, text in texts.items()}
    files |= {name: (slot.folder / name).read_bytes() for name in (CONTRACT, MODEL)}
    sums = "".join(f"{hashlib.sha256(files[path]).hexdigest()}  {path}\n" for path in sorted(files))
    for path, content in {**files, CHECKSUMS: sums.encode()}.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return {path: (folder / path).stat().st_size for path in sorted([*files, CHECKSUMS])}


@contextmanager
def fresh(target: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of another when all went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as aside:
        made = Path(aside) / target.name
        made.mkdir()
        yield made
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def push(folder: Path, space: str, token: str, *, private: bool = False) -> Pushed:
    """Bring a Space to what a folder holds, in one commit; nothing is committed where it holds that already.

    Files that an earlier push of ours wrote and this one does not have are removed; those of others stay.

    Args:
        folder: As `build` wrote it.
        space: OWNER/NAME; made if there is none.
        token: With write access; sent to the Hub, and kept nowhere.
        private: Whether a Space that is made now is private.

    Raises:
        SpaceError: The Hub refuses, or cannot be reached. The Space is then as it was.
    """
    with _hub_errors(space):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api = HfApi(token=token, library_name="mlops-assets")
        url = api.create_repo(space, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True).url
        head = api.space_info(space).sha
        wanted = (folder / CHECKSUMS).read_bytes()
        before = _earlier(api, space, head)
        if before == wanted:
            return Pushed(url, 0)
        had, has = _listed(before), _listed(wanted)
        changed = [path for path, digest in has.items() if had.get(path) != digest]
        # What lies in the Space now decides: deleting what somebody has deleted before would be refused.
        there = set(api.list_repo_files(space, repo_type="space", revision=head)) if had.keys() - has.keys() else set()
        gone = sorted((had.keys() - has.keys()) & there)
        operations: list[Any] = [
            *(CommitOperationAdd(path, folder / path) for path in [*changed, CHECKSUMS]),
            *(CommitOperationDelete(path) for path in gone),
        ]
        made = api.create_commit(
            space,
            operations,
            repo_type="space",
            commit_message=_message(folder),
            parent_commit=head,
        )
        return Pushed(made.commit_url, len(operations))


def _earlier(api: HfApi, space: str, head: str | None) -> bytes:
    """The checksums of the Space as it is; empty when no push of ours made it."""
    from huggingface_hub.errors import EntryNotFoundError

    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = api.hf_hub_download(space, CHECKSUMS, repo_type="space", revision=head, local_dir=scratch)
        except EntryNotFoundError:
            return b""
        return Path(path).read_bytes()


def _listed(sums: bytes) -> dict[str, str]:
    """Digests by path."""
    lines = (line.partition("  ") for line in sums.decode(errors="replace").splitlines())
    return {path: digest for digest, _, path in lines}


@contextmanager
def _hub_errors(space: str) -> Iterator[None]:
    """Say in one sentence what the Hub refused."""
    try:
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its own client, whichever package that is
    except ImportError as error:
        raise SpaceError(
            f"huggingface_hub is not installed ({error}); `pip install 'mlops-assets[space]'` brings it"
        ) from None
    try:
        yield
    except HFValidationError:
        raise SpaceError(f"'{space}' is no name of a Space; it is OWNER/NAME") from None
    except HfHubHTTPError as error:
        raise SpaceError(_refused(space, error.response.status_code, error.server_message)) from None
    except (httpx.HTTPError, OSError) as error:
        raise SpaceError(
            f"Hugging Face cannot be reached ({type(error).__name__}); {space} is as it was, try again later"
        ) from None


def _refused(space: str, status: int, said: str | None) -> str:
    told = f" ({said})" if said else ""
    if status == 401:
        return f"Hugging Face does not know the token in {TOKEN}{told}; make one at huggingface.co/settings/tokens"
    if status == 403:
        return f"the token in {TOKEN} may not write to {space}{told}; use one of its owner with write access"
    if status in {409, 412}:
        return f"somebody else changed {space} meanwhile{told}; look at it, and deploy again"
    return f"Hugging Face answered {status} for {space}{told}; the Space is as it was, try again later"


def _message(folder: Path) -> str:
    pointer = Pointer.model_validate_json((folder / POINTER).read_bytes())
    return f"{pointer.pipeline}, version {pointer.version}"


def _modules() -> list[Path]:
    """The platform's modules that the app runs: itself, and what it and they import."""
    from modulefinder import ModuleFinder

    finder = ModuleFinder(path=[str(PACKAGE_ROOT.parent)])
    finder.import_hook("mlops_assets.deploy.space_app")
    found = [Path(path) for one in finder.modules.values() if (path := getattr(one, "__file__", None))]
    return sorted(path for path in found if path.is_relative_to(PACKAGE_ROOT))


def _requirements(slot: Slot) -> list[str]:
    """Packages with the versions that are installed here, with which the version was proved to answer as trained."""
    wanted = set(REQUIRED)
    distributions = metadata.packages_distributions()
    for path, text in slot.contract.sources.items():
        for name in _imported(text, path):
            wanted.update(distributions.get(name, [])[:1])
    if not any(one.custom for one in slot.contract.inputs):
        wanted -= {"pandera"}  # of the schema, which is called only for checks of one's own
    wanted -= {"mlops-assets"}
    return [f"{name}=={_version(name)}" for name in sorted(wanted)]


def _version(name: str) -> str:
    """The version of a package that is installed here.

    Raises:
        SpaceError: It is not.
    """
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        raise SpaceError(
            f"a Space runs {name}, which is not installed here; `pip install 'mlops-assets[space]'` brings it"
        ) from None


def _imported(text: str, path: str) -> set[str]:
    """Top-level packages that a source file imports."""
    import ast

    found = set()
    for node in ast.walk(ast.parse(text, path)):
        if isinstance(node, ast.Import):
            found |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def _pointer(slot: Slot) -> Pointer:
    """What `Slot.load` is told in the Space. Options of the model server do not matter there, nor where it trained."""
    accuracy = (
        Accuracy(**dict(zip(("estimate", "lower", "upper"), slot.accuracy, strict=True))) if slot.accuracy else None
    )
    return Pointer(
        pipeline=slot.pipeline,
        key=slot.folder.name,
        version=slot.version,
        run_id=slot.run_id,
        model_digest=slot.model_digest,
        alias="",
        accuracy=accuracy,
    )


def _readme(slot: Slot, description: str) -> str:
    import yaml

    contract = slot.contract
    title = f"{slot.pipeline}, version {slot.version}"
    front = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": _version("gradio"),
        "python_version": "3.11",
        "app_file": "app.py",
        "short_description": _shortened(description or f"Playground of {slot.pipeline}"),
        "pinned": False,
        "tags": ["onnx", "image-classification" if contract.kind == "images" else "tabular-classification"],
    }
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=float("inf"))
    if contract.kind == "images":
        height, width, channels = contract.image_shape
        takes = f"An image of {width} x {height} pixels with {channels} channel(s)."
    else:
        takes = "\n".join(
            f"* `{one.name}`: {one.dtype}{', may be null' if one.nullable else ''}" for one in asked(slot)
        )
    classes = ", ".join(contract.classes)
    return f"""---
{head}---

# {title}

{description}

{measured(slot)}

## What it takes

{takes}

## What it answers

The probability of each of {len(contract.classes)} classes: {classes}.

## What lies here

`{MODEL}` and `{CONTRACT}` are the model and what it takes; `{SOURCE}` is the code that makes its features, as it was
when it was trained, and `mlops_assets` the modules that answer. `{CHECKSUMS}` lists all files (`sha256sum -c`). The
app lets the model answer its sample rows when it starts, and does not start where an answer is not that of training.
Training run: `{slot.run_id}`; model digest: `{slot.model_digest}`.
"""


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHORT else f"{flat[: _SHORT - 3]}..."
