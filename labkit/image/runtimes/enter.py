"""Enter a container without root: the small program that becomes the server's first process
(runtime `userns`).

Exec'd fresh as `python -I -S enter.py SPEC_FD STATUS_FD`; nothing of the lab is imported. It
unshares user, mount and pid namespaces, maps the caller's user to root inside, forks (the child is
pid 1 of the new pid namespace), binds, changes the root and execs. The parent stays to pass on the
exit status, and dies with the node agent; the child dies with the parent.

spec (JSON on SPEC_FD): {"skeleton", "binds": [[host, below, "rw"|"ro"]], "argv", "env", "cwd"}
status on STATUS_FD: {"pid": host pid of the child}, then {"failed": text}, or end of file when the
exec has happened. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

NEWNS, NEWUSER, NEWPID = 0x00020000, 0x10000000, 0x20000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
DETACH = 2
PR_SET_PDEATHSIG = 1
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, action: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{action}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    check(
        libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            kind.encode(),
            ctypes.c_ulong(flags),
            data.encode() or None,
        ),
        f"mount {source or kind} on {target}",
    )


def bind(source: str, target: str, mode: str = "rw") -> None:
    mount(source, target, "", BIND | REC)
    if mode == "ro":
        # Flags of the original mount are locked in a user namespace: they must be named again.
        had = os.statvfs(target).f_flag
        keep = sum(
            flag
            for bit, flag in (
                (2, NOSUID),
                (4, NODEV),
                (8, NOEXEC),
                (1024, 1 << 10),
                (2048, 1 << 11),
                (4096, 1 << 21),
            )
            if had & bit
        )
        mount("", target, "", BIND | REMOUNT | RDONLY | keep)


def write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def make_dev(dev: str) -> None:
    """A minimal /dev: devices cannot be made in a user namespace, so the host's own are bound."""
    names = ["null", "zero", "full", "random", "urandom", "tty"]
    names += [
        n for n in os.listdir("/dev") if n.startswith("nvidia") and not os.path.isdir("/dev/" + n)
    ]
    for name in names:
        if os.path.exists("/dev/" + name):
            os.close(os.open(f"{dev}/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
            bind("/dev/" + name, f"{dev}/{name}")
    for name, target in (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ):
        os.symlink(target, f"{dev}/{name}")
    os.mkdir(f"{dev}/shm", 0o1777)
    mount("shm", f"{dev}/shm", "tmpfs", NOSUID | NODEV, "mode=1777")


def inside(spec: dict) -> None:
    root = spec["skeleton"]
    mount("", "/", "", REC | PRIVATE)
    bind(root, root)
    for source, below, mode in spec["binds"]:
        bind(source, os.path.join(root, below), mode)
    try:
        mount("proc", root + "/proc", "proc", NOSUID | NODEV | NOEXEC)
    except OSError:
        # forbidden where the host's own /proc is partly masked (in a container)
        bind("/proc", root + "/proc")
    mount("dev", root + "/dev", "tmpfs", NOSUID, "mode=755")
    make_dev(root + "/dev")
    os.chdir(root)
    number = SYS_PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(0, f"pivot_root is not known on {os.uname().machine}")
    check(libc.syscall(number, b".", b"."), "pivot_root")
    check(libc.umount2(b".", DETACH), "unmount the old root")
    os.chdir(spec["cwd"] or "/")


def main() -> None:
    spec_fd, status_fd = int(sys.argv[1]), int(sys.argv[2])
    with open(spec_fd, encoding="utf-8", errors="surrogateescape") as file:
        spec = json.load(file)
    os.set_inheritable(status_fd, False)
    uid, gid, agent = os.getuid(), os.getgid(), os.getppid()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        check(libc.unshare(NEWUSER | NEWNS | NEWPID), "unshare")
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"0 {uid} 1")
        write("/proc/self/gid_map", f"0 {gid} 1")
        gate_in, gate_out = os.pipe()
        child = os.fork()
    except OSError as error:
        os.write(status_fd, json.dumps({"failed": str(error)}).encode() + b"\n")
        os._exit(125)
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(gate_out)
        if os.read(gate_in, 1) != b"g":  # the parent died before it could tell our pid
            os._exit(125)
        try:
            inside(spec)
            os.execve(spec["argv"][0], spec["argv"], spec["env"])
        except OSError as error:
            os.write(status_fd, json.dumps({"failed": str(error)}).encode() + b"\n")
            os._exit(125)
    if os.getppid() != agent:  # the agent died before the prctl
        os._exit(125)
    os.write(status_fd, json.dumps({"pid": child}).encode() + b"\n")
    os.close(status_fd)
    os.write(gate_out, b"g")
    os.close(gate_in)
    for passed_on in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(passed_on, lambda number, _frame: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 125)


if __name__ == "__main__":
    main()
