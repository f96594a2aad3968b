import ast
import dataclasses
import os
import re
import subprocess
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mlops_assets.evaluation.card import model_card
from mlops_assets.evaluation.facts import Cost
from mlops_assets_tests.evaluation.made import HOSTILE, by_hand, facts, hostile

# As huggingface_hub's `repocard` finds a card's metadata.
FRONT_MATTER = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\r|\n|$))")
BASE = facts(rows=4000)
AWKWARD = ["a: b", '"q', "it's", "x\n---\ny", "---", "- a", "{a: 1}", "no", "1e3", "#c", "!!set", HOSTILE]


def metadata(card):
    return yaml.safe_load(FRONT_MATTER.match(card)[2])


def body(card):
    return card[FRONT_MATTER.match(card).end() :]


def structure(card):
    """The Markdown's elements, without their text."""
    tokens = MarkdownIt("commonmark").enable("table").parse(body(card))
    inline = {child.type for token in tokens for child in token.children or []}
    return [token.type for token in tokens], inline


def code(card):
    return re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)


def test_the_metadata_is_what_hugging_face_reads():
    found = metadata(model_card(BASE))
    ((result,),) = [one["results"] for one in found["model-index"]]

    assert found["library_name"] == "onnx"
    assert found["pipeline_tag"] == result["task"]["type"] == "tabular-classification"
    assert found["datasets"] == [result["dataset"]["name"]] == ["flowers/flowers.csv"]
    assert result["dataset"] == {
        "name": "flowers/flowers.csv",
        "type": "flowers/flowers.csv",
        "split": "test",
        "revision": "7be19c1f",
    }
    values = {one["type"]: one["value"] for one in result["metrics"]}
    assert values["accuracy"] == BASE.evaluation.accuracy
    assert values["f1"] == BASE.evaluation.macro_f1
    assert [*values] == found["metrics"]
    assert "license" not in found


@settings(max_examples=150)
@given(name=st.text(), dataset=st.text(), commit=st.text())
def test_the_metadata_can_be_read_whatever_the_names(name, dataset, commit):
    found = metadata(model_card(dataclasses.replace(BASE, name=name, dataset=dataset, commit=commit)))
    (model,) = found["model-index"]

    assert model["name"] == " ".join(name.split())
    assert found["datasets"] == [" ".join(dataset.split())]
    assert model["results"][0]["dataset"].get("revision", "") == " ".join(commit.split())


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names_stay_whole(name):
    found = metadata(model_card(dataclasses.replace(BASE, name=name)))

    assert found["model-index"][0]["name"] == " ".join(name.split())


def test_texts_from_users_mean_nothing_in_markdown():
    card = model_card(hostile())
    blocks, inline = structure(card)

    assert blocks == structure(model_card(hostile("tame")))[0]
    assert not {"html_block", "hr", "blockquote_open"} & set(blocks)
    assert inline <= {"text", "code_inline", "softbreak", "text_special"}
    for block in code(card):
        ast.parse(block)


@pytest.mark.parametrize(
    "text", ["- a", "+ a", "# a", "=", "> a", "`", "|", "&lt;", "~~~", "a  \n\n    b", "http://x|y"]
)
def test_no_text_makes_a_block(text):
    given = {"description": text, "owners": (text,), "provenance": {text: text}}

    blocks, _ = structure(model_card(dataclasses.replace(BASE, **given)))

    assert blocks == structure(model_card(dataclasses.replace(BASE, **{**given, "description": "a"})))[0]
    assert blocks == structure(model_card(dataclasses.replace(BASE, owners=("a",), provenance={"a": "a"})))[0]


def test_a_web_address_is_a_link():
    assert "| MLflow run | <http://localhost:5000/#/experiments/1/runs/2> |" in model_card(BASE)


