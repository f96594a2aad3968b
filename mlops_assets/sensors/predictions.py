"""What a tick asks for so that files which arrived are scored by the champion.

Belongs here: one pipeline's wish. Not here: when it is asked for (`rematerialize.py`), and scoring (`serving/`).
"""

import dagster as dg

from mlops_assets.assessment import REASON_TAG, Assessment
from mlops_assets.assets.predictions import predictions_key
from mlops_assets.fingerprint import digest
from mlops_assets.oxen.repository import Repository
from mlops_assets.provenance import PIPELINE_TAG, job_name
from mlops_assets.serving.batch_plan import Look, look

_looks: dict[str, tuple[tuple[str, str], Look]] = {}
"""By pipeline: the repository's change stamp and the `predictions` section under which it was looked at, and what there
was; a tick that finds both unchanged reads nothing."""


def scoring_request(now: Assessment, repository: Repository) -> dg.RunRequest | None:
    """The run that scores what the champion has not scored, and removes what has no input any more.

    One wish is one run, from where it starts: a run that failed or changed nothing is not asked for again before the
    branch or the champion moves; a wish that comes back after it was fulfilled is a new one, as a round that changed
    anything has made a commit.

    Raises:
        OxenError: The repository cannot be read.
        PredictionsTaken: Another pipeline scores into the same directory.
    """
    champion = now.state.get("champion")
    if champion is None:
        return None
    spec, name = now.pipeline.spec, now.pipeline.name
    key = (repository.change_stamp(), spec.predictions.model_dump_json())
    known = _looks.get(name)
    if known is None or known[0] != key:
        known = _looks[name] = key, look(repository, spec)
    found = known[1]
    found.require_own(name, spec.predictions.to)
    wanted, gone = found.wanted(champion.digest), found.gone
    if not (wanted or gone):
        return None
    # the commit, and not what lies in it: after A, B, A, B the same files lie there as after A, B
    content = digest([found.commit, champion.digest, [[unit.path, unit.hash] for unit in wanted], gone])
    return dg.RunRequest(
        run_key=f"{name}-predictions-{content}",
        job_name=job_name(name),
        asset_selection=[predictions_key(name)],
        tags={PIPELINE_TAG: name, REASON_TAG: f"predictions: {len(wanted)} inputs to score, {len(gone)} gone"},
    )
