"""The platform's home on disk, and the Dagster instance in it.

Belongs here: making the home, and telling in one sentence why it cannot be used. Does not: what lies in its folders.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from mlops_assets.settings import HomeError, Settings, settings

if TYPE_CHECKING:
    import dagster as dg

DAGSTER_YAML: Final = """\
# Written by mlops_assets when it was missing; yours to change from then on.
telemetry: {enabled: false}
nux: {enabled: false}
# A run that is launched while the code server is being started again waits for it; without this it has failed.
run_queue: {dequeue_interval_seconds: 1, dequeue_use_threads: true, max_user_code_failure_retries: 20,
            user_code_failure_retry_delay: 3}
concurrency:
  runs:
    max_concurrent_runs: 4
    tag_concurrency_limits:
      - {key: "mlops/pipeline", value: {applyLimitPerUniqueValue: true}, limit: 1}
sensors: {use_threads: true, num_workers: 8}
schedules: {use_threads: true, num_workers: 2}
run_monitoring:
  enabled: true
  poll_interval_seconds: 20
  start_timeout_seconds: 90
  cancel_timeout_seconds: 60
  max_runtime_seconds: 86400
# A run whose process died is tried once more; a step that failed would fail again.
run_retries: {enabled: true, max_retries: 1, retry_on_asset_or_op_failure: false}
python_logs: {managed_python_loggers: [mlops_assets], python_log_level: INFO}
retention:
  sensor: {purge_after_days: {skipped: 1, success: 30, failure: 30}}
"""

POSTGRES_YAML: Final = """\
storage: {postgres: {postgres_url: {env: MLOPS_DAGSTER_DATABASE}}}
"""


def ensure_home(here: Settings | None = None, *, dagster: bool = True) -> Settings:
    """Make the home with its `dagster.yaml`, and point this process and its children at it.

    Args:
        here: The settings; default: this process's.
        dagster: Whether Dagster is used; what only serves may not know its database, and leaves its file to others.

    Raises:
        HomeError: A folder cannot be made or written.
    """
    here = here or settings()
    folder = here.dagster_home
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / "dagster.yaml"
        if dagster and not target.exists():
            aside = folder / f"dagster.yaml.{os.getpid()}"
            storage = POSTGRES_YAML if here.dagster_database.get_secret_value() else ""
            aside.write_text(DAGSTER_YAML + storage, encoding="utf-8")
            aside.replace(target)
        for each in (here.home, folder):
            if not os.access(each, os.W_OK):
                raise PermissionError(errno.EACCES, "no right to write")
    except OSError as error:
        raise HomeError(
            f"the home {here.home} cannot be written ({error.strerror}); mend its rights or set MLOPS_HOME elsewhere"
        ) from None
    os.environ.setdefault("DAGSTER_HOME", str(folder))
    return here


def refuse_without_dagster_home() -> None:
    """Stop a Dagster command that would run assets and then forget them, with one sentence.

    Raises:
        click.UsageError: `dagster asset materialize` or `dagster job execute` without `DAGSTER_HOME`.
    """
    import click

    context = click.get_current_context(silent=True)
    runs_assets = context is not None and context.command_path.endswith(("asset materialize", "job execute"))
    if runs_assets and not os.environ.get("DAGSTER_HOME"):
        raise click.UsageError(
            "DAGSTER_HOME is not set, so Dagster would forget what it materializes; "
            'run `eval "$(mlops env)"` first, or use `mlops run PIPELINE`'
        )


@contextmanager
def open_instance(here: Settings) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance of the home.

    Its databases are made under a lock: two processes that open a fresh instance collide in its migrations.

    Raises:
        HomeError: `DAGSTER_HOME` or the `dagster.yaml` in it is not usable.
    """
    import dagster as dg
    import yaml
    from filelock import FileLock

    with FileLock(here.dagster_home / ".create.lock"):
        try:
            instance = dg.DagsterInstance.get()
        except (dg.DagsterError, yaml.YAMLError) as error:
            folder, said = os.environ.get("DAGSTER_HOME", ""), " ".join(str(error).split())
            raise HomeError(
                f"Dagster cannot start from {folder} ({said}); mend its dagster.yaml, or DAGSTER_HOME"
            ) from None
        _ = instance.run_storage, instance.event_log_storage, instance.schedule_storage
    with instance:
        yield instance
