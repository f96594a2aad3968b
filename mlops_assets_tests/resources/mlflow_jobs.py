"""Jobs for the tests of the MLflow resource; a module of its own, so that other processes can import them."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from mlops_assets.resources.mlflow import MLflowResource
from mlops_assets.tracking.runs import TrainingRun


@contextmanager
def training(context: dg.AssetExecutionContext, mlflow: MLflowResource) -> Iterator[TrainingRun]:
    if "MEET" in os.environ:
        mlflow.tracking().experiment("iris")
        _wait_for_two(Path(os.environ["MEET"]), context.asset_key.to_user_string())
    parent = mlflow.parent_run(context, experiment="iris")
    name, tags = context.asset_key.to_user_string(), mlflow.run_tags(context)
    tracking = mlflow.tracking()
    with tracking.training_run(experiment="iris", name=name, params={}, tags=tags, parent_run_id=parent) as run:
        yield run


def _wait_for_two(folder: Path, name: str) -> None:
    """Let both processes ask for their parent at the same moment."""
    import dagster_mlflow  # noqa: F401

    (folder / name).touch()
    deadline = time.monotonic() + 300
    while len(list(folder.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@dg.asset
def left(context: dg.AssetExecutionContext, mlflow: MLflowResource) -> None:
    with training(context, mlflow) as run:
        run.log_history([(0, {"loss": 1.0})])


@dg.asset
def right(context: dg.AssetExecutionContext, mlflow: MLflowResource) -> None:
    with training(context, mlflow) as run:
        run.log_history([(0, {"loss": 2.0})])


@dg.asset
def broken(context: dg.AssetExecutionContext, mlflow: MLflowResource) -> None:
    with training(context, mlflow):
        raise ValueError("the training diverged")


@dg.asset(deps=[broken])
def after_broken() -> None:
    """Never runs."""


@dg.asset
def signalled(context: dg.AssetExecutionContext, mlflow: MLflowResource) -> None:
    with training(context, mlflow):
        os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
        time.sleep(600)


@dg.asset
def patient(context: dg.AssetExecutionContext, mlflow: MLflowResource) -> None:
    """Waits until somebody kills it."""
    with training(context, mlflow):
        Path(os.environ["STARTED"]).touch()
        time.sleep(600)


TWO_AT_ONCE = dg.multiprocess_executor.configured({"max_concurrent": 2})
"""They wait for each other, also where there is one core."""

DEFINITIONS = dg.Definitions(
    assets=[left, right, broken, after_broken, signalled, patient],
    resources={"mlflow": MLflowResource()},
    jobs=[
        dg.define_asset_job("one_process", ["left", "right"], executor_def=dg.in_process_executor),
        dg.define_asset_job("two_processes", ["left", "right"], executor_def=TWO_AT_ONCE),
        dg.define_asset_job("failing", ["broken", "after_broken"], executor_def=dg.in_process_executor),
        dg.define_asset_job("signalled_job", ["signalled"], executor_def=dg.in_process_executor),
        dg.define_asset_job("patient_job", ["patient"], executor_def=dg.in_process_executor),
    ],
)


def one_process() -> dg.JobDefinition:
    return DEFINITIONS.resolve_job_def("one_process")


def two_processes() -> dg.JobDefinition:
    return DEFINITIONS.resolve_job_def("two_processes")


def failing() -> dg.JobDefinition:
    return DEFINITIONS.resolve_job_def("failing")


def signalled_job() -> dg.JobDefinition:
    return DEFINITIONS.resolve_job_def("signalled_job")


def patient_job() -> dg.JobDefinition:
    return DEFINITIONS.resolve_job_def("patient_job")
