"""What all tests here share."""

import pytest


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of a busy machine may take their time: here they are sound, or refuse at once."""
    for name in ("asking.TIMEOUT_SECONDS", "server_proxy.TIMEOUT_SECONDS", "server_postgres.WAIT_SECONDS"):
        monkeypatch.setattr(f"mlops_assets.doctor.{name}", 60)
