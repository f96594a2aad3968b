"""`NAME/model`: train, export, and register the challenger in MLflow."""

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from mlops_assets.assets.dataset import OXEN_COMMIT, TABLE
from mlops_assets.assets.features import SPLIT
from mlops_assets.assets.stage import Output, StageRun, log, plain_failures, stage_asset
from mlops_assets.fingerprint import PACKAGE_ROOT, digest
from mlops_assets.functions import FunctionError, call
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import asset_key, latest_metadata
from mlops_assets.resources.mlflow import MLflowResource
from mlops_assets.resources.store import StoreResource
from mlops_assets.settings import settings
from mlops_assets.store import Entry
from mlops_assets.tracking import tags as keys
from mlops_assets.training.config import TrainingConfig

if TYPE_CHECKING:
    from torch import nn

    from mlops_assets.data.arrays import Arrays
    from mlops_assets.registry.aliases import Version
    from mlops_assets.tracking.runs import Tracking, TrainingRun
    from mlops_assets.training.trainer import Epoch

WEIGHTS: Final = "weights.safetensors"
ONNX: Final = "model.onnx"
HISTORY: Final = "history.json"
CHALLENGER: Final = "challenger"
PROGRESS_SECONDS: Final = 2.0


def build_model(pipeline: Pipeline) -> list[dg.AssetsDefinition]:
    """The trained network: a version in MLflow's registry under the alias `challenger`."""

    @stage_asset(
        pipeline,
        "model",
        kinds={"pytorch", "mlflow", "onnx"},
        deps=[asset_key(pipeline.name, "features")],
        description="The pipeline's network, trained on the training rows, with early stopping on the validation rows.",
    )
    def model(
        context: dg.AssetExecutionContext, store: StoreResource, mlflow: MLflowResource
    ) -> Iterator[dg.MaterializeResult[Any]]:
        with plain_failures():
            run = StageRun.start(context, pipeline, "model", store)
            tracking = mlflow.tracking()

        def compute() -> Output:
            parent = mlflow.parent_run(context, experiment=run.pipeline.model_name)
            return _train(run, tracking, mlflow.run_tags(context), parent)

        def describe(entry: Entry) -> Mapping[str, Any]:
            version = _registered(run, tracking, mlflow.run_tags(context), entry)
            return {
                "MLflow run": dg.MetadataValue.url(tracking.run_url(version.run_id, settings().mlflow_url)),
                "MLflow run id": version.run_id,
                "version": version.number,
                **entry.info["facts"],
            }

        yield from run.run(compute, describe)

    return [model]


def parts_of(features: Entry, pipeline: Pipeline, *parts: str) -> "dict[str, Arrays]":
    """Parts of the split of a stored feature table, as arrays."""
    from mlops_assets.data.arrays import arrays
    from mlops_assets.data.readers import from_parquet_bytes

    data = pipeline.spec.data
    frame = from_parquet_bytes(features.read(TABLE))
    return {
        part: arrays(frame, part, key=data.key, target=data.target, split=SPLIT, classes=data.classes) for part in parts
    }


def _train(run: StageRun, tracking: "Tracking", run_tags: Mapping[str, str], parent_run_id: str) -> Output:
    from mlops_assets.training import export
    from mlops_assets.training.trainer import Rows, train

    features = run.input("features")
    parts = parts_of(features, run.pipeline, "train", "validation")
    config = _seeded(run.pipeline.spec.training, run.recipe.inputs["tick"])
    shape = (len(parts["train"].features), len(run.pipeline.spec.data.classes))

    with tracking.training_run(
        experiment=run.pipeline.model_name,
        name=f"{run.pipeline.name} {run.recipe.key[:8]}",
        params={
            **config.model_dump(),
            **{f"model.{name}": value for name, value in run.pipeline.spec.parameters.items()},
        },
        tags={**_tags(run, features), **run_tags},
        parent_run_id=parent_run_id,
    ) as mlflow_run:
        mlflow_run.log_dataset(
            name=f"{run.pipeline.repository}/{run.pipeline.spec.data.path}",
            repository=run.pipeline.repository,
            path=run.pipeline.spec.data.path,
            commit=_commit(run),
            digest=run.state["features"].inputs["dataset"],
        )
        function = run.pipeline.function("model")
        trained = train(
            lambda: _built(function, run.pipeline, shape),
            Rows(parts["train"].x, parts["train"].y),
            Rows(parts["validation"].x, parts["validation"].y),
            config,
            on_epoch=_progress(run.name, config.epochs),
        )
        mlflow_run.log_history([(epoch.number, _metrics(epoch)) for epoch in trained.history])
        module = _built(function, run.pipeline, shape)
        module.load_state_dict(trained.weights)
        best = trained.history[trained.best_epoch - 1]
        facts = {
            "epochs": len(trained.history),
            "best epoch": trained.best_epoch,
            "validation loss": best.validation_loss,
            "validation accuracy": best.validation_accuracy,
            "training seconds": round(trained.seconds, 2),
            "parameters": sum(weight.numel() for weight in module.parameters()),
            "seed": config.seed,
        }
        with TemporaryDirectory() as folder:
            export.save_weights(trained.weights, Path(folder, WEIGHTS))
            report = export.to_onnx(module, parts["train"].x[:2], Path(folder, ONNX))
            files = {name: Path(folder, name).read_bytes() for name in (WEIGHTS, ONNX)}
        files[HISTORY] = json.dumps([_metrics(epoch) for epoch in trained.history]).encode()
        # The network beside the weights: they may be the same where what is computed from them is not.
        network = hashlib.sha256(files[ONNX]).hexdigest()
        classes = run.pipeline.spec.data.classes
        content = digest([export.weights_digest(trained.weights), network, parts["train"].features, classes])
        info = {
            "features": parts["train"].features,
            "classes": classes,
            "features code": run.state["features"].code_version,
            "sample": parts["train"].x[:2].tolist(),
            "facts": {**facts, "ONNX against torch, largest difference": report.max_difference},
        }
        run.require_unchanged_source()
        _log_model(tracking, run, mlflow_run, module, Output(content, files, info))
    return Output(content, files, info)


