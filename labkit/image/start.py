"""Steps that start the server: in a runc container, in user namespaces, or as a plain process of
the image's own interpreter.

Three runtimes with one meaning: the image's files, the image's environment, the host's network (the
port is on loopback), no descriptor of the host but /dev/null and pipes – a file would break a later
CRIU dump. The node agent drains the pipe, dies with the trial, and takes the server along. Limit:
exec and dynamic linking, ~10 ms; runc adds 60–120 ms.

    Step("start", "labkit.image.start:process")        # ctx.state: rootfs, image_config →
        server_pid, server_log

Call these from the agent's main thread: the server is to die with its parent, and for the kernel
that is the thread. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from labkit.core import exits, interpreter, secrets
from labkit.core.ledger import marked, start_time
from labkit.core.plan import StepContext
from labkit.errors import TrialError
from labkit.image import oci
from labkit.image.rootfs import ContainerRoot, prepare_root, resolve

SERVER = ("-m", "labkit.subject.server")
# image label: where its shared libraries are, for a start without a changed root
LIBRARY_PATH = "org.coldstartlab.library-path"
PYTHON_HOME = "org.coldstartlab.python-home"
_PATH_LISTS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _libc.prctl(1, signal.SIGKILL)


def image_command(ctx: StepContext) -> list[str]:
    """Entrypoint (or Cmd) of the image, then the plan's server arguments."""
    run = ctx.state.get("image_config", {}).get("config") or {}
    head = list(run.get("Entrypoint") or run.get("Cmd") or ["/usr/bin/env", "python3", *SERVER])
    return head + list(ctx.server_args)


def container_environment(ctx: StepContext) -> dict[str, str]:
    """The image's environment and the plan's; nothing of the host's leaks in."""
    driver = {"LD_LIBRARY_PATH": DRIVER} if _has_gpu() else {}
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        **driver,
        **oci.environment(ctx.state.get("image_config", {})),
        **ctx.server_env,
    }


def host_binds(ctx: StepContext) -> list[tuple[str, str, str]]:
    """(host path, path inside, ro|rw): the timeline's directory and what the plan shows to the
    server."""
    binds = [(host, inside, "ro") for host, inside in ctx.server_binds]
    if "LABKIT_TIMELINE" in ctx.server_env:
        folder = str(ctx.timeline_path.parent)
        binds.append((folder, folder, "rw"))
    return list(dict.fromkeys(binds))


def drain(ctx: StepContext, fd: int) -> None:
    """Keep the last lines of the server's output in state["server_log"]; the pipe never fills."""
    log = ctx.state.setdefault("server_log", deque(maxlen=400))

    def read() -> None:
        with (
            open(fd, encoding="utf-8", errors="replace", buffering=1) as lines,
            contextlib.suppress(OSError, ValueError),
        ):
            log.extend(lines)

    threading.Thread(target=read, daemon=True, name="server-output").start()


def stand_before_t0(
    ctx: StepContext, command: Callable[[int], list[str]], environment: dict[str, str]
) -> tuple[subprocess.Popen[bytes], TextIO, dict[str, Any]]:
    """A process that stands on the node before t0 and is told by its standard input: (process, its
    answers, the first of them).

    `command(fd)`: its command line, for answers on that descriptor, a JSON line each; {} is the
    answer of one that ended. It is on the ledger, ends with the trial, and its output is kept as a
    server's."""
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            command(write_end),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd="/",
            start_new_session=True,
            pass_fds=(write_end,),
        )
    finally:
        os.close(write_end)
    entry = ctx.ledger.note("group", process.pid)

    def end() -> None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        ctx.ledger.done(entry)

    ctx.on_stop(end)
    assert process.stdout
    drain(ctx, os.dup(process.stdout.fileno()))
    process.stdout.close()
    answers = os.fdopen(read_end, "r", encoding="utf-8")
    return process, answers, json.loads(answers.readline() or "{}")


