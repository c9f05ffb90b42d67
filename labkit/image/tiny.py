"""A small OCI image with everything that makes layers hard, made in about a second: for tests,
demos and opening by hand.

Three layers, about 3 MB: links, whiteouts, an opaque directory, empty and large files, odd names.
Nothing in it runs; an image that does is `labkit.image.build.build(..., parts=("interpreter",))`.

    manifest = tiny_layout(Path("/tmp/tiny"))     # listed as "lab/tiny:latest"

Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from labkit.image import oci
from labkit.image.layers import LayerEntry, write_image, write_layer
from labkit.image.oci_layout import Layout

REFERENCE = "lab/tiny:latest"


def noise(size_bytes: int, seed: int) -> bytes:
    """Bytes that do not compress, the same everywhere."""
    return random.Random(seed).randbytes(size_bytes)


def tiny_layers(size_bytes: int = 3_000_000) -> list[dict[str, LayerEntry]]:
    """What the layers hold; `size_bytes` is about the sum of the compressed layers."""
    text = b"".join(b"line %d of a file that compresses well\n" % i for i in range(20_000))
    base = {
        "bin": LayerEntry(symlink="usr/bin"),
        "usr/bin/app": LayerEntry(
            data=b"#!/bin/sh\necho hello\n" + noise(size_bytes // 3, 1), mode=0o755
        ),
        "usr/bin/app-again": LayerEntry(hardlink="usr/bin/app", mode=0o755),
        "usr/lib/libbig.so": LayerEntry(data=noise(size_bytes // 2, 2), mode=0o755),
        "usr/lib/libbig.so.1": LayerEntry(symlink="libbig.so"),
        "usr/share/doc/text": LayerEntry(data=text),
        "usr/share/empty": LayerEntry(data=b""),
        "etc/passwd": LayerEntry(data=b"root:x:0:0:root:/root:/sbin/nologin\n"),
        "etc/secret": LayerEntry(data=b"only root reads this\n", mode=0o600),
        "tmp": LayerEntry(mode=0o1777),
        "opt/old/a": LayerEntry(data=b"a"),
        "opt/old/b": LayerEntry(data=b"b"),
        "opt/gone": LayerEntry(data=b"removed by the next layer"),
    }
    second = {
        "opt/.wh.gone": LayerEntry(data=b""),
        "opt/old/.wh..wh..opq": LayerEntry(data=b""),
        "opt/old/c": LayerEntry(data=b"c"),
        "etc/hostname": LayerEntry(data=b"lab\n"),
        "usr/share/" + "long-name/" * 15 + "x" * 120: LayerEntry(
            data=b"a path beyond the old header's 100 bytes"
        ),
        "usr/share/ünïcode – file": LayerEntry(data=b"utf-8"),
        os.fsdecode(b"usr/share/latin-\xe9"): LayerEntry(data=b"not utf-8"),
    }
    third = {
        "app/server.py": LayerEntry(data=b"print('hello from the tiny image')\n"),
        "app/weights.bin": LayerEntry(data=noise(size_bytes // 6, 3)),
        "etc/hostname": LayerEntry(data=b"tiny\n"),
    }
    return [base, second, third]


def tiny_layout(
    path: str | os.PathLike[str], size_bytes: int = 3_000_000, name: str = REFERENCE
) -> oci.Manifest:
    """Write the layout at `path` (made if missing) and return its manifest. Deterministic."""
    layout = Layout.create(Path(path))
    written = [
        (f"tiny {i}", write_layer(layout, entries))
        for i, entries in enumerate(tiny_layers(size_bytes))
    ]
    return write_image(
        layout,
        written,
        {"Env": ["PATH=/usr/bin", "LANG=C.UTF-8"], "Cmd": ["/usr/bin/app"], "WorkingDir": "/app"},
        name,
    )
