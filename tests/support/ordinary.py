"""Run a command as an ordinary user, from a test that runs as root.

The interpreter may live below a home directory that only root may enter (CI images put it under
/root). In a mount namespace of its own that directory is covered by an empty one, with only the
needed trees bound back – permissions of the real machine stay as they are, and the command gets no
capability. It can also be given a /dev without devices of the machine (no /dev/fuse, no GPU), and a
limit of memory that holds for all its processes together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

UID = 47110  # nobody's number: no account of this host is used

_ENTER = r"""
set -e
mount --make-rprivate /
keep=$(mktemp -d)
for closed in $CLOSED; do
    mount --bind "$closed" "$keep"
    mount -t tmpfs -o mode=755 tmpfs "$closed"
    for tree in $TREES; do
        case "$tree" in "$closed"/*) mkdir -p "$tree"; mount --bind "$keep${tree#"$closed"}" "$tree";; esac
    done
done
if [ -n "$MEMORY_GROUP" ]; then echo $$ > "$MEMORY_GROUP/cgroup.procs"; fi
if [ -n "$BARE_DEV" ]; then
    dev=$(mktemp -d)
    mount -t tmpfs -o mode=755 dev "$dev"
    for node in null zero full random urandom tty; do touch "$dev/$node"; mount --bind "/dev/$node" "$dev/$node"; done
    for room in shm pts; do mkdir "$dev/$room"; mount --bind "/dev/$room" "$dev/$room"; done
    ln -s pts/ptmx "$dev/ptmx"; ln -s /proc/self/fd "$dev/fd"
    mount --move "$dev" /dev
fi
if [ -n "$FUSE" ]; then
    node=$(mktemp -d)
    mount -t tmpfs -o mode=755 node "$node"
    mknod -m 666 "$node/fuse" c 10 229
    [ -e /dev/fuse ] || touch /dev/fuse
    mount --bind "$node/fuse" /dev/fuse
    { cat /etc/passwd; echo "reader:x:UID:UID:reader:/:/bin/sh"; } > "$node/passwd"
    mount --bind "$node/passwd" /etc/passwd
fi
exec setpriv --reuid UID --regid UID --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs -- "$@"
""".replace("UID", str(UID))  # noqa: E501 - a program's own lines


@dataclass(frozen=True)
class MemoryLimit:
    """A control group. Its page cache counts too, and is given up first; what then is too much ends
    a process."""

    group: Path

    @property
    def most_used_bytes(self) -> int:
        return int(
            next(
                f
                for n in ("memory.max_usage_in_bytes", "memory.peak")
                if (f := self.group / n).exists()
            ).read_text()
        )


@contextmanager
def memory_limit(size_bytes: int) -> Iterator[MemoryLimit | None]:
    """A group of processes that may hold so much memory together; None where this machine's groups
    cannot be made."""
    top = (
        Path("/sys/fs/cgroup/memory")
        if Path("/sys/fs/cgroup/memory").is_dir()
        else Path("/sys/fs/cgroup")
    )
    group = top / f"labkit-test-{os.getpid()}"
    try:
        group.mkdir()
        limit = next(
            f for n in ("memory.limit_in_bytes", "memory.max") if (f := group / n).exists()
        )
        limit.write_text(str(size_bytes))
    except (OSError, StopIteration):
        with suppress(OSError):
            group.rmdir()
        yield None
        return
    try:
        yield MemoryLimit(group)
    finally:
        for _ in range(100):  # the last process may still be ending
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.05)


def closed_directories(path: Path) -> list[str]:
    """Directories above `path` that others may not pass."""
    return [str(p) for p in reversed(path.parents) if not p.stat().st_mode & 0o001]


def as_ordinary_user(
    argv: Sequence[str],
    *,
    home: Path,
    env: Mapping[str, str] | None = None,
    may_gain: bool = True,
    bare_dev: bool = False,
    fuse: bool = False,
    memory: MemoryLimit | None = None,
    **options,
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run(argv)` as a user without privileges. `home` is given to that user.

    may_gain: set-uid tools such as fusermount3 work (no_new_privs off), as they do for a user who
    logged in. bare_dev: only the devices that every container has. fuse: /dev/fuse is open to all,
    as udev makes it; in this command's mount namespace only, and the user has an account
    (fusermount3 asks for its name). memory: a limit from `memory_limit`."""
    trees = sorted(
        {
            str(Path(sys.base_prefix).resolve()),
            str(Path(sys.prefix).resolve()),
            str(Path(__file__).resolve().parents[2]),
        }
    )
    closed = sorted({c for t in trees for c in closed_directories(Path(t))})
    for directory, _, files in os.walk(home):
        for name in ("", *files):
            os.chown(os.path.join(directory, name), UID, UID, follow_symlinks=False)
    script = _ENTER
    if may_gain:
        script = script.replace(" --bounding-set=-all --no-new-privs", "")
    clean = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LABKIT_HOME": str(home / "lab"),
        "LANG": "C.UTF-8",
        "TMPDIR": str(home),
        **(env or {}),
    }
    return subprocess.run(
        ["unshare", "--mount", "bash", "-c", script, "as-user", *argv],
        text=True,
        capture_output=True,
        env={
            **clean,
            "CLOSED": " ".join(closed),
            "TREES": " ".join(trees),
            "BARE_DEV": "1" if bare_dev else "",
            "FUSE": "1" if fuse else "",
            "MEMORY_GROUP": str(memory.group) if memory else "",
        },
        **options,
    )
