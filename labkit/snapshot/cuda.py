"""A GPU process as a whole: CUDA checkpoint, then CRIU; CRIU restore, then CUDA restore. One state
machine.

    running → locked → checkpointed → dumped (gone) → restored by CRIU → checkpointed → locked →
        running → first token

CRIU cannot see a GPU, and need not: a parked process holds none. So CRIU goes without its CUDA
plugin here, and the driver is asked by its own calls before and after. A dump that is refused
brings the process back to running. What a parked process keeps of the driver's files is in the
record (`held_parked`): CRIU knows none of them. It is tried as it is first, then with those
descriptors closed (`labkit.snapshot.descriptors`), and both outcomes are kept.

    python -m labkit.snapshot.cuda --preset 1b --cold 1 --warm 1     # on a GPU host, as root: JSON
        lines, the last one counts
    python -m labkit.snapshot.cuda --close-descriptors               # not tried as it is first

Restored from one image again and again, ended in between: first with the image and all that it maps
evicted (proven by page residency), then from memory. Limit: GPU bytes ÷ the bus's rate twice, and
the image ÷ disk rate, which now holds the GPU's memory. Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labkit.core import cold, timeline
from labkit.core.beside import scratch
from labkit.core.workspace import Workspace
from labkit.device import cuda_checkpoint as cuda
from labkit.device import served
from labkit.device.fake_driver import FakeDriver
from labkit.device.gpu_parts import Tell, driver_name, fail, say
from labkit.errors import LabError
from labkit.snapshot import criu, descriptors, explain
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
    driver: cuda.Driver,
    pid: int,
    images: Path,
    work: Path,
    *,
    close: str = "",
    found: dict[str, Any] | None = None,
) -> dict[str, Any]:
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
            "device_used_parked_bytes": served.device_used_bytes(),
            "resident_parked_bytes": served.resident_bytes(pid),
            "held_parked": served.held(pid),
        }
        free, needed = shutil.disk_usage(images).free, seen["resident_parked_bytes"] or 0
        if free < needed:
            raise SnapshotError(
                f"an image of {needed / 1e9:.1f} GB does not fit on the disk, which has"
                f" {free / 1e9:.1f} GB free",
                "the process goes on running",
                "LABKIT_HOME=/path/on/a/larger/disk",
            )
        closed = descriptors.close(pid, close) if close else []
        try:
            return {**criu.dump(pid, images, work, options=without_plugins(work)), "closed": closed}
        except BaseException:
            descriptors.reopen(pid, closed)  # before it is woken
            raise
        finally:
            seen["criu"] = said(work / "dump.log")


def restore(
    driver: cuda.Driver,
    images: Path,
    work: Path,
    permissions: Mapping[str, int],
    closed: Sequence[descriptors.Closed] = (),
    found: dict[str, Any] | None = None,
) -> int:
    """CRIU, then the GPU; the pid. A process whose GPU state cannot come back is ended: half of it
    would serve wrong tokens. `found`: as for `dump`."""
    seen = found if found is not None else {}
    began = timeline.now_s()
    try:
        pid, _ = criu.restore(
            images,
            work,
            permissions=permissions,
            stopped=bool(closed),
            options=without_plugins(work),
        )
    finally:
        seen |= {"criu_restore_s": timeline.now_s() - began, "criu": said(work / "restore.log")}
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


def said(log: Path, most: int = 8) -> list[str]:
    """CRIU's own errors, the last ones."""
    try:
        return [line[:300] for line in explain.error_lines(log.read_text(errors="replace"))[-most:]]
    except OSError:
        return []


# ---- the trial -----------------------------------------------------------------------------------


def trial(
    preset: str,
    times: Mapping[str, int],
    close_first: bool,
    found: dict[str, Any],
    tell: Tell,
    *,
    prefix: str = served.DEVICE_FILES,
) -> None:
    """Start, dump, and restore from one image `times["cold"]` and `times["warm"]` times."""
    driver, space = cuda.open_driver(), Workspace.default()
    found |= {
        "preset": preset,
        "driver": driver_name(driver),
        "criu": criu.version(),
        "persistence_mode": served.persistence_mode(),
        "dumps": [],
        "restores": [],
    }
    with (
        scratch("gpu-criu-", space.artifacts) as work,
        served.server(preset, where=work) as serving,
    ):
        driver = cuda.open_driver()  # again: the simulated one knows the process from now on
        found |= {
            "start_s": serving.start_s,
            "start_phases_s": serving.phases_s,
            "held_running": served.held(serving.pid),
        }
        tell()
        mapped = mapped_files(serving.pid)
        dumped = _dumped(
            driver, serving, work, [prefix] if close_first else ["", prefix], found, tell
        )
        if dumped is None:
            after = served.ask(serving.port, serving.ended)
            found["served_after_refusal"] = after.tokens == serving.answer.tokens
            return
        serving.process.wait()
        closed, permissions, images = dumped["closed"], dumped["permissions"], dumped["images"]
        ways = [closed, []] if closed else [[]]
        for want in [*["cold"] * times["cold"], *["warm"] * times["warm"]]:
            for way in ways:
                one: dict[str, Any] = {
                    "want": want,
                    "descriptors": (
                        "opened again" if way else "left closed" if closed else "untouched"
                    ),
                }
                found["restores"].append(one)
                _restored(driver, serving, images, work / "restore", permissions, way, mapped, one)
                tell()
                # it could be woken: the others need not be tried
                if "gone_to_first_token_s" in one:
                    ways = [way]
                    break
            if one["outcome"] != "ok":
                fail(found, f"restore, {want}, descriptors {one['descriptors']}", one["error"])
            if "gone_to_first_token_s" not in one:
                return  # in no way, and the next time would be no better