def test_figures_have_their_intervals():
    card, evaluation = model_card(BASE), BASE.evaluation

    figures = (evaluation.accuracy, evaluation.accuracy_lower, evaluation.accuracy_upper)
    assert "| accuracy (95 % interval) | {:.3f} ({:.3f} to {:.3f}) |".format(*figures) in card
    assert "| accuracy of the champion before, version 2 | 0.880 (0.840 to 0.910) on 4,000 rows |" in card
    assert "| class 2 | 0 | " in card
    assert re.search(r"\| sex \| Male \| [\d,]+ \| 0.\d{3} \(0.\d{3} to 0.\d{3}\) \| below \|", card)


def test_of_very_many_classes_the_weakest_are_listed():
    card = model_card(facts(classes=120, rows=3000))

    assert "The 50 of 120 with the lowest recall." in card
    assert len(re.findall(r"^\| class \d+ \|", card, re.MULTILINE)) == 50
    assert "into 120 classes: class 0, class 1" in card
    assert "class 9 and 110 more." in card


def test_limits_are_told():
    few = dataclasses.replace(BASE.slices[0], value="few", rows=29)
    card = model_card(dataclasses.replace(BASE, slices=(*BASE.slices, few)))

    assert "* There are no test rows of class 2." in card
    assert "* The accuracy is lower than on all rows for sex = Male" in card
    assert re.search(r"Fewer than 30 test rows.* for sex = few\.", card)
    assert "* The gate did not ask about single classes; groups of rows; the quality of its probabilities" in card
    assert "No groups of rows were told apart" in model_card(facts(slices=False))


def test_how_it_was_chosen():
    card = model_card(BASE)

    assert f"    {BASE.rule.condition}\n" in card
    assert "Outcome: promoted version 3, because" in card
    assert "| the accuracy of the new model is greater than 0.8 | holds | 0.9" in card


def test_what_is_undecided_is_told():
    card = model_card(facts(rows=100, condition="n > 0.88"))

    assert "is greater than 0.88 | undecided |" in card
    assert re.search(r"0\.88: about [\d,]+ more labelled rows would settle it", card)


def test_a_decision_by_hand_and_no_champion():
    nothing = {"champion": 0, "champion_accuracy": None, "provenance": {}, "parameters": {}, "owners": ()}
    card = model_card(facts(decision=by_hand(), cost=Cost(), slices=False, commit="", description="", **nothing))

    assert "No clause was judged." in card
    assert "The pipeline gives no description." in card
    assert "champion before" not in card
    assert "revision" not in metadata(card)["model-index"][0]["results"][0]["dataset"]
    assert card.endswith("Nothing is known.\n")


def test_a_model_of_others_is_used_through_mlflow_alone():
    card = model_card(dataclasses.replace(BASE, onnx=False))

    assert code(card) == ['import mlflow\n\nmodel = mlflow.pyfunc.load_model("models:/flowers/3")\n']
    assert "library_name" not in metadata(card)


@pytest.mark.slow
def test_the_code_in_the_card_runs(tracking, tmp_path):
    import torch

    from mlops_assets.registry.aliases import register
    from mlops_assets.training.export import to_onnx

    network = torch.nn.Linear(4, 3)
    rows = torch.arange(20, dtype=torch.float32).reshape(5, 4)
    to_onnx(network, rows.numpy(), tmp_path / "model.onnx")
    with tracking.training_run(experiment="flowers", name="fit", params={}, tags={}) as run:
        uri = run.log_torch_model(network, rows)
        run.log_artifact("onnx/model.onnx", tmp_path / "model.onnx")
    version = register(tracking, name="flowers", model_uri=uri, tags={}).number
    classes = [report.name for report in BASE.evaluation.classes]
    expected = [classes[index] for index in network(rows).argmax(dim=1)]

    through_onnx, through_mlflow = code(model_card(dataclasses.replace(BASE, version=version)))
    script = (
        "import numpy as np\nrows = np.arange(20, dtype=np.float32).reshape(5, 4)\n"
        f"{through_onnx}\nassert predicted == {expected}\nkept = logits\n"
        f"{through_mlflow}\nassert np.allclose(logits, kept, atol=1e-5)\n"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking.uri}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=False, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
