"""Checks of what the platform stands on: Python and its packages, disks, locks, the clock."""

from __future__ import annotations

import fcntl
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.filesize import decimal

from mlops_assets.doctor.examination import Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION: Final = "mlops-assets"
LEAST_BYTES: Final = 2 * 10**9
LEAST_SHARE: Final = 0.05
"""Free space below either is a warning: a database that cannot grow loses what it was told."""

LEAST_TEMPORARY_BYTES: Final = 5 * 10**8
"""A model is exported there before it is logged."""

MOST_SKEW_SECONDS: Final = 2.0

_LOCK: Final = """
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(7)
"""
_REFUSED: Final = 7


def python(project: Path) -> Iterator[Finding]:
    """Whether this Python is one that the platform is made for."""
    from packaging.specifiers import SpecifierSet

    here, wanted = platform.python_version(), _declared(project)[0]
    if SpecifierSet(wanted).contains(here, prereleases=True):
        yield Finding("Python", "ok", f"{here} ({sys.executable})")
    else:
        fix = "make the environment anew with one that is: `make clean`, then `PYTHON=python3.12 make demo`"
        yield Finding("Python", "problem", f"{here} is not among {wanted}", fix)


def packages(project: Path) -> Iterator[Finding]:
    """Whether every package is there, in a version that the platform was tested with."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    wanted = [Requirement(line) for line in _declared(project)[1]]
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    constraints = project / "constraints.txt"
    lines = constraints.read_text(encoding="utf-8").split() if constraints.is_file() else []
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    sound, other = True, 0
    for one in wanted:
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            sound = False
            yield Finding("packages", "problem", f"{one.name} is not installed", _install(constraints, one))
            continue
        if not one.specifier.contains(version, prereleases=True):
            sound = False
            found = f"{one.name} {version} is outside of {one.specifier}, with which the platform is tested"
            yield Finding("packages", "warning", found, _install(constraints, one))
        other += version.partition("+")[0] != pins.get(canonicalize_name(one.name), version).partition("+")[0]
    if sound:
        differing = f", {other} of them in another version than constraints.txt names" if other else ""
        yield Finding("packages", "ok", f"all {len(wanted)} are in the tested ranges{differing}")


def space(check: str, folder: Path, least: int = LEAST_BYTES, share: float = LEAST_SHARE) -> Iterator[Finding]:
    """Whether a folder can be written, and its disk has room."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        yield Finding(
            check, "problem", f"{folder} cannot be written: {error.strerror}", "mend its rights or free space"
        )
        return
    disk = shutil.disk_usage(folder)
    found = f"{decimal(disk.free)} of {decimal(disk.total)} are free in {folder}"
    if disk.free < least or disk.free < share * disk.total:
        fix = "free space; `mlops store gc` removes what is of no more use" if check == "home" else "free space there"
        yield Finding(check, "warning", found, fix)
    else:
        yield Finding(check, "ok", found)


def temporary() -> Iterator[Finding]:
    """Whether the folder for temporary files has room."""
    yield from space("temporary files", Path(tempfile.gettempdir()), LEAST_TEMPORARY_BYTES, share=0.0)


def locking(folder: Path) -> Iterator[Finding]:
    """Whether a lock keeps another process out."""
    fix = "set MLOPS_HOME to a folder on a local disk"
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            yield Finding("file locks", "problem", f"{folder} has none: {error.strerror}", fix)
            return
        done = subprocess.run([sys.executable, "-I", "-S", "-c", _LOCK, file.name], capture_output=True, check=False)
    if done.returncode == _REFUSED:
        yield Finding("file locks", "ok", "a lock keeps other processes out")
    else:
        yield Finding("file locks", "problem", f"a lock in {folder} does not keep other processes out", fix)


def clock(folder: Path) -> Iterator[Finding]:
    """Whether the disk's clock is ours, and nothing in a folder is from the future."""
    before = time.time()
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        stamp = Path(file.name).stat().st_mtime
    after = time.time()
    skew = min(stamp - before, 0.0) + max(stamp - after, 0.0)
    if abs(skew) > MOST_SKEW_SECONDS:
        found = f"files in {folder} are stamped {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this clock"
        yield Finding("clock", "warning", found, "synchronize the clocks of this machine and of the file server (NTP)")
        return
    ahead = [path for path in folder.glob("*/*") if path.lstat().st_mtime > after + MOST_SKEW_SECONDS]
    if ahead:
        newest = max(path.lstat().st_mtime for path in ahead)
        found = f"{ahead[0]} is stamped {newest - after:.0f} s in the future: some clock was or is wrong"
        fix = "synchronize the clock (NTP); if it is right now, `touch` what is stamped so"
        yield Finding("clock", "warning", found, fix)
    else:
        yield Finding("clock", "ok", "files are stamped with this machine's time")


def _declared(project: Path) -> tuple[str, list[str]]:
    """Which Pythons and which packages the platform is made for."""
    file = project / "pyproject.toml"
    if file.is_file():
        declared = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        return declared["requires-python"], declared["dependencies"]
    return metadata.metadata(DISTRIBUTION)["Requires-Python"], metadata.requires(DISTRIBUTION) or []


def _install(constraints: Path, wanted: Requirement) -> str:
    """The command that installs a package in the version that was tested."""
    known = ["--constraint", str(constraints)] if constraints.is_file() else []
    return shlex.join([sys.executable, "-m", "pip", "install", *known, f"{wanted.name}{wanted.specifier}"])
