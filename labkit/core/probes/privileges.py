"""What the kernel lets this user do: root, user namespaces, FUSE.

Lesson: notebooks/00_start_here."""

from __future__ import annotations

import array
import os
import re
import shutil
import socket
import subprocess

from labkit.core import proc
from labkit.core.beside import scratch
from labkit.core.probes.probe import (
    APT,
    Capability,
    lacking,
    no,
    probe,
    run,
    yes,
)

CAP_SYS_ADMIN = 21


def has_sys_admin() -> bool:
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", proc.read_text("/proc/self/status"), re.M)
    return bool(match and int(match[1], 16) >> CAP_SYS_ADMIN & 1)


@probe(
    "root",
    "root",
    "dropping all caches, mounts, containers and CRIU need it; without it the lab uses user"
    " namespaces and per-file eviction",
)
def _root() -> Capability:
    if os.geteuid() != 0:
        return no("not root", "sudo -E labkit …")
    if not has_sys_admin():
        return no(
            "root without CAP_SYS_ADMIN (an unprivileged container)",
            "run the container with --privileged",
        )
    return yes()


@probe(
    "userns",
    "user namespaces",
    "the image starts in its own root without root rights (runtime `userns`)",
)
def _userns() -> Capability:
    if lacking("unshare"):
        return no("no unshare program", APT + "util-linux")
    status, text = run(
        ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "true"]
    )
    if status == 0:
        return yes()
    if proc.read_text("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return no(
            "the kernel forbids them to users", "sysctl -w kernel.unprivileged_userns_clone=1"
        )
    if proc.read_text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return no(
            "AppArmor restricts them", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        )
    if proc.read_text("/proc/sys/user/max_user_namespaces") == "0":
        return no("their number is limited to 0", "sysctl -w user.max_user_namespaces=15000")
    return no(
        f"unshare failed: {text.splitlines()[-1] if text else status}",
        "run on the host, or give the container --security-opt seccomp=unconfined",
    )


@probe(
    "fuse",
    "FUSE",
    "lazy images are mounted through it (`estargz-lazy`); without it the lazy arms replay recorded"
    " runs",
)
def _fuse() -> Capability:
    if not os.path.exists("/dev/fuse"):
        return no(
            "no /dev/fuse", "modprobe fuse (in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
        )
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return no(
            f"/dev/fuse does not open: {error.strerror}",
            "chmod 666 /dev/fuse, or run the container with --device /dev/fuse",
        )
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if helper:
        trouble = _mount_with(helper)
        return (
            no(
                f"{os.path.basename(helper)} cannot mount: {trouble}",
                APT + "fuse3 (its fusermount3 must be setuid root)",
            )
            if trouble
            else yes()
        )
    if os.geteuid() == 0 and has_sys_admin():
        return yes(
            "root mounts directly; ordinary users need fusermount3", limit=True, fix=APT + "fuse3"
        )
    return no("no fusermount3", APT + "fuse3")


def _mount_with(helper: str) -> str:
    """Mount an empty FUSE through the setuid helper and unmount it. Returns what went wrong, ""
    when nothing."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs, scratch("labkit-fuse-", needed=False) as folder:
        point = str(folder)
        ours.settimeout(5)
        try:
            done = subprocess.run(
                [helper, "-o", "nosuid,nodev,fsname=labkit-probe", "--", point],
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=5,
            )
            if done.returncode:
                return done.stderr.decode(errors="replace").strip().split("\n")[-1]
            _, control, *_ = ours.recvmsg(1, socket.CMSG_SPACE(4))
            fds = array.array("i")
            for _level, _kind, data in control:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            for fd in fds:  # closing it aborts the connection: nothing can hang on this mount
                os.close(fd)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        finally:
            run([helper, "-u", "-q", point], 5)
            if os.path.ismount(point):
                run([helper, "-u", "-q", "-z", point], 5)
    return ""
