"""A process of its own that looks at the machine ten times a second beside a trial, and writes what
it saw as JSON lines.

CPU, disk, loopback network, memory, pressure (PSI), compaction and transparent-huge-page counters
(a start that waits for compaction looks like a slow loader), and the GPU through NVML, which makes
no CUDA context. Everything is a counter or a gauge of the kernel, written raw; rates are made when
read. Cost: about 0.3 ms a look, 0.3 % of one CPU. Before the first sample and after the last it
asks what other processes used (labkit.core.others).

    with sampling(run_dir / "samples.jsonl", ledger=ledger):      # started before t0, ended after
        the first token
        ...
    summary(run_dir / "samples.jsonl")      # {"cpu_share": …, "disk_read_bytes": …,
        "peak_memory_bytes": …, "series": {…}}

It ends when its standard input does, so no death of the harness leaves it behind. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from labkit.core import others
from labkit.core.interpreter import module
from labkit.core.json_types import JsonObject

HERTZ = 10.0
#: Counters only grow; a summary takes last minus first. Everything else is a gauge.
GAUGES = frozenset(
    {"t_s", "memory_available_bytes", "dirty_bytes", "gpu_memory_bytes", "gpu_busy_share"}
)
_VMSTAT = (
    "compact_stall",
    "compact_success",
    "thp_fault_alloc",
    "thp_fault_fallback",
    "pgmajfault",
    "pgfault",
    "allocstall_normal",
    "oom_kill",
)
_SECTOR_BYTES = 512


@contextlib.contextmanager
def sampling(
    path: str | os.PathLike[str], *, hertz: float = HERTZ, ledger: Any = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the sampler while the block runs. It has written its first line before the block
    starts."""
    process = subprocess.Popen(
        [*module("labkit.core.sampler"), os.fspath(path), str(hertz)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    entry = ledger.note("process", process.pid) if ledger else None
    try:
        assert process.stdin and process.stdout
        process.stdout.readline()
        yield process
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()  # type: ignore[union-attr]
        if ledger:
            ledger.done(entry)


def read(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """All samples; a torn last line is left out, a missing file is no samples."""
    samples = []
    with contextlib.suppress(FileNotFoundError):
        for line in Path(path).read_text(errors="replace").split("\n"):
            try:
                doc = json.loads(line)
            except ValueError:
                continue
            if isinstance(doc, dict) and isinstance(doc.get("t_s"), (int, float)):
                samples.append(doc)
    return samples


def summary(path: str | os.PathLike[str], points: int = 120) -> JsonObject:
    """Differences of counters over the trial, extremes of gauges, and series of rates thinned to
    `points` for a figure.

    {"seconds", "samples", "cpu_share" (of all CPUs), "disk_read_bytes", …, "peak_memory_bytes",
    "others": {"cpu_s", "steal_s", "cpus", "disk_bytes", "most", "visible"}, "series": {"t_s": […],
    "cpu_share": […], …}}; `t_s` is CLOCK_MONOTONIC, as in the timeline (`relative` counts from
    t0). {} for fewer than two samples."""
    samples = read(path)
    if len(samples) < 2:
        return {}
    first, last = samples[0], samples[-1]
    figures: JsonObject = {
        "seconds": round(last["t_s"] - first["t_s"], 3),
        "samples": len(samples),
    }
    for key in first:
        if key not in GAUGES and key in last and not key.startswith("cpu_"):
            figures[key] = round(last[key] - first[key], 6)
    figures["cpu_share"] = _cpu_share(first, last)
    figures["peak_memory_bytes"] = first["memory_available_bytes"] - min(
        s["memory_available_bytes"] for s in samples
    )
    for key in ("gpu_memory_bytes", "gpu_busy_share"):
        if key in first:
            figures["peak_" + key] = max(s.get(key, 0) for s in samples)
    if used := _used_by_others(path):
        ticks = last.get("cpu_steal_ticks", 0) - first.get("cpu_steal_ticks", 0)
        steal_s = round(ticks / os.sysconf("SC_CLK_TCK"), 3)
        figures["others"] = {**used, "steal_s": steal_s, "cpus": os.cpu_count() or 1}
    step = max(1, -(-(len(samples) - 1) // points))
    thin = samples[::step]
    figures["series"] = {
        "t_s": [round(b["t_s"], 3) for b in thin[1:]],
        "cpu_share": [_cpu_share(a, b) for a, b in itertools.pairwise(thin)],
        **{
            name: [_per_second(a, b, key) for a, b in itertools.pairwise(thin)]
            for name, key in (
                ("disk_read_bytes_per_s", "disk_read_bytes"),
                ("disk_write_bytes_per_s", "disk_write_bytes"),
                ("loopback_bytes_per_s", "loopback_bytes"),
            )
        },
        "memory_available_bytes": [b["memory_available_bytes"] for b in thin[1:]],
        **{
            key: [b.get(key, 0) for b in thin[1:]]
            for key in ("gpu_memory_bytes", "gpu_busy_share")
            if key in first
        },
    }
    return figures


def _used_by_others(path: str | os.PathLike[str]) -> JsonObject:
    """What the sampler wrote in its last line; {} where it was killed before."""
    with contextlib.suppress(OSError, ValueError):
        last = json.loads(Path(path).read_text(errors="replace").rstrip("\n").rpartition("\n")[2])
        if isinstance(last, dict) and isinstance(last.get("others"), dict):
            return last["others"]
    return {}


def relative(found: JsonObject, t0_s: float) -> JsonObject:
    """The same summary with its series' times counted from t0, as a record's spans are."""
    if "series" not in found:
        return found
    return {
        **found,
        "series": {**found["series"], "t_s": [round(t - t0_s, 3) for t in found["series"]["t_s"]]},
    }


def _cpu_share(a: dict[str, float], b: dict[str, float]) -> float:
    busy, whole = b["cpu_busy_ticks"] - a["cpu_busy_ticks"], b["cpu_all_ticks"] - a["cpu_all_ticks"]
    return round(busy / whole, 3) if whole > 0 else 0.0


def _per_second(a: dict[str, float], b: dict[str, float], key: str) -> float:
    return round((b[key] - a[key]) / max(b["t_s"] - a["t_s"], 1e-6))


class MachineSample:
    """Open files of /proc, read again from their start each time: no path look-up, no allocation
    worth naming."""

    def __init__(self) -> None:
        self._fds = {
            name: os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            for name, path in (
                ("stat", "/proc/stat"),
                ("disk", "/proc/diskstats"),
                ("net", "/proc/net/dev"),
                ("mem", "/proc/meminfo"),
                ("vm", "/proc/vmstat"),
            )
        }
        for resource in ("cpu", "io", "memory"):
            with contextlib.suppress(OSError):  # a kernel without PSI
                self._fds["psi_" + resource] = os.open(
                    f"/proc/pressure/{resource}", os.O_RDONLY | os.O_CLOEXEC
                )
        self._disks = whole_disks()
        self._gpu = _gpu_look()

    def _text(self, name: str) -> str:
        try:
            return os.pread(self._fds[name], 1 << 16, 0).decode(errors="replace")
        except OSError:
            return ""

    def __call__(self) -> dict[str, float]:
        sample: dict[str, float] = {"t_s": round(time.clock_gettime(time.CLOCK_MONOTONIC), 4)}
        ticks = [int(x) for x in self._text("stat").split("\n", 1)[0].split()[1:9]]
        sample |= {
            "cpu_all_ticks": sum(ticks),
            "cpu_busy_ticks": sum(ticks) - ticks[3] - ticks[4],
            "cpu_iowait_ticks": ticks[4],
            "cpu_steal_ticks": ticks[7] if len(ticks) > 7 else 0,
        }
        sample |= disk_counters(self._text("disk"), self._disks)
        sample["loopback_bytes"] = loopback_bytes(self._text("net"))
        memory = fields(self._text("mem"))
        sample |= {
            "memory_available_bytes": memory.get("MemAvailable", 0) * 1024,
            "dirty_bytes": memory.get("Dirty", 0) * 1024,
        }
        vm = fields(self._text("vm"))
        sample |= {key: vm[key] for key in _VMSTAT if key in vm}
        for name in self._fds:
            if name.startswith("psi_"):
                sample |= {
                    f"{name}_{kind}_s": total_us / 1e6
                    for kind, total_us in pressure(self._text(name)).items()
                }
        if self._gpu:
            sample |= self._gpu()
        return sample


def fields(text: str) -> dict[str, int]:
    """`Name: 123 kB` and `name 123` lines → numbers; lines of another shape are left out."""
    counters = {}
    for line in text.split("\n"):
        parts = line.replace(":", " ").split()
        if len(parts) >= 2 and parts[1].isdigit():
            counters[parts[0]] = int(parts[1])
    return counters


def disk_counters(text: str, disks: set[str]) -> dict[str, float]:
    """Sum over whole disks of /proc/diskstats: bytes read and written, requests, milliseconds busy.
    Partitions would count twice."""
    read = written = reads = busy_ms = 0
    for line in text.split("\n"):
        parts = line.split()
        if len(parts) >= 13 and parts[2] in disks:
            reads, read, written, busy_ms = (
                reads + int(parts[3]),
                read + int(parts[5]),
                written + int(parts[9]),
                busy_ms + int(parts[12]),
            )
    return {
        "disk_reads": reads,
        "disk_read_bytes": read * _SECTOR_BYTES,
        "disk_write_bytes": written * _SECTOR_BYTES,
        "disk_busy_s": busy_ms / 1e3,
    }


def whole_disks() -> set[str]:
    """Physical and virtual disks; loop, RAM and device-mapper devices lie on top of others and
    would count twice."""
    with contextlib.suppress(OSError):
        return {
            name
            for name in os.listdir("/sys/block")
            if not name.startswith(("loop", "ram", "zram", "dm-", "md", "sr", "nbd"))
        }
    return set()


def loopback_bytes(text: str) -> int:
    """Bytes received on `lo` of /proc/net/dev: on one machine the emulated network is loopback."""
    for line in text.split("\n"):
        name, _, rest = line.partition(":")
        if name.strip() == "lo" and rest.split()[:1]:
            return int(rest.split()[0])
    return 0


def pressure(text: str) -> dict[str, int]:
    """`some avg10=… total=123` lines → {"some": microseconds, "full": microseconds} since boot."""
    counters = {}
    for line in text.split("\n"):
        kind, _, rest = line.partition(" ")
        total = rest.rpartition("total=")[2]
        if kind in ("some", "full") and total.isdigit():
            counters[kind] = int(total)
    return counters


def _gpu_look() -> Callable[[], dict[str, float]] | None:
    if not os.path.exists("/dev/nvidiactl"):
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except Exception:
        # no driver that answers: sampled without a GPU, and the record has no such series
        return None

    def look() -> dict[str, float]:
        with contextlib.suppress(pynvml.NVMLError):
            return {
                "gpu_memory_bytes": sum(
                    int(pynvml.nvmlDeviceGetMemoryInfo(h).used) for h in handles
                ),
                "gpu_busy_share": (
                    max((pynvml.nvmlDeviceGetUtilizationRates(h).gpu for h in handles), default=0)
                    / 100
                ),
            }
        return {}

    return look if handles else None


def _main(path: str, hertz: float) -> None:
    import select
    import signal

    # Ctrl-C is the harness's to handle; our end is the end of stdin
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    look, before = MachineSample(), others.census()
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    due = time.monotonic()
    warned = False
    while True:
        os.write(fd, (json.dumps(look(), separators=(",", ":")) + "\n").encode())
        if not warned:
            warned = True
            sys.stdout.write("sampling\n")
            sys.stdout.flush()
        due = max(due + 1 / hertz, time.monotonic())
        ready, _, _ = select.select([0], [], [], max(0.0, due - time.monotonic()))
        if ready and not os.read(0, 4096):
            # the last moment counts too
            os.write(fd, (json.dumps(look(), separators=(",", ":")) + "\n").encode())
            used = {"others": others.used(before, others.census())}
            os.write(fd, (json.dumps(used, separators=(",", ":")) + "\n").encode())
            return


if __name__ == "__main__":
    _main(sys.argv[1], float(sys.argv[2]))
