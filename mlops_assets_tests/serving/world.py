"""A registry, a pipeline whose champion is followed, and a worker."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from mlops_assets.registry.aliases import point
from mlops_assets.serving.pointer import Pointer, pointer_file, read_pointer
from mlops_assets.serving.registry import Embedded
from mlops_assets.serving.slots import NotServed, Slots
from mlops_assets.serving.watcher import Watcher, champion_slot
from mlops_assets.settings import Settings
from mlops_assets.tracking.runs import Tracking
from mlops_assets_tests.mlflow_fixtures import close_stores
from mlops_assets_tests.serving.made import register_version, table_contract

SPEC = """
type: mlops_assets.component.ModelPipeline
attributes:
  data: {path: data.csv, key: id, target: species, classes: [setosa, versicolor, virginica]}
  split: {salt: s, test: 0.2, validation: 0.2}
  gate: {condition: n > 0.5, reliability: 0.9, champion_alias: production}
"""


class World:
    """A registry, a pipeline that is followed, and a worker."""

    def __init__(self, home: Path, tracking: Tracking, tmp_path: Path) -> None:
        self.home, self.tracking, self.folder = home, tracking, tmp_path / "defs" / "flowers"
        self._files, self._made = tmp_path, {1, 2}
        self.folder.mkdir(parents=True)
        self.spec = self.folder / "defs.yaml"
        self.spec.write_text(SPEC)
        self.watcher, self.slots = self.another(), Slots(home)

    def another(self) -> Watcher:
        return Watcher(self.home, Embedded(self.home), lambda: [self.folder] if self.folder.exists() else [])

    def move(self) -> None:
        """Go on in a copy of the home, to whose database MLflow has no connection."""
        close_stores()
        self.home = Path(shutil.copytree(self.home, self.home.with_name("copy")))
        with closing(sqlite3.connect(self.home / "mlflow" / "mlflow.db")) as alone:
            alone.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # so that the one file is all of it
        self.watcher, self.slots = self.another(), Slots(self.home)

    def register(self, seed: int) -> int:
        """A version of some weights; versions 1 and 2 are there already."""
        if seed in self._made:
            self._made.remove(seed)
            return seed
        return register_version(self.tracking, self._files, *table_contract(seed))

    def promote(self, version: int, alias: str = "production") -> None:
        point(self.tracking, "flowers", alias, version)

    def look(self) -> int | None:
        """The version that answers after a look, or None."""
        self.watcher.look()
        self.slots.refresh()
        try:
            return self.slots["flowers"].version
        except NotServed:
            return None

    @property
    def pointer(self) -> Pointer:
        found = read_pointer(pointer_file(self.home, "flowers"))
        assert found is not None
        return found

    def artifact(self, version: int, path: str) -> Path:
        run = self.tracking.client.get_model_version("flowers", str(version)).run_id
        (file,) = (self.home / "mlflow" / "artifacts").glob(f"*/{run}/artifacts/{path}")
        return file

    def slot(self) -> object:
        from mlops_assets.pipeline import Pipeline

        return champion_slot(Settings(home=self.home), Pipeline.load(self.folder))
