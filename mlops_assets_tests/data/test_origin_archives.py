import io
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_assets.data import origin
from mlops_assets.data.origin import OriginError, is_archive, unpacked

FILES = {"cat/1.png": b"one", "cat/deep/er/2.png": b"two" * 1000, "README": b""}


def tar(files: dict[str, bytes] | list[tarfile.TarInfo], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for entry in files:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry, io.BytesIO(bytes(entry.size)))
            else:
                info = tarfile.TarInfo(entry)
                info.size = len(files[entry])
                archive.addfile(info, io.BytesIO(files[entry]))
    return buffer.getvalue()


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return buffer.getvalue()


def written(tmp_path: Path, name: str, content: bytes) -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tar", tar(FILES)),
        ("a.tar.gz", tar(FILES, "w:gz")),
        ("a.TGZ", tar(FILES, "w:gz")),
        ("a.tar.bz2", tar(FILES, "w:bz2")),
        ("a.tar.xz", tar(FILES, "w:xz")),
        ("a.zip", zipped(FILES)),
        ("a.zip", zipped({**FILES, "empty/": b""}, zipfile.ZIP_STORED)),
    ],
)
def test_archives_come_out_whole(tmp_path: Path, name: str, content: bytes) -> None:
    archive = written(tmp_path, name, content)
    assert is_archive(archive)
    into = tmp_path / "new" / "data"
    assert unpacked(archive, into) == into
    assert tree(into) == FILES
    assert [path.name for path in into.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("name", ["a.gz", "train-images-idx3-ubyte.gz", "a.npz", "a.png", "tar", "zip"])
def test_other_files_are_no_archives(name: str) -> None:
    assert not is_archive(Path(name))


def entry(name: str, kind: bytes = tarfile.REGTYPE, **attributes: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info


def linked_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def locked_zip() -> bytes:
    data = bytearray(zipped({"a": b"content"}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def header(size: int, **attributes: Any) -> bytes:
    return entry("a", size=size, **attributes).tobuf(tarfile.GNU_FORMAT)


LINK = "is a link, a device or encrypted"
LEAVES = "leaves the archive"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar", tar({"../a": b"x"}), LEAVES),
        ("a.tar", tar({"a/../../b": b"x"}), LEAVES),
        ("a.tar", tar({"/tmp/a": b"x"}), LEAVES),
        ("a.tar", tar({"a\\b": b"x"}), LEAVES),
        ("a.tar", tar([entry("a", tarfile.SYMTYPE, linkname="/etc")]), LINK),
        ("a.tar", tar([entry("a", tarfile.LNKTYPE, linkname="/etc/passwd")]), LINK),
        ("a.tar", tar([entry("a", tarfile.FIFOTYPE)]), LINK),
        ("a.tar", tar([entry("a", tarfile.CHRTYPE)]), LINK),
        ("a.zip", zipped({"../a": b"x"}), LEAVES),
        ("a.zip", zipped({"/a": b"x"}), LEAVES),
        ("a.zip", linked_zip(), LINK),
        ("a.zip", locked_zip(), LINK),
        ("a.tar", tar({}), "holds no files"),
        ("a.zip", zipped({}), "holds no files"),
        ("a.tar", b"", "is damaged, or no archive"),
        ("a.tar.gz", b"x" * 1000, "is damaged, or no archive"),
        ("a.zip", b"x" * 1000, "is damaged, or no archive"),
        ("a.tar.gz", tar(FILES, "w:gz")[:-20], "is damaged, or no archive"),
        ("a.tar.gz", tar(FILES, "w:gz")[:-1], "is damaged, or no archive"),
        ("a.tar.gz", tar(FILES, "w:gz")[:-8] + bytes(8), "is damaged, or no archive"),
        ("a.tar.xz", tar(FILES, "w:xz")[:-20], "is damaged, or no archive"),
        ("a.tar.bz2", tar(FILES, "w:bz2")[:-4], "is damaged, or no archive"),
        ("a.zip", zipped(FILES)[:-20], "is damaged, or no archive"),
        ("a.zip", zipped({"a": b"x" * 999}, zipfile.ZIP_STORED).replace(b"xx", b"xy", 1), "is damaged, or no archive"),
        ("a.tar", tar(FILES)[:600], "is damaged, or no archive"),
        ("a.tar", tar(FILES)[:1024], "is damaged, or no archive"),  # after a whole file
        ("a.tar", tar(FILES)[:1024] + b"x" * 512 + tar(FILES)[1536:], "is damaged, or no archive"),
        ("a.tar", tar([entry("b", size=1), entry("a", tarfile.XHDTYPE, size=2 << 20)]), "a header of 2097152 bytes"),
        ("a.tar", header(-512) + bytes(1024), "is damaged, or no archive"),
        ("a.tar", tar({"a": b"x"})[:1024] + header(-1024) + bytes(1024), "a size of -1024 bytes"),
        ("a.tar", tar([entry("a", pax_headers={"GNU.sparse.size": "many"})]), "is damaged, or no archive"),
        ("a.tar", tar({"a": b"x", "a/b": b"y"}), "cannot be unpacked into"),
        ("a.tar", tar({"a" * 300: b"x"}), "cannot be unpacked into"),
    ],
)
def test_archives_that_cannot_be_trusted_leave_nothing(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    archive = written(tmp_path, name, content)
    with pytest.raises(OriginError, match=message):
        unpacked(archive, tmp_path / "in" / "data")
    assert [path.name for path in tmp_path.rglob("*")] in (["in", name], [name, "in"])


def leave(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Lets the disk have room for so many bytes, beside what must stay free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: SimpleNamespace(free=origin.SPARE + room))


@pytest.mark.parametrize("name", ["a.tar.xz", "a.zip"])
def test_a_bomb_does_not_fill_the_disk(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{number}": bytes(1_000_000) for number in range(20)}
    archive = written(tmp_path, name, zipped(files) if name == "a.zip" else tar(files, "w:xz"))
    assert archive.stat().st_size < 50_000
    leave(monkeypatch, 5_000_000)
    with pytest.raises(OriginError, match=r"has no room for what .* holds: free space"):
        unpacked(archive, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_many_empty_files_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = written(tmp_path, "a.tar.xz", tar({f"{number}": b"" for number in range(2000)}, "w:xz"))
    leave(monkeypatch, 5_000_000)
    with pytest.raises(OriginError, match="has no room"):
        unpacked(archive, tmp_path / "data")


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    archive = written(tmp_path, "a.tar", tar(FILES))
    (tmp_path / "data").mkdir()
    with pytest.raises(OriginError, match="data exists: remove it"):
        unpacked(archive, tmp_path / "data")
    with pytest.raises(OriginError, match="cannot be unpacked"):
        unpacked(tmp_path / "missing.tar", tmp_path / "other")


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_damaged_archives_give_an_origin_error_or_files(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    tmp_path = tmp_path_factory.mktemp("damaged")
    name, whole = data.draw(
        st.sampled_from([("a.tar", tar(FILES)), ("a.tar.gz", tar(FILES, "w:gz")), ("a.zip", zipped(FILES))])
    )
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    archive = written(tmp_path, name, bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        unpacked(archive, tmp_path / "data")
    except OriginError:
        assert [path.name for path in tmp_path.iterdir()] == [name]
