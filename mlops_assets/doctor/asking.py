"""Asking the servers of a set-up over HTTP, each within seconds.

Belongs here: where a server is asked, under which name, with which login. Not here: what its answers mean.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mlops_assets.errors import MlopsError
from mlops_assets.settings import Settings

if TYPE_CHECKING:
    import httpx

TIMEOUT_SECONDS: Final = 5.0


class NoAnswer(MlopsError):
    """A server does not answer."""


class Asker:
    """A server, and how it is asked.

    Args:
        url: Where it is reached; paths are below it.
        host: The name that it is asked by, where that is another than in the URL.
        login: User and password.
        verify: Whose certificates are trusted; False trusts any, and sends no login.
    """

    def __init__(
        self, url: str, *, host: str = "", login: tuple[str, str] | None = None, verify: ssl.SSLContext | bool = True
    ) -> None:
        import httpx

        self.url = url.rstrip("/")
        self.has_login = login is not None and verify is not False
        self._extensions = {"sni_hostname": urlsplit(f"//{host}").hostname} if host else {}
        # No proxy of the environment: these servers are ours. What is trusted, SSL_CERT_FILE may say nevertheless.
        self._client = httpx.Client(
            headers={"Host": host} if host else {},
            auth=login if self.has_login else None,
            verify=httpx.create_ssl_context() if verify is True else verify,
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
        )

    def get(self, path: str, **options: Any) -> httpx.Response:
        """The answer to a GET.

        Raises:
            NoAnswer: There is none.
        """
        return self.ask("GET", path, **options)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer to a request; redirects are not followed.

        Raises:
            NoAnswer: There is none.
        """
        import httpx

        try:
            return self._client.request(method, f"{self.url}{path}", extensions=self._extensions, **options)
        except httpx.HTTPError as error:
            why = " ".join(str(error).split()) or type(error).__name__
            if "CERTIFICATE_VERIFY_FAILED" in why:
                why = "its certificate is not trusted here, so no login is sent"
                raise NoAnswer(f"{self.url}: {why}; name the file of its authority in SSL_CERT_FILE") from None
            raise NoAnswer(f"no server answers at {self.url} ({why}); start it, or mend the URL") from None

    def upgrades(self, path: str, protocol: str) -> int:
        """The status that a request for a WebSocket gets: 101 where it is granted.

        Raises:
            NoAnswer: There is none.
        """
        import httpx

        headers = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "bWxvcHMtZG9jdG9yLWFzaw==",
            "Sec-WebSocket-Protocol": protocol,
        }
        url = f"{self.url}{path}"
        try:
            with self._client.stream("GET", url, headers=headers, extensions=self._extensions) as response:
                return response.status_code
        except httpx.HTTPError as error:
            raise NoAnswer(f"{url} closes a WebSocket's connection ({error}); look at the proxy's log") from None

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()


def login() -> tuple[str, str] | None:
    """User and password for the proxy, which are those that MLflow's client uses, too."""
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    return (user, password) if user and password else None


@contextmanager
def asking(url: str, **options: Any) -> Iterator[Asker]:
    """A server inside, under the name that processes use."""
    asker = Asker(url, **options)
    try:
        yield asker
    finally:
        asker.close()


@contextmanager
def proxied(here: Settings, *, anonymous: bool = False) -> Iterator[Asker]:
    """The proxy under its public name, wherever it is reached.

    Args:
        here: The settings.
        anonymous: Without a login, and whatever its certificate is.
    """
    host = urlsplit(here.public_url).netloc
    options: dict[str, Any] = {"verify": False} if anonymous else {"login": login()}
    with asking(here.proxy_url, host=host, **options) as asker:
        yield asker
