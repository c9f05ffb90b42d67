"""Small stacks of layers and the tree that each comes to, for every way in which an image arrives.

A case is a list of layers, a layer a list of members; `expected` says what is at each path: bytes
of a file, "-> target", "/" for a directory, or a `Found` with more. All cases fit into one image,
each in a directory of its own (`stacked`)."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

NOBODY = ()
ALL = ("containerd", "umoci")
CONVERTED = "containerd, once converted"
DAY_S = 86400


@dataclass(frozen=True)
class M:
    """A tar member: "f"ile, "d"irectory, sym"l"ink, "h"ard link, "c"haracter device, "p"ipe, or
    "w": any name without data, a marker."""

    name: str
    kind: str = "f"
    content: bytes | str = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 1000
    xattrs: dict[str, str] = field(default_factory=dict)
    format: int = tarfile.PAX_FORMAT

    def raw(self, top: str = "") -> bytes:
        """Blocks of the archive, the member below the directory `top`."""
        head = tarfile.TarInfo(below(top, self.name))
        head.mode = 0o755 if self.kind == "d" and self.mode == 0o644 else self.mode
        head.uid, head.gid, head.mtime = self.uid, self.gid, self.mtime
        data = b""
        if self.kind == "l":
            head.type, head.linkname = tarfile.SYMTYPE, str(self.content)
        elif self.kind == "h":
            head.type, head.linkname = tarfile.LNKTYPE, below(top, str(self.content))
        elif self.kind == "d":
            head.type = tarfile.DIRTYPE
        elif self.kind == "c":
            head.type, head.devmajor, head.devminor = tarfile.CHRTYPE, 1, 3
        elif self.kind == "p":
            head.type = tarfile.FIFOTYPE
        else:
            data = self.content if isinstance(self.content, bytes) else self.content.encode()
            head.size = len(data)
        head.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in self.xattrs.items()}
        blocks = head.tobuf(self.format, "utf-8", "surrogateescape")
        return blocks + data + bytes(-len(data) % 512)


def below(top: str, name: str) -> str:
    if not top:
        return name
    lead = "/" if name.startswith("/") else "./" if name.startswith("./") else ""
    return f"{lead}{top}/{name[len(lead) :]}"


@dataclass(frozen=True)
class Found:
    """What is at a path, as far as a case says it."""

    kind: str
    content: bytes | str = b""
    mode: int | None = None
    owner: tuple[int, int] | None = None
    mtime: float | None = None
    names: frozenset[str] = frozenset()  # of one file, where it has several
    xattrs: tuple[tuple[str, bytes], ...] | None = None
    device: int = 0


Layer = list[M]
Expected = dict[str, bytes | str | Found]


@dataclass(frozen=True)
class Case:
    """`same`: the reference tools that show this tree. CONVERTED: containerd fails at the layers or
    shows lower files that they hide, and does neither when they are converted."""

    layers: list[Layer]
    expected: Expected
    same: tuple[str, ...] = ALL


def hard(content: bytes, *names: str) -> Expected:
    return {name: Found("f", content, names=frozenset(names)) for name in names}


LOWER_DIR = [M("d/", "d", mode=0o700, uid=5, gid=6), M("d/old", content=b"old")]
EMPTY_DIR = Found("d", mode=0o755, owner=(0, 0))
_OWN = Found("d", mode=0o700, owner=(5, 6), mtime=1000)
_NAMED = Found("d", mode=0o755, owner=(0, 0), mtime=1000)

CASES: dict[str, Case] = {
    "absolute names": Case(
        [
            [
                M("/usr/", "d"),
                M("/usr/tool", content=b"t", mode=0o755),
                M("./etc/conf", content=b"c"),
            ]
        ],
        {
            "usr": "/",
            "usr/tool": Found("f", b"t", 0o755, (0, 0), 1000),
            "etc": "/",
            "etc/conf": b"c",
        },
    ),
    "dots and empty parts in names": Case(
        [[M("a//./b", content=b"b"), M("a/../c", content=b"c"), M("a/x/..//d", content=b"d")]],
        {"a": "/", "a/b": b"b", "c": b"c", "a/d": b"d"},
    ),
    "a file twice": Case(
        [
            [
                M("u/", "d"),
                M("u/a", content=b"first"),
                M("u/", "d", mode=0o711),
                M("u/a", content=b"2"),
            ]
        ],
        {"u": Found("d", mode=0o711), "u/a": b"2"},
    ),
    "a symlink with too many dots": Case(
        [[M("a/certs", "l", "../../../../../../../../etc/certs")]],
        {"a": "/", "a/certs": "-> ../../../../../../../../etc/certs"},
    ),
    "a whiteout behind its directory": Case(
        [LOWER_DIR, [M("d/", "d"), M("d/new", content=b"n"), M(".wh.d")]],
        {"d": EMPTY_DIR, "d/new": b"n"},
        ("umoci", CONVERTED),
    ),
    "a whiteout before its directory": Case(
        [LOWER_DIR, [M(".wh.d"), M("d/", "d"), M("d/new", content=b"n")]],
        {"d": _NAMED, "d/new": b"n"},
        ("umoci", CONVERTED),
    ),
    "a whiteout before a directory that no member names": Case(
        [LOWER_DIR, [M(".wh.d"), M("d/new", content=b"n")]],
        {"d": EMPTY_DIR, "d/new": b"n"},
        ("umoci", CONVERTED),
    ),
    "a whiteout behind a directory that no member names": Case(
        [LOWER_DIR, [M("d/new", content=b"n"), M(".wh.d")]],
        {"d": EMPTY_DIR, "d/new": b"n"},
        (CONVERTED,),
    ),
    "a whiteout behind its file": Case(
        [[M("a", content=b"1")], [M("a", content=b"2"), M(".wh.a")]],
        {"a": b"2"},
        ("umoci", CONVERTED),
    ),
    "a whiteout before its file": Case(
        [[M("a", content=b"1"), M("k")], [M(".wh.a"), M("a", content=b"2")]], {"a": b"2", "k": b""}
    ),
    "an opaque marker behind its directory": Case(
        [LOWER_DIR, [M("d/", "d"), M("d/new", content=b"n"), M("d/.wh..wh..opq")]],
        {"d": _NAMED, "d/new": b"n"},
    ),
    "an opaque marker before its directory": Case(
        [LOWER_DIR, [M("d/.wh..wh..opq"), M("d/", "d"), M("d/new", content=b"n")]],
        {"d": _NAMED, "d/new": b"n"},
    ),
    "an opaque marker without its directory": Case([LOWER_DIR, [M("d/.wh..wh..opq")]], {"d": _OWN}),
    "an opaque directory that keeps a lower name": Case(
        [
            [M("d/s/", "d", mode=0o700), M("d/s/old"), M("d/t/", "d", mode=0o700)],
            [M("d/s/new", content=b"n"), M("d/.wh..wh..opq")],
        ],
        {"d": "/", "d/s": EMPTY_DIR, "d/s/new": b"n"},
        NOBODY,
    ),
    "a child whited out and brought anew": Case(
        [
            [M("d/a", content=b"old"), M("d/b", content=b"b")],
            [M("d/", "d"), M("d/.wh.a"), M("d/a", content=b"new")],
        ],
        {"d": "/", "d/a": b"new", "d/b": b"b"},
    ),
    "a name below a lower symlink": Case(
        [[M("usr/a", content=b"a"), M("bin", "l", "usr")], [M("bin/tool", content=b"t")]],
        {"usr": "/", "usr/a": b"a", "bin": EMPTY_DIR, "bin/tool": b"t"},
        ("containerd",),
    ),
    "an opaque marker below a lower symlink": Case(
        [[M("usr/a", content=b"a"), M("bin", "l", "usr")], [M("bin/.wh..wh..opq")]],
        {"usr": "/", "usr/a": b"a", "bin": EMPTY_DIR},
        ("containerd",),
    ),
    "a whiteout below a lower symlink": Case(
        [[M("usr/a", content=b"a"), M("bin", "l", "usr")], [M("bin/.wh.a")]],
        {"usr": "/", "usr/a": b"a", "bin": EMPTY_DIR},
        NOBODY,  # overlayfs also lists the whiteout itself
    ),
    "a name below a lower file": Case(
        [[M("f", content=b"f")], [M("f/x", content=b"x")]],
        {"f": EMPTY_DIR, "f/x": b"x"},
        ("containerd",),
    ),
    "a directory over a lower symlink": Case(
        [[M("usr/a", content=b"a"), M("l", "l", "usr")], [M("l/", "d"), M("l/x", content=b"x")]],
        {"usr": "/", "usr/a": b"a", "l": "/", "l/x": b"x"},
    ),
    "a symlink over a lower directory": Case(
        [[M("d/a", content=b"a")], [M("d", "l", "e")]], {"d": "-> e"}
    ),
    "a file over a lower directory": Case(
        [[M("d/a", content=b"a")], [M("d", content=b"f")]], {"d": b"f"}
    ),
    "a directory over a lower file": Case(
        [[M("f", content=b"f")], [M("f/", "d"), M("f/x")]], {"f": "/", "f/x": b""}
    ),
    "a directory of the layer replaced by a file": Case(
        [[M("d/", "d"), M("d/x", content=b"x"), M("d", content=b"f")]], {"d": b"f"}
    ),
    "a file of the layer replaced by a directory": Case(
        [LOWER_DIR, [M("d", content=b"f"), M("d/", "d"), M("d/x", content=b"x")]],
        {"d": _NAMED, "d/x": b"x"},
        ("umoci", CONVERTED),
    ),
    "a parent that the layer does not name": Case(
        [LOWER_DIR, [M("d/new", content=b"n")]], {"d": _OWN, "d/old": b"old", "d/new": b"n"}, NOBODY
    ),
    "parents that no layer names": Case(
        [[M("p/q/r", content=b"r")]], {"p": EMPTY_DIR, "p/q": EMPTY_DIR, "p/q/r": b"r"}
    ),
    "a hard link": Case(
        [[M("a", content=b"A"), M("b", "h", "a"), M("c", "h", "b")]], hard(b"A", "a", "b", "c")
    ),
    "a hard link by an absolute name": Case(
        [[M("a", content=b"A"), M("b", "h", "/a")]], hard(b"A", "a", "b")
    ),
    "a hard link to a lower layer's file": Case(
        [[M("a", content=b"A")], [M("b", "h", "a")]], hard(b"A", "a", "b"), ("umoci",)
    ),
    "a hard link in front of its target": Case(
        [[M("b", "h", "a"), M("a", content=b"A")]], hard(b"A", "a", "b"), NOBODY
    ),
    "a hard link whose target is written again": Case(
        [[M("a", content=b"1"), M("b", "h", "a"), M("a", content=b"2")]], {"a": b"2", "b": b"1"}
    ),
    "a hard link to a lower file that the layer then replaces": Case(
        [[M("a", content=b"1")], [M("b", "h", "a"), M("a", content=b"2")]],
        {"a": b"2", "b": b"1"},
        ("umoci",),
    ),
    "a hard link to a symlink": Case(
        [[M("s", "l", "nowhere"), M("t", "h", "s")]],
        {name: Found("l", "nowhere", names=frozenset("st")) for name in "st"},
    ),
    "one name of a lower hard link replaced": Case(
        [[M("t2", content=b"o"), M("t1", "h", "t2"), M("t3", "h", "t1")], [M("t1", content=b"n")]],
        {**hard(b"o", "t2", "t3"), "t1": b"n"},
    ),
    "one name of a lower hard link hidden with its directory": Case(
        [[M("d/a", content=b"A"), M("e", "h", "d/a")], [M(".wh.d")]], {"e": b"A"}
    ),
    "modes, owners and special files": Case(
        [
            [
                M("su", content=b"s", mode=0o4755, uid=7, gid=8),
                M("sticky/", "d", mode=0o1777),
                M("closed/", "d", mode=0o500, uid=1, gid=2),
                M("closed/x", content=b"x", mode=0o600, uid=4_000_000_000, gid=3),
                M("null", "c", mode=0o666),
                M("pipe", "p", mode=0o620),
            ]
        ],
        {
            "su": Found("f", b"s", 0o4755, (7, 8)),
            "sticky": Found("d", mode=0o1777),
            "closed": Found("d", mode=0o500, owner=(1, 2)),
            "closed/x": Found("f", b"x", 0o600, (4_000_000_000, 3)),
            "null": Found("c", mode=0o666, device=os.makedev(1, 3)),
            "pipe": Found("p", mode=0o620),
        },
    ),
    "times": Case(
        [
            [
                M("gnu", mtime=-DAY_S, format=tarfile.GNU_FORMAT),
                M("pax", mtime=-DAY_S),
                M("half", mtime=200.5),
                M("before", mtime=-0.25),
                M("late", mtime=9_000_000_000),
                M("too-late", mtime=1 << 40),
                M("too-late-gnu", mtime=1 << 40, format=tarfile.GNU_FORMAT),
                M("d/", "d", mtime=-DAY_S),
            ]
        ],
        {
            "gnu": Found("f", mtime=-DAY_S),
            "pax": Found("f", mtime=-DAY_S),
            "half": Found("f", mtime=200.5),
            "before": Found("f", mtime=-0.25),
            "late": Found("f", mtime=9_000_000_000),
            "too-late": Found("f", mtime=0),
            "too-late-gnu": Found("f", mtime=0),
            "d": Found("d", mtime=-DAY_S),
        },
        NOBODY,  # containerd makes them 1970
    ),
    "long names": Case(
        [
            [
                M("x" * 120 + "/" + "y" * 200, content=b"pax"),
                M("z" * 180, content=b"gnu", format=tarfile.GNU_FORMAT),
                M("l", "l", "t" * 150, format=tarfile.GNU_FORMAT),
                M("caf\udce9", content=b"latin1", format=tarfile.GNU_FORMAT),
                M("new\nline", content=b"n"),
            ]
        ],
        {
            "x" * 120: "/",
            "x" * 120 + "/" + "y" * 200: b"pax",
            "z" * 180: b"gnu",
            "l": "-> " + "t" * 150,
            "caf\udce9": b"latin1",
            "new\nline": b"n",
        },
    ),
    "extended attributes": Case(
        [
            [
                M("d/", "d", xattrs={"user.lower": "1"}),
                M("f", xattrs={"user.a": "b", "user.empty": ""}),
            ],
            [M("d/", "d", xattrs={"user.upper": "2"})],
        ],
        {
            "d": Found("d", xattrs=(("user.upper", b"2"),)),
            "f": Found("f", xattrs=(("user.a", b"b"), ("user.empty", b""))),
        },
        NOBODY,  # umoci keeps the lower one's, containerd's snapshots may lie on any file system
    ),
}


def whole(members: Iterable[M], top: str = "") -> bytes:
    return b"".join(m.raw(top) for m in members) + bytes(1024)


def stacked(cases: dict[str, Case]) -> list[bytes]:
    """Plain tars of one image in which case number i lies in the directory `i`."""
    numbered = [(str(at), case) for at, case in enumerate(cases.values())]
    height = max(len(case.layers) for _, case in numbered)
    return [
        b"".join(
            m.raw(top) for top, case in numbered if at < len(case.layers) for m in case.layers[at]
        )
        + bytes(1024)
        for at in range(height)
    ]


_FORMATS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFCHR: "c",
    stat.S_IFIFO: "p",
}


def observed(top: Path) -> dict[str, Found]:
    """Everything below a directory, with all that a case may say."""
    found: dict[str, Found] = {}
    inodes: dict[int, list[str]] = {}
    for folder, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = os.path.join(folder, name)
            about = os.lstat(path)
            kind = _FORMATS[stat.S_IFMT(about.st_mode)]
            content: bytes | str = b""
            if kind == "l":
                content = os.readlink(path)
            elif kind == "f":
                content = Path(path).read_bytes()
            keys = os.listxattr(path, follow_symlinks=False) if kind in "fd" else []
            relative = os.path.relpath(path, top)
            if kind != "d":
                inodes.setdefault(about.st_ino, []).append(relative)
            found[relative] = Found(
                kind,
                content,
                stat.S_IMODE(about.st_mode),
                (about.st_uid, about.st_gid),
                about.st_mtime_ns / 1e9,
                xattrs=tuple(sorted((k, os.getxattr(path, k)) for k in keys)),
                device=about.st_rdev if kind == "c" else 0,
            )
    return with_names(found, inodes.values())


def with_names(found: dict[str, Found], groups: Iterable[list[str]]) -> dict[str, Found]:
    for group in groups:
        if len(group) > 1:
            for name in group:
                found[name] = replace(found[name], names=frozenset(group))
    return found


def differences(tree: dict[str, Found], expected: Expected, top: str = "") -> list[str]:
    """What of a case, in the directory `top`, is not as expected; empty where all is."""
    lead = f"{top}/" if top else ""
    here = {name[len(lead) :]: found for name, found in tree.items() if name.startswith(lead)}
    wrong = [f"{name!r} is there" for name in here.keys() - expected.keys()]
    for name, spec in expected.items():
        if isinstance(spec, bytes):
            spec = Found("f", spec)
        elif isinstance(spec, str):
            spec = Found("d") if spec == "/" else Found("l", spec[3:])
        found = here.get(name)
        if found is None:
            wrong.append(f"{name!r} is missing")
            continue
        group = frozenset(one[len(lead) :] for one in found.names)
        for key, wanted in vars(spec).items():
            value = group if key == "names" else getattr(found, key)
            if wanted is not None and value != wanted:
                wrong.append(f"{name!r}: {key} is {value!r}, not {wanted!r}")
    return wrong