def _own(ctx: StepContext, process: subprocess.Popen[bytes], pid: int) -> None:
    """Note the server for take-down, on the ledger and at the end of the trial."""
    entry = ctx.ledger.note("group", process.pid)
    ctx.state["server_pid"], ctx.state["server_process"] = pid, process

    def end() -> None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # Behind a launcher the server is not our child: it is gone when the kernel says so, not
        # when the launcher is.
        until = time.monotonic() + 10
        while start_time(int(ctx.state["server_pid"])) and time.monotonic() < until:
            time.sleep(0.002)
        ctx.ledger.done(entry)

    ctx.on_stop(end)


# ---- process: no namespaces ----------------------------------------------------------------------


def process(ctx: StepContext) -> dict[str, Any]:
    """Start the image's interpreter through the image's own dynamic linker; without an image, the
    lab's own interpreter."""
    rootfs = ctx.state.get("rootfs")
    argv, environment = process_command(ctx, str(rootfs)) if rootfs else host_command(ctx)
    started = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd="/",
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    assert started.stdout
    drain(ctx, os.dup(started.stdout.fileno()))
    started.stdout.close()
    _own(ctx, started, started.pid)
    return {"runtime": "process", "server_pid": started.pid, "rootfs": str(rootfs or "")}


def host_command(ctx: StepContext) -> tuple[list[str], dict[str, str]]:
    """`host-env`: the interpreter and packages that run the lab."""
    return [sys.executable, *SERVER, *ctx.server_args], {
        **interpreter.environment(),
        "TMPDIR": ctx.temporary(),
        **ctx.server_env,
    }


def process_command(ctx: StepContext, rootfs: str) -> tuple[list[str], dict[str, str]]:
    """The image's command with every path led into the rootfs: its loader, its libraries, its
    PYTHONHOME."""
    for host, inside in ctx.server_binds:
        if host != inside:
            raise TrialError(
                f"{host} cannot appear as {inside}",
                why="the runtime `process` has no mount namespace",
                fix="process=userns or process=runc",
            )
    run = ctx.state.get("image_config", {}).get("config") or {}
    labels = run.get("Labels") or {}
    head, *rest = image_command(ctx)
    program = resolve(rootfs, _on_path(rootfs, head, container_environment(ctx)["PATH"]))
    environment = container_environment(ctx)
    # the host's own path leads to it
    (
        environment.pop("LD_LIBRARY_PATH", None)
        if environment.get("LD_LIBRARY_PATH") == DRIVER
        else None
    )
    for key in _PATH_LISTS:
        if environment.get(key):
            environment[key] = ":".join(
                rootfs + p if p.startswith("/") else p for p in environment[key].split(":")
            )
    if labels.get(PYTHON_HOME):
        environment["PYTHONHOME"] = rootfs + labels[PYTHON_HOME]
    environment["TMPDIR"] = ctx.temporary()
    linker = interpreter_of(program)
    if not linker:
        return [program, *rest], environment
    folders = (labels.get(LIBRARY_PATH) or "/usr/local/lib:/lib64:/usr/lib64:/lib:/usr/lib").split(
        ":"
    )
    if not labels.get(LIBRARY_PATH):
        folders += [f"{top}/{os.uname().machine}-linux-gnu" for top in ("/usr/lib", "/lib")]
    found = []
    for folder in folders:
        with contextlib.suppress(Exception):
            found.append(resolve(rootfs, folder))
    # The host's cache of libraries must not answer for the image; the host's driver libraries
    # (CUDA) still may.
    inhibit = [] if _has_gpu() else ["--inhibit-cache"]
    return [
        resolve(rootfs, linker),
        *inhibit,
        "--library-path",
        ":".join(dict.fromkeys(found)),
        "--argv0",
        program,
        program,
        *rest,
    ], environment


def _has_gpu() -> bool:
    return os.path.exists("/dev/nvidiactl")


#: Where the driver's libraries appear in a container; they belong to the host's kernel module,
#: never to the image.
DRIVER = "/run/labkit-driver"
_DRIVER_LIBRARIES = (
    "libcuda.so.",
    "libnvidia-ml.so.",
    "libnvidia-ptxjitcompiler.so.",
    "libnvidia-nvvm.so.",
    "libnvidia-gpucomp.so.",
)


