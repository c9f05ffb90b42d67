"""One measurement at a time on a machine: who measures holds the turn, who comes meanwhile waits.

Two experiments beside each other measure each other (a naive start of 9 s took 124 s). The turn is
the machine's, not a workspace's or a user's: a listening Unix socket of a fixed abstract name.
Chosen over a lock file in /tmp, as there is no file to own, to clean away or to follow a link of;
the kernel frees the name when its holder dies, however it dies, vouches for the holder's process id
(SO_PEERCRED), and lets who waits sleep on a connection until then.

    with turn(say=print):           # "waiting for process 812 (user root): labkit run naive, …"
        ...

A process that holds the turn may take it again. What it starts does not wait for it
(LABKIT_TURN names it in the environment), but takes a turn among its siblings. LABKIT_BESIDE=1
takes no turn, for those who measure beside other work on purpose (the lab's own tests).

Limits: abstract names belong to a network namespace, so containers with a network of their own do
not share it; any local user may take the name and not give it back, as with any lock that all may
take. Threads of one process count as one. Cost: 0.1 ms. Lesson: none."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
import struct
import time
from collections.abc import Callable, Iterator

from labkit.core import printable, proc, secrets

NAME = "labkit-measures"
#: pid-starttime of the process above that holds the turn.
ENV = "LABKIT_TURN"
BESIDE = "LABKIT_BESIDE"
REMIND_S = 300.0
_RETRY_S = 0.05
_CREDENTIALS = struct.Struct("3i")

_held: list[socket.socket] = []
_depth = 0


def beside() -> bool:
    """Whether this process was asked to measure beside other work."""
    return os.environ.get(BESIDE, "") not in ("", "0")


@contextlib.contextmanager
def turn(say: Callable[[str], object] | None = None) -> Iterator[None]:
    """Hold the machine's turn while the block runs. `say` is told whom it waits for: once at the
    start, then every five minutes."""
    global _depth
    if beside():
        yield
        return
    if not _depth:
        name = _name()
        _held.append(_taken(name, say or (lambda _text: None)))
        _held.append(_since(name))
    _depth += 1
    before = os.environ.get(ENV)
    os.environ[ENV] = f"{os.getpid()}-{proc.start_time(os.getpid())}"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(ENV, None)
        else:
            os.environ[ENV] = before
        _depth -= 1
        if not _depth:
            _free()


def _free() -> None:
    while _held:
        _held.pop().close()


def _forked() -> None:
    """A forked child must not hold the turn: it may outlive the measurement."""
    global _depth
    _free()
    _depth = 0


os.register_at_fork(after_in_child=_forked)


def _name() -> str:
    """The machine's turn; below a process that holds it, that of this process and its siblings."""
    above = os.environ.get(ENV, "")
    pid, _, started = above.partition("-")
    if pid.isdigit() and started.isdigit() and proc.start_time(int(pid)) == int(started):
        return f"{NAME} below {above}"
    return NAME


def _taken(name: str, say: Callable[[str], object]) -> socket.socket:
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    told_s: float | None = None
    try:
        while True:
            try:
                ours.bind(f"\0{name}")
                ours.listen(64)
                return ours
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            told_s = _wait(name, say, told_s)
    except BaseException:
        ours.close()
        raise


def _wait(name: str, say: Callable[[str], object], told_s: float | None) -> float | None:
    """Until the holder is gone, or for REMIND_S. `told_s`: when it was said last; returned anew."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as theirs:
        theirs.settimeout(REMIND_S)
        try:
            theirs.connect(f"\0{name}")
        except OSError:  # gone meanwhile, not listening yet, or too many wait already
            time.sleep(_RETRY_S)
            return told_s
        if told_s is None or time.monotonic() - told_s >= REMIND_S - 1:
            told_s = time.monotonic()
            say(f"waiting for {_holder(theirs, name)}: one measurement at a time on a machine")
        with contextlib.suppress(OSError):
            theirs.recv(1)  # nothing is ever sent: it ends with the holder
    return told_s


def _holder(theirs: socket.socket, name: str) -> str:
    """Process, user, command and since when, as far as it can be known."""
    raw = theirs.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    user = str(uid)
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(uid).pw_name
    argv = proc.read_text(f"/proc/{pid}/cmdline").rstrip("\0").split("\0") if pid else []
    command = printable.line(" ".join(secrets.mask_argv(argv)))[:120]
    text = f"process {pid} (user {user})" + (f": {command}" if command else "")
    mark = f"@{name} since "
    for line in proc.read_text("/proc/net/unix").split("\n"):
        since = line.partition(mark)[2]
        if since.isdigit():
            clock = time.strftime("%H:%M", time.localtime(int(since)))
            return f"{text}, which measures since {clock}"
    return text


def _since(name: str) -> socket.socket:
    """A second name says since when, to who reads /proc/net/unix; nothing is sent to it."""
    note = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with contextlib.suppress(OSError):
        note.bind(f"\0{name} since {int(time.time())}")
    return note
