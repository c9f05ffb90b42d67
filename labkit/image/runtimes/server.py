"""What the server is given, whatever starts it: the image's command and environment, binds, a pipe
for its output, an end.

    argv, environment = container_command(ctx)
    process = spawn(ctx, argv, environment)       # ctx.state: server_pid, server_log

Limit: none of its own. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable

from labkit.core.json_types import JsonObject
from labkit.core.plan import StepContext
from labkit.core.proc import start_time
from labkit.errors import TrialError
from labkit.image import oci
from labkit.image.runtimes import driver

SERVER = ("-m", "labkit.subject.server")
_libc = ctypes.CDLL(None)


def image_command(ctx: StepContext) -> list[str]:
    """Entrypoint (or Cmd) of the image, then the plan's server arguments."""
    run = run_config(ctx)
    head = run.get("Entrypoint") or run.get("Cmd") or ["/usr/bin/env", "python3", *SERVER]
    return [*head, *ctx.server_args]


def run_config(ctx: StepContext) -> JsonObject:
    """The part of the image's config that says how to run it; {} without an image."""
    return ctx.state.image_config.get("config") or {}


def on_path(rootfs: str, name: str, path: str) -> str:
    """The image's path of a program, looked for as execvp does."""
    if "/" in name:
        return name
    for folder in path.split(":"):
        if os.path.lexists(f"{rootfs}{folder}/{name}"):
            return f"{folder}/{name}"
    raise TrialError(f"the image's command {name!r} is on no directory of its PATH", why=path)


def container_command(ctx: StepContext) -> tuple[list[str], dict[str, str]]:
    """The image's command, its program by its path in the image, and the environment."""
    environment = container_environment(ctx)
    head, *rest = image_command(ctx)
    return [on_path(ctx.state.rootfs, head, environment["PATH"]), *rest], environment


def container_environment(ctx: StepContext) -> dict[str, str]:
    """The image's environment and the plan's; nothing of the host's leaks in."""
    libraries = {"LD_LIBRARY_PATH": driver.FOLDER} if driver.present() else {}
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        **libraries,
        **oci.environment(ctx.state.image_config),
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
    """Keep the last lines of the server's output in ctx.state.server_log; the pipe never fills.
    Closes `fd` at its end."""
    log = ctx.state.server_log

    def read() -> None:
        with (
            open(fd, encoding="utf-8", errors="replace", buffering=1) as lines,
            contextlib.suppress(OSError, ValueError),
        ):
            log.extend(lines)

    threading.Thread(target=read, daemon=True, name="server-output").start()


def spawn(
    ctx: StepContext,
    argv: list[str],
    environment: dict[str, str],
    *,
    cwd: str | None = None,
    pass_fds: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:
    """Start the server, or its launcher, in a process group of its own that dies with the agent.
    Its output is drained; its end is noted on the ledger and comes at the latest with the
    trial's."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=cwd,
        start_new_session=True,
        pass_fds=pass_fds,
        preexec_fn=_die_with_parent,
    )
    drain_output(ctx, process)
    ctx.state.server_pid, ctx.state.server_process = process.pid, process

    def wait_for_server() -> None:
        # Behind a launcher the server is not our child: it is gone when the kernel says so, not
        # when the launcher is.
        until = time.monotonic() + 10
        while start_time(ctx.state.server_pid) and time.monotonic() < until:
            time.sleep(0.002)

    end_with_trial(ctx, process, wait_for_server)
    return process


def end_with_trial(
    ctx: StepContext, process: subprocess.Popen[bytes], wait: Callable[[], None] = lambda: None
) -> None:
    """Note a process group on the ledger; it ends with the trial. `wait`: for what outlives the
    process."""
    entry = ctx.ledger.note("group", process.pid)

    def end() -> None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        wait()
        ctx.ledger.done(entry)

    ctx.on_stop(end)


def _die_with_parent() -> None:
    _libc.prctl(1, signal.SIGKILL)


def drain_output(ctx: StepContext, process: subprocess.Popen[bytes]) -> None:
    """`drain` of a process's standard output, which is the thread's from now on."""
    assert process.stdout
    drain(ctx, os.dup(process.stdout.fileno()))
    process.stdout.close()
