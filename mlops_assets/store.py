"""The store of outputs: each under its recipe, verified when read.

Belongs here: keeping and finding the bytes that a recipe made, on any file system that fsspec knows. Does not: knowing
what the bytes mean.

An entry's files go into a folder of the attempt that wrote them; `manifest.json`, moved into place last, is what makes
the entry exist. A writer that is killed leaves nothing visible, and two writers of one recipe cannot mix their files.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.errors import MlopsError
from mlops_assets.fingerprint import Recipe

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

MANIFEST: Final = "manifest.json"


class StoreError(MlopsError):
    """The store cannot be read or written."""


class EntryMissing(StoreError):
    """No output is kept under that recipe."""


class EntryCorrupt(StoreError):
    """An entry's bytes are not what was written."""


@dataclass(frozen=True)
class Entry:
    """One output: what it is (`digest`, `info`) and its files."""

    asset: str
    key: str
    digest: str
    info: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    url: str
    _fs: AbstractFileSystem

    def read(self, name: str) -> bytes:
        """The bytes of one of the entry's files.

        Raises:
            EntryMissing: The file is gone.
            EntryCorrupt: Its hash differs from the manifest's.
        """
        file = self.files[name]
        try:
            data: bytes = self._fs.cat_file(f"{self.url}/{file['path']}")
        except FileNotFoundError:
            raise EntryMissing(f"{self.url}/{file['path']} is gone; {self._remedy}") from None
        if hashlib.sha256(data).hexdigest() != file["sha256"]:
            raise EntryCorrupt(f"{self.url}/{file['path']} is damaged (its hash is wrong); {self._remedy}")
        return data

    def json(self, name: str) -> Any:
        """One of the entry's files, parsed as JSON."""
        return json.loads(self.read(name))

    @property
    def _remedy(self) -> str:
        return f"delete the folder {self.url} and run `mlops run {self.asset.partition('/')[0]}` to make it again"


class Store:
    """A content-addressed store at an fsspec URL (a local path, `s3://bucket/prefix`, ...)."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._fs: AbstractFileSystem
        self._fs, self._root = fsspec.core.url_to_fs(url)

    def find(self, asset: str, key: str) -> Entry | None:
        """The output of the recipe with that key, or None when it was never completed here.

        Raises:
            EntryCorrupt: The manifest is not what was written.
        """
        url = self._url(asset, key)
        try:
            manifest = json.loads(self._fs.cat_file(f"{url}/{MANIFEST}"))
            return Entry(asset, key, manifest["digest"], manifest["info"], manifest["files"], url, self._fs)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{url} cannot be read: {error.strerror or error}; mend its rights or its place") from None
        except (ValueError, KeyError, TypeError) as error:
            raise EntryCorrupt(f"{url}/{MANIFEST} is damaged ({error}); delete that folder and run again") from None

    def get(self, asset: str, key: str) -> Entry:
        """The output of a recipe that must be there.

        Raises:
            EntryMissing: It is not.
        """
        entry = self.find(asset, key)
        if entry is None:
            pipeline = asset.partition("/")[0]
            raise EntryMissing(
                f"the store has no {asset} at {self._url(asset, key)}; run `mlops run {pipeline}` to make it again"
            )
        return entry

    def put(self, recipe: Recipe, digest: str, info: Mapping[str, Any], files: Mapping[str, bytes]) -> Entry:
        """Keep an output; when this returns it is whole, and until then nobody sees it.

        Args:
            recipe: What made it.
            digest: Content hash of the output as a whole: its Dagster data version.
            info: JSON-able facts for metadata.
            files: Contents by file name.

        Raises:
            StoreError: The place cannot be written (no space, no permission).
        """
        url, attempt = self._url(recipe.asset, recipe.key), uuid.uuid4().hex
        listing = {
            name: {"path": f"{attempt}/{name}", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in files.items()
        }
        manifest: dict[str, Any] = {
            "asset": recipe.asset,
            "code_version": recipe.code_version,
            "inputs": dict(recipe.inputs),
            "digest": digest,
            "info": dict(info),
            "files": listing,
        }
        try:
            self._fs.makedirs(f"{url}/{attempt}", exist_ok=True)
            for name, data in files.items():
                self._fs.pipe_file(f"{url}/{attempt}/{name}", data)
            self._fs.pipe_file(f"{url}/{attempt}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
            self._fs.mv(f"{url}/{attempt}/{MANIFEST}", f"{url}/{MANIFEST}")
        except OSError as error:
            raise StoreError(
                f"{url} cannot be written: {error.strerror or error}; free space or mend its rights"
            ) from None
        return Entry(recipe.asset, recipe.key, digest, info, listing, url, self._fs)

    @contextmanager
    def making(self, recipe: Recipe) -> Iterator[None]:
        """Hold the right to make a recipe's output, so that two runs do not compute it twice on one machine."""
        if "file" not in self._fs.protocol:
            yield  # object stores have no locks; two writers then cost time, not correctness
            return
        from filelock import FileLock

        folder = Path(self._url(recipe.asset, recipe.key))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder} cannot be written: {error.strerror}; choose another MLOPS_HOME") from None
        with FileLock(folder / ".lock"):
            yield

    def _url(self, asset: str, key: str) -> str:
        return f"{self._root}/{asset}/{key}"