def driver_libraries() -> dict[str, str]:
    """soname -> host path of the NVIDIA driver's libraries, from the dynamic linker's own cache;
    empty without a GPU."""
    if not _has_gpu():
        return {}
    program = (
        shutil.which("ldconfig", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin") or "ldconfig"
    )
    listed = subprocess.run([program, "-p"], capture_output=True, text=True).stdout
    pairs = (line.strip().partition(" => ") for line in listed.splitlines() if "i386" not in line)
    return {
        left.split(" ")[0]: os.path.realpath(path)
        for left, _, path in pairs
        if left.startswith(_DRIVER_LIBRARIES) and os.path.exists(path)
    }


def _on_path(rootfs: str, name: str, path: str) -> str:
    if "/" in name:
        return name
    for folder in path.split(":"):
        if os.path.lexists(f"{rootfs}{folder}/{name}"):
            return f"{folder}/{name}"
    raise TrialError(f"the image's command {name!r} is on no directory of its PATH", why=path)


def interpreter_of(program: str) -> str:
    """PT_INTERP of an ELF file (its dynamic linker); "" for anything else."""
    with open(program, "rb") as file:
        head = file.read(64)
        if head[:4] != b"\x7fELF" or head[4] != 2 or len(head) < 64:
            return ""
        (table,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        for i in range(min(count, 64)):
            file.seek(table + i * size)
            kind, _flags, offset, _v, _p, length = struct.unpack_from("<IIQQQQ", file.read(56))
            if kind == 3 and length < 4096:
                file.seek(offset)
                return file.read(length).rstrip(b"\0").decode(errors="surrogateescape")
    return ""


# ---- userns: rootless namespaces -----------------------------------------------------------------


def _laid(ctx: StepContext) -> tuple[ContainerRoot, list[tuple[str, str, str]]]:
    """The container's root on the node, and every bind: image first, then the host's name service,
    then the plan's."""
    rootfs = str(ctx.state["rootfs"])
    shown = host_binds(ctx)
    skeleton = ctx.node / "container" / "root"
    driver = driver_libraries()
    laid = prepare_root(
        rootfs, skeleton, [inside for _, inside, _ in shown] + ([DRIVER] if driver else [])
    )
    binds = [(source, below, "rw") for source, below in laid.binds]
    for name, path in driver.items():
        (skeleton / DRIVER.strip("/") / name).touch()
        binds.append((path, f"{DRIVER.strip('/')}/{name}", "ro"))
    for name in ("etc/resolv.conf", "etc/hosts"):
        if os.path.isfile(f"{rootfs}/{name}") and os.path.exists("/" + name):
            binds.append((os.path.realpath("/" + name), name, "ro"))
    return laid, binds + [(host, inside.strip("/"), mode) for host, inside, mode in shown]


def userns(ctx: StepContext) -> dict[str, Any]:
    """Start the image in its own user, mount and pid namespaces, without root."""
    laid, binds = _laid(ctx)
    head, *rest = image_command(ctx)
    environment = container_environment(ctx)
    run = ctx.state.get("image_config", {}).get("config") or {}
    spec = {
        "skeleton": str(laid.skeleton),
        "binds": binds,
        "argv": [_on_path(str(ctx.state["rootfs"]), head, environment["PATH"]), *rest],
        "env": environment,
        "cwd": run.get("WorkingDir") or "/",
    }
    spec_in, spec_out = os.pipe()
    status_in, status_out = os.pipe()
    try:
        started = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                str(Path(__file__).with_name("enter.py")),
                str(spec_in),
                str(status_out),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(spec_in, status_out),
            preexec_fn=_die_with_parent,
            env=marked({"PATH": os.environ.get("PATH", "")}),
        )
    finally:
        os.close(spec_in)
        os.close(status_out)
    assert started.stdout
    drain(ctx, os.dup(started.stdout.fileno()))
    started.stdout.close()
    _own(ctx, started, started.pid)
    with open(spec_out, "wb") as pipe, contextlib.suppress(BrokenPipeError):
        pipe.write(json.dumps(spec).encode("utf-8", "surrogateescape"))
    said: dict[str, Any] = {}
    with open(status_in, encoding="utf-8") as lines:
        for line in lines:  # ends when the exec has closed the pipe
            said |= json.loads(line)
    if "failed" in said or "pid" not in said:
        raise TrialError(
            f"the container did not start: {said.get('failed', 'its launcher ended')}",
            why="user namespaces, or a mount inside them, are not allowed here",
            fix="process=process, or labkit doctor",
        )
    ctx.state["server_pid"] = said["pid"]
    return {
        "runtime": "userns",
        "server_pid": said["pid"],
        "rootfs": str(ctx.state["rootfs"]),
        "binds": len(binds),
    }


# ---- runc: a container under root ----------------------------------------------------------------

_CAPABILITIES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
]


