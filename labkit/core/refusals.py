"""What the operating system refuses, in the lab's words: an exception of Python in, a LabError with
why and fix out.

A full disk, a read-only home or a limit of this shell is met anywhere – in a write, an import, the
start of a thread – and means the same everywhere. So it is translated here, once, and not where
each file is opened. What has no entry is no refusal of the system but a mistake of the lab, and
stays an exception.

    refusal(OSError(errno.ENOSPC, "No space left on device", "/data/x"))    # LabError: "/data/x: No
        space left on device" …
    refusal(KeyError("x"))                                                  # None

Lesson: none; `labkit.cli` prints it.
"""

from __future__ import annotations

import errno
import os
import socket

from labkit.errors import BadInput, LabError, MissingCapability

_ROOM = "free some room there, or export LABKIT_HOME=/path/with/room"
_ELSEWHERE = "give a path that you may write, or export LABKIT_HOME=/path/of/yours"
_FILES = (
    "this shell's limit of open files is too low for what was asked",
    "ulimit -n 4096, then again",
)
_MEMORY = (
    "this shell, its control group or the machine has no more memory for it",
    "ulimit -v unlimited, a smaller --preset, or a host with more memory (labkit doctor)",
)
_THREADS = (
    (
        "the limit of processes and threads of this user or control group is reached, or that of"
        " memory, of which each thread takes some"
    ),
    "ulimit -u 4096; ulimit -v unlimited; or end other programs, then again",
)
_PROCESSES = (
    "the limit of processes and threads of this user or control group is reached",
    "ulimit -u 4096, or end other programs, then again",
)

#: errno -> (why, fix).
_SAID: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full, so nothing whole can be written", _ROOM),
    errno.EDQUOT: ("your quota on this disk is used up", _ROOM),
    errno.EFBIG: (
        "a limit of file sizes is reached: this shell's, or the file system's",
        "ulimit -f unlimited, or another file system",
    ),
    errno.EROFS: ("the file system is read-only", _ELSEWHERE),
    errno.EACCES: ("you have no right to it", _ELSEWHERE),
    errno.EPERM: ("you have no right to it", _ELSEWHERE),
    errno.EMFILE: _FILES,
    errno.ENFILE: (
        "the machine's limit of open files is reached",
        "sysctl -w fs.file-max=1000000, or end other programs",
    ),
    errno.ENOTDIR: (
        "a part of this path is a file, not a directory",
        "give another path, or move that file away",
    ),
    errno.EISDIR: ("it is a directory, and a file is needed", "give the path of a file"),
    errno.ENOTEMPTY: ("the directory is not empty", "give a new or an empty directory"),
    errno.EEXIST: ("something of this name is there already", "give another name, or move it away"),
    errno.ENOENT: ("it is not there", "look for a misspelt path"),
    errno.ENAMETOOLONG: ("the name is longer than the file system takes", "give a shorter path"),
    errno.ELOOP: ("its symbolic links lead in a circle", "give the path without links"),
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: _PROCESSES,
    errno.EIO: (
        "the disk or device failed",
        "dmesg | tail; use another disk (export LABKIT_HOME=/path/on/it)",
    ),
    errno.EBADF: (
        "the file or stream was closed, or opened the other way round",
        "call it without closing or redirecting its streams so",
    ),
    errno.EADDRINUSE: ("another server holds the port", "give another port; 0 takes a free one"),
    errno.EADDRNOTAVAIL: ("no interface of this host has that address", "give 127.0.0.1"),
    errno.ECONNREFUSED: (
        "nothing listens there",
        "start the server first, or look for a misspelt address",
    ),
    errno.ECONNRESET: (
        "the other side closed the connection",
        "look at the server's own log, then again",
    ),
    errno.EHOSTUNREACH: (
        "the network does not lead there from here",
        "check the address and the network",
    ),
    errno.ENETUNREACH: (
        "the network does not lead there from here",
        "check the address and the network",
    ),
    errno.ETIMEDOUT: ("nothing answered in time", "check the address and the network"),
    errno.ENOEXEC: ("it is not a program for this machine", "give a program of this architecture"),
    errno.ETXTBSY: ("the program is being written right now", "try again"),
}

#: A write that fails does not say to which file.
_OF_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: What C libraries and Python say in their own exceptions about the same limits.
_IN_WORDS = (
    ("Too many open files", _FILES),
    ("failed to map segment", _MEMORY),
    ("Cannot allocate memory", _MEMORY),
    ("can't allocate memory", _MEMORY),
    ("can't start new thread", _THREADS),
    ("Resource temporarily unavailable", _PROCESSES),
    (
        "Could not determine home directory",
        (
            "HOME is not set, and this user has no entry in the user database",
            "export LABKIT_HOME=/path/of/yours",
        ),
    ),
    (
        "No usable temporary directory",
        ("temporary files have no place", "export TMPDIR=/path/that/you/may/write"),
    ),
)


def refusal(error: BaseException) -> LabError | None:
    """The same as a LabError, or None: this exception is no answer of the system."""
    if isinstance(error, LabError):
        return error
    text = str(error)
    worded = next((wording for words, wording in _IN_WORDS if words in text), None)
    if isinstance(error, MemoryError):
        return BadInput("out of memory", *_MEMORY)
    if worded and isinstance(error, (OSError, ImportError, RuntimeError)):
        return BadInput(_short(error), *worded)
    if (
        isinstance(error, ModuleNotFoundError)
        and error.name
        and not error.name.startswith("labkit")
    ):
        return MissingCapability(
            f"no Python package {error.name.partition('.')[0]}",
            why="the command needs it, and this installation has none",
            fix=(
                f"pip install {error.name.partition('.')[0].replace('_', '-')}  (make setup"
                " installs all that the lab declares)"
            ),
        )
    if isinstance(error, socket.gaierror):
        return BadInput(
            _short(error),
            why="the name of that host is not known here",
            fix="look for a misspelt address",
        )
    if isinstance(error, OSError):
        return _of_number(error)
    return None


def _of_number(error: OSError) -> LabError:
    if error.errno == errno.ENOENT and error.filename is None and not _here():
        return BadInput(
            "the working directory is gone",
            why="another program removed it; paths are taken from it",
            fix="cd to another directory, then again",
        )
    why, fix = _SAID.get(
        error.errno or 0,
        ("the system refused it", "LABKIT_TRACEBACK=1 shows where it was asked for"),
    )
    return BadInput(_short(error), why, fix)


def _here() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _short(error: BaseException) -> str:
    """`path: what the system said`, without Python's number."""
    if isinstance(error, OSError) and error.strerror:
        names = [
            os.fsdecode(n) if isinstance(n, bytes) else str(n)
            for n in (error.filename, error.filename2)
            if n is not None
        ]
        if not names and error.errno in _OF_WRITES:
            names = ["a file was being written"]
        return ": ".join([" and ".join(names), error.strerror] if names else [error.strerror])
    return (str(error).strip() or type(error).__name__)[:500]
