"""The members of a layer that is converted, settled: each name once, in an order that says the same
to every reader.

    members = settle(spool.members)

A layer may write a name twice, stand its markers anywhere and lead hard links to what it replaces
later; what it comes to is said by `labkit.image.changeset`. Here its changes are kept as members,
since the layers below are not known: first what refers to them – whiteouts, opaque markers, hard
links to files that this layer does not hold –, and the layer's own, hard links behind their
target. A whiteout of what the layer itself brings as a directory becomes that directory's opaque
marker, which all runtimes read alike. Cost: about 2 µs a member. Lesson: notebooks/03_lazy_pull.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from labkit.image.changeset import KINDS, Changeset
from labkit.image.estargz.source import Placed
from labkit.image.oci import OPAQUE, WHITEOUT
from labkit.image.tar_header import DIR, FILE, HARDLINK, Member


@dataclass(frozen=True)
class Settled:
    """`lower`: members that refer to the layers below; `own`: what the layer brings. Where a link
    of `lower` has a target of which the layer brings another file (`lower_first`), the lower ones
    have to come first, else they may stand anywhere."""

    lower: list[Placed]
    lower_first: bool
    own: dict[str, Placed]  # by path; hard links come behind their targets


def settle(members: Iterable[Placed]) -> Settled:
    """Raises BadInput for what a changeset refuses."""
    changes = Changeset()
    kept = _Kept(changes)
    changes.apply(((p.member.name, KINDS[p.member.type], p.member.link, p) for p in members), kept)
    return kept.settled()


class _Kept:
    """A layer's changes as members. Names of one file share one `Placed`."""

    def __init__(self, changes: Changeset):
        self.changes = changes
        self.own: dict[str, Placed] = {}
        #: What refers to the layers below, in order: the path it is about, and a kind of marker,
        #: or a hard link's target.
        self.lower: dict[tuple[str, str], str] = {}

    def put(self, path: str, item: Placed) -> None:
        old = self.own.get(path)
        self.lower.pop((path, "link"), None)
        if item.member.type != DIR:
            self._drop_below(path)
        if old is not None and DIR not in (old.member.type, item.member.type):
            del self.own[path]  # behind the directories that came since
        if old is not None and old.member.type != DIR == item.member.type:
            self.lower[path, "opaque"] = ""  # the file before it hid what lies below
        self.own[path] = item

    def link(self, path: str, source: str) -> bool:
        self.own.pop(path, None)
        self.lower.pop((path, "link"), None)
        self._drop_below(path)
        held = self.own.get(source)
        if source in self.changes.parents or (held is not None and held.member.type == DIR):
            return False
        if held is None:
            self.lower[path, "link"] = source
        else:
            self.own[path] = held
        return True

    def hide(self, path: str) -> None:
        self.lower[path, "hidden"] = ""

    def clear(self, path: str, *, anew: bool) -> None:
        self.lower[path, "opaque"] = ""
        if anew and path not in self.changes.kinds:
            self._name(path)

    def _name(self, path: str) -> None:
        """Say what a directory is that no member names, as the lower layers' is hidden."""
        self.own.setdefault(path, Placed(Member(path, DIR, 0o755), 0))

    def _drop_below(self, path: str) -> None:
        """`path` is no directory any more."""
        self.lower.pop((path, "opaque"), None)
        if path in self.changes.parents:
            top = path + "/"
            for one in [one for one in self.own if one.startswith(top)]:
                del self.own[one]
            for key in [key for key in self.lower if key[0].startswith(top)]:
                del self.lower[key]

    def settled(self) -> Settled:
        for path, sort in self.lower:
            if sort == "hidden" and path in self.changes.parents:
                self._name(path)
        in_order = any(
            sort == "link" and self.changes.holds(source)
            for (_, sort), source in self.lower.items()
        )
        lower = [
            Placed(member, 0)
            for (path, sort), source in self.lower.items()
            if (member := self._lower(path, sort, source, in_order)) is not None
        ]
        own: dict[str, Placed] = {}
        first: dict[int, str] = {}
        for path, placed in self.own.items():
            held = first.setdefault(id(placed), path)
            member = replace(placed.member, name=path or "./")
            if held != path:
                member = replace(member, type=HARDLINK, link=held, size_bytes=0, extents=None)
            own[path] = Placed(member, placed.offset)
        return Settled(lower, in_order, own)

    def _lower(self, path: str, sort: str, source: str, in_order: bool) -> Member | None:
        if sort == "link":
            return Member(path, HARDLINK, 0o644, link=source)
        if sort == "hidden":
            whiteout = Member(f"{WHITEOUT}{path}", FILE, 0o644)
            if "/" in path:
                parent, _, leaf = path.rpartition("/")
                whiteout.name = f"{parent}/{WHITEOUT}{leaf}"
            held = self.own.get(path)
            if in_order or not self.changes.holds(path):
                return whiteout
            if held is not None and held.member.type != DIR:
                return None  # replaced anyway
        return Member(f"{path}/{OPAQUE}".lstrip("/"), FILE, 0o644)
