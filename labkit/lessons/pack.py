"""The workshop pack: one archive with everything a machine without internet needs.

    labkit-workshop/
      unpack.sh              makes the virtual environment from wheels/, puts models and image into
          the workspace, runs the doctor
      MANIFEST.json          SHA-256 and size of every file
      lab/                   this checkout: labkit, notebooks, data, tests, documents
      wheels/                every package of constraints.txt that is installed here, for this
          Python and machine type
      models/<preset>/       checkpoints          images/        the subject's image
          records/      further runs

The archive is made for machines like this one (same Python minor version, same architecture, glibc
at least as new); `unpack.sh` says so where they differ, and changes nothing outside its folder and
the workspace. Nothing of the packer's own workspace but the named artifacts goes in: no runs, no
ledgers, no registry state. Lesson: docs/facilitator.md."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from labkit.core import outputs, shipped
from labkit.core.beside import replacing, scratch
from labkit.core.json_types import JsonObject
from labkit.core.workspace import Workspace
from labkit.errors import BadInput, TransferError
from labkit.image.build import AS_PACKED
from labkit.lessons import gpu_record, pages
from labkit.snapshot.store import sha256

TOP = "labkit-workshop"
AS_PACKED_NOTE = (
    b"This image came with a workshop pack and is used as it is. Remove this file to build it from"
    b" what is installed here.\n"
)
#: What of a checkout a learner needs; generated and private things never match.
LAB = (
    "labkit",
    "notebooks",
    "data",
    "tests",
    "docs",
    "scripts",
    "binder",
    "pyproject.toml",
    "constraints.txt",
    "Makefile",
    "README.md",
    "STYLE.md",
    "LICENSE",
)
_SKIPPED = ("__pycache__", ".ipynb_checkpoints", ".git")


@dataclass(frozen=True)
class Packed:
    path: Path
    files: int
    size_bytes: int
    parts_bytes: dict[str, int] = field(default_factory=dict)


def pack(
    out: Path,
    *,
    presets: Sequence[str],
    image: bool = True,
    wheels: bool = True,
    records: Sequence[Path] = (),
    workspace: Workspace | None = None,
    root: Path | None = None,
    say: Callable[[str], object] = print,
) -> Packed:
    """Write the archive. Raises BadInput for a checkout or a record that is not there,
    TransferError when wheels cannot be had."""
    space = workspace or Workspace.default()
    lab = root or shipped.IMPORTED_FROM
    if not (lab / "pyproject.toml").exists():
        raise BadInput(
            f"{lab} is not a checkout of the lab",
            why="the notebooks are packed from it",
            fix="run labkit workshop pack from an editable install (make setup)",
        )
    for path in records:
        gpu_record.refuse_unsound(path)
    outputs.refuse_stranger(
        out, lambda head: head.startswith(f"{TOP}/".encode()), "a pack of the lab"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with scratch("labkit-pack-", out.parent) as directory:
        parts: dict[str, list[tuple[str, Path]]] = {"lab": _lab_files(lab)}
        if wheels:
            say("packages")
            parts["wheels"] = _files(_wheels(lab, directory / "wheels", say), "wheels")
        parts["models"] = []
        for preset in presets:
            say(f"checkpoint {preset}")
            parts["models"] += _model(space, preset)
        if image:
            say("image of the subject")
            parts["images"] = _image(space)
        empty = [part for part, entries in parts.items() if not entries]
        if not presets:
            empty.remove("models")
        if empty:
            raise BadInput(
                f"nothing to pack as {' and '.join(empty)}",
                why="the machines of the room would lack it",
                fix="labkit doctor; --no-wheels or --no-image leave a part out on purpose",
            )
        parts["records"] = [(f"records/{p.name}", p) for p in records]
        say("archive")
        return _write(out, parts, wheels)


def _lab_files(lab: Path) -> list[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    for name in LAB:
        path = lab / name
        if path.is_file():
            found.append((f"lab/{name}", path))
        elif path.is_dir():
            found += _files(path, f"lab/{name}")
    return found


def _files(folder: Path, under: str) -> list[tuple[str, Path]]:
    """Regular files below a folder, sorted; links are followed only within it."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(p in _SKIPPED or p.endswith(".egg-info") for p in parts):
            found.append(("/".join((under, *parts)), path))
    return found


