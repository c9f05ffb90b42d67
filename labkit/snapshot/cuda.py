"""The GPU trial of a whole process: a server parked, dumped, and restored from one CRIU image, cold
and warm (`labkit.snapshot.gpu_process`).

What a parked process keeps of the driver's files is in the record (`held_parked`): CRIU knows none
of them. It is tried as it is first, then with those descriptors closed
(`labkit.snapshot.descriptors`), and both outcomes are kept.

    python -m labkit.snapshot.cuda --preset 1b --cold 1 --warm 1     # on a GPU host, as root: JSON
        lines, the last one counts
    python -m labkit.snapshot.cuda --close-descriptors               # not tried as it is first

Restored again and again, ended in between: first with the CRIU image and all that it maps evicted
(proven by page residency), then from memory. Limit: GPU bytes ÷ the bus's rate twice, and the CRIU
image ÷ disk rate. Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from labkit.core import cold, timeline
from labkit.core.beside import scratch
from labkit.core.json_types import JsonObject
from labkit.core.workspace import Workspace
from labkit.device import cuda_checkpoint as cuda
from labkit.device import served
from labkit.device.driver_states import Driver
from labkit.device.nvml import device_used_bytes, persistence_mode
from labkit.device.trial_output import Notify, cache_facts, driver_name, fail, report
from labkit.errors import LabError
from labkit.snapshot import criu, descriptors
from labkit.snapshot.gpu_process import dump, mapped_files, outcome_of, refused, restore


def trial(
    preset: str,
    times: Mapping[str, int],
    close_first: bool,
    found: JsonObject,
    notify: Notify,
    *,
    prefix: str = served.DEVICE_FILES,
) -> None:
    """Start, dump, and restore from one CRIU image `times["cold"]` and `times["warm"]` times."""
    driver, space = cuda.open_driver(), Workspace.default()
    found |= {
        "preset": preset,
        "driver": driver_name(driver),
        "criu": criu.version(),
        "persistence_mode": persistence_mode(),
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
        notify()
        mapped = mapped_files(serving.pid)
        dumped = _dumped(
            driver, serving, work, [prefix] if close_first else ["", prefix], found, notify
        )
        if dumped is None:
            after = served.ask(serving.port, serving.ended)
            found["served_after_refusal"] = after.tokens == serving.answer.tokens
            return
        serving.process.wait()
        closed, permissions = dumped["closed"], dumped["permissions"]
        # what to open again after the restore: all that was closed, then nothing
        attempts = [closed, []] if closed else [[]]
        for want in [*["cold"] * times["cold"], *["warm"] * times["warm"]]:
            for reopened in attempts:
                state = "left closed" if closed else "untouched"
                entry = {"want": want, "descriptors": "opened again" if reopened else state}
                found["restores"].append(entry)
                _restored(
                    driver,
                    serving,
                    dumped["images"],
                    work / "restore",
                    permissions,
                    reopened,
                    mapped,
                    entry,
                )
                notify()
                # it could be woken: the others need not be tried
                if "gone_to_first_token_s" in entry:
                    attempts = [reopened]
                    break
            if entry["outcome"] != "ok":
                fail(found, f"restore, {want}, descriptors {entry['descriptors']}", entry["error"])
            if "gone_to_first_token_s" not in entry:
                return  # in no way, and the next time would be no better


def _dumped(
    driver: Driver,
    serving: served.Serving,
    work: Path,
    prefixes: Sequence[str],
    found: JsonObject,
    notify: Notify,
) -> JsonObject | None:
    """The first dump that CRIU takes, with the descriptors of one of `prefixes` closed ("": none);
    None when it takes none. Each is in found["dumps"]."""
    for close in prefixes:
        entry: JsonObject = {"descriptors": "closed" if close else "untouched"}
        found["dumps"].append(entry)
        number = len(found["dumps"])
        criu_images = work / f"images-{number}"
        criu_images.mkdir()
        try:
            dumped = dump(
                driver, serving.pid, criu_images, work / f"dump-{number}", close=close, found=entry
            )
        except (LabError, OSError) as error:
            entry |= {"outcome": "refused", "error": str(error)}
            shutil.rmtree(criu_images)
            notify()
            if serving.ended():
                fail(found, "dump", served.death(serving.pid, serving.log) or error)
                return None
            if close == prefixes[-1] or not entry.get("held_parked", {}).get("descriptors"):
                fail(found, f"dump, descriptors {entry['descriptors']}", error)
                return None
            continue
        entry |= {
            "outcome": "ok",
            "dump_s": dumped["dump_s"],
            "pages_bytes": dumped["pages_bytes"],
            "image_bytes": sum(p.stat().st_size for p in criu_images.iterdir()),
            "closed": [asdict(c) for c in dumped["closed"]],
        }
        found["device_used_gone_bytes"] = device_used_bytes()
        notify()
        return {**dumped, "images": criu_images}
    return None


def _restored(
    driver: Driver,
    serving: served.Serving,
    criu_images: Path,
    work: Path,
    permissions: Mapping[str, int],
    closed: Sequence[descriptors.Closed],
    mapped: Sequence[str],
    entry: JsonObject,
) -> None:
    """One restore to its first token, into `entry`; the process is ended again."""
    want = entry["want"]
    image_state = cold.set_cache_state([criu_images], want)
    libraries = cold.set_cache_state(mapped, want, caches=False)
    if want == "cold":
        image_state = cold.verify_cache_state([criu_images], want)
    entry["cache"] = {"image": cache_facts(image_state), "mapped_files": cache_facts(libraries)}
    pid, began = 0, timeline.now_s()
    try:
        pid = restore(driver, criu_images, work, permissions, closed, found=entry)
        entry["woken_s"] = timeline.now_s() - began
        after = served.ask(serving.port, lambda: served.gone(pid))
        entry |= {
            "gone_to_first_token_s": after.first_token_s - began if after.first_token_s else None,
            "equal_tokens": after.tokens == serving.answer.tokens,
            "device_woken_bytes": driver.memory_bytes(pid),
            "resident_bytes": served.resident_bytes(pid),
        }
        entry |= outcome_of(after, serving.answer.tokens, served.death(pid, serving.log))
    except (LabError, OSError) as error:
        entry |= refused(error, serving.log)
    finally:
        if pid:
            criu.end([pid])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m labkit.snapshot.cuda")
    parser.add_argument("--preset", default="1b")
    parser.add_argument(
        "--cold", type=int, default=1, help="restores with the CRIU image and what it maps evicted"
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
    return report(
        lambda found, notify: trial(
            args.preset,
            {"cold": args.cold, "warm": args.warm},
            args.close_descriptors,
            found,
            notify,
            prefix=args.descriptors,
        ),
        {"part": "criu"},
    )


if __name__ == "__main__":
    sys.exit(main())
