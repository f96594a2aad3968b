"""The store of outputs: each under its recipe, verified when read.

Belongs here: keeping and finding the bytes that a recipe made, on any file system that fsspec knows. Does not: knowing
what the bytes mean, and looking after what is there (`upkeep.py`).

An entry's files go into a folder of the attempt that wrote them; `manifest.json`, moved into place last, is what makes
the entry exist. A writer that is killed leaves nothing visible, and two writers of one recipe cannot mix their files.
On a local disk every file is synced before the manifest moves: a power cut cannot leave a manifest without its files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from pydantic import BaseModel, ValidationError

from mlops_assets import fingerprint
from mlops_assets.errors import MlopsError
from mlops_assets.fingerprint import Recipe

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger(__name__)

MANIFEST: Final = "manifest.json"
LOCK: Final = ".lock"

SEAL: Final = "seal"
"""In a manifest: the digest of everything else in it. Entries of the first releases have none."""

TELL_SECONDS: Final = 2.0
"""How long to wait for somebody else's computation before saying so."""

NO_SPACE: Final = "free space (`mlops store gc` removes what is of no more use) or set MLOPS_STORE elsewhere"
REMEDIES: Final = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f unlimited`) or set MLOPS_STORE elsewhere",
}


class StoreError(MlopsError):
    """The store cannot be read or written."""

    @classmethod
    def reading(cls, url: str, error: OSError) -> Self:
        """What the operating system said when something was to be read."""
        return cls(f"{url} cannot be read: {error.strerror or error}; mend its rights or its place")

    @classmethod
    def writing(cls, url: str, error: OSError) -> Self:
        """What the operating system said when something was to be written or removed."""
        remedy = REMEDIES.get(error.errno or 0, "mend its rights, or set MLOPS_STORE elsewhere")
        return cls(f"{url} cannot be written: {error.strerror or error}; {remedy}")


class EntryMissing(StoreError):
    """No output is kept under that recipe, or not all of it."""


class EntryCorrupt(StoreError):
    """An entry's bytes are not what was written.

    Attributes:
        flaw: What is wrong with them, in a few words.
    """

    def __init__(self, url: str, flaw: str, asset: str) -> None:
        super().__init__(f"{url} is damaged ({flaw}); {_remedy(asset)}")
        self.flaw = flaw


class StoredFile(BaseModel, frozen=True, strict=True):
    """One file of an entry: its place below the entry's folder, its SHA-256 in hexadecimal digits, its size."""

    path: str
    sha256: str
    bytes: int


class _Manifest(BaseModel, frozen=True, strict=True):
    """What every reader needs of a manifest."""

    digest: str
    inputs: dict[str, str]
    info: dict[str, Any]
    files: dict[str, StoredFile]


@dataclass(frozen=True)
class Entry:
    """One output: what it is (`digest`, `info`), the digests of what it was made from (`inputs`), and its files."""

    asset: str
    key: str
    digest: str
    inputs: Mapping[str, str]
    info: Mapping[str, Any]
    files: Mapping[str, StoredFile]
    url: str
    _fs: AbstractFileSystem

    def read(self, name: str) -> bytes:
        """The bytes of one of the entry's files.

        Raises:
            EntryMissing: The file is gone, or the entry never had it.
            EntryCorrupt: Its hash differs from the manifest's.
            StoreError: It cannot be read.
        """
        if name not in self.files:
            raise EntryMissing(f"{self.url} has no file '{name}'; {_remedy(self.asset)}")
        file = self.files[name]
        path = f"{self.url}/{file.path}"
        try:
            data: bytes = self._fs.cat_file(path)
        except FileNotFoundError:
            raise EntryMissing(f"{path} is gone; {_remedy(self.asset)}") from None
        except OSError as error:
            raise StoreError.reading(path, error) from None
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise EntryCorrupt(path, "its hash is wrong", self.asset)
        return data

    def json(self, name: str) -> Any:
        """One of the entry's files, parsed as JSON."""
        return json.loads(self.read(name))


class Store:
    """A content-addressed store at an fsspec URL (a local path, `s3://bucket/prefix`, ...).

    Attributes:
        fs: The file system.
        root: The store's place in it.
        is_local: Whether that is a disk of this machine, with locks and syncing.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        self.fs: AbstractFileSystem
        self.fs, self.root = url_to_fs(url)
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def url(self, asset: str, key: str) -> str:
        """The folder of what the recipe with that key made of an asset."""
        return f"{self.root}/{asset}/{key}"

    def find(self, asset: str, key: str) -> Entry | None:
        """The output of the recipe with that key, or None when it was never completed here.

        Raises:
            EntryCorrupt: The manifest is not what was written.
            StoreError: It cannot be read.
        """
        url = self.url(asset, key)
        place = f"{url}/{MANIFEST}"
        try:
            raw = json.loads(self.fs.cat_file(place))
            manifest = _Manifest.model_validate(raw)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError.reading(url, error) from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "as a whole"
            raise EntryCorrupt(place, f"{where}: {first['msg']}", asset) from None
        except ValueError as error:
            raise EntryCorrupt(place, f"not JSON: {error}", asset) from None
        seal = raw.pop(SEAL, None)
        if seal is not None and seal != fingerprint.digest(raw):
            raise EntryCorrupt(place, "it is not as it was written", asset)
        return Entry(asset, key, manifest.digest, manifest.inputs, manifest.info, manifest.files, url, self.fs)

    def get(self, asset: str, key: str) -> Entry:
        """The output of a recipe that must be there.

        Raises:
            EntryMissing: It is not.
            EntryCorrupt: The manifest is not what was written.
        """
        entry = self.find(asset, key)
        if entry is None:
            pipeline = asset.partition("/")[0]
            raise EntryMissing(
                f"the store has no {asset} at {self.url(asset, key)}; run `mlops run {pipeline}` to make it again"
            )
        return entry

    def put(self, recipe: Recipe, digest: str, info: Mapping[str, Any], files: Mapping[str, bytes]) -> Entry:
        """Keep an output; when this returns it is whole and on disk, and until then nobody sees it.

        Args:
            recipe: What made it.
            digest: Content hash of the output as a whole: its Dagster data version.
            info: JSON-able facts for metadata.
            files: Contents by file name; hashed and written as they are, without a copy.

        Raises:
            StoreError: The place cannot be written (no space, no permission).
        """
        url, attempt = self.url(recipe.asset, recipe.key), uuid.uuid4().hex
        made = {
            "asset": recipe.asset,
            "code_version": recipe.code_version,
            "inputs": dict(recipe.inputs),
            "digest": digest,
            "info": dict(info),
            "files": {
                name: {"path": f"{attempt}/{name}", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
                for name, data in files.items()
            },
        }
        raw = json.loads(json.dumps(made))  # as it will be read: the seal must not depend on tuples or keys of integers
        manifest = _Manifest.model_validate(raw)
        try:
            self.fs.makedirs(f"{url}/{attempt}", exist_ok=True)
            for name, data in files.items():
                self._write(f"{url}/{attempt}/{name}", data)
            text = json.dumps({**raw, SEAL: fingerprint.digest(raw)}, indent=1)
            self._write(f"{url}/{attempt}/{MANIFEST}", text.encode())
            self.move(f"{url}/{attempt}/{MANIFEST}", f"{url}/{MANIFEST}")
        except BaseException as error:
            with suppress(OSError):
                self.fs.rm(f"{url}/{attempt}", recursive=True)
            if isinstance(error, OSError):
                raise StoreError.writing(url, error) from None
            raise
        return Entry(recipe.asset, recipe.key, digest, manifest.inputs, manifest.info, manifest.files, url, self.fs)

    def move(self, path: str, target: str) -> None:
        """Rename a file, after everything that lies beside it is on disk.

        Raises:
            OSError: It cannot be done.
        """
        if self.is_local:
            _sync_folder(Path(path).parent)
            Path(path).replace(target)
            _sync_folder(Path(target).parent)
        else:
            self.fs.mv(path, target)

    @contextmanager
    def making(self, recipe: Recipe) -> Iterator[None]:
        """Hold the right to make a recipe's output, so that two runs do not compute it twice on one machine.

        Waits for whoever holds it, however long that takes, and says so after two seconds. The kernel takes the right
        from a process that ends, however it ends.

        Raises:
            StoreError: The place cannot be written.
        """
        if not self.is_local:
            yield  # object stores have no locks; two writers then cost time, not correctness
            return
        from filelock import FileLock, Timeout

        folder = Path(self.url(recipe.asset, recipe.key))
        lock, seconds = FileLock(folder / LOCK), TELL_SECONDS
        while not lock.is_locked:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=seconds)
            except Timeout:
                told = "%s (recipe %s) is being made by another process; going on when it is done or gone"
                log.info(told, recipe.asset, recipe.key[:8])
                seconds = -1.0
            except FileNotFoundError:
                continue  # the folder was cleared away between the two lines
            except OSError as error:
                raise StoreError.writing(str(folder), error) from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def unless_made(self, asset: str, key: str) -> Iterator[bool]:
        """Hold the same right when nobody has it; True when that is so.

        Raises:
            StoreError: The place cannot be written.
        """
        if not self.is_local:
            yield True
            return
        from filelock import FileLock, Timeout

        lock = FileLock(f"{self.url(asset, key)}/{LOCK}")
        try:
            lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError):
            yield False
            return
        except OSError as error:
            raise StoreError.writing(self.url(asset, key), error) from None
        try:
            yield True
        finally:
            lock.release()

    def _write(self, path: str, data: bytes) -> None:
        if not self.is_local:
            self.fs.pipe_file(path, data)
            return
        with Path(path).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make what was created in a folder, or moved into it, survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network file systems sync files only
            raise
    finally:
        os.close(handle)


def _remedy(asset: str) -> str:
    return f"`mlops store verify --repair` sets it aside, and `mlops run {asset.partition('/')[0]}` makes it again"
