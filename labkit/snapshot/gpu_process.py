"""A GPU process as a whole: CUDA checkpoint, then CRIU; CRIU restore, then CUDA restore. One state
machine.

    running → locked → checkpointed → dumped (gone) → restored by CRIU → checkpointed → locked →
        running → first token

    dumped = dump(driver, pid, criu_images, work)
    pid = restore(driver, criu_images, work, dumped["permissions"], dumped["closed"])

CRIU cannot see a GPU, and need not: a parked process holds none. So CRIU goes without its CUDA
plugin here, and the driver is asked by its own calls before and after. A dump that is refused
brings the process back to running. Limit: GPU bytes ÷ the bus's rate twice, and the CRIU image ÷
disk rate, which now holds the GPU's memory. Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from labkit.core import proc, timeline
from labkit.core.client import Answer
from labkit.core.criu_log import error_lines
from labkit.core.json_types import JsonObject
from labkit.device import cuda_checkpoint as cuda
from labkit.device import served
from labkit.device.driver_states import Driver
from labkit.device.fake_driver import FakeDriver
from labkit.device.nvml import device_used_bytes
from labkit.snapshot import criu, descriptors
from labkit.snapshot.explain import SnapshotError

#: A file may have been open under a name that is gone (a semaphore in /dev/shm); --link-remap gives
#: it one for the dump.
OPTIONS = ("--link-remap",)


def without_plugins(work: Path) -> list[str]:
    """CRIU's options for this: its CUDA plugin would look for a GPU that is parked already, so it
    finds an empty folder of plugins."""
    (work / "no-plugins").mkdir(parents=True, exist_ok=True)
    return ["-L", str(work / "no-plugins"), *OPTIONS]


def dump(
    driver: Driver,
    pid: int,
    criu_images: Path,
    work: Path,
    *,
    close: str = "",
    found: JsonObject | None = None,
) -> JsonObject:
    """Park, dump; the process is gone afterwards. Raises SnapshotError or CudaCheckpointError; then
    it runs on.

    `close`: descriptors of files that begin with this are closed for it. Into `found` goes what was
    seen on the way, also of a dump that is refused. Returns dump_s, pages_bytes, `permissions` and
    `closed`, the last two for `restore`."""
    seen = found if found is not None else {}
    with cuda.parked_for_dump(driver, pid) as steps:
        seen |= {
            "park": steps.seconds,
            "device_bytes": steps.memory_bytes["before"],
            "device_parked_bytes": steps.memory_bytes["checkpoint"],
            "device_used_parked_bytes": device_used_bytes(),
            "resident_parked_bytes": served.resident_bytes(pid),
            "held_parked": served.held(pid),
        }
        free, needed = shutil.disk_usage(criu_images).free, seen["resident_parked_bytes"] or 0
        if free < needed:
            raise SnapshotError(
                f"a CRIU image of {needed / 1e9:.1f} GB does not fit on the disk, which has"
                f" {free / 1e9:.1f} GB free",
                "the process goes on running",
                "LABKIT_HOME=/path/on/a/larger/disk",
            )
        closed = descriptors.close(pid, close) if close else []
        try:
            return {
                **criu.dump(pid, criu_images, work, options=without_plugins(work)),
                "closed": closed,
            }
        except BaseException:
            descriptors.reopen(pid, closed)  # before it is woken
            raise
        finally:
            seen["criu"] = criu_errors(work / "dump.log")


def restore(
    driver: Driver,
    criu_images: Path,
    work: Path,
    permissions: Mapping[str, int],
    closed: Sequence[descriptors.Closed] = (),
    found: JsonObject | None = None,
) -> int:
    """CRIU, then the GPU; the pid. A process whose GPU state cannot come back is ended: half of it
    would serve wrong tokens. `found`: as for `dump`."""
    seen = found if found is not None else {}
    began = timeline.now_s()
    try:
        pid, _ = criu.restore(
            criu_images,
            work,
            permissions=permissions,
            stopped=bool(closed),
            options=without_plugins(work),
        )
    finally:
        seen |= {
            "criu_restore_s": timeline.now_s() - began,
            "criu": criu_errors(work / "restore.log"),
        }
    try:
        if closed:
            descriptors.reopen(pid, closed)
            criu.resume(pid)
        if isinstance(driver, FakeDriver):
            driver.comes_back(pid)
        seen["cuda"] = cuda.wake(driver, pid, watched=False).seconds
        return pid
    except BaseException as error:
        seen["ended"] = "it had ended by itself" if served.gone(pid) else "it was ended"
        criu.end([pid])
        if isinstance(error, cuda.CudaCheckpointError):
            raise SnapshotError(error.what, f"{error.why}; {seen['ended']}", error.fix) from None
        raise


def criu_errors(log: Path, most: int = 8) -> list[str]:
    """CRIU's own errors, the last ones."""
    try:
        return [line[:300] for line in error_lines(log.read_text(errors="replace"))[-most:]]
    except OSError:
        return []


def outcome_of(answer: Answer, expected: Sequence[int], death: str) -> dict[str, str]:
    """{"outcome"}, and "error" unless it is ok: of a restored server that was asked for the tokens
    it gave before its dump. `death`: how it ended, "" while it runs."""
    if death:
        return {"outcome": "died", "error": death}
    if answer.tokens == list(expected):
        return {"outcome": "ok"}
    return {
        "outcome": "wrong tokens" if answer.tokens else "no token",
        "error": answer.error or f"{answer.tokens[:8]} in place of {list(expected)[:8]}",
    }


def refused(error: Exception, log: Path) -> dict[str, str]:
    """{"outcome", "error"} of a restore that raised; `log`: the server's output, for its last
    words."""
    return {
        "outcome": "refused",
        "error": f"{error}\n{served.last_words(log, 600)}".strip(),
    }


def mapped_files(pid: int) -> list[str]:
    """Regular files that a process has mapped: CRIU maps them again, and their pages are of the
    disk's as the CRIU image is."""
    paths = {path for path in proc.mapped_files(pid) if not path.startswith("/dev/")}
    return sorted(path for path in paths if os.path.isfile(path))
