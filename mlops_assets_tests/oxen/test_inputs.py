"""Hostile and lossy inputs are refused with a reason before anything is added."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets.oxen.errors import UnsafePath
from mlops_assets.oxen.inputs import checked_branch, checked_path
from mlops_assets.oxen.repository import Repository
from mlops_assets_tests.oxen.conftest import contents


@pytest.fixture
def refusing(template: Path) -> Iterator[Repository]:
    """A repository that must be untouched in the end."""
    repo = Repository(template)
    before = repo.change_stamp()
    yield repo
    assert repo.change_stamp() == before


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/etc/passwd", "absolute"),
        ("a/../b", "'..'"),
        ("..", "'..'"),
        (".oxen/refs/x", "'.oxen'"),
        ("a/.oxen/x", "'.oxen'"),
        (".oxenignore", "'.oxenignore'"),
        ("a\\b", "backslash"),
        ("a\nb", "control"),
        ("a\x00b", "control"),
        ("a\x7fb", "control"),
        ("a\udcffb", "UTF-8"),
        ("*.csv", "pattern"),
        ("a[1].png", "pattern"),
        ("n" * 256, "255"),
        ("", "root"),
    ],
)
def test_paths(refusing: Repository, path: str, why: str) -> None:
    with pytest.raises(UnsafePath, match=why):
        refusing.commit("no", files={"fine.txt": b"1", path: b"2"})


@pytest.mark.parametrize("path", ["a//b/", "./a/b", "a/b"])
def test_a_path_has_one_normal_form(path: str) -> None:
    assert checked_path(path) == "a/b"


def test_unusual_but_honest_names_are_kept(repo: Repository, tmp_path: Path) -> None:
    names = [
        "ü/日本.txt",
        "with space ",
        "a~",
        "{z}",
        "!n",
        "#c",
        "-d",
        "q'uote",
        'q"',
        "..x",
        "x..y",
        "n" * 255,
        ".git/x",
    ]
    commit = repo.commit("unusual", files={name: name.encode() for name in names}, remove=[""])
    assert commit is not None
    assert contents(repo, commit.id, tmp_path / "cache") == {name: name.encode() for name in names}
    gone = repo.commit("gone", remove=names[1:])
    assert gone is not None
    assert [entry.path for entry in repo.entries("", gone.id)] == names[:1]


@pytest.mark.parametrize(
    "name", ["", "a b", "x/", "/x", "a//b", "-x", "..", "a..b", "x~1", "HEAD", "é", "a:b", 201 * "n"]
)
def test_branch_names(name: str) -> None:
    with pytest.raises(UnsafePath, match="branch name"):
        checked_branch(name)


@pytest.mark.parametrize("name", ["deadbeef", "8902dd1117fbd9c109f622073ab74a0d"])
def test_branch_names_like_commit_ids(name: str, refusing: Repository) -> None:
    with pytest.raises(UnsafePath, match="commit id"):
        refusing.create_branch(name)


@pytest.mark.parametrize("name", ["main", "feature/x-1", "v1.2", "dead"])
def test_honest_branch_names(name: str) -> None:
    assert checked_branch(name) == name


def test_a_path_below_another(refusing: Repository) -> None:
    with pytest.raises(UnsafePath, match="as a file"):
        refusing.commit("no", files={"a": b"1", "a/b/c": b"2"})


def test_a_path_given_twice(refusing: Repository, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"1")
    with pytest.raises(UnsafePath, match="twice"):
        refusing.commit("no", files={"d": tmp_path / "d", "d/f": b"2"})


@pytest.mark.parametrize("what", ["message", "author", "email"])
@pytest.mark.parametrize("text", ["", " \n", "a\0b"])
def test_blank_words(refusing: Repository, what: str, text: str) -> None:
    words = {"message": "m", "author": "a", "email": "e"} | {what: text}
    with pytest.raises(UnsafePath, match=what):
        refusing.commit(words["message"], files={"a": b"1"}, author=words["author"], email=words["email"])


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's address is limited to about 100 bytes
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def _linked_directory(path: Path) -> None:
    path.symlink_to("/usr")


def _broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def _device(path: Path) -> None:
    path.symlink_to("/dev/null")


def _empty_directory(path: Path) -> None:
    path.mkdir()


def _not_utf8(path: Path) -> None:
    Path(os.fsdecode(bytes(path.parent) + b"/\xff")).write_bytes(b"1")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_fifo, "neither a file nor a directory"),
        (_socket, "cannot be read"),
        (_device, "neither a file nor a directory"),
        (_linked_directory, "link to a directory"),
        (_broken_link, "broken link"),
        (_empty_directory, "empty"),
        (_not_utf8, "UTF-8"),
    ],
)
def test_things_that_are_not_files(refusing: Repository, tmp_path: Path, make, why: str) -> None:
    local = tmp_path / "local"
    local.mkdir()
    (local / "fine.txt").write_bytes(b"1")
    make(local / "odd")
    with pytest.raises(UnsafePath, match=why):
        refusing.commit("no", files={"local": local})


def test_a_missing_file(refusing: Repository, tmp_path: Path) -> None:
    with pytest.raises(UnsafePath, match="No such file"):
        refusing.commit("no", files={"a": tmp_path / "missing"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(refusing: Repository, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"1")
    (tmp_path / "secret").chmod(0)
    with pytest.raises(UnsafePath, match="Permission denied"):
        refusing.commit("no", files={"a": tmp_path / "secret"})


def test_a_repository_in_a_directory_named_like_a_pattern(tmp_path: Path) -> None:
    repo = Repository(tmp_path / "a[1]*")
    repo.init()
    commit = repo.commit("first", files={"d/f": b"1"})
    assert commit is not None
    assert [entry.path for entry in repo.entries("", commit.id)] == ["d/f"]
