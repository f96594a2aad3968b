"""A receiver of MLflow's registry webhooks, which has the registry looked at sooner.

Belongs here: `python -m mlops_assets.registry.webhook`, which checks a delivery, touches a file and hands the
delivery on. Not here: looking (`watch.py`) and what follows from it: MLflow delivers at most once, so the sensor's own
looks are what counts, and a delivery says no more than "now"; whom else it is told to (`github.py`).

MLflow signs `ID.TIMESTAMP.BODY` with HMAC-SHA256, after the Standard Webhooks specification. What is unsigned, too old
or comes for the second time is refused.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    from starlette.applications import Starlette

AGE_SECONDS: Final = 300.0
"""How far a delivery's time may be from ours; for so long each id is remembered."""

MOST_BYTES: Final = 1 << 20
"""Of a body; MLflow's are below a kilobyte."""

_DIGITS: Final = re.compile(r"[0-9]{1,12}")


class NoSecret(MlopsError):
    """The receiver has nothing to check signatures with."""


class Deliveries:
    """What came in the last minutes.

    Args:
        secret: What MLflow signs with.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._seen: dict[str, float] = {}

    def refusal(self, headers: Mapping[str, str], body: bytes, now: float) -> str:
        """Why a delivery is refused; empty for a good one, which is remembered.

        Args:
            headers: By lower-case name.
            body: As it came.
            now: Seconds since the epoch.
        """
        delivery, sent = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
        signed = f"{delivery}.{sent}.".encode() + body
        wanted = "v1," + base64.b64encode(hmac.digest(self._secret, signed, hashlib.sha256)).decode()
        if not hmac.compare_digest(wanted.encode(), headers.get("x-mlflow-signature", "").encode()):
            return "the signature is not that of the secret in MLOPS_WEBHOOK_SECRET"
        if not _DIGITS.fullmatch(sent) or abs(now - int(sent)) > AGE_SECONDS:
            return f"sent more than {AGE_SECONDS:.0f} s ago, or the clocks differ"
        self._seen = {one: when for one, when in self._seen.items() if now - when <= 2 * AGE_SECONDS}
        if delivery in self._seen:
            return "delivered before"
        self._seen[delivery] = now
        return ""


def application(secret: str, poke: Path, hand_on: Callable[[bytes], Awaitable[None]] | None = None) -> Starlette:
    """The server: POST /webhook answers 204 for a good delivery, 401 for another; GET /health answers 200.

    Args:
        secret: What MLflow signs with.
        poke: The file that a good delivery touches.
        hand_on: Is given the body of a good delivery once that is answered.
    """
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    deliveries = Deliveries(secret)

    async def receive(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                return PlainTextResponse("too long", 413)
        refusal = deliveries.refusal(request.headers, body, time.time())
        if refusal:
            return PlainTextResponse(refusal, 401)
        poke.touch()
        return Response(status_code=204, background=BackgroundTask(hand_on, body) if hand_on else None)

    async def healthy(_request: Request) -> Response:
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/webhook", receive, methods=["POST"]), Route("/health", healthy)])


def main() -> None:
    """Serve on MLOPS_HOST and MLOPS_WEBHOOK_PORT until a signal comes.

    Raises:
        NoSecret: MLOPS_WEBHOOK_SECRET is not set.
    """
    import uvicorn

    from mlops_assets.registry.github import teller
    from mlops_assets.settings import settings

    here = settings()
    secret = here.webhook_secret.get_secret_value()
    if not secret:
        raise NoSecret(
            "MLOPS_WEBHOOK_SECRET is not set; give the receiver the secret that MLflow's webhook was made with"
        )
    received = application(secret, here.registry_poke, teller(here))
    uvicorn.run(received, host=here.host, port=here.webhook_port, log_level="warning")


if __name__ == "__main__":
    main()
