"""Checks of the proxy: its certificate, that it lets nobody in without a login, and what must pass through it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

from mlops_assets.doctor.asking import TIMEOUT_SECONDS, NoAnswer, asking, proxied
from mlops_assets.doctor.examination import Examination, Finding
from mlops_assets.errors import MlopsError

RENEW_DAYS: Final = 21
"""Let's Encrypt's clients renew 30 days before the end, so one with less left is not renewed by itself."""

CLOSED: Final = ("/", "/dagster/server_info", "/mlflow/version", "/v2", "/metrics")
"""One page of each server, which are for those who logged in; what servers tell Prometheus is for nobody outside."""

REFUSALS: Final = {401, 403, 404, 429}
REDIRECTS: Final = {301, 302, 307, 308}
HTTP_PORT: Final = 80
HTTPS_PORT: Final = 443
GRANTED: Final = 101


class HandshakeError(MlopsError):
    """The proxy shows no certificate."""


def certificate(look: Examination) -> Iterator[Finding]:
    """Whether the proxy's certificate is for the public name, is trusted here, and lasts."""
    here = look.here
    if not here.public_url:
        return
    name, _ = _address(here.public_url)
    if not here.public_url.startswith("https://"):
        fix = "give the proxy a certificate, and write MLOPS_PUBLIC_URL with https://"
        yield Finding("certificate", "problem", f"{here.public_url} sends logins in the open", fix)
        return
    end, distrust = _certificate(*_address(here.proxy_url), name)
    left = end - datetime.now(UTC)
    until = f"until {end:%Y-%m-%d} ({left.days} days)"
    fix = "renew it (nginx/certificate.sh makes a local one)"
    if left < timedelta(0):
        yield Finding("certificate", "problem", f"that of {name} has expired on {end:%Y-%m-%d}", fix)
    elif distrust:
        trust = "let a known authority sign it, or name a file with it or its authority in SSL_CERT_FILE"
        yield Finding("certificate", "warning", f"that of {name}, {until}, is not trusted here: {distrust}", trust)
    elif left.days < RENEW_DAYS:
        yield Finding("certificate", "warning", f"that of {name} is good {until} only", fix)
    else:
        yield Finding("certificate", "ok", f"that of {name} is good {until}")


def proxy(look: Examination) -> Iterator[Finding]:
    """Whether the proxy refuses strangers, and sends them from HTTP to HTTPS."""
    here, sound = look.here, True
    if not here.public_url:
        return
    with proxied(here, anonymous=True) as stranger:
        answers = {path: stranger.get(path).status_code for path in CLOSED}
    for path, status in answers.items():
        if status not in REFUSALS:
            sound = False
            fix = "have the proxy ask for a login (nginx: auth_basic and auth_basic_user_file), and start the service"
            what = f"{here.public_url}{path} answers {status} without a login"
            yield Finding("proxy", "problem" if status < 300 else "warning", what, fix)
    name, port = _address(here.proxy_url)
    if here.proxy_url.startswith("https://") and port == HTTPS_PORT:  # else nobody tells where its HTTP is
        with asking(f"http://{name}:{HTTP_PORT}", host=urlsplit(here.public_url).netloc) as plain:
            try:
                answer = plain.get("/")
            except NoAnswer:
                answer = None  # closed: nobody sends a password there
        to = answer.headers.get("Location", "") if answer else here.public_url
        if answer and (answer.status_code not in REDIRECTS or not to.startswith("https://")):
            sound = False
            fix = "have the proxy answer HTTP with a redirect to HTTPS alone"
            yield Finding("proxy", "problem", f"http://{name} answers {answer.status_code} instead of HTTPS", fix)
    if sound:
        yield Finding("proxy", "ok", f"{here.public_url} lets nobody in without a login")


def logged_in(look: Examination) -> Iterator[Finding]:
    """Whether a user gets through to Dagster, to its live updates, and not to what is for Prometheus."""
    here, sound = look.here, True
    if not here.public_url:
        return
    with proxied(here) as user:
        if not user.has_login:
            what = "not looked at: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, which log in, are not set"
            yield Finding("proxy, logged in", "ok", what)
            return
        dagster = user.get("/dagster/server_info").status_code
        if dagster == 401:
            fix = "correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the proxy's users"
            yield Finding("proxy, logged in", "problem", f"{here.public_url} refuses the login", fix)
            return
        wanted = (
            ("/dagster/server_info", dagster, 200, "pass /dagster/ on to the webserver, path and all"),
            (
                "/dagster/graphql as a WebSocket",
                user.upgrades("/dagster/graphql", "graphql-ws"),
                GRANTED,
                "pass the headers Upgrade and Connection on, with HTTP/1.1; without them, Dagster shows nothing live",
            ),
            ("/metrics", user.get("/metrics").status_code, 404, "close it at the proxy: Prometheus reads it inside"),
        )
    for path, status, expected, fix in wanted:
        if status != expected:
            sound = False
            what = f"{here.public_url}{path} answers {status} instead of {expected}"
            yield Finding("proxy, logged in", "problem", what, fix)
    if sound:
        yield Finding("proxy, logged in", "ok", "Dagster answers, live updates come, and /metrics is closed")


def _address(url: str) -> tuple[str, int]:
    """Host and port of a URL."""
    parts = urlsplit(url)
    return str(parts.hostname), parts.port or (HTTPS_PORT if parts.scheme == "https" else HTTP_PORT)


def _certificate(host: str, port: int, name: str) -> tuple[datetime, str]:
    """When the certificate that is shown for a name ends, and why it is not trusted here; empty when it is.

    Raises:
        HandshakeError: There is none.
    """
    import httpx
    from cryptography import x509

    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    shown, distrust = b"", ""
    for context in (anybody, httpx.create_ssl_context()):
        try:
            with (
                socket.create_connection((host, port), TIMEOUT_SECONDS) as plain,
                context.wrap_socket(plain, server_hostname=name) as secure,
            ):
                shown = shown or secure.getpeercert(binary_form=True) or b""
        except ssl.SSLCertVerificationError as error:
            distrust = error.verify_message
        except OSError as error:
            why = error.strerror or str(error)
            raise HandshakeError(f"{host}:{port} shows no certificate ({why}); start the proxy there") from None
    return x509.load_der_x509_certificate(shown).not_valid_after_utc, distrust
