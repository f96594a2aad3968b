"""Which folders are pipelines."""

import importlib
import shutil
import traceback
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster.components.core.component_tree import ComponentTree, ComponentTreeException
from jsonschema import Draft202012Validator

from mlops_assets.component import ModelPipeline
from mlops_assets.pipeline import DEFS

pytestmark = [  # what `dg.load_from_defs_folder` silences of Dagster's own
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
    pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated"),
]


def load(root: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    monkeypatch.syspath_prepend(str(root))
    return ComponentTree.from_module(importlib.import_module(package), root).build_defs()


def test_the_schema_by_which_dg_checks_takes_every_pipeline() -> None:
    """`dg check` itself judges one file of each type, whichever the file system lists last."""
    check = Draft202012Validator(ModelPipeline.get_model_cls().model_json_schema())
    files = {file.parent.name: yaml.safe_load(file.read_text())["attributes"] for file in DEFS.glob("*/defs.yaml")}
    assert {name: [error.message for error in check.iter_errors(said)] for name, said in files.items()} == {
        name: [] for name in files
    }
    del files["iris"]["data"]["key"]
    assert [error.message for error in check.iter_errors(files["iris"])] == ["'key' is a required property"]


def test_a_folder_below_defs_is_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DEFS / "iris", tmp_path / "flat_defs" / "iris")
    jobs = load(tmp_path, "flat_defs", monkeypatch).jobs or ()
    assert [job.name for job in jobs] == ["iris_job"]


@pytest.mark.parametrize(
    ("place", "said"), [("team/iris", "lies directly below .*deep_defs; move it there"), ("Iris", "lower-case letters")]
)
def test_a_folder_that_the_commands_would_not_find_is_refused(
    place: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = "deep_defs" if "/" in place else "named_defs"
    shutil.copytree(DEFS / "iris", tmp_path / package / place)
    with pytest.raises(ComponentTreeException) as refused:
        load(tmp_path, package, monkeypatch)
    assert pytest.RaisesExc(Exception, match=said).matches(refused.value.__cause__), refused.value


def test_dagster_quotes_no_password_of_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DEFS / "iris", tmp_path / "secret_defs" / "iris")
    file = tmp_path / "secret_defs" / "iris" / "defs.yaml"
    source = "    source: {url: 'https://:hunter2@h/x.csv'}\n    split_by: 'https://:hunter2@h/x.csv'\n"
    file.write_text(file.read_text().replace("    origin: {sample: iris}\n", source))
    with pytest.raises(ComponentTreeException) as refused:
        load(tmp_path, "secret_defs", monkeypatch)
    told = "".join(traceback.format_exception(refused.value))
    assert "user and password do not belong into an address" in told
    assert "unknown field 'split_by'" in told
    assert "hunter2" not in told
