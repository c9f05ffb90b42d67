"""What a trial looks at from outside: page residency, /proc of the server, the byte servers' own
counters, samples.

Nothing here asks the technique under test. /proc/PID/io and maps are kept by the kernel; store
counters by the process at the other end of the wire; residency by cachestat or mincore. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from labkit.core import cold, proc, secrets, timeline
from labkit.core.control_call import call_json
from labkit.core.json_types import JsonObject
from labkit.core.ledger import Ledger
from labkit.core.plan import LaunchPlan
from labkit.core.residency import residency, walk

#: In place of a store's URL among a plan's `stat_urls`.
INTERFACES = "interfaces"


def set_cache_state_of(plan: LaunchPlan, node: Path) -> JsonObject:
    """Bring the page cache into the scenario's state and prove it. `state` is cold, warm or
    unverified."""
    if not plan.cold_paths:
        left = sum(len(files) for _, _, files in os.walk(node))
        return {
            "state": "cold" if not left else "unverified",
            "method": "the node's disk is an empty directory",
            "files": left,
            "total_bytes": 0,
            "resident_bytes": 0,
        }
    want = "warm" if plan.scenario == "hot-node" else "cold"
    # Dropping the host's caches would also cool the stores, which stand for other machines.
    return cold.set_cache_state(
        plan.cold_paths, want, caches=not plan.stat_urls, roots=_roots(plan)
    ).as_json()


def residency_after(plan: LaunchPlan) -> JsonObject:
    """How much of the cold paths is in the page cache now: what the start really read (plus
    read-ahead)."""
    return residency(walk(plan.cold_paths, _roots(plan))).as_json() if plan.cold_paths else {}


def _roots(plan: LaunchPlan) -> tuple[str, ...]:
    """Of the cold paths, the root of the image."""
    return (plan.state.rootfs,) if plan.state.rootfs else ()


def store_counters(plan: LaunchPlan) -> dict[str, JsonObject]:
    """Counters of each store. A fragment of the URL keeps the paths below a prefix (`#/v2/`), or
    those that are not (`#!/v2/`): registry and bucket are one server where the node's one link
    carries both. A store outside of the lab counts nothing for us: for `INTERFACES` it is what this
    host's network interfaces have received."""
    found: JsonObject = {}
    read: JsonObject = {}
    for name, url in plan.stat_urls.items():
        address, _, prefix = url.partition("#")
        if address == INTERFACES:
            found[name] = {"requests": 0, "bytes_sent": received_bytes()}
            continue
        with contextlib.suppress(OSError, ValueError):
            counters = read[address] = read.get(address) or call_json(address)
            found[name] = _of_paths(counters, prefix) if prefix else counters
    return found


