"""`NAME/model`: train, export, and register the challenger in MLflow."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from mlops_assets.assets.content import pixels_of, table_of
from mlops_assets.assets.contract import completed
from mlops_assets.assets.dataset import OXEN_COMMIT
from mlops_assets.assets.features import SPLIT
from mlops_assets.assets.stage import PROGRESS_SECONDS, Output, StageRun, log, plain_failures, stage_asset
from mlops_assets.fingerprint import PACKAGE_ROOT, digest
from mlops_assets.functions import FunctionError, call
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import asset_key, latest_metadata
from mlops_assets.resources.mlflow import MLflowResource
from mlops_assets.resources.store import StoreResource
from mlops_assets.serving import CONTRACT
from mlops_assets.serving import MODEL as ONNX
from mlops_assets.settings import settings
from mlops_assets.store import Entry
from mlops_assets.tracking import tags as keys
from mlops_assets.training.config import TrainingConfig

if TYPE_CHECKING:
    from torch import nn

    from mlops_assets.data.arrays import Arrays
    from mlops_assets.registry.aliases import Version
    from mlops_assets.tracking.runs import Tracking, TrainingRun
    from mlops_assets.training.trainer import Epoch, Trained

WEIGHTS: Final = "weights.safetensors"
HISTORY: Final = "history.json"
CHALLENGER: Final = "challenger"
CHECKPOINTS: Final = "checkpoints"
"""Folder of the home: how far an unfinished training was, by recipe."""
CLASSES_SHOWN: Final = 20
SAMPLE: Final = "sample.safetensors"
"""Two rows of what the network takes, for an export after the features are gone."""


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
                "MLflow run": dg.MetadataValue.url(tracking.run_url(version.run_id, settings().mlflow_page)),
                "MLflow run id": version.run_id,
                "version": version.number,
                **entry.info["facts"],
            }

        yield from run.run(compute, describe)

    return [model]


def parts_of(features: Entry, pipeline: Pipeline, *parts: str) -> "dict[str, Arrays]":
    """Parts of the split of stored features, as arrays."""
    from mlops_assets.data.arrays import arrays

    data = pipeline.spec.data
    frame = table_of(features)
    pixels = pixels_of(features) if data.images is not None else None
    columns: dict[str, Any] = {"key": data.key, "target": data.target, "split": SPLIT, "classes": data.classes}
    return {part: arrays(frame, pixels, part, **columns) for part in parts}


def _train(run: StageRun, tracking: "Tracking", run_tags: Mapping[str, str], parent_run_id: str) -> Output:
    from mlops_assets.training.trainer import Rows, train

    features = run.input("features")
    parts = parts_of(features, run.pipeline, "train", "validation")
    config = _seeded(run.pipeline.spec.training, run.recipe.inputs["tick"])
    shape = parts["train"].x.shape[1:]
    checkpoint = settings().home / CHECKPOINTS / f"{run.recipe.key}.safetensors"

    with tracking.training_run(
        experiment=run.pipeline.model_name,
        name=f"{run.pipeline.name} {run.recipe.key[:8]}",
        params={
            **_flat(config.model_dump()),
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
        run.require_unchanged_source()  # or a checkpoint of other code would be kept under this recipe
        progress = _Progress(run.name, config.epochs)
        trained = train(
            lambda: _built(function, run.pipeline, shape),
            Rows(parts["train"].x, parts["train"].y),
            Rows(parts["validation"].x, parts["validation"].y),
            config,
            on_epoch=progress.epoch,
            on_step=progress.step,
            checkpoint=checkpoint,
            identity=run.recipe.key,
        )
        classes = run.pipeline.spec.data.classes
        mlflow_run.log_history([(epoch.number, _metrics(epoch, classes)) for epoch in trained.history])
        module = _built(function, run.pipeline, shape)
        module.load_state_dict(trained.weights)
        made = _exported(run, trained, module, parts["train"], config)
        run.require_unchanged_source()
        _log_model(tracking, run, mlflow_run, module, made)
    checkpoint.unlink(missing_ok=True)
    return made


def _exported(run: StageRun, trained: "Trained", module: "nn.Module", rows: "Arrays", config: TrainingConfig) -> Output:
    """The files of a trained model, proven to answer alike, and the facts about it."""
    from safetensors.numpy import save

    from mlops_assets.training import export

    classes = run.pipeline.spec.data.classes
    best = trained.history[trained.best_epoch - 1]
    with TemporaryDirectory() as folder:
        export.save_weights(trained.weights, Path(folder, WEIGHTS))
        report = export.to_onnx(module, rows.x[:2], Path(folder, ONNX))
        files = {name: Path(folder, name).read_bytes() for name in (WEIGHTS, ONNX)}
    files[HISTORY] = json.dumps([_metrics(epoch, classes) for epoch in trained.history]).encode()
    files[SAMPLE] = save({"sample": rows.x[:2].copy()})
    # The network beside the weights: they may be the same where what is computed from them is not.
    network = hashlib.sha256(files[ONNX]).hexdigest()
    shape = list(rows.x.shape[1:])
    files[CONTRACT] = completed(
        run.input("features"), classes=classes, names=rows.features, shape=shape, onnx=files[ONNX], network=network
    )
    facts = {
        "epochs": len(trained.history),
        "best epoch": trained.best_epoch,
        "validation loss": best.validation_loss,
        "validation accuracy": best.validation_accuracy,
        "validation recall": _recalls(best, classes),
        "training seconds": round(trained.seconds, 2),
        "peak memory, MB": round(max(epoch.peak_memory_bytes for epoch in trained.history) / 1e6),
        "parameters": sum(weight.numel() for weight in module.parameters()),
        "seed": config.seed,
        "reproducible": trained.reproducible,
        "ONNX against torch, largest difference": report.max_difference,
    }
    if trained.resumed_from:
        facts["resumed after epoch"] = trained.resumed_from
    info = {
        "features": rows.features,
        "shape": shape,
        "classes": classes,
        "features code": run.state["features"].code_version,
        "facts": facts,
    }
    content = digest([export.weights_digest(trained.weights), network, rows.features, shape, classes])
    return Output(content, files, info)


def _registered(run: StageRun, tracking: "Tracking", run_tags: Mapping[str, str], entry: Entry) -> "Version":
    """The registry's version of a stored model, under the challenger's alias; logged anew where MLflow lost it."""
    from mlops_assets.registry import aliases
    from mlops_assets.training import export

    name = run.pipeline.model_name
    version = aliases.find(tracking, name, run.recipe.key)
    if version is None:
        log.warning("%s: MLflow has no version of this recipe; logging the stored model again", run.name)
        module = _built(run.pipeline.function("model"), run.pipeline, tuple(entry.info["shape"]))
        module.load_state_dict(export.load_weights_bytes(entry.read(WEIGHTS)))
        tags = {**_tags(run, run.input("features")), **run_tags, "mlops.restored": "true"}
        with tracking.training_run(
            experiment=name, name=f"{run.pipeline.name} {run.recipe.key[:8]} restored", params={}, tags=tags
        ) as mlflow_run:
            history = json.loads(entry.read(HISTORY))
            mlflow_run.log_history(list(enumerate(history, start=1)))
            files = {file: entry.read(file) for file in (ONNX, SAMPLE, CONTRACT)}
            version = _log_model(tracking, run, mlflow_run, module, Output(entry.digest, files, entry.info))
    aliases.point(tracking, name, CHALLENGER, version.number)
    return version


def _log_model(
    tracking: "Tracking", run: StageRun, mlflow_run: "TrainingRun", module: "nn.Module", made: Output
) -> "Version":
    """Log a model on its run and make it the newest version, unless the registry has this very model already.

    It has when the store lost the model since, and it was made again: a second version would leave the first one's
    evaluation and its alias behind.
    """
    from safetensors.numpy import load

    from mlops_assets.registry import aliases

    known = aliases.find(tracking, run.pipeline.model_name, run.recipe.key)
    if known is not None and known.model_digest == made.digest:
        return known
    uri = mlflow_run.log_torch_model(module, load(made.files[SAMPLE])["sample"])
    mlflow_run.log_artifact(f"onnx/{ONNX}", made.files[ONNX])
    mlflow_run.log_artifact(f"serving/{CONTRACT}", made.files[CONTRACT])
    tags = {
        keys.RECIPE: run.recipe.key,
        keys.MODEL_DIGEST: made.digest,
        keys.CODE_VERSION: run.recipe.code_version,
        keys.CONTRACT: hashlib.sha256(made.files[CONTRACT]).hexdigest(),
    }
    return aliases.register(tracking, name=run.pipeline.model_name, model_uri=uri, tags=tags)


def _built(function: Any, pipeline: Pipeline, shape: tuple[int, ...]) -> "nn.Module":
    """Call the pipeline's model function for rows of a shape: (features,), or (height, width, channels) of images.

    Raises:
        FunctionError: It failed, or made something else than a module.
    """
    from torch import nn

    size = shape if pipeline.spec.data.images is not None else shape[0]
    module = call(function, size, len(pipeline.spec.data.classes), **pipeline.spec.parameters)
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
    page = f"{settings().dagster_page}/runs/{run.context.run.run_id}"
    return {
        keys.ASSET: run.name,
        keys.RECIPE: run.recipe.key,
        keys.CODE_VERSION: run.recipe.code_version,
        keys.GIT_REVISION: _git_revision(),
        keys.OXEN_COMMIT: _commit(run),
        keys.DATA_DIGEST: features.digest,
        "mlflow.note.content": f"[Dagster run]({page}) of `{run.name}`",
    }


def _commit(run: StageRun) -> str:
    """The Oxen commit that the features were made from."""
    (made,) = latest_metadata(run.context.instance, [asset_key(run.pipeline.name, "features")])
    return str(made[OXEN_COMMIT].value) if OXEN_COMMIT in made else ""


def _metrics(epoch: "Epoch", classes: Sequence[str]) -> dict[str, float]:
    from mlops_assets.evaluation.metrics import metric_names

    # a network may give more outputs than there are classes
    recall = zip(metric_names("validation_recall", classes), epoch.validation_recall, strict=False)
    return {
        "train_loss": epoch.train_loss,
        "validation_loss": epoch.validation_loss,
        "validation_accuracy": epoch.validation_accuracy,
        "learning_rate": epoch.learning_rate,
        "seconds": epoch.seconds,
        "peak_memory_mb": epoch.peak_memory_bytes / 1e6,
        **{name: value for name, value in recall if value is not None},
    }


def _recalls(epoch: "Epoch", classes: Sequence[str]) -> str:
    """The share of each class's validation rows that is found, the worst classes first."""
    known = [(value, name) for name, value in zip(classes, epoch.validation_recall, strict=False) if value is not None]
    return ", ".join(f"{name} {value:.2f}" for value, name in sorted(known)[:CLASSES_SHOWN])


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a section as `section.option`, as MLflow shows parameters."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        nested = {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        flat.update(nested)
    return flat


