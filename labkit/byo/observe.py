"""Watching a start from outside: what the kernel tells about processes, files, ports and devices,
without touching the server.

    exec → libraries mapped → config opened → device touched → weights opened → weights in → port
        open → health → first token

Opened files come from inotify on the weights directory (every open, whoever makes it; no root),
bytes and memory from /proc of the process and its children every 10 ms, the port from
/proc/net/tcp, devices from /proc/PID/fd, health from the server itself. Resolution is therefore
about 10 ms; the cost about 2 % of one core, in the harness's own process. What this cannot see:
processes that are not children (a container daemon's), which leaves files, port, health and log.

    with StartObserver(files, host, port, kind) as observer:
        ...start the server...; observer.root(pid)
    observer.moments["weights"]     # Event(seconds, how it was noticed)

Lesson: notebooks/09_decide.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labkit.byo.servers import ServerKind
from labkit.core import proc, timeline
from labkit.core.control_call import call, http_url
from labkit.formats.weight_files import holds_weights

POLL_S = 0.01
#: In every process before its own work begins; the dynamic linker and what it always brings.
BASE_LIBRARIES = (
    "ld-linux",
    "ld-musl",
    "libc.so",
    "libc-",
    "libm.so",
    "libm-",
    "libdl",
    "libpthread",
    "librt",
    "libutil",
    "libz.so",
    "libstdc++",
    "libgcc_s",
    "libpython",
    "libexpat",
)
DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/render", "/dev/accel")
#: Configuration and tokenizers.
SMALL_SUFFIXES = (".json", ".model", ".txt", ".jinja")

_IN_ACCESS, _IN_CLOSE_NOWRITE, _IN_OPEN = 0x1, 0x10, 0x20


@dataclass(frozen=True)
class Event:
    at_s: float
    how: str


@dataclass(frozen=True)
class ProcSample:
    """One look at the process family: bytes, summed."""

    at_s: float
    read_bytes: int = 0  # from block devices, page faults included
    rchar: int = 0  # through read calls
    rss_bytes: int = 0
    library_bytes: int = 0
    cpu_s: float = 0.0


def weight_files(path: Path) -> list[Path]:
    """The files that may hold weights: by suffix, where none has one all of them; links followed
    (the Hugging Face cache is made of them). Which of them a server reads, it shows."""
    if path.is_file():
        return [path.resolve()]
    files = [p for p in path.rglob("*") if p.is_file()]
    named = [p for p in files if holds_weights(p)]
    return sorted({p.resolve() for p in named or files})


class InotifyWatch:
    """inotify on the weights and on the small files beside them."""

    def __init__(self, path: Path, files: Sequence[Path]):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self.watched: dict[int, tuple[str, Path]] = {}
        small = (
            [p.resolve() for p in path.rglob("*") if p.name.endswith(SMALL_SUFFIXES)]
            if path.is_dir()
            else []
        )
        for kind, paths in (("weights", files), ("config", small)):
            for file in paths:
                watch = self.libc.inotify_add_watch(
                    self.fd, os.fsencode(file), _IN_OPEN | _IN_ACCESS | _IN_CLOSE_NOWRITE
                )
                if watch >= 0:
                    self.watched.setdefault(watch, (kind, file))

    def wait(self, timeout_s: float) -> list[tuple[str, str, Path]]:
        """(config|weights, opened|read|closed, file) since the last call."""
        if self.fd < 0 or not select.select([self.fd], [], [], timeout_s)[0]:
            return []
        found = []
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.fd, 1 << 16)
            at = 0
            while at + 16 <= len(data):
                watch, mask, _, length = struct.unpack_from("iIII", data, at)
                at += 16 + length
                for bit, word in (
                    (_IN_OPEN, "opened"),
                    (_IN_ACCESS, "read"),
                    (_IN_CLOSE_NOWRITE, "closed"),
                ):
                    if mask & bit and watch in self.watched:
                        kind, file = self.watched[watch]
                        found.append((kind, word, file))
        return found

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass
class StartObserver:
    """Context manager around one start. `moments`, `samples` and `opened` – the files that were, of
    those watched – fill while it is open."""

    weights: Path
    host: str
    port: int
    kind: ServerKind
    moments: dict[str, Event] = field(default_factory=dict)
    samples: list[ProcSample] = field(default_factory=list)
    weights_closed_s: float | None = None
    weights_read_s: float | None = None
    health_path: str = ""
    opened: dict[str, set[Path]] = field(
        default_factory=lambda: {"config": set(), "weights": set()}
    )

    def __post_init__(self) -> None:
        self.files = weight_files(self.weights)
        self._pid = 0
        self._family: list[int] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> StartObserver:
        self._opens = InotifyWatch(self.weights, self.files)
        self._threads = [
            threading.Thread(target=work, daemon=True)
            for work in (self._follow_files, self._follow_processes, self._follow_health)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(3)
        self._opens.close()

    def root(self, pid: int) -> None:
        self._pid = pid
        self.note("exec", "the command was executed")

    def note(self, name: str, how: str, at_s: float | None = None) -> None:
        self.moments.setdefault(name, Event(timeline.now_s() if at_s is None else at_s, how))

    @property
    def family(self) -> list[int]:
        return [self._pid, *self._family] if self._pid else []

    def _follow_files(self) -> None:
        while not self._stop.is_set():
            for kind, word, file in self._opens.wait(0.1):
                now = timeline.now_s()
                if word == "opened":
                    self.opened[kind].add(file)
                    self.note(
                        kind,
                        (
                            "inotify: first of the weights opened"
                            if kind == "weights"
                            else "inotify: a config or tokenizer file opened"
                        ),
                    )
                elif kind == "weights" and word == "closed":
                    self.weights_closed_s = now
                elif kind == "weights":
                    self.weights_read_s = now

    def _follow_processes(self) -> None:
        ticks = 0
        while not self._stop.wait(POLL_S):
            if not self._pid:
                continue
            if ticks % 10 == 0 or ticks < 30:
                self._family = proc.descendants(self._pid)
            ticks += 1
            self.samples.append(sample_of(self.family))
            if "libraries" not in self.moments and (library := first_library(self.family)):
                self.note("libraries", f"/proc/PID/maps: {library} mapped")
            if (
                "device" not in self.moments
                and ticks % 3 == 0
                and (device := first_device(self.family))
            ):
                self.note("device", f"/proc/PID/fd: {device} opened")
            if "listening" not in self.moments and listening(self.port):
                self.note("listening", f"/proc/net/tcp: port {self.port} listens")

    def _follow_health(self) -> None:
        paths = list(self.kind.health)
        while not self._stop.wait(POLL_S):
            if "listening" not in self.moments or not paths:
                continue
            status = _status(self.host, self.port, paths[0])
            if status == 404:
                paths.pop(0)
            elif status == 200:
                self.health_path = paths[0]
                self.note("health", f"GET {paths[0]} answered 200")
                return


def _status(host: str, port: int, path: str) -> int:
    try:
        return call(http_url(host, port, path), timeout_s=2.0)[0]
    except OSError:
        return 0


def sample_of(pids: Sequence[int]) -> ProcSample:
    sums = {"read_bytes": 0, "rchar": 0, "rss_bytes": 0, "library_bytes": 0}
    cpu_ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            rss_bytes, library_bytes = proc.status_bytes(pid, "VmRSS", "VmLib")
            sums["rss_bytes"] += rss_bytes
            sums["library_bytes"] += library_bytes
            with contextlib.suppress(OSError):
                counters = proc.io_counters(pid)
                sums["rchar"] += counters["rchar"]
                sums["read_bytes"] += counters["read_bytes"]
            fields = proc.stat_fields(pid)
            cpu_ticks += int(fields[11]) + int(fields[12])
    return ProcSample(timeline.now_s(), cpu_s=cpu_ticks / os.sysconf("SC_CLK_TCK"), **sums)


def first_library(pids: Sequence[int]) -> str:
    """A mapped shared object that is no part of every process; "" if there is none yet."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for path in proc.mapped_files(pid):
                name = os.path.basename(path)
                library = name.endswith(".so") or (".so." in name and not name.endswith(".cache"))
                if library and not name.startswith(BASE_LIBRARIES):
                    return name
    return ""


def first_device(pids: Sequence[int]) -> str:
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{fd}")
                    if target.startswith(DEVICES):
                        return target
    return ""


def listening(port: int) -> bool:
    needle = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[1].endswith(needle):
                    return True
    return False
