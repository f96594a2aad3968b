"""Dagster's handle on the store of outputs."""

from __future__ import annotations

import dagster as dg

from mlops_assets.store import Store


class StoreResource(dg.ConfigurableResource[Store]):
    """A store at an fsspec URL."""

    url: str

    def open(self) -> Store:
        """The store; makes no request yet."""
        return Store(self.url)
