"""`mlops gate`: the promotion rule, asked, planned for, read back and put to the test.

Belongs here: what a person types and reads. Does not: the rule and its statistics (`gate/`), and promotions, which a
run of the asset does.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer
from rich.markup import escape
from rich.table import Table

from mlops_assets.cli.console import err, fail, out
from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    from mlops_assets.gate.condition import Condition
    from mlops_assets.gate.decide import Decision
    from mlops_assets.gate.plan import ClausePlan, Plan, Size
    from mlops_assets.gate.predictions import Predictions
    from mlops_assets.gate.simulation import Audit, Cell, Finding

app = typer.Typer(
    help="The promotion rule: ask it, plan for it, read it back, put it to the test. docs/gate.md has the grammar.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

SHOWN_IDS: Final = 20

COLORS: Final = {"true": "green", "false": "red", "unknown": "yellow", "skipped": "dim", "by hand": "yellow"}

Rule = Annotated[str, typer.Argument(metavar="CONDITION", help='A rule, such as "n - o > 0.02 and n > 0.9".')]
File = Annotated[
    Path | None,
    typer.Option(
        "--predictions",
        metavar="FILE",
        help="Parquet or CSV with columns label and new, as needed old, anchor and id; new_score and so on are "
        "probabilities of the positive class instead; all other columns are slices.",
    ),
]
Reliability = Annotated[float, typer.Option(help="One-sided confidence in the decision, or in all of them together.")]
Method = Annotated[
    Literal["efficient", "certified"],
    typer.Option(help="Intervals that err about as often as they say, or never more often."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("check")
def check(
    condition: Rule,
    *,
    predictions: File = None,
    reliability: Reliability = 0.95,
    mode: Annotated[
        Literal["fp-free", "fn-free"], typer.Option(help="fp-free promotes on true alone, fn-free also on unknown.")
    ] = "fp-free",
    method: Method = "efficient",
    as_json: AsJson = False,
) -> None:
    """Decide a condition on a file of predictions: exit code 0 when it promotes, 1 when not, 2 when it cannot be asked.

    Example: [bold]mlops gate check "n - o > 0.02 +/- 0.01 and n > 0.9" --predictions predictions.parquet[/bold]
    """
    from mlops_assets.gate.condition import parse
    from mlops_assets.gate.decide import decide

    try:
        rule, found = parse(condition), _read(predictions)
        rows = found.judged(rule)
        decision = decide(rule, rows, reliability=reliability, mode=mode, method=method)
    except MlopsError as error:
        # 1 is an answer here.
        fail(error)
        sys.exit(2)
    left_out = len(found.rows) - len(rows)
    if as_json:
        typer.echo(json.dumps({**decision.to_dict(), "rows": len(rows), "without_label": left_out}, indent=2))
    else:
        _print_decision(decision)
        if left_out:
            out.print(f"{left_out} rows without a label were left out, {len(rows)} were judged")
    if not decision.promote:
        raise typer.Exit(1)


@app.command("plan")
def plan(
    condition: Rule,
    *,
    reliability: Reliability = 0.95,
    steps: Annotated[int, typer.Option(min=1, help="How many decisions the test set serves for.")] = 32,
    adaptivity: Annotated[
        Literal["none", "full", "first-change"], typer.Option(help="What model makers learn from the decisions.")
    ] = "none",
    disagreement: Annotated[
        float | None, typer.Option(help="Expected share of rows on which exactly one model is right.")
    ] = None,
    predictions: File = None,
    method: Method = "efficient",
    as_json: AsJson = False,
) -> None:
    """Say how many test rows a condition needs to be decided to the precision after its +/-.

    With predictions: how many more labelled rows would settle what is unknown, and which to label first.

    Example: [bold]mlops gate plan "n - o > 0.02 +/- 0.01 and d < 0.1 +/- 0.01" --steps 32 --adaptivity full[/bold]
    """
    from mlops_assets.gate.budget import Budget
    from mlops_assets.gate.condition import parse
    from mlops_assets.gate.decide import decide
    from mlops_assets.gate.plan import plan as make_plan

    rule = parse(condition)
    made = make_plan(rule, reliability=reliability, steps=steps, adaptivity=adaptivity, disagreement=disagreement)
    if predictions is None:
        if as_json:
            typer.echo(json.dumps(made.to_dict(), indent=2))
        else:
            _print_plan(made)
        return
    found = _read(predictions)
    level = Budget(reliability, steps, adaptivity).level
    decision = decide(rule, found.judged(rule), reliability=level, method=method)
    if as_json:
        first = found.label_first.tolist()
        typer.echo(json.dumps({**made.to_dict(), "decision": decision.to_dict(), "label_first": first}, indent=2))
    else:
        _print_plan(made)
        _print_what_is_missing(decision, found, rule)


@app.command("explain")
def explain(condition: Rule) -> None:
    """Read a condition back in plain words, or point at what is wrong with it.

    Example: [bold]mlops gate explain "n.f1[sex=Female] - o.f1[sex=Female] > -0.01 and n > 0.8"[/bold]
    """
    from mlops_assets.gate.condition import parse
    from mlops_assets.gate.explain import explain_clause, explain_missing, explain_start

    rule = parse(condition)
    every = f"all {len(rule.clauses)} clauses hold" if len(rule.clauses) > 1 else "this holds"
    out.print(f"The new model becomes champion when {every}:")
    for number, clause in enumerate(rule.clauses, start=1):
        missing = explain_missing(clause)
        out.print(f"{number}. {explain_clause(clause)}{missing and f' ({missing})'}", markup=False)
    out.print(f"For a first model: {explain_start(rule)}.", markup=False)
    out.print(f"In its normal form: {rule}", markup=False)


@app.command("audit")
def audit(
    sims: Annotated[int, typer.Option(min=100, help="Test sets drawn in each world.")] = 20_000,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
    as_json: AsJson = False,
) -> None:
    """Decide in worlds whose truth is known: how often is noise promoted, and what is better found?

    Exit code 1 when a promise is not kept. Takes about a minute.

    Example: [bold]mlops gate audit --sims 20000[/bold]
    """
    from mlops_assets.gate import simulation

    with _counting("auditing") as tell:
        found = simulation.audit(sims, seed=simulation.SEED if seed is None else seed, progress=tell)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _print_audit(found)
    _end(found.findings, as_json=as_json)


@app.command("stress")
def stress(
    noise_challengers: Annotated[int, typer.Option(min=1, help="Challengers in a row that are no better.")] = 200,
    sequences: Annotated[int, typer.Option(min=100, help="How many such rows of challengers are drawn.")] = 2_000,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send sequences of challengers against one test set: noise, slow decay, an adversary.

    Exit code 1 when a promise is not kept. Takes about a minute.

    Example: [bold]mlops gate stress --noise-challengers 200[/bold]
    """
    from mlops_assets.gate.simulation import SEED
    from mlops_assets.gate.stress import stress as run_stress

    with _counting("stressing") as tell:
        found = run_stress(noise_challengers, sequences, seed=SEED if seed is None else seed, progress=tell)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        table = Table("sequence", "method", "adaptivity", "decisions", "sequences", "gate erred in", "to be known")
        for one in found.sequences:
            share = f"{100 * one.share:.2f} % ± {100 * one.deviation:.2f}"
            counts = (str(one.steps), str(one.sequences))
            table.add_row(one.name, one.method, one.adaptivity, *counts, share, one.note)
        out.print(table)
    _end(found.findings, as_json=as_json)


