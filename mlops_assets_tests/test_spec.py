"""A `defs.yaml` is read, or refused with file, line and what is allowed."""

from pathlib import Path

import dagster as dg
import pytest
from dagster.components.testing import create_defs_folder_sandbox
from pydantic import TypeAdapter, ValidationError

from mlops_assets.assets.features import SPLIT
from mlops_assets.data.readers import SUPPORTED
from mlops_assets.pipeline import DEFS, PipelineNotFound, find_pipeline, pipeline_folders
from mlops_assets.spec import COMPONENT_TYPE, SPLIT_COLUMN, TABLE_ENDINGS, Owner
from mlops_assets.spec_file import SpecError, load_spec

IRIS = (DEFS / "iris" / "defs.yaml").read_text()


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "defs.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert str(path) in str(caught.value)
    return str(caught.value).replace(str(path), "defs.yaml")


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), start=1) if part in line)


def test_the_shipped_iris_is_read() -> None:
    spec = load_spec(DEFS / "iris" / "defs.yaml")
    assert spec.data.classes == ["setosa", "versicolor", "virginica"]
    assert spec.functions.schema_ == "schema.py:schema"


@pytest.mark.parametrize("name", [folder.name for folder in pipeline_folders()])
def test_every_shipped_pipeline_is_read(name: str) -> None:
    assert find_pipeline(name).spec.gate.condition


def test_images_have_columns_of_their_own_and_a_directory(tmp_path: Path) -> None:
    spec = load_spec(DEFS / "digits" / "defs.yaml")
    assert (spec.data.key, spec.data.target, spec.data.path) == ("key", "label", "scans")
    text = IRIS.replace("path: iris.csv", "path: flowers")
    assert "a directory of images needs `images: {layout: folder}`" in refused(tmp_path, text)
    text = IRIS.replace("path: iris.csv", "path: flowers\n    images: {layout: folder}")
    assert "images have the columns key and label" in refused(tmp_path, text)
    digits = (DEFS / "digits" / "defs.yaml").read_text()
    assert "each from 1 to 4096" in refused(tmp_path, digits.replace("mode: L", "mode: L, size: [0, 8]"))
    assert "'folder', 'idx' or 'cifar'" in refused(tmp_path, digits.replace("layout: folder", "layout: zip"))


def test_the_data_s_own_split_leaves_no_share_of_test_rows(tmp_path: Path) -> None:
    text = IRIS.replace("salt: iris-1", "salt: iris-1\n    column: part")
    assert "column 'part' says which rows are for testing; leave `test` out" in refused(tmp_path, text)


def test_an_address_needs_its_checksum(tmp_path: Path) -> None:
    text = IRIS.replace("origin: {sample: iris}", "origin: {url: 'https://example.org/iris.csv'}")
    assert "url and sha256 belong together" in refused(tmp_path, text)


def test_a_misspelt_field_names_line_and_the_allowed_ones(tmp_path: Path) -> None:
    text = IRIS.replace("target:", "targt:")
    message = refused(tmp_path, text)
    assert (
        f"defs.yaml:{line_of(text, 'targt')}: attributes.data.targt: unknown field 'targt'; did you mean 'target'?"
        in message
    )
    assert "allowed here: branch, classes, images, key" in message


def test_a_wrong_value_names_line_and_the_allowed_ones(tmp_path: Path) -> None:
    text = IRIS + "    mode: optimistic\n"
    message = refused(tmp_path, text)
    assert f"defs.yaml:{line_of(text, 'optimistic')}: attributes.gate.mode" in message
    assert "'fp-free' or 'fn-free'" in message


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    text = IRIS.replace("epochs: 200", "epochs: 0").replace("test: 0.34", "test: 2")
    assert len(refused(tmp_path, text).splitlines()) == 2


def test_a_misspelt_training_field_lists_the_allowed_ones(tmp_path: Path) -> None:
    text = IRIS.replace("epochs: 200", "epoch: 200")
    message = refused(tmp_path, text)
    assert "did you mean 'epochs'?" in message
    assert f"defs.yaml:{line_of(text, 'epoch: 200')}:" in message


