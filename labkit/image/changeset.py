"""What the members of an image layer change in the tree below it: one set of rules, for every way
in which an image arrives.

    changes = Changeset()
    changes.apply(((m.name, KINDS[m.type], m.link, m) for m in reader), target)

A `Target` is a root directory that is written (`unpack`), a tree in memory (`lazyfs.tree`), or the
list of members of a layer that is converted (`estargz.settle`). The rules are those of the OCI
image spec (layer.md), and where it is silent what overlayfs shows after containerd:

- Names are text, below the root: a leading slash, `.`, empty parts and a `..` that stays inside
  fall away. No link is followed: a name that leads through a lower layer's symlink or file makes a
  directory in its place.
- The last member of a name wins; a directory over a directory keeps what is in it, everything else
  replaces what was there. A directory that no member names is made with mode 0755, root's, of 1970,
  or stays as it is.
- `.wh.NAME` hides NAME and `.wh..wh..opq` all of its directory, of the layers below and wherever in
  the layer it stands: what the layer itself brings is spared.
- A hard link is one more name of its target, which its own layer or a lower one brought; its own
  mode, owner and time say nothing. It may stand in front of its target.
- What eStargz puts into the root for itself (a table of contents, landmarks) is not shown.

Refused with BadInput: names that climb out of the root or that no file can have, members that lead
through a symlink or a file of their own layer, hard links to nothing or to directories, whiteouts
of no file. Limit: under a microsecond a member. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from labkit.errors import BadInput
from labkit.image.estargz.layout import OWN_NAMES
from labkit.image.oci import OPAQUE, WHITEOUT
from labkit.image.tar_header import BLOCKDEV, CHAR, DIR, FIFO, FILE, HARDLINK, SYMLINK

#: A tar member's type in words, which are those of an eStargz TOC.
KINDS = {
    FILE: "reg",
    DIR: "dir",
    SYMLINK: "symlink",
    HARDLINK: "hardlink",
    CHAR: "char",
    BLOCKDEV: "block",
    FIFO: "fifo",
}
_NAME_BYTES, _PATH_BYTES, _DEPTH = 255, 4095, 256
_SEARCH_LIMIT = 20_000_000  # names looked at for replaced directories: seconds
#: ASCII, at most 255 characters, no empty part and none that starts with a dot.
_CLEAN = re.compile(r"(?=[\x01-\x7f]{1,255}\Z)[^/.][^/]*(?:/[^/.][^/]*)*\Z").match

Item = TypeVar("Item", contravariant=True)


class Target(Protocol[Item]):
    """What a layer is applied to. Paths are clean; no directory on the way to one is of the layer
    and anything else. Directories on the way are made where they are missing."""

    def put(self, path: str, item: Item) -> None:
        """Have the item at `path` ("" is the root), in place of what is there."""

    def link(self, path: str, source: str) -> bool:
        """Make `path` a name of the file at `source`, in place of what is there. False: there is
        none, or none yet, and then nothing is at `path`."""

    def hide(self, path: str) -> None:
        """Remove what lower layers have at `path`."""

    def clear(self, path: str, *, anew: bool) -> None:
        """Remove what lower layers have below the directory `path`, and spare what the layer
        holds. `anew`: its own attributes are the lower layers' too, unless the layer names it."""


def refuse(name: str, offence: str) -> BadInput:
    return BadInput(
        f"layer refused: {name[:200]!r} {offence}",
        why=(
            "it would write outside the image's root, or more than "
            "it may, or is no file; nothing of the image was kept"
        ),
        fix="do not run this image; its builder is broken or hostile",
    )


def clean(name: str, noun: str = "name") -> str:
    """A member's name as a path below the root ("" for the root itself). Raises BadInput for what
    climbs out of it and for what no file can be called."""
    if _CLEAN(name):  # nearly all of them
        return name
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                raise refuse(name, f"climbs out of the image's root ({noun})")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    if len(parts) > _DEPTH:
        raise refuse(name, f"is deeper than {_DEPTH} directories ({noun})")
    path = "/".join(parts)
    if not _fits(path, _PATH_BYTES) or not all(_fits(part, _NAME_BYTES) for part in parts):
        raise refuse(name, f"is longer than a {noun} may be, or no text")
    return path


def _fits(text: str, limit: int) -> bool:
    try:
        return "\0" not in text and len(text.encode("utf-8", "surrogateescape")) <= limit
    except UnicodeEncodeError:
        return False


