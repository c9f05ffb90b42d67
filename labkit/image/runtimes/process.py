"""The runtime `process`: the image's interpreter and packages as a plain process, no namespaces.

    Step("start", "labkit.image.runtimes.process:start")

Every path is led into the rootfs: the image's own dynamic linker, its libraries, its PYTHONHOME.
Limit: exec and dynamic linking, ~10 ms. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import os
import sys

from labkit.core import interpreter
from labkit.core.json_types import JsonObject
from labkit.core.plan import StepContext
from labkit.errors import TrialError
from labkit.image.elf import interpreter_of
from labkit.image.rootfs import resolve
from labkit.image.runtimes import driver
from labkit.image.runtimes.server import SERVER, container_command, run_config, spawn

# image label: where its shared libraries are, for a start without a changed root
LIBRARY_PATH = "org.coldstartlab.library-path"
PYTHON_HOME = "org.coldstartlab.python-home"
_PATH_LISTS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")


def start(ctx: StepContext) -> JsonObject:
    """Start the image's interpreter through the image's own dynamic linker; without an image, the
    lab's own interpreter."""
    rootfs = ctx.state.rootfs
    argv, environment = process_command(ctx, rootfs) if rootfs else host_command(ctx)
    process = spawn(ctx, argv, environment, cwd="/")
    return {"runtime": "process", "server_pid": process.pid, "rootfs": rootfs}


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
    labels = run_config(ctx).get("Labels") or {}
    argv, environment = container_command(ctx)
    program, rest = resolve(rootfs, argv[0]), argv[1:]
    # the host's own path leads to it
    if environment.get("LD_LIBRARY_PATH") == driver.FOLDER:
        del environment["LD_LIBRARY_PATH"]
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
    # The host's cache of libraries must not answer for the image; the host's driver libraries
    # (CUDA) still may.
    inhibit = [] if driver.present() else ["--inhibit-cache"]
    paths = ":".join(_library_folders(rootfs, labels.get(LIBRARY_PATH) or ""))
    return [
        resolve(rootfs, linker),
        *inhibit,
        "--library-path",
        paths,
        "--argv0",
        program,
        program,
        *rest,
    ], environment


def _library_folders(rootfs: str, labelled: str) -> list[str]:
    """Where the image's shared libraries are on the host: as its label says, or where they are by
    convention."""
    if labelled:
        folders = labelled.split(":")
    else:
        folders = ["/usr/local/lib", "/lib64", "/usr/lib64", "/lib", "/usr/lib"]
        folders += [f"{top}/{os.uname().machine}-linux-gnu" for top in ("/usr/lib", "/lib")]
    found = []
    for folder in folders:
        with contextlib.suppress(Exception):
            found.append(resolve(rootfs, folder))
    return list(dict.fromkeys(found))
