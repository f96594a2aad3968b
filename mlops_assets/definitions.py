"""The code location: the pipelines below `defs/`, and the resources they run with."""

import warnings
from pathlib import Path

import dagster as dg

from mlops_assets.home import refuse_without_dagster_home
from mlops_assets.pipeline import pipeline_folders
from mlops_assets.provenance import job_name
from mlops_assets.resources.mlflow import MLflowResource
from mlops_assets.resources.oxen import OxenResource
from mlops_assets.resources.store import StoreResource
from mlops_assets.sensors.registry import build_registry
from mlops_assets.sensors.rematerialize import build_rematerialize
from mlops_assets.sensors.run_status import build_run_status
from mlops_assets.settings import settings

# Observable source assets are beta, and so is a parameter that they use themselves; Dagster would say so at every load.
warnings.filterwarnings("ignore", "(Function `observable_source_asset`|Parameter `execution_type`)", dg.BetaWarning)


@dg.definitions
def defs() -> dg.Definitions:
    """Load every pipeline; nothing heavy is imported before a run needs it."""
    refuse_without_dagster_home()
    loaded = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    jobs = list(loaded.jobs or ())
    here = {job.name for job in jobs}
    folders = [folder for folder in pipeline_folders() if job_name(folder.name) in here]  # others are elsewhere
    sensors = [build_rematerialize(folders, jobs), build_registry(folders, jobs)]
    return dg.Definitions.merge(loaded, dg.Definitions(sensors=sensors), platform())


def platform() -> dg.Definitions:
    """What every pipeline runs with."""
    here = settings()
    return dg.Definitions(
        resources={
            "oxen": OxenResource(home=str(here.home)),
            "store": StoreResource(url=here.store_url),
            "mlflow": MLflowResource(home=str(here.home), tracking_uri=here.mlflow_tracking_uri),
        },
        sensors=[build_run_status()],
        executor=EXECUTORS[here.executor],
    )


EXECUTORS = {
    "in_process": dg.in_process_executor,
    "multiprocess": dg.multiprocess_executor.configured(
        {
            "max_concurrent": 2,
            # An empty forkserver preloads nothing of ours; with this list a step starts in 0.5 s instead of 4.7 s.
            "start_method": {
                "forkserver": {
                    "preload_modules": [
                        "dagster._cli",
                        "dagster._core.instance.factory",
                        "dagster._core.storage.sqlite_storage",
                        "dagster._core.storage.local_compute_log_manager",
                        "torch",
                        "mlflow",
                        "mlops_assets.definitions",
                    ]
                }
            },
        }
    ),
}
