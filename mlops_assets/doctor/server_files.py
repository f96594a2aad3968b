"""Checks of what a server set-up keeps on disk and in its variables: rights, secrets, and the age of its backup."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from mlops_assets.backup import note
from mlops_assets.doctor.examination import Examination, Finding
from mlops_assets.doctor.server_postgres import databases
from mlops_assets.settings import PROJECT

SECRETS: Final = "/run/mlops"
"""Where `docker/bin/entrypoint.sh` looks for secret files, unless MLOPS_SECRETS says otherwise."""

GUESSED_FIRST: Final = {"admin", "changeme", "dagster", "example", "mlflow", "mlops", "password", "postgres", "secret"}
SHORTEST_SECRET: Final = 12

_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def rights(look: Examination) -> Iterator[Finding]:
    """Whether the home is one user's, and nobody else can change it or read what is secret."""
    wrong = list(_rights(look.here.home))
    yield from wrong
    if not wrong:
        owner = look.here.home.stat().st_uid
        yield Finding("rights", "ok", f"{look.here.home} is of user {owner} alone")


def _rights(home: Path) -> Iterator[Finding]:
    found = home.stat()
    if found.st_uid != os.geteuid():
        what = f"{home} is of user {found.st_uid}, this is user {os.geteuid()}: neither can change what the other makes"
        yield Finding("rights", "warning", what, f"run `mlops` as user {found.st_uid}")
    others = [path for path in sorted(home.glob("*/*")) if path.lstat().st_uid != found.st_uid]
    if others:
        what = f"{len(others)} entries of {home}, which is of user {found.st_uid}, are of others: {others[0]}"
        yield Finding("rights", "problem", what, f"`chown -R {found.st_uid}:{found.st_gid} {home}`, as root")
    if found.st_mode & stat.S_IWOTH:
        yield Finding("rights", "problem", f"everybody can write {home}", f"`chmod o-w {home}`")
    umask = None
    with suppress(FileNotFoundError):  # Linux tells; os.umask() would change it for all threads
        umask = re.search(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    if umask and not int(umask[1], 8) & stat.S_IWOTH:
        what = f"the umask {umask[1]} lets everybody write what is made here"
        yield Finding("rights", "warning", what, "`umask 027` before the servers are started")
    secret = Path(os.environ.get("MLOPS_SECRETS", SECRETS))
    for path, forbidden, change in (
        (PROJECT / ".env", _OTHERS, "go="),
        *((path, _OTHERS_WRITE, "go-w") for path in sorted(secret.rglob("*"))),
    ):
        if path.is_file() and path.stat().st_mode & forbidden:
            what = f"others than its owner can {'read' if forbidden == _OTHERS else 'write'} {path}, which has secrets"
            yield Finding("rights", "warning", what, f"`chmod {change} {path}`")


def secrets(look: Examination) -> Iterator[Finding]:
    """Whether every password is one that nobody guesses; none is told."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    known = {
        "MLOPS_WEBHOOK_SECRET": ("", look.here.webhook_secret.get_secret_value()),
        "MLFLOW_TRACKING_PASSWORD": (
            os.environ.get("MLFLOW_TRACKING_USERNAME", ""),
            os.environ.get("MLFLOW_TRACKING_PASSWORD", ""),
        ),
    }
    known = {variable: pair for variable, pair in known.items() if pair[1]}
    for variable, secret in databases(look.here).items():
        try:
            url = make_url(secret.get_secret_value())
        except (ArgumentError, ValueError):
            continue  # the check of PostgreSQL tells
        known[f"the password in {variable}"] = (url.username or "", str(url.password or ""))
    sound = True
    for variable, (user, password) in known.items():
        if not password:
            flaw = "is empty"
        elif password.lower() in GUESSED_FIRST or password == user:
            flaw = "is what everybody tries first"
        elif len(password) < SHORTEST_SECRET:
            flaw = f"has less than {SHORTEST_SECRET} characters"
        else:
            continue
        sound = False
        fix = "set a long random one (`openssl rand -hex 24`) there and here"
        yield Finding("secrets", "problem", f"{variable} {flaw}", fix)
    if sound and known:
        yield Finding("secrets", "ok", f"{', '.join(known)}: long enough, and none that everybody tries first")


def backups(look: Examination) -> Iterator[Finding]:
    """Whether the home was backed up of late."""
    home, made = look.here.home, note.last(look.here.home)
    fix = "`mlops backup FOLDER --keep 14`, every night: docs/operations/backup.md has the lines for it"
    if made is None:
        yield Finding("backup", "warning", f"none was ever made of {home}", fix)
        return
    age = datetime.now(UTC) - made
    what = f"the newest is of {made:%Y-%m-%d %H:%M} UTC"
    if age > note.OLDEST:
        yield Finding("backup", "warning", f"{what}, {age.days} days ago", fix)
    else:
        yield Finding("backup", "ok", what)
