"""What a GPU trial prints: JSON lines, each with everything measured so far, and how it ended.

    report(lambda found, notify: …, {"part": "wake"})        # the exit status of the process

The last line counts, also of a process that then fails, dies or is ended. Limit: none. Lesson:
notebooks/06_gpu_init."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from labkit.core import secrets
from labkit.core.json_types import JsonMapping, JsonObject
from labkit.core.ledger import Ledger
from labkit.core.residency import CacheState
from labkit.core.workspace import Workspace
from labkit.device.driver_states import Driver
from labkit.errors import MissingCapability

Notify = Callable[[], None]
Work = Callable[[JsonObject, Notify], None]


def report(work: Work, about: JsonMapping | None = None) -> int:
    """Carry out `work(found, notify)`: what it puts into `found` is printed at every `notify()` and
    at the end. The exit status of the process."""
    found: JsonObject = dict(about or {})

    def notify() -> None:
        print(json.dumps(secrets.masked(found), default=str), flush=True)

    try:
        with Ledger.open(Workspace.default()):
            work(found, notify)
    except MissingCapability as missing:
        print(missing, file=sys.stderr, flush=True)
        return 3
    except Exception as error:
        fail(found, type(error).__name__, error)
    notify()
    if "failed" in found:
        print("\n".join(found["failed"]), file=sys.stderr, flush=True)
    return 1 if "failed" in found else 0


def fail(found: JsonObject, subject: str, error: object) -> None:
    """Note that something of the trial did not work; the exit status is 1 then."""
    found.setdefault("failed", []).append(f"{subject}: {error}"[:2500])


def cache_facts(seen: CacheState) -> JsonObject:
    """A cache state with its proof, short."""
    return {
        "state": seen.state,
        "method": seen.method,
        "resident_share": round(seen.share, 4),
        "bytes": seen.total_bytes,
        "note": seen.note,
    }


def driver_name(driver: Driver) -> str:
    """How it is simulated, or the CUDA version of the real one."""
    label: str = getattr(driver, "label", "")
    return label or f"CUDA {getattr(driver, 'version', 'of an unknown version')}"