def _read(path: Path | None) -> Predictions:
    from mlops_assets.gate import GateError
    from mlops_assets.gate.predictions import read_predictions

    if path is None:
        raise GateError("there are no predictions to judge: name a file with --predictions")
    return read_predictions(path)


def _print_decision(decision: Decision) -> None:
    table = Table("clause", "verdict", "estimate", "at least", "at most", "level of each", "method", "rows", "note")
    for one in decision.clauses:
        numbers = ("" if value is None else f"{value:.4f}" for value in (one.estimate, one.lower, one.upper))
        level = "" if one.level is None else f"{100 * one.level:.6g} %"
        verdict = f"[{COLORS[one.verdict]}]{one.verdict}[/]"
        more = f"{one.more_rows:,} more rows would settle it" if one.more_rows else ""
        note = "; ".join(filter(None, (one.note, more)))
        table.add_row(escape(one.text), verdict, *numbers, level, one.method, f"{one.rows:,}", escape(note))
    answer = "[green]promote[/]" if decision.promote else "[red]do not promote[/]"
    out.print(f"{answer} (the condition is [{COLORS[decision.verdict]}]{decision.verdict}[/])")
    out.print(table)
    out.print(decision.reason, markup=False)


def _print_plan(made: Plan) -> None:
    table = Table("clause", "certified", "by", "efficient", "by", "of", "note")
    for one in made.clauses:
        table.add_row(escape(one.text), *_sizes(one), escape(one.unit), escape(one.note))
    out.print(table)
    for one in made.clauses:
        for other in one.alternatives:
            out.print(f"{one.text}: {other.rows:,} by {other.bound}", markup=False)
    looks = "one decision" if made.steps == 1 else f"{made.steps} decisions, adaptivity {made.adaptivity}"
    sizes = {"certified": made.certified, "efficient": made.efficient}
    told = [f"{rows:,} ({name})" for name, rows in sizes.items() if rows]
    if told:
        error = f"{math.exp(made.log_error):.2g}"
        out.print(
            f"{' or '.join(told)} rows decide it, for {looks} at reliability {made.reliability:g} ({error} per clause)"
        )