def _dumped(
    driver: cuda.Driver,
    serving: served.Serving,
    work: Path,
    ways: Sequence[str],
    found: dict[str, Any],
    tell: Tell,
) -> dict[str, Any] | None:
    """The first way in which CRIU takes it; None when it takes none. Each is in found["dumps"]."""
    for close in ways:
        one: dict[str, Any] = {"descriptors": "closed" if close else "untouched"}
        found["dumps"].append(one)
        images, room = work / f"images-{len(found['dumps'])}", work / f"dump-{len(found['dumps'])}"
        images.mkdir()
        try:
            made = dump(driver, serving.pid, images, room, close=close, found=one)
        except (LabError, OSError) as error:
            one |= {"outcome": "refused", "error": str(error)}
            shutil.rmtree(images)
            tell()
            if serving.ended():
                fail(found, "dump", served.death(serving.pid, serving.log) or error)
                return None
            if close == ways[-1] or not one.get("held_parked", {}).get("descriptors"):
                fail(found, f"dump, descriptors {one['descriptors']}", error)
                return None
            continue
        one |= {
            "outcome": "ok",
            "dump_s": made["dump_s"],
            "pages_bytes": made["pages_bytes"],
            "image_bytes": sum(p.stat().st_size for p in images.iterdir()),
            "closed": [asdict(c) for c in made["closed"]],
        }
        found["device_used_gone_bytes"] = served.device_used_bytes()
        tell()
        return {**made, "images": images}
    return None


def _restored(
    driver: cuda.Driver,
    serving: served.Serving,
    images: Path,
    work: Path,
    permissions: Mapping[str, int],
    closed: Sequence[descriptors.Closed],
    mapped: Sequence[str],
    one: dict[str, Any],
) -> None:
    """One restore to its first token, into `one`; the process is ended again."""
    there = cold.set_cache_state([images], one["want"])
    libraries = cold.set_cache_state(mapped, one["want"], caches=False)
    one["cache"] = {
        "image": (
            _state(cold.verify_cache_state([images], one["want"]))
            if one["want"] == "cold"
            else _state(there)
        ),
        "mapped_files": _state(libraries),
    }
    pid, began = 0, timeline.now_s()
    try:
        pid = restore(driver, images, work, permissions, closed, found=one)
        one["woken_s"] = timeline.now_s() - began
        after = served.ask(serving.port, lambda: served.gone(pid))
        one["gone_to_first_token_s"] = after.first_token_s - began if after.first_token_s else None
        one |= {
            "equal_tokens": after.tokens == serving.answer.tokens,
            "device_woken_bytes": driver.memory_bytes(pid),
            "resident_bytes": served.resident_bytes(pid),
        }
        if death := served.death(pid, serving.log):
            one |= {"outcome": "died", "error": death}
        elif not one["equal_tokens"]:
            one |= {
                "outcome": "wrong tokens" if after.tokens else "no token",
                "error": (
                    after.error or f"{after.tokens[:8]} in place of {serving.answer.tokens[:8]}"
                ),
            }
        else:
            one["outcome"] = "ok"
    except (LabError, OSError) as error:
        one |= {
            "outcome": "refused",
            "error": f"{error}\n{served.last_words(serving.log, 600)}".strip(),
        }
    finally:
        if pid:
            criu.end([pid])


def mapped_files(pid: int) -> list[str]:
    """Regular files that a process has mapped: CRIU maps them again, and their pages are of the
    disk's as the image is."""
    found = {
        line.split(None, 5)[5]
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
        if line.count("/")
    }
    return sorted(
        path
        for path in found
        if path.startswith("/") and not path.startswith("/dev/") and os.path.isfile(path)
    )


def _state(seen: cold.CacheState) -> dict[str, Any]:
    return {
        "state": seen.state,
        "method": seen.method,
        "resident_share": round(seen.share, 4),
        "bytes": seen.total_bytes,
        "note": seen.note,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m labkit.snapshot.cuda")
    parser.add_argument("--preset", default="1b")
    parser.add_argument(
        "--cold", type=int, default=1, help="restores with the image and what it maps evicted"
    )
    parser.add_argument(
        "--warm", "--times-warm", type=int, default=1, help="restores from memory, after them"
    )
    parser.add_argument(
        "--close-descriptors",
        action="store_true",
        help="of /dev/nvidia*, at once: not tried as it is first",
    )
    # another prefix, for tests without a GPU
    parser.add_argument("--descriptors", default=served.DEVICE_FILES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    return say(
        lambda found, tell: trial(
            args.preset,
            {"cold": args.cold, "warm": args.warm},
            args.close_descriptors,
            found,
            tell,
            prefix=args.descriptors,
        ),
        {"part": "criu"},
    )


if __name__ == "__main__":
    sys.exit(main())
