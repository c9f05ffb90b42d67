"""The subject's image, built from this host: what `docker build` would make of a pip installation,
without Docker.

Four image layers from the stable to the changing, so that an edit of the app costs the app's layer
only:

    interpreter   Python, standard library, shared-library closure, minimal /etc    ~ 90 MB
    torch         PyTorch (on a GPU host with its CUDA packages)                    800 MB and up
    packages      what else the server's loaders import                             ~ 300 MB
    app           this package
    (weights)     with `--with-weights DIR`: the model in the image, the article's anti-pattern
    (extra)       with `extra_bytes`: packages that nobody imports, as most real images hold; a
                  second size to measure

gzip at level 6, the level of stock builders; the same inputs give the same digests. Physical limit:
deflate, 50–85 MB/s a core. Cached in `workspace.images` by what the inputs are (names, sizes,
times), layer by layer.

    path, reference = ensure_image(Workspace.default())   # …/images/subject, "lab/subject:latest"

Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labkit.core import shipped
from labkit.core.beside import one_at_a_time, scratch
from labkit.core.json_types import JsonObject
from labkit.core.workspace import Workspace
from labkit.errors import BadInput
from labkit.image import closure, oci
from labkit.image.layers import STOCK_LEVEL, LayerEntry, WrittenLayer, write_image, write_layer
from labkit.image.oci_layout import Layout
from labkit.image.runtimes.process import LIBRARY_PATH, PYTHON_HOME
from labkit.image.runtimes.server import SERVER

REFERENCE = "lab/subject:latest"
PARTS = ("interpreter", "torch", "packages", "app")
#: What the server and its loaders may import. Those that are not installed here are left out.
PACKAGES = (
    "numpy",
    "safetensors",
    "tokenizers",
    "gguf",
    "runai-model-streamer[s3,gcs]",
    "nvidia-ml-py",
    "isal",
    "zstandard",
)
RIVALS = ("fastsafetensors", "tensorizer", "obstore", "instanttensor")
_FORMAT = 4  # of the layers' content: raise it when the same inputs shall give another layer

Say = Callable[[str], object]


@dataclass
class _Parts:
    """Entries of each layer before libraries and bytecode are worked out; computed once, in layer
    order."""

    torch: JsonObject = field(default_factory=dict)

    def entries(self, part: str, weights: Path | None) -> dict[str, LayerEntry]:
        if part == "interpreter":
            return closure.interpreter_entries()
        if part == "torch":
            return closure.distribution_entries(self._torch().values())
        if part == "packages":
            wanted = closure.distributions(
                [*PACKAGES, *RIVALS, *self._torch()], without=self._torch()
            )
            return closure.distribution_entries(wanted.values())
        if part == "app":
            # A wheel's notebooks and records are no part of the image, as a checkout's are not.
            return closure.tree_entries(
                shipped.PACKAGE, "app/labkit", ("__pycache__", shipped.CARRIED)
            )
        if part == "weights" and weights is not None:
            return closure.tree_entries(weights, f"models/{weights.name}")
        if part.startswith("extra-"):
            return extra_entries(self.entries("packages", None), int(part.removeprefix("extra-")))
        raise BadInput(f"no part called {part!r}", fix="parts: " + ", ".join(PARTS))

    def _torch(self) -> JsonObject:
        """torch and the binary packages that only it needs (CUDA libraries, Triton)."""
        if not self.torch:
            found = closure.distributions(["torch"])
            if "torch" not in found:
                raise BadInput(
                    "torch is not installed in this interpreter",
                    why="the subject is a torch server",
                    fix="make setup",
                )
            self.torch = {
                n: d
                for n, d in found.items()
                if n == "torch" or n.startswith(("nvidia-", "triton", "cuda-"))
            }
        return self.torch


def extra_entries(packages: dict[str, LayerEntry], size_bytes: int) -> dict[str, LayerEntry]:
    """Copies of installed packages below /opt/extra, `size_bytes` of content: bytes, file sizes and
    compressibility like those of an image, so that pull and unpack see more of the same. Files are
    taken in the order of their names' digests: any size is a fair sample."""
    ordered = sorted(packages.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())
    sizes = {name: entry.source.stat().st_size for name, entry in ordered if entry.source}
    extra: dict[str, LayerEntry] = {}
    left, copy = size_bytes, 0
    while left > 0.01 * size_bytes:
        before = left
        for name, entry in ordered:
            if 0 < sizes.get(name, 0) <= left:
                extra[f"opt/extra/{copy}/{name}"] = entry
                left -= sizes[name]
        if left == before:
            break
        copy += 1
    return extra


def fingerprint(entries: dict[str, LayerEntry], level: int) -> str:
    """Names, sizes and times of the inputs, hashed: cheap to ask (0.3 s for the whole image), wrong
    only for a forged mtime."""
    state = hashlib.sha256(f"{_FORMAT} {level} {sys.version}\n".encode())
    for name in sorted(entries):
        entry = entries[name]
        about: list[object] = [
            name,
            entry.mode,
            entry.symlink,
            entry.hardlink,
            hashlib.sha256(entry.data or b"").hexdigest(),
        ]
        if entry.source:
            found = entry.source.stat()
            about += [found.st_size, found.st_mtime_ns]
        state.update(json.dumps(about).encode())
    return state.hexdigest()[:32]


