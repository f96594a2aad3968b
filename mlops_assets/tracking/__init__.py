"""MLflow as the record of runs and models: the embedded store, where its artifacts lie, and the runs.

Belongs here: everything that talks to MLflow's tracking side, through `MlflowClient`. Not here: the registry's aliases
(`registry/`), and Dagster's view of all this (`resources/`).

MLflow reads its settings when it is first imported and hands them to its child processes, so they are set here, in the
package that everything which imports MLflow goes through (MLflow itself too, by its artifact plugin).
"""

import os
from typing import Final

MLFLOW_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
}
"""No telemetry; and about half a minute of patience with a server that restarts (MLflow's own: over four minutes)."""

for _name, _value in MLFLOW_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
