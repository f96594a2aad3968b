"""MLflow runs, written through `MlflowClient` by id.

Belongs here: experiments, training runs, what is logged on them, and which runs are still open. Not here: how a model
becomes an artifact (`models.py`), the registry (`registry/`), what Dagster's runs have to do with it (`resources/`).

Nothing here uses MLflow's fluent API: no active run and no process-wide tracking URI is left behind, and MLflow's
exit hook, which marks whatever is active as FINISHED, has nothing to flip.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, Literal, TypeVar
from urllib.parse import urlsplit

from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.store import ARTIFACT_ROOT, TrackingError, ensure_store, quiet, sqlalchemy_store

if TYPE_CHECKING:
    import numpy as np
    import torch
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.entities.paged_list import PagedList

T = TypeVar("T")
Status = Literal["FINISHED", "FAILED", "KILLED"]

METRICS_PER_CALL: Final = 1000
PARAMS_PER_CALL: Final = 100
TAGS_PER_CALL: Final = 100
"""MLflow's limits for one `log_batch`."""

ANSWER_SECONDS: Final = 10.0
"""How long a server that accepts the connection may take to answer: one that imports MLflow needs about five."""

EXPERIMENT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a folder and a URI can carry unquoted."""


@dataclass(frozen=True)
class OpenRun:
    """A run that MLflow shows as RUNNING and that a Dagster run answers for.

    Attributes:
        parent: whether it stands for the whole Dagster run, rather than for one model.
        dagster_instance: which Dagster instance knows that run; empty when the run does not say.
    """

    run_id: str
    dagster_run_id: str
    parent: bool
    dagster_instance: str


class Tracking:
    """One MLflow store or server; making one costs nothing, MLflow is imported at the first use.

    Attributes:
        uri: `sqlite:////...`, `postgresql://...` or `https://...`.
        artifact_root: where new experiments keep their artifacts; None leaves it to the server.
    """

    def __init__(self, uri: str, artifact_root: str | None = None) -> None:
        self.uri = uri
        self.artifact_root = artifact_root

    @classmethod
    def embedded(cls, home: Path) -> Tracking:
        """The store under the platform's home, created when it is not there yet.

        Raises:
            TrackingError: see `ensure_store`.
        """
        return cls(ensure_store(home), ARTIFACT_ROOT)

    @property
    def public_uri(self) -> str:
        """The URI without the credentials that it may carry."""
        credentials, at, _ = urlsplit(self.uri).netloc.rpartition("@")
        return self.uri.replace(credentials + at, "", 1)

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's own client.

        Raises:
            TrackingError: nothing answers at the server's address.
        """
        if self.uri.startswith(("http://", "https://")):
            self._knock()
        else:
            sqlalchemy_store()
        from mlflow import MlflowClient

        with self.one_sentence():
            return MlflowClient(self.uri, self.uri)

    def _knock(self) -> None:
        """Fail within seconds where MLflow's client would retry; any answer will do, so nothing secret is sent."""
        import httpx

        try:
            httpx.get(self.public_uri, timeout=httpx.Timeout(ANSWER_SECONDS, connect=3), verify=False)  # noqa: S501
        except httpx.HTTPError as exc:
            cause = str(exc) or type(exc).__name__
            raise TrackingError(
                f"No MLflow server answers at {self.public_uri} ({cause}): start it, or mend MLFLOW_TRACKING_URI."
            ) from None

    @contextlib.contextmanager
    def one_sentence(self) -> Iterator[None]:
        """Turn an error of MLflow into one readable sentence that holds no credentials.

        Raises:
            TrackingError: instead of MLflow's exception.
        """
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as exc:
            said = (str(exc).strip().splitlines() or [exc.error_code])[0].replace(self.uri, self.public_uri)
            # Without its cause, whose text may hold the credentials.
            raise TrackingError(f"MLflow at {self.public_uri} did not do it: {said}") from None

    def experiment(self, name: str) -> str:
        """The id of the experiment `name`, created when it is not there; safe against others that create it too.

        Raises:
            TrackingError: the name is unusable, or the experiment was deleted.
        """
        if not EXPERIMENT_NAME.fullmatch(name):
            raise TrackingError(f"{name!r} cannot name an MLflow experiment: use letters, digits, '.', '_' and '-'.")
        client = self.client
        with self.one_sentence():
            found = client.get_experiment_by_name(name)
            if found is None:
                location = f"{self.artifact_root.rstrip('/')}/{name}" if self.artifact_root else None
                with already_there():
                    client.create_experiment(name, artifact_location=location)
                found = client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise TrackingError(
                f"The MLflow experiment {name!r} was deleted: restore it with `mlflow experiments restore`."
            )
        return str(found.experiment_id)

    @contextlib.contextmanager
    def training_run(
        self,
        *,
        experiment: str,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        parent_run_id: str | None = None,
    ) -> Iterator[TrainingRun]:
        """A new run whose status tells the truth.

        FINISHED when the block ends, FAILED when it raises an `Exception`, KILLED on whatever else ends it early
        (Ctrl-C, SystemExit, Dagster's interruption). A process that dies leaves it RUNNING: see `open_runs`.

        Args:
            experiment: the pipeline's name.
            name: how the run is called in MLflow.
            params: written once; values as text.
            tags: by the keys of `tracking.tags`.
            parent_run_id: the run under which MLflow shows this one.

        Raises:
            TrackingError: MLflow cannot be reached or refuses.
        """
        from mlflow.entities import Param

        experiment_id = self.experiment(experiment)
        own = {"mlflow.user": _user()} | ({"mlflow.parentRunId": parent_run_id} if parent_run_id else {})
        with self.one_sentence():
            started = self.client.create_run(experiment_id, run_name=name, tags={**own, **tags})
        run = TrainingRun(self, started)
        try:
            with self.one_sentence():
                for some in _chunks([Param(key, str(value)) for key, value in params.items()], PARAMS_PER_CALL):
                    self.client.log_batch(run.run_id, params=some, synchronous=True)
            with self._system_metrics(run.run_id):
                yield run
        except BaseException as exc:
            try:
                self.close(run.run_id, "FAILED" if isinstance(exc, Exception) else "KILLED")
            except TrackingError as also:
                exc.add_note(f"Its MLflow run {run.run_id} is still shown as RUNNING. {also}")
            raise
        self.close(run.run_id, "FINISHED")

    @contextlib.contextmanager
    def _system_metrics(self, run_id: str) -> Iterator[None]:
        """Let MLflow sample the machine every ten seconds: 10 ms in all, and nothing logged by a shorter training."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        with quiet("mlflow.system_metrics"):
            monitor = SystemMetricsMonitor(run_id, tracking_uri=self.uri)  # type: ignore[no-untyped-call]
            monitor.start()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            with quiet("mlflow.system_metrics"):
                monitor.finish()  # type: ignore[no-untyped-call]

    def log_evaluation(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        artifacts: Mapping[str, bytes | Path],
    ) -> None:
        """Add an evaluation to a run that has ended, and leave its status alone.

        A second evaluation of the same run replaces the values, tags and files of the same names. The metrics show on
        the run's logged model too. Give them names that no epoch of the training used: MLflow shows the highest step.

        Args:
            run_id: the training run.
            metrics: value by name.
            tags: by the keys of `tracking.tags`.
            artifacts: content or a file, by path inside the run.

        Raises:
            TrackingError: there is no such run, or it was deleted.
        """
        from mlflow.entities import RunTag

        run = self._get(run_id)
        outputs = run.outputs.model_outputs if run.outputs else []
        with self.one_sentence():
            self.log_metrics(run_id, [(0, metrics)], model_id=outputs[-1].model_id if outputs else None)
            for some in _chunks([RunTag(key, value) for key, value in tags.items()], TAGS_PER_CALL):
                self.client.log_batch(run_id, tags=some, synchronous=True)
            for path, content in artifacts.items():
                self.log_file(run_id, path, content)

    def run_tags(self, run_id: str) -> dict[str, str]:
        """The tags of a run.

        Raises:
            TrackingError: there is no such run, or it was deleted.
        """
        return dict(self._get(run_id).data.tags)

    def run_url(self, run_id: str, ui_url: str) -> str:
        """The page of the run in MLflow's UI at `ui_url`."""
        return f"{ui_url.rstrip('/')}/#/experiments/{self._get(run_id).info.experiment_id}/runs/{run_id}"

    def open_runs(self) -> list[OpenRun]:
        """The runs shown as RUNNING that carry the id of a Dagster run."""
        found = []
        with self.one_sentence():
            experiments = _all_pages(self.client.search_experiments)
            ids = [experiment.experiment_id for experiment in experiments]
            for run in _all_pages(self.client.search_runs, experiment_ids=ids, filter_string="status = 'RUNNING'"):
                parent = run.data.tags.get(keys.DAGSTER_PARENT)
                dagster_run_id = parent or run.data.tags.get(keys.DAGSTER_RUN)
                if dagster_run_id:
                    instance = run.data.tags.get(keys.DAGSTER_INSTANCE, "")
                    found.append(OpenRun(run.info.run_id, dagster_run_id, parent is not None, instance))
        return found

    def close(self, run_id: str, status: Status) -> None:
        """Give a run its final status."""
        with self.one_sentence():
            self.client.set_terminated(run_id, status)

    def _get(self, run_id: str) -> Run:
        with self.one_sentence():
            run = self.client.get_run(run_id)
        if run.info.lifecycle_stage != "active":
            raise TrackingError(f"The MLflow run {run_id} was deleted: restore it with `mlflow runs restore`.")
        return run

    def log_metrics(
        self, run_id: str, history: Iterable[tuple[int, Mapping[str, float]]], model_id: str | None = None
    ) -> None:
        """Log the metrics of many steps in as few calls as MLflow allows; with `model_id`, on that model too."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [
            Metric(name, float(value), now, step, model_id=model_id)
            for step, values in history
            for name, value in values.items()
        ]
        for some in _chunks(entries, METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=some, synchronous=True)

    def log_file(self, run_id: str, path: str, content: bytes | Path) -> None:
        """Log content, or a file, under `path` inside the run."""
        inside = PurePosixPath(path)
        folder = None if inside.parent == PurePosixPath() else str(inside.parent)
        with tempfile.TemporaryDirectory() as aside:
            if isinstance(content, Path) and content.name == inside.name:
                file = content
            else:
                file = Path(aside, inside.name)
                if isinstance(content, Path):
                    shutil.copyfile(content, file)
                else:
                    file.write_bytes(content)
            self.client.log_artifact(run_id, str(file), folder)


class TrainingRun:
    """A run that is under way: what `Tracking.training_run` hands out."""

    def __init__(self, tracking: Tracking, run: Run) -> None:
        self._tracking = tracking
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id

    def log_history(self, history: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log the metrics of many steps, in as few calls as MLflow allows: call it at the end, not once per epoch.

        Raises:
            TrackingError: MLflow cannot be reached or refuses a name.
        """
        with self._tracking.one_sentence():
            self._tracking.log_metrics(self.run_id, history)

    def log_artifact(self, path: str, content: bytes | Path) -> None:
        """Log content, or a file, under `path` inside the run."""
        with self._tracking.one_sentence():
            self._tracking.log_file(self.run_id, path, content)

    def log_artifacts(self, directory: Path, path: str | None = None) -> None:
        """Log a directory's content under `path` inside the run."""
        with self._tracking.one_sentence():
            self._tracking.client.log_artifacts(self.run_id, str(directory), path)

    def log_dataset(
        self, *, name: str, repository: str, path: str, commit: str, digest: str, context: str = "training"
    ) -> None:
        """Record a dataset as an input of the run.

        MLflow's own digests are of a sample, so ours is given: its first 36 characters in MLflow's field, all of it and
        the commit as tags.

        Args:
            name: what MLflow shows.
            repository: the Oxen repository.
            path: the dataset's path in it.
            commit: the Oxen commit.
            digest: our content digest.
            context: what it was used for, as MLflow shows it.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": repository, "path": path, "commit": commit})
        dataset = Dataset(name, digest[:36], source_type="oxen", source=source)
        tags = {"mlflow.data.context": context, keys.OXEN_COMMIT: commit, keys.DATA_DIGEST: digest}
        inputs = [DatasetInput(dataset, [InputTag(key, value) for key, value in tags.items()])]
        with self._tracking.one_sentence():
            self._tracking.client.log_inputs(self.run_id, datasets=inputs)

    def log_torch_model(
        self,
        module: torch.nn.Module,
        sample: np.ndarray | torch.Tensor,
        *,
        name: str = "model",
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Log a module as a model of this run; see `models.log_torch_model`."""
        from mlops_assets.tracking.models import log_torch_model

        with self._tracking.one_sentence():
            return log_torch_model(
                self._tracking.client,
                self.run_id,
                self.experiment_id,
                module,
                sample,
                name=name,
                params=params or {},
                tags=tags or {},
            )


@contextlib.contextmanager
def already_there() -> Iterator[None]:
    """Pass over MLflow's refusal to create what another process has just created."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as exc:
        if exc.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _chunks(entries: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


def _all_pages(search: Callable[..., PagedList[T]], **arguments: object) -> Iterator[T]:
    token = None
    while True:
        page = search(page_token=token, **arguments)
        yield from page
        token = page.token
        if not token:
            return


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's bare user id has no name
        return "unknown"
