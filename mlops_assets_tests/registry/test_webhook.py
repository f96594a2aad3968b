"""Deliveries as MLflow signs them, to the real receiver."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from mlops_assets.registry.webhook import AGE_SECONDS, MOST_BYTES, Deliveries, NoSecret, application, main

SECRET = "correct horse"
BODY = json.dumps({"entity": "model_version_alias", "action": "created", "data": {"name": "iris"}}).encode()


def signed(
    body: bytes = BODY, *, at: float | None = None, delivery: str = "one", secret: str = SECRET
) -> dict[str, str]:
    """Headers as MLflow makes them, by MLflow's own function."""
    from mlflow.webhooks.delivery import _generate_hmac_signature

    sent = str(int(time.time() if at is None else at))
    return {
        "x-mlflow-delivery-id": delivery,
        "x-mlflow-timestamp": sent,
        "x-mlflow-signature": _generate_hmac_signature(secret, delivery, sent, body.decode()),
    }


async def post(poke: Path, *requests: tuple[dict[str, str], bytes]) -> list[int]:
    transport = httpx.ASGITransport(application(SECRET, poke))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        return [
            (await client.post("/webhook", headers=headers, content=body)).status_code for headers, body in requests
        ]


def sent(poke: Path, *requests: tuple[dict[str, str], bytes]) -> list[int]:
    import asyncio

    return asyncio.run(post(poke, *requests))


def test_a_good_delivery_touches_the_file_once(tmp_path: Path) -> None:
    poke = tmp_path / "changed"
    headers = signed()
    assert sent(poke, (headers, BODY), (headers, BODY), (signed(delivery="two"), BODY)) == [204, 401, 204]
    assert poke.exists()


@pytest.mark.parametrize(
    ("change", "body"),
    [
        (lambda headers: headers.clear(), BODY),
        (lambda headers: headers.update(signed(secret="wrong")), BODY),
        (lambda _headers: None, BODY.replace(b"iris", b"iron")),
        (lambda headers: headers.update(signed(at=time.time() - AGE_SECONDS - 5)), BODY),
        (lambda headers: headers.update(signed(at=time.time() + AGE_SECONDS + 60)), BODY),
        (lambda headers: headers.update({"x-mlflow-delivery-id": "another"}), BODY),
        (lambda headers: headers.update({"x-mlflow-signature": "v1,\u00e4"}), BODY),
    ],
    ids=["unsigned", "another secret", "another body", "old", "from the future", "another id", "no signature"],
)
def test_what_is_not_mlflows_is_refused(
    tmp_path: Path, change: Callable[[dict[str, str]], object], body: bytes
) -> None:
    headers = signed()
    change(headers)
    coded = {name: value.encode("latin-1") for name, value in headers.items()}
    assert sent(tmp_path / "changed", (coded, body)) == [401]  # type: ignore[arg-type]
    assert not (tmp_path / "changed").exists()


def test_a_body_without_end_is_cut_off(tmp_path: Path) -> None:
    body = b" " * (MOST_BYTES + 1)
    assert sent(tmp_path / "changed", (signed(body), body)) == [413]


def test_a_replay_is_known_as_long_as_its_time_would_pass() -> None:
    deliveries, now = Deliveries(SECRET), 1_000_000.0
    early = signed(at=now + AGE_SECONDS)
    assert deliveries.refusal(early, BODY, now) == ""
    assert deliveries.refusal(early, BODY, now + 2 * AGE_SECONDS) == "delivered before"
    assert "clocks" in deliveries.refusal(early, BODY, now + 2 * AGE_SECONDS + 1)


def test_without_a_secret_nothing_is_served() -> None:
    with pytest.raises(NoSecret, match="MLOPS_WEBHOOK_SECRET"):
        main()