def received_bytes() -> int:
    """What all interfaces of this network namespace have received since they came up (loopback too:
    a store may be there)."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    return sum(int(line.partition(":")[2].split()[0]) for line in lines)


def _of_paths(counters: JsonObject, prefix: str) -> JsonObject:
    wanted, below = not prefix.startswith("!"), prefix.lstrip("!")
    kept = {
        path: c
        for path, c in counters.get("by_path", {}).items()
        if path.startswith(below) == wanted
    }
    return {
        **counters,
        "by_path": kept,
        **{key: sum(c.get(key, 0) for c in kept.values()) for key in ("requests", "bytes_sent")},
    }


def store_difference(before: JsonObject, after: JsonObject) -> dict[str, JsonObject]:
    """after − before, counter by counter; `by_path` too."""

    def minus(a: Any, b: Any) -> Any:
        if isinstance(a, dict):
            difference = {k: minus(v, (b or {}).get(k)) for k, v in a.items()}
            return (
                {k: v for k, v in difference.items() if v not in (0, {}, None)}
                if b is not None
                else difference
            )
        return a - (b or 0) if isinstance(a, (int, float)) and not isinstance(a, bool) else a

    difference = {name: minus(counters, before.get(name, {})) for name, counters in after.items()}
    for counters in difference.values():
        counters.setdefault("bytes_sent", 0)
        counters.setdefault("requests", 0)
    return difference


def identity(port: int) -> JsonObject:
    """Which process answered: its own pid, boot nonce and start (`/_labkit/identity`); empty for a
    server that is not ours."""
    with contextlib.suppress(OSError, ValueError):
        return call_json(f"http://127.0.0.1:{port}/_labkit/identity", timeout_s=2.0)
    return {}


def resident_bytes(pid: int | str = "self") -> tuple[int, int]:
    """Resident memory of a process, now and at its peak since it was exec'd. Not getrusage: that
    peak is inherited from whoever started it."""
    now, peak = proc.status_bytes(pid, "VmRSS", "VmHWM")
    return now, peak


def read_by_calls(pid: int | str = "self") -> int:
    """Bytes that the kernel has counted as read by one process, by read and its like: files, pipes;
    not what recv brings. 0 of one that is gone."""
    with contextlib.suppress(OSError, ValueError):
        return proc.io_counters(pid).get("rchar", 0)
    return 0


def process_facts(pid: int) -> JsonObject:
    """/proc/PID of the server and of its children: io (summed), mapped files, mounts, peak
    memory."""
    family = [pid, *proc.descendants(pid)]
    facts: JsonObject = {
        "pid": pid,
        "family": family,
        "io": {},
        "maps": [],
        "mounts": [],
        "rss_bytes": 0,
        "peak_rss_bytes": 0,
    }
    maps: set[str] = set()
    for member in family:
        with contextlib.suppress(OSError):
            for key, value in proc.io_counters(member).items():
                facts["io"][key] = facts["io"].get(key, 0) + value
        with contextlib.suppress(OSError):
            maps.update(proc.mapped_files(member))
        with contextlib.suppress(OSError):
            now, peak = resident_bytes(member)
            facts["rss_bytes"] += now
            facts["peak_rss_bytes"] += peak
    facts["maps"] = sorted(maps)
    for name, key in (("root", "root"), ("exe", "exe"), ("cwd", "cwd")):
        with contextlib.suppress(OSError):
            facts[key] = os.readlink(f"/proc/{pid}/{name}")
    facts["ns"] = {}
    for kind in ("user", "mnt", "pid", "net"):
        with contextlib.suppress(OSError):
            facts["ns"][kind] = os.readlink(f"/proc/{pid}/ns/{kind}")
    with contextlib.suppress(OSError):
        facts["mounts"] = (
            Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape").splitlines()
        )
    with contextlib.suppress(OSError):
        environment = proc.environ(pid, "replace")
        secrets.learn_environment(environment)  # its log may name what it was started with
        facts["environ"] = secrets.masked(environment)
    with contextlib.suppress(OSError):
        argv = [
            a.decode(errors="replace")
            for a in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if a
        ]
        secrets.learn_argv(argv)
        facts["cmdline"] = secrets.mask_argv(argv)
    return facts


class Watch(Protocol):
    """What looks at the machine while a trial runs. `end`: the samples; may be called again."""

    def end(self) -> JsonObject: ...


class _Nothing:
    def end(self) -> JsonObject:
        return {}


def nothing() -> Watch:
    return _Nothing()


class _Watching:
    def __init__(self, sampler: Any, path: Path):
        self._sampler, self._path = sampler, path
        self._samples: JsonObject | None = None

    def end(self) -> JsonObject:
        if self._samples is None:
            from labkit.core import sampler

            self._samples = {}
            self._sampler.__exit__(None, None, None)
            with contextlib.suppress(OSError, ValueError):
                self._samples = sampler.summary(self._path)
        return self._samples


def start(directory: Path, ledger: Ledger) -> _Watching:
    """Start the sampler process; `.end()` ends it and gives its samples."""
    from labkit.core import sampler

    path = directory / "samples.jsonl"
    watching = sampler.sampling(path, ledger=ledger)
    watching.__enter__()
    return _Watching(watching, path)


class PhaseFollower:
    """Follows the timeline file while the client waits, and calls back as phases end. Ten looks a
    second, off the measured processes."""

    def __init__(self, path: Path, t0_s: float, on_phase: Callable[[str, float], Any] | None):
        self.path, self.t0_s, self.on_phase = path, t0_s, on_phase
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _follow(self) -> None:
        reported: set[str] = set()
        while not self._stop.wait(0.2):
            for s in timeline.read(self.path):
                if s.is_phase and s.name not in reported:
                    reported.add(s.name)
                    self.on_phase(s.name, s.end_s - self.t0_s)  # type: ignore[misc]

    def __enter__(self) -> PhaseFollower:
        if self.on_phase:
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(2)
