"""A root directory for a container, laid over an unpacked or mounted image without writing a byte
into it.

The image may be read-only (a lazy mount) or shared (the warm node's copy), and the places where the
host's directories are to appear in it need not exist there. So the container's root is a skeleton
directory on the node: directories on the way to a mount point are made there, everything else of
the image is bound into them. No overlay file system is needed, which users may not mount
everywhere.

    root = prepare_root(image, skeleton, points=["/root/models/small"])
    root.binds        # [("…/image/usr", "usr"), …]: source on the host, path below the skeleton

Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from labkit.errors import BadInput

#: Directories that are the container's own, whatever the image has there.
OWN = {"dev": 0o755, "proc": 0o555, "sys": 0o555, "tmp": 0o1777, "run": 0o755}


@dataclass(frozen=True)
class ContainerRoot:
    skeleton: Path
    binds: list[tuple[str, str]] = field(default_factory=list)  # host path, path below the skeleton


def resolve(root: str | os.PathLike[str], path: str) -> str:
    """Host path of `path` inside `root`, symlinks followed as if `root` were `/`. Raises BadInput
    for a loop or nothing there."""
    base, parts, links = str(root), path.split("/"), 0
    done: list[str] = []
    while parts:
        part = parts.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            done = done[:-1]
            continue
        here = os.path.join(base, *done, part)
        try:
            is_link = stat.S_ISLNK(os.lstat(here).st_mode)
        except OSError as error:
            raise BadInput(
                f"{path} is not in the image: {error.strerror}", why=f"looked for below {base}"
            ) from None
        if is_link:
            links += 1
            if links > 40:
                raise BadInput(f"{path}: a loop of symlinks in the image")
            target = os.readlink(here)
            if target.startswith("/"):
                done = []
            parts = target.split("/") + parts
        else:
            done.append(part)
    return os.path.join(base, *done)


def prepare_root(
    image: str | os.PathLike[str], skeleton: Path, points: Iterable[str]
) -> ContainerRoot:
    """Make the skeleton and say what to bind. `points`: absolute directories that must exist as
    mount points."""
    root = Path(image)
    wanted = [p.strip("/") for p in points]
    split = {""}  # directories of the image that become directories of the skeleton
    for point in wanted:
        if point.split("/")[0] in OWN or _is_dir(root / point):
            continue
        at = ""
        for part in point.split("/")[:-1]:
            at = f"{at}/{part}".strip("/")
            if (root / at).is_symlink():
                raise BadInput(
                    f"/{point} leads through the image's symlink /{at}",
                    why="a host directory cannot be shown there",
                    fix="put LABKIT_HOME and the model under another path, such as /srv/lab",
                )
            if _is_dir(root / at):
                split.add(at)
    container = ContainerRoot(skeleton)
    skeleton.mkdir(mode=0o755, parents=True, exist_ok=True)
    for folder in sorted(split):
        _fill(root, folder, split, container)
    for name, mode in OWN.items():
        (skeleton / name).mkdir(exist_ok=True)
        (skeleton / name).chmod(mode)
    for point in wanted:
        if point.split("/")[0] in OWN or not _is_dir(root / point):
            (skeleton / point).mkdir(parents=True, exist_ok=True)
    return container


def _is_dir(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _fill(root: Path, folder: str, split: set[str], container: ContainerRoot) -> None:
    here = container.skeleton / folder
    here.mkdir(exist_ok=True)
    with os.scandir(root / folder) as children:
        for child in sorted(children, key=lambda c: c.name):
            path = f"{folder}/{child.name}".strip("/")
            if path in split or (not folder and child.name in OWN):
                continue
            if child.is_symlink():
                os.symlink(os.readlink(child.path), here / child.name)
            elif child.is_dir(follow_symlinks=False):
                (here / child.name).mkdir()
                container.binds.append((child.path, path))
            elif child.is_file(follow_symlinks=False):
                (here / child.name).touch()
                container.binds.append((child.path, path))
