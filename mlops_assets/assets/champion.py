"""`NAME/champion`: the gate's decision, and the version that answers users."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from mlops_assets.assessment import COMMIT_TAG
from mlops_assets.assets import judgement
from mlops_assets.assets.documents import documents
from mlops_assets.assets.stage import InputRefused, StageRun, log, plain_failures, stage_asset
from mlops_assets.errors import MlopsError
from mlops_assets.pipeline import Pipeline
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
            with _champions(run, tracking) as champions:
                result = _moved(run, tracking, champions, move) if move else _decided(run, tracking, champions)
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
def _champions(run: StageRun, tracking: "Tracking") -> Iterator["Champions"]:
    """The ledger, brought up to date and held: two promotions at once wait for each other."""
    from mlops_assets.registry.champion import Champions
    from mlops_assets.registry.ledger import Ledger

    pipeline = run.pipeline
    ledger = Ledger(settings().home / "ledger", pipeline.name)
    champions = Champions(ledger, tracking, pipeline.model_name, pipeline.spec.gate.champion_alias)
    with ledger.lock():
        for record in champions.reconcile():
            log.warning("%s: %s", run.name, _sentence(record))
        yield champions


def _decided(run: StageRun, tracking: "Tracking", champions: "Champions") -> dg.MaterializeResult[Any]:
    """Judge the newest model, and move the alias if it may."""
    now, metadata = _judged(run, tracking, champions, judgement.newest(run, tracking))
    return run.result(_digest(now), metadata)


def _moved(
    run: StageRun, tracking: "Tracking", champions: "Champions", move: Mapping[str, Any]
) -> dg.MaterializeResult[Any]:
    """Do what a person or the registry's sensor asks for; whether the newest model was judged stays as it was.

    Raises:
        MlopsError: The version does not exist, is barred, or there is none to go back to.
    """
    from mlops_assets.registry import aliases
    from mlops_assets.registry.history import history

    name, how = run.pipeline.model_name, str(move["how"])
    if how == "candidate":
        candidate = aliases.get(tracking, name, int(move["version"]))
        if candidate is None:
            raise InputRefused(f"MLflow has no version {move['version']} of {name}, or its files are gone")
        now, metadata = _judged(run, tracking, champions, candidate)
        return run.result_as_before(_digest(now), metadata)
    before = _current(run, tracking)
    told = {
        "actor": str(move.get("actor", "")),
        "reason": str(move.get("reason", "")),
        "dagster_run": run.context.run.run_id,
    }
    if how == "rollback":
        record = champions.rollback(int(move["version"]), **told)
    elif how == "hand":
        record = champions.move(int(move["version"]), how="hand", **told)
    else:  # "notice": the ledger was brought up to date when it was opened
        record = history(champions.ledger.records())[-1].record
    now = _current(run, tracking)
    metadata = {
        OUTCOME: _sentence(record),
        PASSED: True,
        "before": before.number if before else 0,
        **_of_champion(tracking, champions, now),
    }
    with suppress(MlopsError):  # figures are welcome, and no reason to fail when somebody must go back
        metadata |= judgement.accuracy_of(run, tracking, now) if now else {}
    log.info("%s: %s", run.name, _sentence(record))
    return run.result_as_before(_digest(now), metadata)


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
    if not sitting:
        verdict = {"mlops.gate": decision.verdict, "mlops.gate_outcome": outcome}
        if challenger.run_id:
            tracking.log_evaluation(challenger.run_id, metrics={}, tags=verdict, artifacts={})
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
        **(answer.new if promoted or sitting else answer.old),
        **_of_champion(tracking, champions, now),
    }
    if not sitting:
        metadata |= documents(run, tracking, answer, challenger=challenger, champion=before, outcome=outcome)
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
        metadata["MLflow run"] = dg.MetadataValue.url(tracking.run_url(now.run_id, settings().mlflow_url))
    return metadata


def _evidence(run: StageRun) -> dict[str, Any]:
    """On what a decision rests, for the ledger: the digest of each stage's output, and the commit."""
    digests = {stage: made.digest for stage, made in run.state.items() if stage != "champion"}
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
