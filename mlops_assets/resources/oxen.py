"""Dagster's handle on the Oxen repositories of the home."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from mlops_assets.oxen.repository import Repository


class OxenResource(dg.ConfigurableResource[Repository]):
    """Local repositories, each a folder below `home/oxen`."""

    home: str

    def repository(self, name: str) -> Repository:
        """A handle on one repository; nothing is opened yet."""
        return Repository(Path(self.home) / "oxen" / name)

    @property
    def cache(self) -> Path:
        """Where verified copies of dataset versions are kept."""
        return Path(self.home) / "cache"
