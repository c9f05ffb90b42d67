"""One real dump and restore: what `criu check` cannot promise.

`criu check` asks the kernel for features; whether a process of this host survives the two is only
known when one has. The process is the smallest that resembles a server here: a Python that sleeps
in a session of its own, and where the CPU has AMX it has asked for the permission, as oneDNN does
in every server. 0.3 s; nothing is left, whatever happens.

    trouble("criu")     # "" or CRIU's own last words

Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from labkit.core import proc
from labkit.core.beside import scratch
from labkit.core.criu_log import error_lines
from labkit.core.probes.probe import run

LIMIT_S = 20.0
#: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILE_DATA); elsewhere it fails, and nothing is asked for.
_SLEEPER = (
    "import ctypes, signal, sys\n"
    "ctypes.CDLL(None).syscall(158, 0x1023, 18) if sys.argv[1] == 'amx' else 0\n"
    "print('up', flush=True); sys.stdout.close(); signal.pause()"
)


def trouble(criu: str = "criu") -> str:
    """What kept a small process from being dumped and restored, in CRIU's last words; "" when it
    runs again."""
    with scratch("lk-criu-", needed=False) as directory:
        images = Path(directory) / "images"
        images.mkdir()
        amx = "amx" if "amx_tile" in proc.read_text("/proc/cpuinfo") else ""
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SLEEPER, amx],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        try:
            with process.stdout or contextlib.nullcontext() as up:
                if not up or not up.readline():
                    return "the process to be dumped did not start"
            if failed := _criu(criu, "dump", images, "-t", str(process.pid)):
                return failed
            process.wait(LIMIT_S)  # its number has to be free again
            return _restored(criu, images, process.pid)
        except subprocess.TimeoutExpired:
            return "dump: the process was still there afterwards"
        finally:
            process.kill()
            process.wait()


def _restored(criu: str, images: Path, pid: int) -> str:
    """`pid`: of the process that was dumped, which the restored one has again."""
    try:
        if failed := _criu(criu, "restore", images, "--restore-detached", "--restore-sibling"):
            return failed
        ours = pid in proc.children() and proc.start_time(pid)
        return "" if ours else "restore: the restored process ended at once"
    finally:
        if pid in proc.children():  # a sibling of CRIU is a child of ours
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _criu(criu: str, verb: str, images: Path, *options: str) -> str:
    log = images / f"{verb}.log"
    argv = [criu, verb, "-D", str(images), "-o", log.name, "-v2", *options]
    status, text = run(argv, LIMIT_S)
    if not status:
        return ""
    written = log.read_text(errors="replace") if log.exists() else ""
    lines = error_lines(written) or text.splitlines() or [f"it ended with {status}"]
    return f"{verb}: {lines[-1]}"
