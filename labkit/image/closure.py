"""What a Python program needs to run with nothing else around it: interpreter, standard library,
distributions, shared objects.

The dynamic linker of the host is asked (`ldd`) which shared objects each extension module loads;
what lies outside the packages themselves goes flat into the image's default library directory.
Compiled modules are taken along, as pip installs them, since without them an import takes twice as
long: their headers are rewritten to "unchecked hash", because the usual ones name the source file's
time, which in a reproducible image is zero, and would be compiled anew each start.

    entries = stdlib_entries()
    entries |= distribution_entries(distributions(["numpy", "safetensors"]))
    entries |= library_entries(shared_objects(entries))

Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from labkit.core import shipped
from labkit.core.ledger import marked
from labkit.errors import BadInput
from labkit.image.elf import interpreter_of
from labkit.image.layers import LayerEntry, add_file

PREFIX = "usr/local"
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
STDLIB = f"{PREFIX}/lib/{VERSION}"
SITE = f"{STDLIB}/site-packages"
#: Parts of the standard library that no server imports and slim images leave out.
_LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "site-packages",
    "dist-packages",
    "__pycache__",
}
_EXTENSIONS_LEFT_OUT = ("_tkinter.", "_test", "_ctypes_test.", "_xxtestfuzz.", "xxlimited")
_COMPILE = """
import importlib.util, json, sys, marshal
for source, name, target in json.load(open(sys.argv[1])):
    data = open(source, "rb").read()
    try:
        code = compile(data, name, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError):
        continue
    open(target, "wb").write(marshal.dumps(code))
"""


def interpreter_entries() -> dict[str, LayerEntry]:
    """The interpreter, its dynamic linker, the standard library, and the few files of /etc that a C
    library asks for."""
    python = Path(os.path.realpath(sys.executable))
    linker = interpreter_of(str(python))
    if not linker:
        raise BadInput(
            f"{python} is not a dynamically linked ELF program",
            why="an image can be built from a Linux host's Python only",
        )
    entries: dict[str, LayerEntry] = {}
    add_file(entries, f"{PREFIX}/bin/{VERSION}", python)
    entries[f"{PREFIX}/bin/python3"] = LayerEntry(symlink=VERSION)
    add_file(entries, "usr" + linker, Path(os.path.realpath(linker)))
    for top in {"lib", linker.split("/")[1]}:
        entries[top] = LayerEntry(symlink=f"usr/{top}")
    entries |= stdlib_entries()
    entries |= {
        "etc/passwd": LayerEntry(
            data=b"root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n"
        ),
        "etc/group": LayerEntry(data=b"root:x:0:\nnogroup:x:65534:\n"),
        "etc/nsswitch.conf": LayerEntry(data=b"passwd: files\ngroup: files\nhosts: files dns\n"),
        "etc/hosts": LayerEntry(data=b"127.0.0.1 localhost\n"),
        "etc/resolv.conf": LayerEntry(data=b""),
        "etc/hostname": LayerEntry(data=b"labkit\n"),
        "root": LayerEntry(mode=0o700),
        "tmp": LayerEntry(mode=0o1777),
        "dev": LayerEntry(mode=0o755),
        "proc": LayerEntry(mode=0o555),
        "sys": LayerEntry(mode=0o555),
        "run": LayerEntry(mode=0o755),
        "var/tmp": LayerEntry(mode=0o1777),
    }
    for bundle in ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"):
        if os.path.isfile(bundle):
            add_file(entries, "etc/ssl/certs/ca-certificates.crt", Path(bundle))
            break
    return entries


def stdlib_entries() -> dict[str, LayerEntry]:
    entries: dict[str, LayerEntry] = {}
    top = Path(sysconfig.get_paths()["stdlib"])
    for folder, folders, files in os.walk(top):
        folders[:] = sorted(
            f for f in folders if f not in _LEFT_OUT and not f.startswith("config-")
        )
        for name in sorted(files):
            source = Path(folder) / name
            if not (name.endswith(".so") and name.startswith(_EXTENSIONS_LEFT_OUT)):
                add_file(entries, f"{STDLIB}/{source.relative_to(top)}", source)
    # Debian keeps extension modules of the standard library beside it, others below it.
    dynload = Path(sysconfig.get_config_var("DESTSHARED") or top / "lib-dynload")
    for source in sorted(dynload.glob("*.so")) if dynload.is_dir() else []:
        if not source.name.startswith(_EXTENSIONS_LEFT_OUT):
            add_file(entries, f"{STDLIB}/lib-dynload/{source.name}", source)
    entries.setdefault(f"{STDLIB}/lib-dynload", LayerEntry(mode=0o755))
    return entries


def distributions(
    names: Iterable[str], without: Iterable[str] = ()
) -> dict[str, metadata.Distribution]:
    """Installed distributions and what they require, transitively (extras as in `package[extra]`).
    Missing ones are left out; of `without`, what they require stays."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    skipped = {canonicalize_name(n) for n in without}
    queue = [Requirement(n) for n in names]
    while queue:
        wanted = queue.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            dist = metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError:
            continue
        found[key[0]] = dist
        for line in dist.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": e}) for e in (*wanted.extras, "")
            ):
                queue.append(requirement)
    return {name: found[name] for name in sorted(found) if name not in skipped}


