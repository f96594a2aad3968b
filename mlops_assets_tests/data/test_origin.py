from pathlib import Path

import pytest

from mlops_assets.data.origin import OriginError, local


def test_a_path_is_a_directory_an_archive_or_a_directory_with_one(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    with pytest.raises(OriginError, match=r"files is empty: give a directory with the files, or an archive \(\.zip"):
        local(files)
    (files / "train-images-idx3-ubyte.gz").write_bytes(b"x")
    assert local(files) == files
    (files / "data.tar.gz").write_bytes(b"x")
    assert local(files) == local(files / "data.tar.gz") == files / "data.tar.gz"
    (files / "data.zip").write_bytes(b"x")
    with pytest.raises(OriginError, match=r"files holds 2 archives \(data\.tar\.gz, data\.zip\): give one of them"):
        local(files)
    with pytest.raises(OriginError, match=r"ubyte\.gz is something else: give a directory"):
        local(files / "train-images-idx3-ubyte.gz")
    with pytest.raises(OriginError, match="nowhere does not exist: give a directory"):
        local(tmp_path / "nowhere")