class Changeset:
    """One layer, as far as it was applied: what it holds, by which its markers spare its own."""

    def __init__(self) -> None:
        self.kinds: dict[str, str] = {}  # of the paths that its members name
        self.parents: set[str] = set()  # directories in which something of it lies
        self._waiting: dict[str, str] = {}  # hard links whose target is not there yet
        self._searched = 0

    def holds(self, path: str) -> bool:
        return path in self.kinds or path in self.parents

    def apply(self, members: Iterable[tuple[str, str, str, Item]], target: Target[Item]) -> None:
        """`members`: (name, kind, link target, whatever the target wants to know), in order. Raises
        BadInput with the target half done."""
        kinds, parents, put = self.kinds, self.parents, target.put
        for name, kind, link, item in members:
            path = clean(name)
            parent, _, leaf = path.rpartition("/")
            if not parent:
                if not path:
                    if kind != "dir":
                        raise refuse(name, "replaces the root itself")
                    put(path, item)
                    continue
                if path in OWN_NAMES:
                    continue
            elif parent not in parents:
                parents.update(self._above(path))
            if leaf.startswith(WHITEOUT):
                self._mark(parent, leaf, target)
                continue
            if kind == "hardlink":
                self._link(path, link, target)
            else:
                if kind == "symlink" and not (link and _fits(link, _PATH_BYTES)):
                    raise refuse(path, "is a symlink without a usable target")
                put(path, item)
                if self._waiting:
                    self._waiting.pop(path, None)
            if kind != "dir" and path in parents:
                self._drop_below(path)
            kinds[path] = kind
        self._link_waiting(target)

    def _above(self, path: str) -> Iterator[str]:
        """Directories above `path` of which this layer holds nothing yet. Raises BadInput where it
        holds something else."""
        at = path.rpartition("/")[0]
        while at and at not in self.parents:
            if self.kinds.get(at, "dir") != "dir":
                raise refuse(path, f"leads through {at!r} of its own layer, which is no directory")
            yield at
            at = at.rpartition("/")[0]

    def _drop_below(self, path: str) -> None:
        """Forget a directory of this layer that a later member of it replaced."""
        self._searched += len(self.kinds)
        if self._searched > _SEARCH_LIMIT:
            raise refuse(path, "replaces a directory of its own layer once more, after thousands")
        top = path + "/"
        self.parents -= {one for one in self.parents if one == path or one.startswith(top)}
        for names in (self.kinds, self._waiting):
            for one in [one for one in names if one.startswith(top)]:
                del names[one]

    def _mark(self, parent: str, leaf: str, target: Target[Item]) -> None:
        if leaf == OPAQUE:
            target.clear(parent, anew=False)
            return
        if leaf.startswith(WHITEOUT + WHITEOUT):
            return  # aufs bookkeeping, never content
        hidden = leaf[len(WHITEOUT) :]
        if hidden in ("", ".", ".."):
            raise refuse(f"{parent}/{leaf}", "is a whiteout of no file")
        path = f"{parent}/{hidden}" if parent else hidden
        if path in self.parents or self.kinds.get(path) == "dir":
            target.clear(path, anew=True)
        elif path not in self.kinds:
            target.hide(path)

    def _link(self, path: str, link: str, target: Target[Item]) -> None:
        source = clean(link, "hard link")
        if not source or f"{source}/".startswith(f"{path}/") or path.startswith(f"{source}/"):
            raise refuse(path, "is a hard link to itself, or to what it would replace")
        for _ in self._above(source):
            pass
        if target.link(path, source):
            self._waiting.pop(path, None)
        else:
            self._waiting[path] = source

    def _link_waiting(self, target: Target[Item]) -> None:
        """Hard links that stood in front of their target, and those in front of them."""
        by_source: dict[str, list[str]] = {}
        for path, source in self._waiting.items():
            by_source.setdefault(source, []).append(path)
        sources = list(by_source)
        while sources:
            source = sources.pop()
            for path in by_source.get(source, ()):
                if path in self._waiting:
                    if not target.link(path, source):
                        break
                    del self._waiting[path]
                    sources.append(path)
        if self._waiting:
            path, source = next(iter(self._waiting.items()))
            raise refuse(path, f"is a hard link to {source!r}, which is no file of the image")
