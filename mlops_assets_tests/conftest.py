"""What all tests share: nothing of the user's home or environment reaches them."""

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from mlops_assets.settings import settings
from mlops_assets_tests import pauses
from mlops_assets_tests.mlflow_fixtures import close_stores, dagster_template, home, store_template, tracking
from mlops_assets_tests.templates import made_once

if TYPE_CHECKING:
    from mlops_assets_tests.loop import Loop

__all__ = ["dagster_template", "home", "store_template", "tracking"]

MEMORY_BYTES = 4 << 30
"""More than a whole run keeps at any time, of which most are the folders of failed tests."""

# Hundreds of processes import this package: whoever compiles it first does so for all.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Several tests share the cores: a training's threads that spin while they wait take them from the others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# A shell that starts the tests in the background has Ctrl-C ignored, and every child would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


QUIET = {"DAGSTER_DISABLE_TELEMETRY": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}


def _ours() -> list[str]:
    """The variables that say where something is and how it works, but for those that repeat a test."""
    ours = [one for one in os.environ if one.startswith(("MLOPS_", "DAGSTER_", "MLFLOW_")) and one not in QUIET]
    return [one for one in ours if not one.startswith("MLOPS_TEST_")]


def _hide_the_users(patch: pytest.MonkeyPatch) -> None:
    """Hide variables that a developer may have set."""
    for name in _ours():
        patch.delenv(name)
    for name, value in QUIET.items():
        patch.setenv(name, value)


@pytest.fixture(autouse=True, scope="session")
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the user's variables, and sweep what killed processes leave among temporary files."""
    tmp_path_factory.getbasetemp()  # which is kept, for it has the files of failed tests
    with (
        tempfile.TemporaryDirectory(prefix="mlops-tests-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        Path(folder).chmod(0o755)  # PostgreSQL's server works below it as a user of its own
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", None)
        _hide_the_users(patch)
        if "dagster" in sys.modules:
            from dagster._core.storage.defs_state.base import DefsStateStorage

            # An instance that is garbage collected sets the current one back, at any moment, to one that is closed.
            patch.setattr(DefsStateStorage, "get", lambda: None)
        yield


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test a home of its own."""
    _hide_the_users(monkeypatch)
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    yield
    settings.cache_clear()
    for name in _ours():  # what the platform has set itself, as DAGSTER_HOME, would reach the next module's fixtures
        del os.environ[name]


@pytest.fixture
def loop(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Loop"]:
    """The iris pipeline in a folder of its own, driven in this process."""
    from mlops_assets.home import ensure_home
    from mlops_assets_tests.loop import looping

    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    with looping(ensure_home(settings()), tmp_path / "defs" / "iris") as made:
        yield made
    close_stores()


@pytest.fixture(scope="session")
def settled_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the iris pipeline has run once, and nothing is stale."""
    from mlops_assets.data import samples
    from mlops_assets_tests.loop import prepare

    files = {"iris.csv": samples.iris().write_csv().encode()}
    return made_once(tmp_path_factory, "iris", lambda place: prepare(place, "iris", files))


@pytest.fixture
def settled(settled_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Loop"]:
    """A copy of that, to go on from."""
    from mlops_assets_tests.loop import copied

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))
    with copied(settled_template, tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def digits_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for the digits, trained very briefly."""
    from mlops_assets.data import samples
    from mlops_assets_tests.loop import prepare

    files = {f"scans/{path}": image for path, image in samples.digits().items()}
    return made_once(tmp_path_factory, "digits", lambda place: prepare(place, "digits", files, epochs=3))


@pytest.fixture
def digits(digits_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Loop"]:
    """A copy of that, to go on from."""
    from mlops_assets_tests.loop import copied

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))
    with copied(digits_template, tmp_path) as made:
        yield made


def pytest_configure() -> None:
    """Keep the files of tests in memory where there is room: what is tested syncs every file and row that it writes.

    And begin to pause, where that is asked for.
    """
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > MEMORY_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))
    if "MLOPS_TEST_PAUSES" in os.environ:
        pauses.start(float(os.environ["MLOPS_TEST_PAUSES"]))


def pytest_collection_finish() -> None:
    """What the imports made stays: the garbage collector need not look through it again and again."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that mostly wait for servers, and end with quick ones: a long one would be alone then."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: ("/processes/" not in item.nodeid, item.path not in slow))
