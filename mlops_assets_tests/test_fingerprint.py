"""Code versions change with the program, and never with its looks."""

import os
from pathlib import Path

import pytest

from mlops_assets.fingerprint import PACKAGE_ROOT, Recipe, SourceError, code_version, sources

SOURCE = '''"""A module."""

from .helpers import scale
import json


def features(frame):
    """Scale."""
    return scale(frame)
'''
HELPERS = "def scale(frame):\n    return frame * 2\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "defs" / "flowers"
    folder.mkdir(parents=True)
    (folder / "features.py").write_text(SOURCE)
    (folder / "helpers.py").write_text(HELPERS)
    (folder / "unrelated.py").write_text("x = 1\n")
    return tmp_path / "defs"


def version(root: Path, **configuration: object) -> str:
    return code_version(root / "flowers" / "features.py", root, configuration)


@pytest.mark.parametrize(
    "edited",
    [
        SOURCE.replace("import json\n", "import json  # a comment\n\n\n"),
        SOURCE.replace('"""Scale."""', '"""Another docstring."""'),
        SOURCE.replace('    """Scale."""\n', ""),
        SOURCE.replace("return scale(frame)", "return (\n        scale(frame)\n    )"),
        SOURCE.replace("\n", "\r\n"),
    ],
)
def test_looks_do_not_count(root: Path, edited: str) -> None:
    before = version(root)
    (root / "flowers" / "features.py").write_text(edited, newline="")
    assert version(root) == before


@pytest.mark.parametrize(
    "edited", [SOURCE.replace("scale(frame)", "scale(frame) + 1"), SOURCE.replace("frame", "table"), SOURCE + "y = 2\n"]
)
def test_the_program_counts(root: Path, edited: str) -> None:
    before = version(root)
    (root / "flowers" / "features.py").write_text(edited)
    assert version(root) != before


def test_imported_helpers_count_and_others_do_not(root: Path) -> None:
    before = version(root)
    (root / "flowers" / "unrelated.py").write_text("x = 2\n")
    assert version(root) == before
    (root / "flowers" / "helpers.py").write_text(HELPERS.replace("2", "3"))
    assert version(root) != before


def test_imports_are_followed_through_other_pipelines_and_cycles(root: Path) -> None:
    other = root / "other"
    other.mkdir()
    (other / "__init__.py").write_text("")
    (other / "common.py").write_text("from ..flowers import helpers\nz = 1\n")
    (root / "flowers" / "helpers.py").write_text("from ..other.common import z\n" + HELPERS)
    found = [path.relative_to(root).as_posix() for path in sources(root / "flowers" / "features.py", root)]
    assert found == ["flowers/features.py", "flowers/helpers.py", "other/__init__.py", "other/common.py"]


def test_a_relative_import_does_not_leave_the_pipelines(root: Path) -> None:
    (root.parent / "secret.py").write_text("x = 1\n")
    (root / "flowers" / "features.py").write_text("from ... import secret\n")
    assert sources(root / "flowers" / "features.py", root) == [root / "flowers" / "features.py"]


def test_the_platform_counts_by_its_version_constants_alone() -> None:
    iris = PACKAGE_ROOT / "defs" / "iris"
    assert sources(iris / "model.py", iris.parent) == [iris / "model.py"]


def test_configuration_counts_and_its_order_does_not(root: Path) -> None:
    assert version(root, a=1, b=2) == version(root, b=2, a=1) != version(root, a=1, b=3)


def test_a_checkout_elsewhere_has_the_same_versions(root: Path, tmp_path: Path) -> None:
    before = version(root)
    moved = root.rename(tmp_path / "elsewhere")
    assert version(moved) == before


def test_a_file_that_does_not_parse_is_named_with_its_line(root: Path) -> None:
    (root / "flowers" / "helpers.py").write_text("a = 1\ndef (:\n")
    with pytest.raises(SourceError, match=r"helpers\.py:2: not valid Python"):
        version(root)


def test_a_missing_file_is_named(root: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing\.py does not exist"):
        code_version(root / "nothing.py", root, {})


def test_bytes_that_are_no_text_are_named(root: Path) -> None:
    (root / "flowers" / "helpers.py").write_bytes(b"x = '\xff\xfe'\x00")
    with pytest.raises(SourceError, match=r"helpers\.py"):
        version(root)


def test_a_recipe_is_its_asset_code_and_inputs() -> None:
    recipe = Recipe("iris/model", "c", {"features": "d"})
    assert recipe.key == Recipe("iris/model", "c", {"features": "d"}).key
    others = [Recipe("x/model", "c", {"features": "d"}), Recipe("iris/model", "e", {"features": "d"})]
    others += [Recipe("iris/model", "c", {"features": "e"}), Recipe("iris/model", "c", {})]
    assert len({recipe.key, *(other.key for other in others)}) == 5


def test_an_edit_counts_that_leaves_the_file_its_size_and_time(root: Path) -> None:
    before, file = version(root), root / "flowers" / "helpers.py"
    status = file.stat()
    file.write_text(HELPERS.replace("2", "3"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert version(root) != before


def test_an_expression_that_no_parser_takes_is_named(root: Path) -> None:
    (root / "flowers" / "helpers.py").write_text("x = " + "-" * 20_000 + "1\n")
    with pytest.raises(SourceError, match=r"helpers\.py: an expression nests too deeply"):
        version(root)