def runc_spec(
    ctx: StepContext, laid: ContainerRoot, binds: list[tuple[str, str, str]], cgroup: str
) -> dict[str, Any]:
    """The bundle's config.json: the host's network, everything else of its own; what Docker grants
    by default."""
    run = ctx.state.get("image_config", {}).get("config") or {}
    environment = container_environment(ctx)
    head, *rest = image_command(ctx)
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        },
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777"],
        },
        {
            "destination": "/dev/mqueue",
            "type": "mqueue",
            "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"],
        },
        {
            "destination": "/sys",
            "type": "sysfs",
            "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"],
        },
    ]
    mounts += [
        {"destination": "/" + below, "type": "bind", "source": source, "options": ["rbind", mode]}
        for source, below, mode in binds
    ]
    nodes = (
        sorted(
            f"/dev/{n}"
            for n in os.listdir("/dev")
            if n.startswith("nvidia") and not os.path.isdir(f"/dev/{n}")
        )
        if _has_gpu()
        else []
    )
    mounts += [
        {
            "destination": node,
            "type": "bind",
            "source": node,
            "options": ["bind", "nosuid", "noexec"],
        }
        for node in nodes
    ]
    resources = {"resources": {"devices": [{"allow": True, "access": "rwm"}]}} if nodes else {}
    capabilities = dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES)
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [_on_path(str(ctx.state["rootfs"]), head, environment["PATH"]), *rest],
            "env": [f"{k}={v}" for k, v in environment.items()],
            "cwd": run.get("WorkingDir") or "/",
            "capabilities": capabilities,
            "noNewPrivileges": True,
        },
        "root": {"path": str(laid.skeleton), "readonly": False},
        "hostname": "labkit",
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
            "cgroupsPath": cgroup,
            **resources,
        },
    }


def runc(ctx: StepContext) -> dict[str, Any]:
    """Start the image as a runc container; leaves state["container"] = {"id", "root", "bundle"} for
    snapshots."""
    program = shutil.which("runc") or "runc"
    laid, binds = _laid(ctx)
    bundle, name = laid.skeleton.parent, f"labkit-{os.getpid()}-{ctx.port}"
    state = bundle / "state"
    # the environment is in it
    secrets.write_private(
        bundle / "config.json", json.dumps(runc_spec(ctx, laid, binds, f"/labkit/{name}"))
    )
    entry = ctx.ledger.note("container", name, root=str(state))

    def end() -> None:
        subprocess.run(
            [program, "--root", str(state), "delete", "--force", name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        exits.reap(int(ctx.state.get("server_pid") or 0))
        ctx.ledger.done(entry)

    ctx.on_stop(end)
    out, pipe = os.pipe()
    try:
        drain(ctx, out)
        with exits.adopting():
            done = subprocess.run(
                [
                    program,
                    "--root",
                    str(state),
                    "--log",
                    str(bundle / "runc.log"),
                    "run",
                    "--detach",
                    "--pid-file",
                    str(bundle / "pid"),
                    "--bundle",
                    str(bundle),
                    name,
                ],
                stdin=subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
            )
    finally:
        os.close(pipe)
    if done.returncode:
        log = (
            (bundle / "runc.log").read_text(errors="replace")[-800:]
            if (bundle / "runc.log").exists()
            else ""
        )
        raise TrialError(
            f"runc did not start the container (exit {done.returncode})",
            why=log,
            fix="labkit doctor; or process=userns",
        )
    ctx.state["server_pid"] = int((bundle / "pid").read_text())
    ctx.state["container"] = {"id": name, "root": str(state), "bundle": str(bundle)}
    return {
        "runtime": "runc",
        "server_pid": ctx.state["server_pid"],
        "container": name,
        "rootfs": str(ctx.state["rootfs"]),
        "binds": len(binds),
    }