class _Progress:
    """Tells how far a training is, every two seconds, within an epoch too."""

    def __init__(self, name: str, epochs: int) -> None:
        self._name, self._epochs = name, epochs
        self._began = self._told = time.monotonic()
        self._first = 0

    def epoch(self, epoch: "Epoch") -> None:
        """Tell of an epoch that has ended."""
        self._first = self._first or epoch.number
        if self._due() or epoch.seconds >= PROGRESS_SECONDS:
            left = (time.monotonic() - self._began) / (epoch.number - self._first + 1) * (self._epochs - epoch.number)
            log.info(
                "%s: epoch %d of %d, validation loss %.4f, accuracy %.3f; %.1f s an epoch, at most %.0f s more, %d MB",
                *(self._name, epoch.number, self._epochs, epoch.validation_loss, epoch.validation_accuracy),
                *(epoch.seconds, left, epoch.peak_memory_bytes / 1e6),
            )

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Tell of a step; an epoch's last is told of with the epoch."""
        if step < steps and self._due():
            log.info("%s: epoch %d of %d, step %d of %d", self._name, epoch, self._epochs, step, steps)

    def _due(self) -> bool:
        now = time.monotonic()
        due = now - self._told >= PROGRESS_SECONDS
        if due:
            self._told = now
        return due


def _git_revision() -> str:
    """The commit of the checkout, with `-dirty` when it differs; of an image, the one that it was built from."""
    command = ["git", "-C", str(PACKAGE_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("MLOPS_GIT_REVISION", "")
