"""One system call carried out inside another process: what the kernel tells and grants to nobody
but the process itself.

A tracer stops one thread, points it at a `syscall` instruction of its own vDSO, lets it take that
single step, and puts every register back. Nothing is written into the process's code or data; the
other threads, and a process that stands stopped, stay as they were, and an interrupted system call
of its own is restarted by the kernel as after any stop.

    with Tracee(pid) as tracee:
        error, mask = tracee.ask(ARCH_PRCTL, ARCH_GET_XCOMP_PERM)      # (0, 0x600e7)

x86-64 only (`supported`). Limit: 1 ms a look, most of it the list of mappings and the stops. Used
by `labkit.snapshot.xstate`; lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import mmap
import os
import platform
import signal
import struct
from collections.abc import Iterator

from labkit.core import proc
from labkit.errors import TrialError

PTRACE_SINGLESTEP, PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_DETACH = 9, 12, 13, 17
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_EVENT_STOP = 0x4206, 0x4207, 128
WALL = 0x40000000  # __WALL: also for a thread that is not our child
SYSCALL_INSTRUCTION = b"\x0f\x05"

#: struct user_regs_struct of x86-64, each a 64-bit word.
REGISTERS = (
    "r15",
    "r14",
    "r13",
    "r12",
    "rbp",
    "rbx",
    "r11",
    "r10",
    "r9",
    "r8",
    "rax",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "orig_rax",
    "rip",
    "cs",
    "eflags",
    "rsp",
    "ss",
    "fs_base",
    "gs_base",
    "ds",
    "es",
    "fs",
    "gs",
)
_LAYOUT = struct.Struct(f"={len(REGISTERS)}Q")
ALL_BITS = 0xFFFFFFFFFFFFFFFF
MMAP, MUNMAP = 9, 11


class TraceError(TrialError):
    """The process could not be stopped, or was gone before the call was done."""


def supported() -> bool:
    return platform.machine() == "x86_64" and struct.calcsize("P") == 8


class Tracee:
    """A context: the thread `pid` (of a process, its first) is stopped inside, and as it was
    outside. Not to be shared between threads."""

    def __init__(self, pid: int):
        self.pid = pid
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = [
            ctypes.c_long,
            ctypes.c_long,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self._libc.ptrace.restype = ctypes.c_long
        self._owed: list[int] = []  # signals that came meanwhile, delivered afterwards

    def _ptrace(self, request: int, data: int | ctypes.Array[ctypes.c_char] | None = None) -> None:
        pointer = ctypes.cast(data, ctypes.c_void_p) if isinstance(data, ctypes.Array) else data
        if self._libc.ptrace(request, self.pid, None, pointer) < 0:
            code = ctypes.get_errno()
            raise TraceError(
                f"process {self.pid} cannot be traced: {os.strerror(code)}",
                why=(
                    "another tracer (a debugger, strace) holds it, it has just ended, or root is"
                    " missing"
                    if code in (errno.EPERM, errno.ESRCH)
                    else ""
                ),
                fix="end the tracer; run as root",
            )

    def __enter__(self) -> Tracee:
        self._ptrace(PTRACE_SEIZE)
        try:
            self._ptrace(PTRACE_INTERRUPT)
            self._wait_for_stop()
            self._before = self.registers()
        except BaseException:
            with contextlib.suppress(TraceError):
                self._ptrace(PTRACE_DETACH)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # A process that was stopped goes back to that state by itself when it is let go.
        with contextlib.suppress(TraceError):
            self._ptrace(PTRACE_DETACH)
        for number in self._owed:
            with contextlib.suppress(OSError):
                os.kill(self.pid, number)

    @contextlib.contextmanager
    def _gone_is_an_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TraceError(
                f"process {self.pid} cannot be read: {error.strerror}",
                why="it has ended, or a part of its memory is not there",
                fix="start it again",
            ) from None

    def _wait_for_stop(self) -> tuple[int, int]:
        """(signal, event) of the next stop."""
        _, status = os.waitpid(self.pid, WALL)
        if not os.WIFSTOPPED(status):
            raise TraceError(
                f"process {self.pid} ended while it was looked at", fix="start it again"
            )
        return os.WSTOPSIG(status), status >> 16

    def ask(self, number: int, *arguments: int) -> tuple[int, int]:
        """`number(*arguments, &word)` in the process: (errno or 0, the word the kernel wrote)."""
        with self.holding() as page:
            result = self.call(number, *arguments, page)
            with (
                self._gone_is_an_error(),
                open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory,
            ):
                memory.seek(page)
                word = struct.unpack("=Q", memory.read(8))[0]
        return (-result if result < 0 else 0), word

    @contextlib.contextmanager
    def holding(self, data: bytes = b"") -> Iterator[int]:
        """The address of a page in the process that begins with `data`; it is gone after the
        block."""
        # A page of its own: the pages that are there may be promised only (a lazy restore), and are
        # the program's.
        page = self.call(
            MMAP,
            0,
            mmap.PAGESIZE,
            mmap.PROT_READ | mmap.PROT_WRITE,
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
            -1,
            0,
        )
        if page < 0:
            raise TraceError(
                f"process {self.pid} has no memory for a page: {os.strerror(-page)}",
                why="a call that answers writes into memory",
                fix="raise its limits (ulimit -v)",
            )
        try:
            if data:
                with (
                    self._gone_is_an_error(),
                    open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory,
                ):
                    memory.seek(page)
                    memory.write(data)
            yield page
        finally:
            self.call(MUNMAP, page, mmap.PAGESIZE)

    def call(self, number: int, *arguments: int) -> int:
        """The system call in the process; its result, -errno for an error."""
        given = dict(
            zip(
                ("rdi", "rsi", "rdx", "r10", "r8", "r9"),
                (a & ALL_BITS for a in arguments),
                strict=False,
            )
        )
        # orig_rax -1: the call that was interrupted is not restarted now.
        self.set_registers(
            self._before
            | {"rip": self._syscall_address, "rax": number, "orig_rax": ALL_BITS}
            | given
        )
        try:
            while True:
                self._ptrace(PTRACE_SINGLESTEP)
                number_of_stop, event = self._wait_for_stop()
                # a stop of the whole group on the way: the step is still to come
                if event == PTRACE_EVENT_STOP:
                    continue
                if number_of_stop == signal.SIGTRAP:
                    break
                self._owed.append(number_of_stop)
            result = self.registers()["rax"]
        finally:
            self.set_registers(self._before)
        return result - (1 << 64) if result >> 63 else result

    def registers(self) -> dict[str, int]:
        raw = ctypes.create_string_buffer(_LAYOUT.size)
        self._ptrace(PTRACE_GETREGS, raw)
        return dict(zip(REGISTERS, _LAYOUT.unpack(raw.raw), strict=True))

    def set_registers(self, registers: dict[str, int]) -> None:
        self._ptrace(
            PTRACE_SETREGS,
            ctypes.create_string_buffer(
                _LAYOUT.pack(*(registers[name] for name in REGISTERS)), _LAYOUT.size
            ),
        )

    @functools.cached_property
    def _syscall_address(self) -> int:
        """A `syscall` instruction in the process's own vDSO: mapped in every process, executable,
        and never written to."""
        with self._gone_is_an_error(), open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            vdso = next((r for r in proc.mapped_ranges(self.pid) if r.path == "[vdso]"), None)
            if vdso is None:
                raise TraceError(
                    f"process {self.pid} has no vDSO",
                    why="the call is made through it",
                    fix="boot without vdso=0",
                )
            memory.seek(vdso.start)
            offset = memory.read(vdso.end - vdso.start).find(SYSCALL_INSTRUCTION)
        if offset < 0:
            raise TraceError(
                f"the vDSO of process {self.pid} holds no system call",
                fix="labkit snapshot needs a Linux of its own, not an emulation of one",
            )
        return vdso.start + offset
