"""The keys under which runs and model versions carry their provenance: here alone, so that all readers agree."""

from typing import Final

DAGSTER_PARENT: Final = "dagster_run_id"
"""On the one run that stands for a whole Dagster run; dagster-mlflow writes this key and searches by it."""

DAGSTER_RUN: Final = "mlops.dagster_run_id"
"""On a model's run. A key of its own, or dagster-mlflow's search would take the model's run for the parent."""

DAGSTER_INSTANCE: Final = "mlops.dagster_instance"
"""On both: several Dagster instances may share an MLflow server, and each may close its own runs only."""

ASSET: Final = "mlops.asset"
RECIPE: Final = "mlops.recipe"
CODE_VERSION: Final = "mlops.code_version"
GIT_REVISION: Final = "mlops.git_revision"
OXEN_COMMIT: Final = "mlops.oxen_commit"
DATA_DIGEST: Final = "mlops.data_digest"
MODEL_DIGEST: Final = "mlops.model_digest"
GATE: Final = "mlops.gate"
"""The gate's verdict, on a version and on its run; a version of others that has none is still to be judged."""

GATE_OUTCOME: Final = "mlops.gate_outcome"

CONTRACT: Final = "mlops.contract"
"""On a version: the SHA-256 of the serving contract that its run keeps."""