def test_a_condition_that_does_not_parse_has_a_position(tmp_path: Path) -> None:
    text = IRIS.replace("n - o > -0.20 and n > 0.75", "banana > 0.02")
    message = refused(tmp_path, text)
    assert f"defs.yaml:{line_of(text, 'banana')}: attributes.gate.condition" in message
    assert "banana" in message
    assert "^" in message


UNQUOTED = "YAML reads unquoted numbers, yes, no, on and off as no text"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("salt: iris-1", "salt: a\n    salt: b #!", "split.salt: written for the second time, after line 15; keep one"),
        ("split:\n", "data: {} #!\n  split:\n", "data: written for the second time, after line 7; keep one"),
        ("hidden: [32]", "1: [32] #!", "parameters.1: YAML reads this key as no text; only text is allowed"),
        ("hidden: [32]", "hidden: [{1: 2}] #!", "parameters.hidden.0.1: YAML reads this key as no text"),
        ("hidden: [32]", "? [a] #!\n    : 2", "parameters.?: YAML reads this key as no text"),
        ("split:\n    salt: iris-1", "split: #!", "split.salt: missing: Fixes the split"),
        ('["team:ml"]', "[ml] #!", "owners.0: 'ml' is not allowed; allowed: team:NAME or mail addresses"),
        (
            "iris.csv",
            "iris.xlsx #!",
            "data.path: 'iris.xlsx' is of no kind that can be read; a table's name must end in .csv",
        ),
        ("iris.csv", "/iris.csv #!", "data.path: '/iris.csv' is not a path within the repository, such as iris.csv"),
        ("iris.csv", "a/../iris.csv #!", "data.path: 'a/../iris.csv' is not a path within the repository"),
        ("iris.csv", "./iris.csv #!", "data.path: './iris.csv' is not a path within the repository"),
        ("key: id", "key: split #!", "data.key: the platform adds a column 'split' of its own; rename the one in"),
        ("target: species", "target: split #!", "data.target: the platform adds a column 'split'"),
        ("[setosa, versicolor, virginica]", "[yes, a] #!", f"data.classes.0: {UNQUOTED} (this one as True); put it in"),
        (
            "[setosa, versicolor, virginica]",
            "[a, 1] #!",
            f"data.classes.1: {UNQUOTED} (this one as 1); put it in quotes",
        ),
        (
            "parameters:",
            "functions: {model: ../x/a.py:f} #!\n  parameters:",
            "functions.model: '../x/a.py:f' is not allowed",
        ),
        (
            "parameters:",
            "functions: {schema: a.b.py:f} #!\n  parameters:",
            "functions.schema: 'a.b.py:f' is not allowed",
        ),
        (
            "reliability: 0.95",
            "champion_alias: challenger #!",
            "gate.champion_alias: the alias 'challenger' stands for",
        ),
        (
            "reliability: 0.95",
            "champion_alias: latest #!",
            "gate.champion_alias: 'latest' cannot be a model alias: use",
        ),
        (
            "reliability: 0.95",
            "champion_alias: v1 #!",
            "gate.champion_alias: 'v1' cannot be a model alias: use letters",
        ),
        (
            "reliability: 0.95",
            "champion_alias: '7' #!",
            "gate.champion_alias: '7' is not allowed; allowed: MLflow alias,",
        ),
        ("reliability: 0.95", "champion_alias: 7 #!", f"gate.champion_alias: {UNQUOTED} (this one as 7)"),
        (
            "reliability: 0.95",
            "reliability: 0.9999999 #!",
            "gate.reliability: Input should be less than or equal to 0.99",
        ),
        (
            "parameters:\n    hidden: [32]",
            "training: x #!",
            "training: a section of fields is needed, and this is 'x' (all",
        ),
    ],
)
def test_a_refusal_has_line_path_and_what_is_allowed(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = IRIS.replace(old, new, 1)
    if "training: x" in new:
        text = text[: text.index("  training:\n")] + text[text.index("  gate:") :]
    message = refused(tmp_path, text)
    assert f"defs.yaml:{line_of(text, '#!')}: attributes.{said}" in message
    assert message.count("\n") == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{IRIS}---\n", "33: a second YAML document; a pipeline is one"),
        (f"{IRIS}---\n{IRIS}", "33: a second YAML document; a pipeline is one"),
        (f"{IRIS}attributes: {{}}\n", "32: attributes: written for the second time, after line 3; keep one of the two"),
        (
            f"{IRIS}requirements: {{}}\n",
            "32: requirements: unknown field 'requirements' (allowed here: attributes, type)",
        ),
        (f"type: {COMPONENT_TYPE}\nattributes:\n", "2: attributes: a section of fields is needed, and this is empty"),
        (
            f"type: {COMPONENT_TYPE}\nattributes: [a]\n",
            "2: attributes: a section of fields is needed, and this is ['a']",
        ),
    ],
)
def test_the_file_as_a_whole(tmp_path: Path, text: str, said: str) -> None:
    message = refused(tmp_path, text)
    assert message.startswith(f"defs.yaml:{said}")
    assert message.count("\n") == 0


