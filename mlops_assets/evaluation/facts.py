"""What the evaluation report and the model card are made of, and the words that both use.

Belongs here: the facts of one decision about one model version, and clauses in plain words. Not here: gathering the
facts, and how a document looks (`html.py`, `card.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from mlops_assets.evaluation.metrics import Evaluation
from mlops_assets.evaluation.slices import SliceFigures
from mlops_assets.gate.clauses import METRICS, OF_A_CLASS, OVER_GROUPS, Clause, Term, decimal
from mlops_assets.gate.condition import parse
from mlops_assets.gate.decide import ClauseResult, Decision

_MODELS: Final = {"n": "the new model", "o": "the champion", "a": "the anchor"}
_METRICS: Final = {
    "auc": "area under the ROC curve",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "f1": "F1",
    "macro_f1": "macro F1",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
}
_COMPARED: Final = {">": "is greater than", ">=": "is at least", "<": "is less than", "<=": "is at most"}

VERDICTS: Final = {"true": "holds", "false": "fails", "unknown": "undecided", "skipped": "not asked"}
"""What a clause's verdict is called."""

MODES: Final = {
    "fp-free": "an undecided condition keeps the champion",
    "fn-free": "an undecided condition promotes all the same",
}

ADAPTIVITY: Final = {
    "none": "nobody acts on earlier answers",
    "full": "earlier answers may steer what is tried next",
    "first-change": "the test rows are spent by a promotion",
}


@dataclass(frozen=True)
class Accuracy:
    """An accuracy with its two-sided 95 % interval, and the test rows that it rests on."""

    estimate: float
    lower: float
    upper: float
    rows: int


@dataclass(frozen=True)
class Rule:
    """The promotion rule: the pipeline's `gate`."""

    condition: str
    reliability: float
    mode: str
    method: str
    steps: int
    adaptivity: str


@dataclass(frozen=True)
class Cost:
    """What a decision cost.

    Attributes:
        look: Number of the ledger's record of this look at the test rows; 0 when nobody had to look.
        rows: Test rows that were asked.
        spent: Test rows that were not, because all their looks are used up.
        left: How many decisions the rows have left.
    """

    look: int = 0
    rows: int = 0
    spent: int = 0
    left: int = 0


@dataclass(frozen=True)
class Facts:
    """One model version, how it was evaluated, and how it was decided on.

    Attributes:
        name: The pipeline, which is also the registered model.
        version: The model's version in MLflow.
        evaluation: Its measures; their reports name the classes.
        decision: What the gate said.
        rule: By which rule.
        outcome: One sentence on what came of it.
        task: What the model does, as Hugging Face calls it.
        dataset: The data's name in Oxen, `REPOSITORY/PATH`.
        commit: The data's commit in Oxen; empty when unknown.
        description: The pipeline's line for people.
        owners: Teams and mail addresses.
        champion: The champion's version before the decision; 0 for none.
        champion_accuracy: Its accuracy on the test rows that both judged; None without one.
        anchor: The version that `a` stood for; 0 for none.
        cost: What the decision cost.
        slices: Accuracy by groups of rows.
        parameters: What the model was trained with.
        provenance: Label to value: commits, digests, code versions, runs, library versions, when it was made.
        onnx: Whether the model's run keeps it as `onnx/model.onnx`; not so for models that others registered.
    """

    name: str
    version: int
    evaluation: Evaluation
    decision: Decision
    rule: Rule
    outcome: str
    task: Literal["tabular-classification", "image-classification"]
    dataset: str
    commit: str = ""
    description: str = ""
    owners: tuple[str, ...] = ()
    champion: int = 0
    champion_accuracy: Accuracy | None = None
    anchor: int = 0
    cost: Cost = Cost()
    slices: tuple[SliceFigures, ...] = ()
    parameters: Mapping[str, object] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)
    onnx: bool = True

    @property
    def status(self) -> str:
        """What came of the decision, in few words."""
        if self.version == self.champion:
            return "the champion already"
        if self.decision.promote:
            return "promoted"
        return {"false": "refused", "unknown": "undecided"}.get(self.decision.verdict, "left to a person")

    @property
    def weak_slices(self) -> list[SliceFigures]:
        """The groups whose interval lies wholly below the accuracy on all rows."""
        return [one for one in self.slices if one.below(self.evaluation.accuracy)]


