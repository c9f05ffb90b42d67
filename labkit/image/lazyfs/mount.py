"""Mounting a FUSE file system and getting rid of it again: mount(2) as root, fusermount3 for
everybody else.

    fd = mount("/mnt/image")
    labkit.core.ledger.unmount("/mnt/image")    # also when its server is gone or hangs

Without root the mount is seen by its user only, and the kernel reads at most 128 KiB ahead. Lesson:
notebooks/03_lazy_pull."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from pathlib import Path

from labkit.core.ledger import is_mounted
from labkit.errors import BadInput, MissingCapability
from labkit.image.takedown import LAZY_FSTYPE

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOATIME = 1, 2, 4, 1024
FSTYPE = LAZY_FSTYPE
READ_AHEAD_KB = 1024  # fewer round trips, where every touch is one
# what a start touches is prefetched: further ahead lies what it does not, and would wait for it
READ_AHEAD_RECORDED_KB = 256


def mount(
    target: str | os.PathLike[str], *, name: str = "labkit", allow_other: bool | None = None
) -> int:
    """Mount and return the descriptor of /dev/fuse. Raises MissingCapability or BadInput.

    allow_other (default: as root only) lets other users, and containers with other user ids, see
    the mount."""
    target = os.path.realpath(target)
    if not os.path.isdir(target):
        raise BadInput(f"{target} is not a directory", fix=f"mkdir -p {target}")
    if is_mounted(target):
        raise BadInput(
            f"something is mounted on {target}",
            why="mounting over it would hide it",
            fix=f"umount {target}",
        )
    name = "".join(c if c.isalnum() or c in "-_./:@" else "_" for c in name)[:200]
    if os.geteuid() == 0:
        fd = _as_root(target, name, True if allow_other is None else allow_other)
        if fd is not None:
            return fd
    return _fusermount(target, name, bool(allow_other))


def _as_root(target: str, name: str, allow_other: bool) -> int | None:
    """None where the kernel refuses this root (a container's, say) and fusermount3 may still do."""
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _missing(str(error)) from None
    options = (
        f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},default_permissions"
    )
    options += ",allow_other" if allow_other else ""
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.mount(
            name.encode(),
            target.encode("utf-8", "surrogateescape"),
            FSTYPE.encode(),
            MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOATIME,
            options.encode(),
        )
        == 0
    ):
        return fd
    os.close(fd)
    return None


def _fusermount(target: str, name: str, allow_other: bool) -> int:
    tool = shutil.which("fusermount3") or shutil.which("fusermount")
    if tool is None:
        raise _missing("fusermount3 is not installed")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        options = f"ro,nosuid,nodev,default_permissions,fsname={name},subtype=labkit" + (
            ",allow_other" if allow_other else ""
        )
        done = subprocess.run(
            [tool, "-o", options, "--", target],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=30,
        )
        if done.returncode:
            raise _missing(done.stderr.decode(errors="replace").strip()[:200])
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    os.set_inheritable(fds[0], False)
    return fds[0]


def _missing(why: str) -> MissingCapability:
    return MissingCapability(
        f"this host cannot mount FUSE file systems: {why}",
        why="the image can only be pulled whole here",
        fix=(
            "run on Linux with /dev/fuse, and install fuse3 (apt-get install fuse3); in a container"
            " add --device /dev/fuse"
        ),
    )


def read_ahead(target: str | os.PathLike[str], kilobytes: int = READ_AHEAD_KB) -> bool:
    """Let the kernel read further ahead than 128 KiB: fewer, larger requests for mapped libraries.
    Needs root."""
    try:
        device = os.stat(target).st_dev
        Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text(
            str(kilobytes)
        )
        return True
    except OSError:
        return False