def _sizes(one: ClausePlan) -> tuple[str, str, str, str]:
    def told(size: Size | None) -> tuple[str, str]:
        return (f"{size.rows:,}", size.bound) if size else ("", "")

    return (*told(one.certified), *told(one.efficient))


def _print_what_is_missing(decision: Decision, found: Predictions, rule: Condition) -> None:
    from mlops_assets.gate.predictions import only_compares

    out.print(f"Today the condition is [{COLORS[decision.verdict]}]{decision.verdict}[/].")
    few = only_compares(rule)
    for one in decision.clauses:
        if one.verdict == "unknown":
            more = f"about {one.more_rows:,} more rows" if one.more_rows else "no number of rows"
            if one.more_rows and few:
                more += (
                    f" (a label is needed on about {math.ceil(one.more_rows * decision.disagree / one.rows):,} of them)"
                )
            out.print(f"{one.text}: {more} would settle it at today's estimate of {one.estimate:.4f}", markup=False)
    first = found.label_first
    if decision.verdict == "unknown" and len(first):
        ids = ", ".join(str(one) for one in first[:SHOWN_IDS]) + (", ..." if len(first) > SHOWN_IDS else "")
        rest = "then the others count without a label" if few else "then as many of the others in proportion"
        out.print(f"Label first all {len(first):,} rows on which the models differ, {rest}: {ids}", markup=False)


def _print_audit(found: Audit) -> None:
    levels = sorted({cell.reliability for cell in found.cells if cell.exact is not None})
    boundary = Table("claim", "rows", "differ", title="Promoted though not true (on the boundary), allowed in brackets")
    for level in levels:
        for method in ("certified", "efficient"):
            boundary.add_column(f"{method} ({1 - level:.4g})")
    names = ("claim", "rows", "differ", "true", "reliability", "certified", "efficient", "unpaired", "new >= old")
    power = Table(*names, title="Promoted when true")
    cells = {(cell.world, cell.reliability, cell.method): cell for cell in found.cells}
    for cell in found.cells:
        world = cell.world
        where = (world.claim, f"{world.rows:,}", f"{100 * world.disagreement:g} %" if world.disagreement else "")
        if cell.method == "efficient":
            continue  # beside the certified one
        other = cells[world, cell.reliability, "efficient"]
        if cell.exact is not None and cell.reliability == levels[0]:
            every = (cells[world, level, method] for level in levels for method in ("certified", "efficient"))
            boundary.add_row(*where, *(_promoted(one) for one in every))
        elif not world.wrong:
            drawn = (f"{value:.3f}" for value in (cell.drawn, other.drawn, cell.unpaired, cell.larger))
            power.add_row(*where, f"{world.truth:g}", f"{cell.reliability:g}", *drawn)
    out.print(boundary)
    out.print(power)


def _promoted(cell: Cell) -> str:
    exact = f"{cell.exact:.3g}"
    return exact if cell.drawn is None else f"{exact}, drawn {cell.drawn:.4f} ± {cell.deviation:.4f}"


def _end(findings: Sequence[Finding], *, as_json: bool) -> None:
    if not as_json:
        for one in findings:
            out.print(f"{'[green]holds[/]' if one.holds else '[red]fails[/]'}  {escape(one.text)}")
    if not all(one.holds for one in findings):
        raise typer.Exit(1)


@contextmanager
def _counting(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error; yields what is to be told how many parts are done, and of how many."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
