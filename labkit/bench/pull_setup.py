"""What `labkit bench pull` sets up off the clock: an image in every codec, in a registry and a
bucket that one process serves, and the floors that link, decompression and page cache set.

    with pull_setup("tiny", "1gbit-bucket", connections=32, part_bytes=2 << 20) as setup:
        setup.served.set_link(setup.link); setup.floor_s("gzip")

Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from labkit.core.beside import scratch
from labkit.core.ledger import Ledger
from labkit.core.workspace import Workspace
from labkit.image import oci, push
from labkit.image.codecs import codec_of, decompress, file_chunks
from labkit.image.oci_layout import Layout
from labkit.image.publish import publish_image
from labkit.net import link as links
from labkit.net.serving import Served, serving

SAMPLE_BYTES = 256 << 20


@dataclass
class PullSetup:
    """What all arms share."""

    served: Served
    link: links.Link
    directory: Path
    ledger: Ledger
    name: str
    layouts: dict[str, Layout]  # codec -> the image in it
    floors: dict[str, dict[str, float]]  # codec -> link_s, decompress_s, write_s
    connections: int
    part_bytes: int

    def floor_s(self, codec: str) -> float:
        return max(self.floors[codec][k] for k in ("link_s", "decompress_s", "write_s"))


@contextmanager
def pull_setup(
    image: str, link: str, connections: int, part_bytes: int, codecs: Sequence[str] = ()
) -> Iterator[PullSetup]:
    """The image in a registry and a bucket, in every codec asked for, served by one process over
    loopback (shape it with `set_link`)."""
    space, shaped = Workspace.default(), links.parse(link)
    with ExitStack() as ends:
        ledger = ends.enter_context(Ledger.open(space))
        directory = ends.enter_context(scratch("bench-pull-", space.artifacts))
        source, name = image_of(image, space, directory)
        layouts = {"gzip": source}
        for codec in codecs:
            layouts[codec] = Layout.create(directory / f"layout-{codec}")
            push.recompress(source, name, layouts[codec], codec)
        for codec, layout in layouts.items():
            push.publish_objects(directory / "store", layout, name, prefix=f"images-{codec}")
        publish_image(directory / "registry", source.path, name)
        served = ends.enter_context(
            serving(
                "store",
                directory / "store",
                ledger=ledger,
                options=("--with-registry", str(directory / "registry")),
            )
        )
        yield PullSetup(
            served,
            shaped,
            directory,
            ledger,
            name,
            layouts,
            {c: floors(lay, name, shaped, connections, directory) for c, lay in layouts.items()},
            connections,
            part_bytes,
        )


def image_of(
    image: str, space: Workspace, directory: Path, tiny_bytes: int = 30_000_000
) -> tuple[Layout, str]:
    """`subject` (built when missing), `interpreter` (its smallest part), `tiny` (made in
    `directory`), or the path of an OCI layout: the layout and the image's name in it."""
    from labkit.image import build, tiny

    if image == "tiny":
        tiny.tiny_layout(directory / "tiny", tiny_bytes)
        return Layout(directory / "tiny"), tiny.REFERENCE
    if image == "interpreter":
        path = space.images / "interpreter"
        if not (path / "index.json").exists():
            build.build(path, parts=("interpreter",))
        return Layout(path), Layout(path).first_name()
    if image == "subject":
        path, name = build.ensure_image(space)
        return Layout(path), name
    layout = Layout(image)
    return layout, layout.first_name()


def floors(
    layout: Layout, name: str, link: links.Link, connections: int, directory: Path
) -> dict[str, float]:
    """Seconds below which no client on this host can come, and the rates they are made of."""
    manifest = layout.manifest_with_layers(name)
    largest = max(manifest.layers, key=lambda d: d.size_bytes)
    codec = codec_of(largest.media_type)
    total = manifest.unpacked_bytes or manifest.layers_bytes
    rate = decompress_s = 0.0
    if codec != "none":
        rate = max(_decompress_rate(layout.blob_path(largest.digest)) for _ in range(2))
        hint = largest.annotations.get(oci.UNPACKED_BYTES, "")
        share = int(hint) / total if hint.isdigit() else largest.size_bytes / manifest.layers_bytes
        # A layer is one stream and one core's work; layers can be side by side.
        decompress_s = max(share, 1 / len(os.sched_getaffinity(0))) * total / rate
    block, start_s, written = memoryview(os.urandom(1 << 20)), time.monotonic(), 0
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        while written < min(total, SAMPLE_BYTES):
            written += os.write(file.fileno(), block)
        write_rate = written / (time.monotonic() - start_s)
    return {
        "link_s": link.floor_s(manifest.layers_bytes, connections),
        "decompress_s": decompress_s,
        "write_s": total / write_rate,
        "decompress_bytes_per_s": rate,
        "write_bytes_per_s": write_rate,
        "image_bytes": manifest.layers_bytes,
        "unpacked_bytes": total,
    }


def _decompress_rate(blob: Path) -> float:
    """Plain bytes per second of one core, over the first SAMPLE_BYTES."""
    plain, start_s = 0, time.monotonic()
    for chunk in decompress(file_chunks(blob), fast=True):
        plain += len(chunk)
        if plain >= SAMPLE_BYTES:
            break
    return plain / (time.monotonic() - start_s)
