"""A probe, what it finds, and what probes share: running a program, finding one, saying what is
missing.

Lesson: notebooks/00_start_here."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass

from labkit.core import host
from labkit.core.json_types import JsonObject

OK, DEGRADED, MISSING = "OK", "DEGRADED", "MISSING"


@dataclass(frozen=True)
class Capability:
    """`ok`, or what is `missing`, `why` it matters and the `fix`: a command. `state` DEGRADED means
    ok, with a limit named in `detail`."""

    name: str
    ok: bool
    missing: str = ""
    why: str = ""
    fix: str = ""
    detail: str = ""
    degraded: bool = False

    def __bool__(self) -> bool:
        return self.ok

    @property
    def state(self) -> str:
        if not self.ok:
            return MISSING
        return DEGRADED if self.degraded else OK

    def as_json(self) -> JsonObject:
        return {**asdict(self), "state": self.state}


@dataclass(frozen=True)
class Probe:
    """One question to the machine. `look` answers it afresh each time; `capability` caches."""

    name: str
    title: str  # one line for the doctor's table
    why: str  # what it unlocks
    look: Callable[[], Capability]


PROBES: dict[str, Probe] = {}


@functools.cache
def probed(name: str) -> Capability:
    """What a probe finds, looked for once a process: for probes that need another's answer, and for
    `labkit.core.capabilities`."""
    return PROBES[name].look()


APT = "apt-get install --no-install-recommends "
HOST_TOOLS = "make host-tools"


def probe(
    name: str, title: str, why: str
) -> Callable[[Callable[[], Capability]], Callable[[], Capability]]:
    """Register `look` under a name. What it returns gets the probe's name and why."""

    def add(look: Callable[[], Capability]) -> Callable[[], Capability]:
        def named() -> Capability:
            found = look()
            return Capability(
                name, found.ok, found.missing, why, found.fix, found.detail, found.degraded
            )

        PROBES[name] = Probe(name, title, why, named)
        return named

    return add


def yes(detail: str = "", *, limit: bool = False, fix: str = "") -> Capability:
    return Capability("", True, detail=detail, degraded=limit, fix=fix)


def no(missing: str, fix: str) -> Capability:
    return Capability("", False, missing, fix=fix)


def run(argv: list[str], timeout_s: float = 10) -> tuple[int, str]:
    """Exit status and both streams together; a program that does not exist or does not end is
    status 127 or 124."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return 124, f"no end after {timeout_s:.0f} s"
    except OSError as error:
        return 127, str(error)
    return done.returncode, done.stdout.decode(errors="replace").strip()


def lacking(*names: str) -> list[str]:
    return [n for n in names if shutil.which(n) is None]


def package(name: str) -> Capability:
    try:
        there = importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        there = False
    why = "an arm of a bench, or an optional part"
    if there:
        return Capability(f"package:{name}", True, why=why, detail=host.package_version(name) or "")
    return Capability(
        f"package:{name}",
        False,
        f"no Python package {name}",
        why,
        f"pip install {name.replace('_', '-')}",
    )


def command(name: str) -> Capability:
    path = shutil.which(name)
    return Capability(
        f"command:{name}",
        bool(path),
        "" if path else f"no program {name} on PATH",
        "an arm of a bench, or an optional part",
        "" if path else APT + name,
        path or "",
    )


def program(*names: str, package_name: str = "") -> Capability:
    for name in names:
        if shutil.which(name):
            return yes(shutil.which(name) or "")
    return no(f"no {names[0]}", APT + (package_name or names[0]))
