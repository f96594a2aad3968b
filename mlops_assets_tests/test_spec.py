"""A `defs.yaml` is read, or refused with file, line and what is allowed."""

from pathlib import Path

import pytest

from mlops_assets.pipeline import DEFS, PipelineNotFound, find_pipeline
from mlops_assets.spec import SpecError, load_spec

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


def test_the_shipped_pipeline_is_read() -> None:
    spec = load_spec(DEFS / "iris" / "defs.yaml")
    assert spec.data.classes == ["setosa", "versicolor", "virginica"]
    assert spec.functions.schema_ == "schema.py:schema"


def test_a_misspelt_field_names_line_and_the_allowed_ones(tmp_path: Path) -> None:
    text = IRIS.replace("target:", "targt:")
    message = refused(tmp_path, text)
    assert (
        f"defs.yaml:{line_of(text, 'targt')}: attributes.data.targt: unknown field 'targt'; did you mean 'target'?"
        in message
    )
    assert "allowed here: branch, classes, key" in message


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
    text = IRIS.replace("n - o > -0.10 and n > 0.80", "banana > 0.02")
    message = refused(tmp_path, text)
    assert f"defs.yaml:{line_of(text, 'banana')}: attributes.gate.condition" in message
    assert "banana" in message
    assert "^" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a pipeline starts with"),
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