def _registered(run: StageRun, tracking: "Tracking", run_tags: Mapping[str, str], entry: Entry) -> "Version":
    """The registry's version of a stored model, under the challenger's alias; logged anew where MLflow lost it."""
    from mlops_assets.registry import aliases
    from mlops_assets.training import export

    name = run.pipeline.model_name
    version = aliases.find(tracking, name, run.recipe.key)
    if version is None:
        log.warning("%s: MLflow has no version of this recipe; logging the stored model again", run.name)
        shape = (len(entry.info["features"]), len(entry.info["classes"]))
        module = _built(run.pipeline.function("model"), run.pipeline, shape)
        module.load_state_dict(export.load_weights_bytes(entry.read(WEIGHTS)))
        tags = {**_tags(run, run.input("features")), **run_tags, "mlops.restored": "true"}
        with tracking.training_run(
            experiment=name, name=f"{run.pipeline.name} {run.recipe.key[:8]} restored", params={}, tags=tags
        ) as mlflow_run:
            history = json.loads(entry.read(HISTORY))
            mlflow_run.log_history(list(enumerate(history, start=1)))
            files = {file: entry.read(file) for file in (WEIGHTS, ONNX)}
            version = _log_model(tracking, run, mlflow_run, module, Output(entry.digest, files, entry.info))
    aliases.point(tracking, name, CHALLENGER, version.number)
    return version


def _log_model(
    tracking: "Tracking", run: StageRun, mlflow_run: "TrainingRun", module: "nn.Module", made: Output
) -> "Version":
    """Log a model on its run and make it the newest version."""
    import numpy as np

    from mlops_assets.registry import aliases

    sample = np.asarray(made.info["sample"], dtype=np.float32)
    uri = mlflow_run.log_torch_model(module, sample)
    mlflow_run.log_artifact(f"onnx/{ONNX}", made.files[ONNX])
    tags = {keys.RECIPE: run.recipe.key, keys.MODEL_DIGEST: made.digest, keys.CODE_VERSION: run.recipe.code_version}
    return aliases.register(tracking, name=run.pipeline.model_name, model_uri=uri, tags=tags)


def _built(function: Any, pipeline: Pipeline, shape: tuple[int, int]) -> "nn.Module":
    """Call the pipeline's model function.

    Raises:
        FunctionError: It failed, or made something else than a module.
    """
    from torch import nn

    module = call(function, *shape, **pipeline.spec.parameters)
    if not isinstance(module, nn.Module):
        raise FunctionError(
            f"{pipeline.name}'s model function returned {type(module).__name__}; return a torch.nn.Module"
        )
    return module


def _seeded(config: TrainingConfig, tick: str) -> TrainingConfig:
    """A scheduled retraining has a seed of its own, the same one whenever that tick is computed again."""
    if not tick:
        return config
    return config.model_copy(update={"seed": (config.seed + int(digest(tick)[:7], 16)) % 2**31})


def _tags(run: StageRun, features: Entry) -> dict[str, str]:
    return {
        keys.ASSET: run.name,
        keys.RECIPE: run.recipe.key,
        keys.CODE_VERSION: run.recipe.code_version,
        keys.GIT_REVISION: _git_revision(),
        keys.OXEN_COMMIT: _commit(run),
        keys.DATA_DIGEST: features.digest,
        "mlflow.note.content": f"[Dagster run]({settings().dagster_url}/runs/{run.context.run.run_id}) of `{run.name}`",
    }


def _commit(run: StageRun) -> str:
    """The Oxen commit that the features were made from."""
    (made,) = latest_metadata(run.context.instance, [asset_key(run.pipeline.name, "features")])
    return str(made[OXEN_COMMIT].value) if OXEN_COMMIT in made else ""


def _metrics(epoch: "Epoch") -> dict[str, float]:
    return {
        "train_loss": epoch.train_loss,
        "validation_loss": epoch.validation_loss,
        "validation_accuracy": epoch.validation_accuracy,
        "learning_rate": epoch.learning_rate,
    }


def _progress(name: str, epochs: int) -> Any:
    """A callback that tells how far a training is, every two seconds."""
    told = time.monotonic()

    def tell(epoch: "Epoch") -> None:
        nonlocal told
        if time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            log.info("%s: epoch %d of %d, validation loss %.4f", name, epoch.number, epochs, epoch.validation_loss)

    return tell


def _git_revision() -> str:
    """The commit of the checkout, with `-dirty` when it differs; empty where there is no git."""
    command = ["git", "-C", str(PACKAGE_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
