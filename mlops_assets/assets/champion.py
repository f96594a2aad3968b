"""`NAME/champion`: the gate's decision, and the version that answers users."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from mlops_assets.assessment import COMMIT_TAG
from mlops_assets.assets import judgement
from mlops_assets.assets.documents import documents
from mlops_assets.assets.stage import InputRefused, StageRun, log, plain_failures, stage_asset
from mlops_assets.errors import MlopsError
from mlops_assets.pipeline import DECISIONS, Pipeline
from mlops_assets.provenance import LEDGER_HEAD, asset_key, latest_metadata
from mlops_assets.resources.mlflow import MLflowResource
from mlops_assets.resources.store import StoreResource
from mlops_assets.settings import settings

if TYPE_CHECKING:
    from mlops_assets.gate.decide import Decision
    from mlops_assets.registry.aliases import Version
    from mlops_assets.registry.champion import Champions
    from mlops_assets.registry.ledger import Record
    from mlops_assets.tracking.runs import Tracking

OUTCOME: Final = "outcome"
PASSED: Final = "gate passed"
CLAUSES: Final = "clauses"

MOVE_TAG: Final = "mlops/move"
"""On a run that does not ask the gate about the newest model but does what a person or the registry wants, as JSON."""


def build_champion(pipeline: Pipeline) -> list[Any]:
    """The champion, and the gate as a check that never blocks: a refusal is a normal outcome."""
    key = asset_key(pipeline.name, "champion")

    @stage_asset(
        pipeline,
        "champion",
        kinds={"mlflow"},
        deps=[asset_key(pipeline.name, "evaluation")],
        description=f"The version that answers users: the challenger replaces it when `{pipeline.spec.gate.condition}` "
        f"holds with {pipeline.spec.gate.reliability:.4g} confidence on paired predictions.",
    )
    def champion(
        context: dg.AssetExecutionContext, store: StoreResource, mlflow: MLflowResource
    ) -> Iterator[dg.MaterializeResult[Any]]:
        with plain_failures():
            run = StageRun.start(context, pipeline, "champion", store)
            move = json.loads(context.run.tags.get(MOVE_TAG, "{}"))
            if not move and run.nothing_to_do():
                log.info("%s: unchanged, nothing to decide", run.name)
                return
            tracking = mlflow.tracking()
            challenger = _challenger(run, tracking, move)
            if challenger:
                judgement.prepare(run, tracking, challenger, _current(run, tracking))
            with _champions(run, tracking) as (champions, noticed):
                if challenger:
                    now, metadata = _judged(run, tracking, champions, challenger)
                else:
                    now, metadata = _moved(run, tracking, champions, move, noticed)
            result = run.result_as_before(_digest(now), metadata) if move else run.result(_digest(now), metadata)
        yield result

    @dg.asset_check(asset=key, name="gate", description=f"`{pipeline.spec.gate.condition}`, on paired predictions.")
    def gate_check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        (made,) = latest_metadata(context.instance, [key])
        if OUTCOME not in made:
            with plain_failures():
                raise InputRefused(f"the gate of {pipeline.name} has not decided yet; run `mlops run {pipeline.name}`")
        return dg.AssetCheckResult(
            passed=bool(made[PASSED].value),
            severity=dg.AssetCheckSeverity.WARN,
            description=str(made[OUTCOME].value),
            metadata={CLAUSES: made[CLAUSES]} if CLAUSES in made else {},
        )

    return [champion, gate_check]


@contextmanager
def _champions(run: StageRun, tracking: "Tracking") -> Iterator[tuple["Champions", list["Record"]]]:
    """The ledger, brought up to date and held, and what that took: two promotions at once wait for each other.

    Raises:
        LedgerError: It is not the one whose heads MLflow and Dagster keep.
    """
    from mlops_assets.registry.champion import Champions
    from mlops_assets.registry.ledger import Ledger

    pipeline = run.pipeline
    ledger = Ledger(settings().home / "ledger", pipeline.name)
    champions = Champions(ledger, tracking, pipeline.model_name, pipeline.spec.gate.champion_alias)
    (made,) = latest_metadata(run.context.instance, [asset_key(pipeline.name, "champion")])
    with ledger.lock():
        noticed = champions.reconcile({"Dagster": str(made[LEDGER_HEAD].value)} if LEDGER_HEAD in made else {})
        for record in noticed:
            log.warning("%s: %s", run.name, _sentence(record))
        yield champions, noticed


def _challenger(run: StageRun, tracking: "Tracking", move: Mapping[str, Any]) -> "Version | None":
    """Who is to be judged: the newest model, another version, or nobody when the champion is moved by hand.

    Raises:
        InputRefused: There is no such version.
    """
    from mlops_assets.registry import aliases

    if not move:
        return judgement.newest(run, tracking)
    if move["how"] != "candidate":
        return None
    name = run.pipeline.model_name
    found = aliases.get(tracking, name, int(move["version"]))
    if found is None:
        raise InputRefused(f"MLflow has no version {move['version']} of {name}, or its files are gone")
    return judgement.recognised(tracking, found)


def _moved(
    run: StageRun,
    tracking: "Tracking",
    champions: "Champions",
    move: Mapping[str, Any],
    noticed: Sequence["Record"],
) -> tuple["Version | None", dict[str, Any]]:
    """Do what a person or the registry's sensor asks for; whether the newest model was judged stays as it was.

    Raises:
        MlopsError: The version does not exist, is barred, or is champion already.
    """
    how, before = str(move["how"]), _current(run, tracking)
    told = {
        "actor": str(move.get("actor", "")),
        "reason": str(move.get("reason", "")),
        "dagster_run": run.context.run.run_id,
    }
    outcome = "; ".join(map(_sentence, noticed)) or "nothing to note: the ledger says what MLflow shows"
    if how != "notice":
        version, sitting = int(move["version"]), before.number if before else 0
        if how == "hand" and version == sitting:
            raise InputRefused(f"version {version} of {run.pipeline.name} is the champion already; name another one")
        if how == "rollback" and sitting not in {version, move["leaves"]}:
            raise InputRefused(
                f"version {sitting} is the champion of {run.pipeline.name} by now, and not version {move['leaves']}, "
                "which was to be left; look again, and roll back then"
            )
        outcome = _sentence(
            champions.rollback(version, **told) if how == "rollback" else champions.move(version, how="hand", **told)
        )
    now = _current(run, tracking)
    metadata = {
        OUTCOME: outcome,
        PASSED: False,  # nobody asked the gate
        "before": before.number if before else 0,
        **_of_champion(tracking, champions, now),
    }
    with suppress(MlopsError):  # figures are welcome, and no reason to fail when somebody must go back
        metadata |= judgement.accuracy_of(run, tracking, now) if now else {}
    log.info("%s: %s", run.name, outcome)
    return now, metadata


def _judged(
    run: StageRun, tracking: "Tracking", champions: "Champions", challenger: "Version"
) -> tuple["Version | None", dict[str, Any]]:
    """Ask the gate and act on it; returns the champion after that, and what there is to tell."""
    before = _current(run, tracking)
    answer = judgement.ask(run, tracking, champions, challenger, before)
    decision = answer.judged.decision
    sitting = before is not None and before.number == challenger.number
    promoted = decision.promote and not sitting
    if sitting:
        outcome = f"kept version {challenger.number}, which is the champion already"
        outcome += f", though {decision.reason}" if decision.verdict == "false" else ""
    elif promoted:
        outcome = f"promoted version {challenger.number}, because {decision.reason}"
    else:
        outcome = f"{f'kept version {before.number}' if before else 'no champion yet'}, because {decision.reason}"
    shown: dict[str, Any] = {}
    if not sitting:
        shown = documents(run, tracking, answer, challenger=challenger, champion=before, outcome=outcome)
    judgement.mark(tracking, challenger, decision.verdict, "" if sitting else outcome)
    if promoted:  # last, so that whatever failed before has promoted nothing
        evidence = {**_evidence(run), "look": answer.judged.look, "decision": decision.to_dict()}
        champions.move(
            challenger.number,
            how="gate",
            actor="gate",
            reason=decision.reason,
            evidence=evidence,
            dagster_run=run.context.run.run_id,
        )
    now = challenger if promoted else before
    log.info("%s: %s", run.name, outcome)
    metadata = {
        OUTCOME: outcome,
        PASSED: promoted or (sitting and decision.verdict != "false"),
        "challenger": challenger.number,
        "before": before.number if before else 0,
        "anchor": answer.anchor,
        CLAUSES: _table(decision),
        **shown,
        **(answer.new if promoted or sitting else answer.old),
        **_of_champion(tracking, champions, now),
    }
    if answer.judged.look:
        metadata |= {
            "rows judged": answer.judged.rows,
            "rows spent": answer.judged.spent,
            "decisions left": answer.judged.left,
            "rows that differ": decision.disagree or 0,
        }
    return now, metadata


def _current(run: StageRun, tracking: "Tracking") -> "Version | None":
    from mlops_assets.registry import aliases

    return aliases.current(tracking, run.pipeline.model_name, run.pipeline.spec.gate.champion_alias)


def _sentence(record: "Record") -> str:
    """What a record of the ledger says, for people."""
    facts = record.facts
    version = f"version {facts['version']}" if facts.get("version") else "no version"
    if record.kind == "noticed":
        return f"{version} is the champion, as somebody else wants it: {facts['reason']}"
    if record.kind == "barred":
        return f"{version} is barred, since it was rolled back: {facts['reason']}"
    if record.kind == "abandoned":
        return f"the move to {version} did not take place: {facts['reason']}"
    if facts["how"] == "rollback":
        return f"rolled back to {version} by {facts['actor']}: {facts['reason']}"
    return f"made {version} the champion, by {facts['actor']}: {facts['reason']}"


def _of_champion(tracking: "Tracking", champions: "Champions", now: "Version | None") -> dict[str, Any]:
    metadata: dict[str, Any] = {"champion": now.number if now else 0, LEDGER_HEAD: champions.ledger.head}
    if now and now.run_id:
        metadata["MLflow run"] = dg.MetadataValue.url(tracking.run_url(now.run_id, settings().mlflow_page))
    return metadata


def _evidence(run: StageRun) -> dict[str, Any]:
    """On what a decision rests, for the ledger: the digest of each stage's output, and the commit."""
    digests = {stage: made.digest for stage, made in run.state.items() if stage not in DECISIONS}
    return {"digests": digests, "oxen_commit": run.context.run.tags.get(COMMIT_TAG, "")}


def _digest(now: "Version | None") -> str:
    return (now.model_digest or f"version {now.number}") if now else "none"


def _table(decision: "Decision") -> dg.MarkdownMetadataValue:
    """The clauses, and how each was decided."""
    lines = ["| clause | verdict | estimate | between | level | method | rows |", "|" + " --- |" * 7]
    for one in decision.clauses:
        values = (
            ["", "", "", ""]
            if one.estimate is None
            else [f"{one.estimate:.4f}", f"{one.lower:.4f} and {one.upper:.4f}", f"{one.level:.6g}", str(one.method)]
        )
        lines.append("| " + " | ".join([f"`{one.text}`", one.verdict, *values, str(one.rows)]) + " |")
    lines += [f"\n`{one.text}`: {one.note}" for one in decision.clauses if one.note]
    return dg.MetadataValue.md("\n".join(lines))