def test_anchors_and_merged_keys_are_no_repetition(tmp_path: Path) -> None:
    (tmp_path / "defs.yaml").write_text(
        IRIS.replace("hidden: [32]", "a: &one {x: 1}\n    b: *one\n    c:\n      <<: *one\n      x: 2")
    )
    assert load_spec(tmp_path / "defs.yaml").parameters == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 2}}


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (f"---\ntype: {COMPONENT_TYPE}\n", 33),
        ("  description: more\n", 32),
        ("requirements: {env: [A]}\n", 32),
    ],
)
@pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated")  # Dagster reads each file with it
@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")  # observable source assets
def test_dagster_refuses_what_its_own_reader_lets_pass(more: str, line: int) -> None:
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.defs_folder_path / "iris"
        folder.mkdir()
        (folder / "defs.yaml").write_text(IRIS)
        with sandbox.build_all_defs() as defs:
            assert [job.name for job in defs.jobs or ()] == ["iris_job"]
        (folder / "defs.yaml").write_text(IRIS + more)
        with pytest.raises(Exception, match="iris") as caught, sandbox.build_all_defs():
            pass
    cause: BaseException = caught.value
    while cause.__cause__:  # Dagster wraps it in a picture of all components
        cause = cause.__cause__
    assert isinstance(cause, SpecError)
    assert f"iris/defs.yaml:{line}: " in str(cause)


@pytest.mark.parametrize(
    ("owner", "taken"),
    [
        ("team:ml", True),
        ("team: a b", True),
        ("a.b+c@example.org", True),
        ("team:", False),
        ("ml", False),
        ("a@example", False),
        ("@example.org", False),
        ("+a@example.org", False),
        ("a@example.org ", False),
    ],
)
def test_owners_are_those_that_dagster_takes(owner: str, taken: bool) -> None:
    if taken:
        dg.AssetSpec("a", owners=[owner])
        assert TypeAdapter(Owner).validate_python(owner) == owner
    else:
        with pytest.raises(dg.DagsterInvalidDefinitionError):
            dg.AssetSpec("a", owners=[owner])
        with pytest.raises(ValidationError):
            TypeAdapter(Owner).validate_python(owner)


def test_what_the_file_repeats_of_the_code_is_the_same() -> None:
    assert TABLE_ENDINGS == SUPPORTED
    assert SPLIT_COLUMN == SPLIT


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a pipeline starts with"),
        ("# nothing but a comment\n", "a pipeline starts with"),
        ("just text", "a pipeline starts with"),
        ("type: other.Component\nattributes: {}\n", "a pipeline starts with"),
        ("type: [unclosed\n", "not valid YAML"),
        (IRIS.replace("test: 0.34", "test: 0.9"), "must leave rows to train on"),
        (IRIS.replace("versicolor", "setosa"), "classes must differ"),
        (IRIS.replace("key: id", "key: species"), "key and target must be two columns"),
        (IRIS + "  schedule: every day\n", "not a cron expression"),
        (IRIS + "  functions: {model: model}\n", "attributes.functions.model"),
    ],
)
def test_what_else_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(tmp_path, text)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "defs.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"defs\.yaml"):
        load_spec(tmp_path / "defs.yaml")


@pytest.mark.parametrize("name", ["nothing", "../iris", "Iris", ""])
def test_an_unknown_pipeline_lists_the_known_ones(name: str) -> None:
    with pytest.raises(PipelineNotFound, match=r"known: .*iris"):
        find_pipeline(name)
