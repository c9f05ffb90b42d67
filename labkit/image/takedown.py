"""What the image room leaves running, for `labkit.core.takedown`: runc's containers, and mounts
of the lab's file system outside of the workspace.

    ledger.note("action", DELETE_CONTAINER, container=name, root=str(state))
    ledger.note("action", "image:unmount-lazy", path=os.path.realpath(target))

Lesson: none; STYLE.md, Code 6."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from labkit.core.json_types import JsonMapping
from labkit.core.proc import mounts
from labkit.core.takedown import Action, Scope, unmount

# of the ledger's actions; imported by whoever notes one, so that nothing is imported after t0
DELETE_CONTAINER, UNMOUNT_LAZY = "image:delete-container", "image:unmount-lazy"
LAZY_FSTYPE = "fuse.labkit"
CONTAINER = re.compile(r"labkit-[A-Za-z0-9_.-]{1,200}")
TIMEOUT_S = 20.0
SYSTEM_PATH = ":/usr/local/bin:/usr/sbin"  # where runc and criu are, whatever PATH says


def delete_container(
    root: str | os.PathLike[str], name: str, timeout_s: float | None = None
) -> None:
    """End a container of this runc state directory, if it is there."""
    runc = shutil.which("runc", path=os.environ.get("PATH", "") + SYSTEM_PATH)
    subprocess.run(
        [runc or "runc", "--root", str(root), "delete", "--force", name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=timeout_s,
    )


def _delete_container(entry: JsonMapping, scope: Scope) -> None:
    """One of the lab's names, in a state directory that the ledger may touch."""
    name, root = entry.get("container"), entry.get("root")
    if not isinstance(name, str) or not isinstance(root, str) or not CONTAINER.fullmatch(name):
        return
    if scope.owns(root) and os.path.isdir(root):
        delete_container(root, name, TIMEOUT_S)


def _unmount_lazy(entry: JsonMapping, scope: Scope) -> None:
    """A mount of the lab's own file system, wherever the user asked for it; nothing else that is
    mounted there."""
    path = entry.get("path")
    if not scope.processes or not isinstance(path, str):
        return
    if os.path.realpath(os.path.dirname(path)) != os.path.dirname(path):
        return
    kinds = [mount.kind for mount in mounts() if mount.point == path]
    if kinds and kinds[-1] == LAZY_FSTYPE:
        unmount(path)


ACTIONS = {
    "delete-container": Action(_delete_container, first=True),
    "unmount-lazy": Action(_unmount_lazy),
}
