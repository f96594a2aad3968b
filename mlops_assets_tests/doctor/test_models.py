"""What the registry says, read from its database and asked through MLflow: the same."""

import pytest

from mlops_assets.doctor.models import Alias, aliases, database
from mlops_assets.settings import settings
from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import Tracking
from mlops_assets.tracking.store import TrackingError


def test_aliases(tracking: Tracking) -> None:
    here, client = settings(), tracking.client
    assert aliases(here) == []
    for model in ("iris", "digits"):
        client.create_registered_model(model)
        client.create_model_version(model, "mlops-home:/one", tags={keys.RECIPE: f"recipe of {model}"})
        client.create_model_version(model, "mlops-home:/two")
        client.set_registered_model_alias(model, "champion", "1")
    client.set_registered_model_alias("iris", "challenger", "2")
    expected = {
        Alias("digits", "champion", 1, "recipe of digits"),
        Alias("iris", "champion", 1, "recipe of iris"),
        Alias("iris", "challenger", 2, ""),
    }
    assert set(aliases(here)) == expected
    here.mlflow_tracking_uri = tracking.uri
    assert set(aliases(here)) == expected, "as a server is asked"
    here.mlflow_tracking_uri = "http://127.0.0.1:9"
    with pytest.raises(TrackingError, match=r"No MLflow server answers at http://127\.0\.0\.1:9"):
        aliases(here)


def test_without_a_database_nothing_is_registered() -> None:
    assert aliases(settings()) == []
    assert not database(settings()).exists()