def _wheels(lab: Path, into: Path, say: Callable[[str], object]) -> Path:
    """Every pinned package that is installed here, as a wheel. Source-only packages are built once,
    here."""
    from importlib import metadata

    into.mkdir()
    here = {_plain(d.metadata["Name"]): d.version for d in metadata.distributions()}
    pins = [
        line.strip()
        for line in (lab / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    ]
    # What is installed counts: `torch==2.x+cpu` has no counterpart under the plain pin on a default
    # index.
    names = [pin.split("==")[0] for pin in pins]
    wanted = [f"{name}=={here[_plain(name)]}" for name in names if _plain(name) in here]
    needed = Path(into.parent) / "wanted.txt"
    needed.write_text("\n".join([*wanted, "setuptools", "wheel", "pip"]) + "\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "-r",
            str(needed),
            "-w",
            str(into),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise TransferError(
            "not every package could be had as a wheel",
            why=done.stderr[-1500:].strip(),
            fix="try again with internet, or --no-wheels where the room has a mirror",
        )
    say(f"{len(list(into.glob('*.whl')))} wheels")
    return into


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _model(space: Workspace, preset: str) -> list[tuple[str, Path]]:
    from labkit.subject import checkpoint

    directory = Path(checkpoint.ensure(space, preset))
    return _files(directory, f"models/{directory.name}")


def _image(space: Workspace) -> list[tuple[str, Path]]:
    from labkit.image import build

    layout, _reference = build.ensure_image(space)
    layout = Path(layout)
    under = f"images/{layout.relative_to(space.images)}"
    return [entry for entry in _files(layout, under) if not entry[0].startswith(f"{under}/built/")]


def _write(out: Path, parts: dict[str, list[tuple[str, Path]]], wheels: bool) -> Packed:
    """Stream into the archive, hashing as it goes; the manifest comes last and names everything."""
    made_for = {
        "version": ".".join(platform.python_version_tuple()[:2]),
        "machine": platform.machine(),
    }
    script = pages.render(
        "unpack.sh.j2",
        **made_for,
        major=sys.version_info[0],
        minor=sys.version_info[1],
        wheels=wheels,
    )
    manifest: dict[str, JsonObject] = {}
    with (
        replacing(out) as partial,
        tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, path in (entry for part in parts.values() for entry in part):
            manifest[name] = _add(archive, name, path, path.stat().st_mode & 0o111)
        if parts.get("images"):
            # Times of installed files differ on every machine, so an image would be built anew;
            # this says to keep it.
            name = "/".join([*parts["images"][0][0].split("/")[:2], AS_PACKED])
            manifest[name] = _add(archive, name, AS_PACKED_NOTE, 0)
        manifest["unpack.sh"] = _add(archive, "unpack.sh", f"{script}\n".encode(), 0o111)
        text = json.dumps({"made_for": made_for, "files": manifest}, indent=1, sort_keys=True)
        _add(archive, "MANIFEST.json", text.encode(), 0)
    sizes = {
        part: sum(manifest[name]["size_bytes"] for name, _ in entries)
        for part, entries in parts.items()
    }
    return Packed(out, len(manifest) + 1, out.stat().st_size, sizes)


def _add(archive: tarfile.TarFile, name: str, source: bytes | Path, executable: int) -> JsonObject:
    member = tarfile.TarInfo(f"{TOP}/{name}")
    member.mode = 0o755 if executable else 0o644
    with open(source, "rb") if isinstance(source, Path) else io.BytesIO(source) as data:
        member.size = data.seek(0, io.SEEK_END)
        data.seek(0)
        hashing = _Hashing(data)
        archive.addfile(member, hashing)
    return {"sha256": hashing.sha256.hexdigest(), "size_bytes": member.size}


class _Hashing:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, data: BinaryIO):
        self.data, self.sha256 = data, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self.data.read(size)
        self.sha256.update(piece)
        return piece


def verify(folder: Path) -> int:
    """Number of files checked. Raises BadInput that names what is missing, changed or of a hostile
    name."""
    manifest = folder / "MANIFEST.json"
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        items = [(str(n), str(f["sha256"]), int(f["size_bytes"])) for n, f in files.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{manifest} is no manifest: {error}", fix="unpack the archive again"
        ) from None
    if not items:
        raise BadInput(
            f"{manifest} names no file",
            why="of nothing, nothing was checked",
            fix="unpack the archive again",
        )
    wrong = []
    for name, wanted, size in items:
        path = folder / name
        if name.startswith("/") or ".." in Path(name).parts:
            wrong.append(f"{name}: leads out of the folder")
        elif not path.is_file():
            wrong.append(f"{name}: missing")
        elif path.stat().st_size != size or sha256(path) != wanted:
            wrong.append(f"{name}: changed")
    if wrong:
        raise BadInput(
            f"{len(wrong)} of {len(items)} files are not as packed: " + "; ".join(wrong[:5]),
            why="a torn copy shows up later as a riddle",
            fix="copy and unpack the archive again",
        )
    return len(items)