class Judged(NamedTuple):
    """A clause, how it was judged, and both in plain words."""

    clause: Clause
    result: ClauseResult
    meaning: str
    remedy: str


def judged(facts: Facts) -> list[Judged]:
    """Every clause that the gate was asked, in the order of the condition; none when it was not asked."""
    results = facts.decision.clauses
    clauses = parse(facts.rule.condition).clauses if results else ()
    pairs = zip(clauses, results, strict=True)
    return [Judged(clause, result, meaning(clause), _remedy(clause, result, facts)) for clause, result in pairs]


def meaning(clause: Clause) -> str:
    """Say a clause without its symbols."""
    said = ""
    for term, factor in sorted(clause.coefficients.items(), key=lambda item: item[1] < 0):
        name = _named(term) if abs(factor) == 1 else f"{decimal(abs(factor))} times {_named(term)}"
        if said:
            said += f", less {name}" if factor < 0 else f", plus {name}"
        else:
            said = f"minus {name}" if factor < 0 else name
    comma = "," if len(clause.coefficients) > 1 else ""
    return f"{said}{comma} {_COMPARED[clause.direction]} {decimal(clause.threshold)}"


def not_asked(facts: Facts) -> list[str]:
    """What the condition does not speak of, so that a loss there would not have been noticed."""
    terms = {term for clause in parse(facts.rule.condition).clauses for term in clause.coefficients}
    metrics = {term.metric for term in terms}
    asked = {
        "single classes": any(_of_class(metric) for metric in metrics),
        "groups of rows": any(term.slice for term in terms),
        "the quality of its probabilities": bool(metrics & {"log_loss", "brier", "ece"}),
        "the champion": any(term.model in "od" for term in terms),
        "an anchor against many small losses in a row": any(term.model == "a" for term in terms),
    }
    return [what for what, was in asked.items() if not was]


def _named(term: Term) -> str:
    where = f" where {term.slice.column} is {term.slice.value}" if term.slice else ""
    if term.model == "d":
        return f"the share of rows on which the two models differ{where}"
    if term.metric in OVER_GROUPS and term.slice:
        where = f" between the groups of {term.slice.column}"
    name, of_class = _of_class(term.metric) or (term.metric, "")
    metric = _METRICS.get(name, name.replace("_", " ")) + (f" of class {of_class}" if of_class else "")
    return f"the {metric} of {_MODELS[term.model]}{where}"


def _of_class(metric: str) -> tuple[str, str] | None:
    """Split the metric of one class, such as `recall_setosa`."""
    name, _, of = metric.partition("_")
    return (name, of) if metric not in METRICS and name in OF_A_CLASS and of else None


def _remedy(clause: Clause, result: ClauseResult, facts: Facts) -> str:
    """What would settle an undecided clause; empty for one that is decided."""
    if result.verdict != "unknown":
        return ""
    if result.more_rows is None:
        remedy = "how many more labelled rows would settle it cannot be told from today's estimate"
    else:
        rows = "row" if result.more_rows == 1 else "rows"
        remedy = f"about {result.more_rows:,} more labelled {rows} would settle it, if the estimate stays as it is"
    # On the other rows both are right or both are wrong, which a difference of accuracies does not see.
    compares = {term.metric for term in clause.coefficients} == {"accuracy"} and sum(clause.coefficients.values()) == 0
    if compares and clause.models == {"n", "o"} and facts.decision.disagree:
        remedy += (
            "; of fresh rows, label those first on which the two models differ "
            f"({facts.decision.disagree:,} of {result.rows:,} so far), since the others leave the difference as it is"
        )
    return remedy
