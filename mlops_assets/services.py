"""Child processes that serve: started together, watched, and stopped together.

Belongs here: life and death of processes. Does not: which services there are (`cli/up.py`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

import psutil

from mlops_assets.errors import MlopsError

STOP_SECONDS: Final = 20.0
"""How long a service may take to stop before it is killed: Dagster waits for its own children."""

KILL_SECONDS: Final = 5.0
"""How long to wait for what was killed: it is gone in milliseconds unless the kernel waits for a dead disk."""

PR_SET_PDEATHSIG: Final = 1
"""From Linux's prctl.h: the signal that a child gets when its parent dies."""


class ServiceError(MlopsError):
    """A service that cannot be started, or that ended by itself."""


@dataclass(frozen=True)
class Service:
    """A process to start.

    Attributes:
        name: How people call it.
        command: Its command line.
        log: The file that takes what it prints.
        ready: Whether it answers; None when it has nothing to ask.
        environment: Variables beside those of this process.
        files: Open files that it inherits, by their numbers.
    """

    name: str
    command: Sequence[str]
    log: Path
    ready: Callable[[], bool] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[int] = ()


def require_free_port(host: str, port: int, variable: str) -> None:
    """Check that a server could bind here.

    Raises:
        ServiceError: Something listens there already, or the address is not ours.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServiceError(
                f"port {port} on {host} cannot be used ({error.strerror}); stop what listens there, or set {variable}"
            ) from None


def answers(url: str) -> bool:
    """Whether a server answers a GET with success."""
    import httpx

    encrypted = url.startswith("https:")  # certificates are read for each request: 20 ms, ten times a second
    try:
        return httpx.get(url, timeout=2, trust_env=False, verify=encrypted).is_success  # ours: no proxy in between
    except httpx.HTTPError:
        return False


def interrupt_on_signals() -> None:
    """Make SIGTERM and SIGINT stop us once, also when SIGINT was ignored by whoever started us in the background."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)  # a second Ctrl-C must not cut the stopping short
        raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, interrupt)


@contextmanager
def started(services: Sequence[Service], timeout: float = 120.0) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Start services and wait until each answers; stop all of them at the end, however it comes.

    Raises:
        ServiceError: One ended or did not answer in time; quotes the end of its log.
    """
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for service in services:
            processes[service.name] = _spawn(service)
        for service in services:
            _wait_ready(service, processes[service.name], time.monotonic() + timeout)
        yield processes
    finally:
        _stop(processes.values())


def ended(services: Sequence[Service], processes: Mapping[str, subprocess.Popen[bytes]]) -> ServiceError | None:
    """The error that tells which service has ended by itself, if one has."""
    for service in services:
        code = processes[service.name].poll()
        if code is not None:
            return ServiceError(f"{service.name} ended with code {code}; {_tail(service.log)}")
    return None


def _spawn(service: Service) -> subprocess.Popen[bytes]:
    service.log.parent.mkdir(parents=True, exist_ok=True)
    with service.log.open("ab") as log:
        return subprocess.Popen(
            service.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **service.environment},
            pass_fds=service.files,
            start_new_session=True,  # Ctrl-C goes to us alone, and we stop them in order
            preexec_fn=_child_signals,  # noqa: PLW1509  no threads yet, and only async-signal-safe calls
        )


def _child_signals() -> None:
    """Undo an inherited "ignore" of Ctrl-C, with which Dagster could only be killed, and die with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_ready(service: Service, process: subprocess.Popen[bytes], deadline: float) -> None:
    while service.ready and not service.ready():
        if process.poll() is not None:
            raise ServiceError(f"{service.name} ended with code {process.returncode}; {_tail(service.log)}")
        if time.monotonic() > deadline:
            raise ServiceError(f"{service.name} does not answer; {_tail(service.log)}")
        time.sleep(0.1)


def _stop(processes: Collection[subprocess.Popen[bytes]]) -> None:
    """Stop all and all that they started; a signal that comes meanwhile takes effect when that is done."""
    main = threading.current_thread() is threading.main_thread()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}) if main else set()
    try:
        _stop_all(processes)
    finally:
        if main:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _stop_all(processes: Collection[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, deadline - time.monotonic()))
        # The whole group, also of a service that ended by itself: what it started and left behind goes too.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + KILL_SECONDS
    while _any_alive({process.pid for process in processes}) and time.monotonic() < deadline:
        time.sleep(0.05)


def _any_alive(groups: set[int]) -> bool:
    """Whether a process of one of the groups still runs: others' children, which nobody here can wait for."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) in groups and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _tail(log: Path, lines: int = 3) -> str:
    try:
        text = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        text = []
    return f"its log {log} ends with: {' / '.join(text[-lines:]) or '(nothing)'}"
