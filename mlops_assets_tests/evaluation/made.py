"""Facts as a pipeline would have them, judged by the real gate."""

import numpy as np

from mlops_assets.evaluation.facts import Accuracy, Cost, Facts, Rule
from mlops_assets.evaluation.metrics import evaluate
from mlops_assets.evaluation.slices import slice_figures
from mlops_assets.gate.condition import parse
from mlops_assets.gate.decide import Decision, decide
from mlops_assets.gate.rows import Outputs, Paired

HOSTILE = "<script>x</script>\"'&amp;{{7*7}} |`x`**b**[l](x:y)\n---\n# h\n- !!py: x"


def by_hand(reason="version 2 was rolled back and is barred"):
    return Decision(promote=False, verdict="by hand", reason=reason, clauses=())


def facts(
    *, classes=3, rows=400, names=None, condition="n - o > -0.02 and n > 0.8", gain=0.0, seed=0, slices=True, **changes
):
    """Facts on a model that is right on nine rows of ten; the champion is wrong on a `gain` more of the rows.

    The last class has no rows.
    """
    rng = np.random.default_rng(seed)
    names = names or [f"class {index}" for index in range(classes)]
    label = rng.integers(0, len(names) - 1, rows)
    predicted = np.where(rng.random(rows) < 0.9, label, (label + 1) % len(names))
    old = np.where(rng.random(rows) < 0.95 - gain, predicted, (label + 2) % len(names))
    probabilities = np.eye(len(names))[predicted] * 0.8 + 0.2 / len(names)
    evaluation = evaluate(label, probabilities, class_names=names, keys=[f"row {index}" for index in range(rows)])
    groups = {
        "sex": np.where(predicted == label, np.where(rng.random(rows) < 0.5, "Female", "Male"), "Male"),
        "site": np.array(["", "<b>north"])[rng.integers(0, 2, rows)],
    }
    as_text = np.array(names)
    paired = Paired(as_text[label], Outputs(as_text[predicted]), Outputs(as_text[old]), slices=groups)
    decision = decide(parse(condition), paired, reliability=0.95)
    given = {
        "name": "flowers",
        "version": 3,
        "evaluation": evaluation,
        "decision": decision,
        "rule": Rule(condition, 0.95, "fp-free", "efficient", 4, "none"),
        "outcome": f"{'promoted version 3' if decision.promote else 'kept version 2'}, because {decision.reason}",
        "task": "tabular-classification",
        "dataset": "flowers/flowers.csv",
        "commit": "7be19c1f",
        "description": "Which flower it is",
        "owners": ("team:ml",),
        "champion": 2,
        "champion_accuracy": Accuracy(0.88, 0.84, 0.91, rows),
        "anchor": 1,
        "cost": Cost(look=5, rows=rows, spent=7, left=3),
        "slices": tuple(slice_figures(label, predicted, groups)) if slices else (),
        "parameters": {"epochs": 12},
        "provenance": {"git revision": "eb6b1d9", "MLflow run": "http://localhost:5000/#/experiments/1/runs/2"},
    }
    return Facts(**{**given, **changes})


def hostile(text=HOSTILE, *, condition="n - o > -0.02 and n > 0.8"):
    """Facts in which every text that a user can choose is one and the same."""
    made = facts(names=[text, f"{text}2", "unseen"], condition=condition)
    slices = slice_figures(np.arange(40) % 2, np.zeros(40, dtype=int), {text: np.array([text, "z"] * 20)})
    mistakes = made.evaluation.worst
    worst = tuple(type(one)(text, one.label, one.predicted, one.probability) for one in mistakes)
    evaluation = type(made.evaluation)(**{**vars(made.evaluation), "worst": worst})
    own = {"name": text, "description": text, "owners": (text,), "outcome": text, "dataset": text, "commit": text}
    pairs = {"parameters": {text: text}, "provenance": {text: text}}
    return type(made)(**{**vars(made), **own, **pairs, "evaluation": evaluation, "slices": tuple(slices)})