def _written(
    layout: Layout,
    part: str,
    entries: dict[str, LayerEntry],
    level: int,
    say: Say,
    others: Sequence[str] = (),
) -> WrittenLayer:
    """A layer from the cache beside the layout, or written now. `others`: parts whose libraries the
    interpreter's layer holds."""
    key = fingerprint(entries, level) + ("" if part != "interpreter" else "-" + "-".join(others))
    note = layout.path / "built" / f"{part}-{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        doc = json.loads(note.read_text())
        descriptor = oci.parse_descriptor(doc["descriptor"])
        if layout.blob_path(descriptor.digest).stat().st_size == descriptor.size_bytes:
            return WrittenLayer(descriptor, doc["diff_id"], doc["plain_bytes"])
    began = time.monotonic()
    with scratch(".compile-", layout.path) as folder:
        whole = dict(entries)
        if part == "interpreter":
            # The closure of all parts lies in the first layer: a later layer's library must not
            # need a rebuild of ld.so's world.
            objects = closure.shared_objects(entries) + _extension_modules(others)
            whole = {**closure.library_entries(objects), **whole}
        if part != "weights" and not part.startswith("extra-"):
            whole |= closure.bytecode_entries(entries, folder)
        written = write_layer(layout, whole, level=level, org__coldstartlab__layer=part)
    note.parent.mkdir(exist_ok=True)
    for old in note.parent.glob(f"{part}-*.json"):
        old.unlink()
    note.write_text(
        json.dumps(
            {
                "descriptor": written.descriptor.as_json(),
                "diff_id": written.diff_id,
                "plain_bytes": written.plain_bytes,
            }
        )
    )
    say(
        f"layer {part}: {written.plain_bytes / 1e6:.0f} MB,"
        f" {written.descriptor.size_bytes / 1e6:.0f} MB gzip, {time.monotonic() - began:.1f} s"
    )
    return written


def _extension_modules(of_parts: Sequence[str]) -> list[Path]:
    parts = _Parts()
    return [path for part in of_parts for path in closure.shared_objects(parts.entries(part, None))]


def build(
    out: str | os.PathLike[str],
    *,
    parts: Sequence[str] = PARTS,
    with_weights: Path | None = None,
    extra_bytes: int = 0,
    level: int = STOCK_LEVEL,
    name: str = REFERENCE,
    say: Say = lambda _: None,
) -> oci.Manifest:
    """Write the image's layout at `out` (layers of an earlier build are reused) and return its
    manifest."""
    if with_weights is not None and not (with_weights / "config.json").is_file():
        raise BadInput(
            f"{with_weights} is not a model directory",
            why="it has no config.json",
            fix="labkit model make --preset small DIR",
        )
    layout = Layout.create(out)
    sources = _Parts()
    wanted = [
        *parts,
        *(["weights"] if with_weights else []),
        *([f"extra-{extra_bytes}"] if extra_bytes else []),
    ]
    binary = [p for p in ("torch", "packages") if p in parts]
    layers = [
        (part, _written(layout, part, sources.entries(part, with_weights), level, say, binary))
        for part in wanted
    ]
    entries = closure.library_entries([Path(os.path.realpath(sys.executable))])
    folder = next(iter(sorted(entries))).rpartition("/")[0]
    run = {
        "Env": [
            "PATH=/usr/local/bin:/usr/bin:/bin",
            f"PYTHONPATH=/app:/{closure.SITE}",
            "LANG=C.UTF-8",
            "PYTHONDONTWRITEBYTECODE=1",
            "PYTHONUNBUFFERED=1",
            "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
        ],
        "Entrypoint": [
            f"/{closure.PREFIX}/bin/{closure.VERSION}",
            *(SERVER if "app" in parts else ()),
        ],
        "WorkingDir": "/",
        "Labels": {
            LIBRARY_PATH: f"/{folder}",
            PYTHON_HOME: "/" + closure.PREFIX,
            "org.opencontainers.image.title": "cold-start lab subject",
        },
    }
    return write_image(layout, layers, run, name)


#: Lies in an image that came with a workshop pack: used as it is, so that all of a class's machines
#: start the same bytes and none builds for minutes. Remove the file, and the image is built from
#: what is installed.
AS_PACKED = "AS_PACKED"


def ensure_image(
    workspace: Workspace,
    *,
    with_weights: Path | None = None,
    extra_bytes: int = 0,
    say: Say = lambda _: None,
) -> tuple[Path, str]:
    """The subject's image in the workspace, built where any input has changed. Returns
    (layout, reference).

    `extra_bytes`: unpacked bytes of packages that nobody imports, on top: the same image, larger.
    """
    path = workspace.images / "subject"
    more = (f"-{with_weights.name.lower()}" if with_weights else "") + (
        f"-plus-{extra_bytes}" if extra_bytes else ""
    )
    reference = f"lab/subject{more}:latest" if more else REFERENCE
    if not more and (path / AS_PACKED).exists():
        return path, reference
    with one_at_a_time(path):
        build(path, with_weights=with_weights, extra_bytes=extra_bytes, name=reference, say=say)
    return path, reference
