"""A checkout with a home, as the tests of processes have it."""

from mlops_assets_tests.processes.conftest import project

__all__ = ["project"]
