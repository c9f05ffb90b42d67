"""The root directory that a container gets: the image, and what of the host is shown in it.

    root, binds = prepare_container(ctx)

Limit: a system call for each entry at the image's top. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os

from labkit.core.plan import StepContext
from labkit.image.rootfs import ContainerRoot, prepare_root
from labkit.image.runtimes import driver
from labkit.image.runtimes.server import host_binds

Bind = tuple[str, str, str]  # host path, path below the container's root, "ro" or "rw"


def prepare_container(ctx: StepContext) -> tuple[ContainerRoot, list[Bind]]:
    """The container's root on the node, and every bind: image first, then the host's name service,
    then the plan's."""
    rootfs = ctx.state.rootfs
    shown = host_binds(ctx)
    skeleton = ctx.node / "container" / "root"
    libraries = driver.libraries()
    points = [inside for _, inside, _ in shown] + ([driver.FOLDER] if libraries else [])
    root = prepare_root(rootfs, skeleton, points)
    binds: list[Bind] = [(source, below, "rw") for source, below in root.binds]
    for name, path in libraries.items():
        below = f"{driver.FOLDER.strip('/')}/{name}"
        (skeleton / below).touch()
        binds.append((path, below, "ro"))
    for name in ("etc/resolv.conf", "etc/hosts"):
        if os.path.isfile(f"{rootfs}/{name}") and os.path.exists("/" + name):
            binds.append((os.path.realpath("/" + name), name, "ro"))
    return root, binds + [(host, inside.strip("/"), mode) for host, inside, mode in shown]
