"""Checks of an MLflow server, inside and through the proxy: release, prefix, allowed hosts and origins, artifacts."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from mlops_assets.doctor.asking import Asker, NoAnswer, asking, login
from mlops_assets.doctor.asking import proxied as through_proxy
from mlops_assets.doctor.examination import Examination, Finding, sentence

if TYPE_CHECKING:
    import httpx

PREFIX: Final = "/mlflow"
"""Where MLflow is below the public URL."""

FOREIGN: Final = "https://foreign.invalid"

_API: Final = "/api/2.0/mlflow/experiments/search"
_ARTIFACTS: Final = "/api/2.0/mlflow-artifacts/artifacts"
_SEARCH: Final = {"max_results": 1}


def server(look: Examination) -> Iterator[Finding]:
    """Whether the server at MLFLOW_TRACKING_URI answers, is of our release, and refuses nobody whom it should serve."""
    uri = look.here.mlflow_url
    with asking(uri, login=login()) as asker:
        try:
            asker.get("/health")
        except NoAnswer as error:
            yield Finding("MLflow", "problem", sentence(error)[0], "start it, or mend MLFLOW_TRACKING_URI")
            return
        yield from _look("MLflow", asker, look)


def proxied(look: Examination) -> Iterator[Finding]:
    """Whether browsers and clients reach MLflow through the proxy."""
    if not (look.here.public_url and look.here.mlflow_tracking_uri):
        return
    with through_proxy(look.here) as proxy:
        if proxy.has_login:
            yield from _look("MLflow, proxied", proxy, look, PREFIX)
        else:
            what = "not looked at: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, which log in, are not set"
            yield Finding("MLflow, proxied", "ok", what)


def _look(check: str, asker: Asker, look: Examination, prefix: str = "") -> Iterator[Finding]:
    """What is wrong with the server as it is seen from there, or that nothing is."""
    where, public = f"{look.here.public_url if prefix else asker.url}{prefix}", look.here.public_url
    wrong = _refusal(asker.get(f"{prefix}{_API}", params=_SEARCH), where, f"{urlsplit(where).netloc}")
    if wrong:
        yield Finding(check, "problem", *wrong)
        return
    sound = True
    ours, theirs = metadata.version("mlflow"), asker.get(f"{prefix}/version").text.strip()
    if theirs != ours:
        sound = False
        yield Finding(check, "warning", f"the server is MLflow {theirs}, here is {ours}", "install the same at both")
    if public:
        for origin, refused in ((public, False), (FOREIGN, True)):
            answer = asker.ask("POST", f"{prefix}{_API}", json=_SEARCH, headers={"Origin": origin})
            if (answer.status_code == 403) != refused:
                sound = False
                what = f"a page of {origin} is {'not ' if refused else ''}refused to write by {where}"
                fix = f"start MLflow's server with --cors-allowed-origins {public}"
                yield Finding(check, "problem", what, fix)
    if look.deep and (flaw := _artifact_flaw(asker, prefix)):
        sound = False
        fix = "start MLflow's server with --serve-artifacts and an --artifacts-destination that it can write"
        yield Finding(check, "problem", f"the artifact proxy of {where} {flaw}", fix)
    if sound:
        yield Finding(check, "ok", f"{theirs} answers at {where}{', and keeps artifacts' if look.deep else ''}")


def _refusal(answer: httpx.Response, where: str, host: str) -> tuple[str, str] | None:
    """Why the API does not answer, and what to do."""
    if answer.is_success:
        return None
    what = f"the API of {where} answers {answer.status_code}"
    prefix = urlsplit(where).path or "/"
    fixes = {
        401: ("it wants a login", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        403: (f"it refuses the name {host}", f"start MLflow's server with --allowed-hosts containing {host}"),
        404: (
            f"nothing is below {prefix}",
            f"start MLflow's server with --static-prefix {prefix}, which the URL has, too",
        ),
    }
    why, fix = fixes.get(answer.status_code, ("", "look at the log of the MLflow server"))
    return f"{what}{f': {why}' if why else ''}", fix


def _artifact_flaw(asker: Asker, prefix: str) -> str:
    """What a small artifact meets on its way there and back; empty when nothing."""
    content = uuid.uuid4().hex.encode()
    path = f"{prefix}{_ARTIFACTS}/mlops-doctor-{content.decode()}"
    put = asker.ask("PUT", path, content=content)
    if not put.is_success:
        return f"refuses an upload ({put.status_code})"
    try:
        back = asker.get(path)
        return "" if back.content == content else f"does not give back what was uploaded ({back.status_code})"
    finally:
        asker.ask("DELETE", path)