def distribution_entries(dists: Iterable[metadata.Distribution]) -> dict[str, LayerEntry]:
    """Files of installed distributions, at their place below site-packages; scripts and stale
    bytecode stay behind."""
    entries: dict[str, LayerEntry] = {}
    for dist in dists:
        for file in dist.files or ():
            parts = file.parts
            if ".." in parts or file.is_absolute() or file.suffix == ".pyc":
                continue
            source = Path(str(dist.locate_file(file)))
            if source.is_file():
                add_file(entries, f"{SITE}/{file.as_posix()}", source)
    return entries


def tree_entries(
    top: Path, below: str, skip: Iterable[str] = ("__pycache__", shipped.CARRIED)
) -> dict[str, LayerEntry]:
    """A directory of the host at `below`, bytecode left out."""
    entries: dict[str, LayerEntry] = {}
    for folder, folders, files in os.walk(top):
        folders[:] = sorted(f for f in folders if f not in skip)
        for name in sorted(files):
            source = Path(folder) / name
            add_file(entries, f"{below}/{source.relative_to(top).as_posix()}", source)
    return entries


def shared_objects(entries: dict[str, LayerEntry]) -> list[Path]:
    """Host files among the entries that the dynamic linker may be asked about: ELF, dynamic."""
    found = []
    for entry in entries.values():
        if entry.source and (".so" in entry.source.name or os.access(entry.source, os.X_OK)):
            with entry.source.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    found.append(entry.source)
    return found


def library_entries(objects: Iterable[Path]) -> dict[str, LayerEntry]:
    """Shared objects that `objects` load from outside the packages, flat in the default library
    directory."""
    inside = [os.path.realpath(sysconfig.get_paths()[k]) + "/" for k in ("purelib", "platlib")]
    paths = sorted({str(o) for o in objects})
    needed: dict[str, str] = {}
    for at in range(0, len(paths), 200):
        done = subprocess.run(
            ["ldd", *paths[at : at + 200]],
            capture_output=True,
            text=True,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
        )
        for line in done.stdout.split("\n"):
            name, arrow, rest = line.strip().partition(" => ")
            path = rest.rpartition(" (")[0] if arrow else ""
            if path.startswith("/") and not any(
                os.path.realpath(path).startswith(i) for i in inside
            ):
                needed[name] = path
    libc = needed.get("libc.so.6")
    if not libc:
        raise BadInput(
            "ldd named no C library",
            why="the image would not start",
            fix="build the image on a Linux host with glibc",
        )
    home = os.path.dirname(os.path.realpath(libc))
    # loaded by name at run time
    for name in ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2", "libgcc_s.so.1"):
        if os.path.exists(f"{home}/{name}"):
            needed.setdefault(name, f"{home}/{name}")
    entries: dict[str, LayerEntry] = {}
    for name, path in needed.items():
        add_file(
            entries,
            library_folder(libc) + "/" + os.path.basename(name),
            Path(os.path.realpath(path)),
        )
    return entries


def library_folder(libc: str) -> str:
    """Where the image's linker looks without a cache: the directory that the host's own C library
    came from."""
    folder = os.path.dirname(os.path.realpath(libc)).strip("/")
    return folder if folder.startswith("usr/") else "usr/" + folder


def bytecode_entries(entries: dict[str, LayerEntry], scratch: Path) -> dict[str, LayerEntry]:
    """Compiled modules for every source among the entries: the host's own where they are current,
    else compiled now.

    Compiling happens in one fresh process with a fixed hash seed, in sorted order, into `scratch`
    (which must live until the layer is written)."""
    compiled_entries: dict[str, LayerEntry] = {}
    missing: list[tuple[str, str, str]] = []
    for name in sorted(entries):
        source = entries[name].source
        if not name.endswith(".py") or source is None:
            continue
        folder, _, base = name.rpartition("/")
        target = f"{folder}/__pycache__/{base[:-3]}.{sys.implementation.cache_tag}.pyc"
        head = (
            importlib.util.MAGIC_NUMBER
            + (1).to_bytes(4, "little")
            + importlib.util.source_hash(source.read_bytes())
        )
        ready = Path(importlib.util.cache_from_source(str(source), optimization=""))
        if is_current(ready, source):
            compiled_entries[target] = LayerEntry(data=head, source=ready, skip=16)
        else:
            compiled = scratch / f"{len(missing)}.code"
            missing.append((str(source), "/" + name, str(compiled)))
            compiled_entries[target] = LayerEntry(data=head, source=compiled)
    if missing:
        jobs = scratch / "jobs.json"
        jobs.write_text(json.dumps(missing))
        subprocess.run(
            [sys.executable, "-I", "-S", "-W", "ignore", "-c", _COMPILE, str(jobs)],
            check=True,
            stdout=subprocess.DEVNULL,
            env=marked({"PYTHONHASHSEED": "0"}),
        )
    return {
        name: entry
        for name, entry in compiled_entries.items()
        if entry.source is None or entry.source.exists()
    }


def is_current(compiled: Path, source: Path) -> bool:
    """The bytecode file is of this interpreter and of this very source (by its time and size, as
    the importer judges)."""
    try:
        with compiled.open("rb") as file:
            head = file.read(16)
        found = source.stat()
    except OSError:
        return False
    return (
        len(head) == 16
        and head[:4] == importlib.util.MAGIC_NUMBER
        and head[4:8] == bytes(4)
        and int.from_bytes(head[8:12], "little") == int(found.st_mtime) & 0xFFFFFFFF
        and int.from_bytes(head[12:16], "little") == found.st_size & 0xFFFFFFFF
    )
