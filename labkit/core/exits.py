"""How a process ended, also one that was not started by us: its signal by name, the kernel's line
about it, and what to do.

    with adopting():                        # who is left without a parent meanwhile becomes our
        child
        subprocess.run(["runc", "restore", "--detach", …])
    exit_code(pid)                          # None while it runs; -4 after SIGILL
    describe(-4)                            # "ended by SIGILL (illegal instruction)"

A detached container belongs to nobody once its launcher is gone, so its exit status would be lost
with it: the kernel gives it to the parent only. Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from labkit.core.proc import start_time

#: How long the other threads of a process that a signal ended may take to end as well (they give
#: back memory).
LAST_THREADS_S = 5.0

PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37

#: What a signal that nobody sent on purpose says about a server, and the step that follows.
MEANINGS = {
    signal.SIGILL: (
        "illegal instruction",
        (
            "an instruction that this CPU lacks, or that the kernel did not permit to this process"
            " (AMX needs a permission)"
        ),
        (
            "restore on the CPU model of the dump; to go without AMX, start the server with"
            " MKL_ENABLE_INSTRUCTIONS=AVX512 ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 and dump again"
        ),
    ),
    signal.SIGSEGV: (
        "segmentation fault",
        "memory that is not there: a mapped file that changed, or a fault of the program",
        "dump again with the files as they are now",
    ),
    signal.SIGBUS: (
        "bus error",
        "a mapped file is shorter than its mapping, or a page could not be read",
        "check the disk and the file, then dump again",
    ),
    signal.SIGFPE: ("arithmetic fault", "", ""),
    signal.SIGABRT: ("abort", "the program ended itself; its last lines say why", ""),
    signal.SIGSYS: (
        "bad system call",
        "a seccomp filter refused a system call",
        "run without that filter, or allow the call",
    ),
    signal.SIGKILL: (
        "kill",
        "somebody, or the kernel for want of memory, ended it",
        "dmesg | tail says whether it was for memory",
    ),
}


def describe(code: int | None) -> str:
    """An exit code as `subprocess` gives it (a signal is negative), in words."""
    if code is None:
        return "ended (its exit status went to another parent)"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        known = signal.Signals(-code)
    except ValueError:
        return f"ended by signal {-code}"
    meaning = MEANINGS.get(known)
    return f"ended by {known.name}" + (f" ({meaning[0]})" if meaning else "")


def advice(code: int | None) -> tuple[str, str]:
    """(why, fix) of an end by a signal; empty for any other."""
    meaning = MEANINGS.get(-code) if code is not None and code < 0 else None  # type: ignore[call-overload]
    return (meaning[1], meaning[2]) if meaning else ("", "")


def exit_code(pid: int) -> int | None:
    """The code of a child of ours that has ended; None while it runs, or if it is no child of ours.
    It is not reaped: its id stays taken."""
    until = time.monotonic() + LAST_THREADS_S
    with contextlib.suppress(OSError):
        while True:
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            # Its first thread is gone, but the status comes with the last one.
            if start_time(pid) or time.monotonic() > until:
                return None
            time.sleep(0.002)
    return None


def reap(pid: int) -> None:
    """Take the exit status of a child that has ended, so that no zombie stays; nothing happens for
    anybody else."""
    with contextlib.suppress(OSError):
        os.waitpid(pid, os.WNOHANG)


@contextmanager
def adopting() -> Iterator[None]:
    """Processes below this one that lose their parent meanwhile become its children, and their exit
    status is ours to read."""
    libc, before = ctypes.CDLL(None, use_errno=True), ctypes.c_int()
    libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def kernel_line(pid: int, log: str | os.PathLike[str] = "/dev/kmsg") -> str:
    """The kernel's own line about a process's fault ("trap invalid opcode ip:… in
    libdnnl.so.3[…]"); "" without one, or without root."""
    needle, found = re.compile(rf"\[{pid}\] (?:trap|segfault|general protection|bad frame)"), ""
    with contextlib.suppress(OSError):
        descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            for record in _records(descriptor):
                text = record.partition(";")[2].split("\n")[0] or record
                found = text if needle.search(text) else found
        finally:
            os.close(descriptor)
    return found


def _records(descriptor: int) -> Iterator[str]:
    """One record a read, as /dev/kmsg gives them; one that was overwritten meanwhile is left
    out."""
    while True:
        try:
            record = os.read(descriptor, 8192)
        except BrokenPipeError:
            continue
        except BlockingIOError:
            return
        if not record:
            return
        yield record.decode(errors="replace")
