"""One image onto an empty node: registry or bucket, one stream or many, gzip or not, ours or
containerd's. Fetch and unpack, caches of the node empty.

    labkit bench pull --link 1gbit-bucket --blocks 5
    labkit bench pull --image tiny --blocks 2            # a small image, seconds

All arms are served by one process over one emulated link. Three floors stand beside them: the link
(bytes of the image in that codec), decompression (its own library on the same bytes; the largest
layer on one core, or all on all), and writing the files' bytes into the page cache. The largest is
the arm's floor. Goals: `object-pull_vs_floor` ≤ 1.1, `object-pull_vs_ctr` ≤ 0.5. Lesson:
notebooks/02_image_pull."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.bench import pull_rivals as rivals
from labkit.bench.engine import Measured, document, interleave
from labkit.core.arguments import count, names
from labkit.core.beside import scratch
from labkit.core.ledger import Ledger, remove_tree
from labkit.core.workspace import Workspace
from labkit.errors import BadInput, LabError
from labkit.image import objectpull, oci, push
from labkit.image.codecs import codec_of, decompress, file_chunks
from labkit.image.image_source import source_of
from labkit.image.oci_layout import Layout
from labkit.image.publish import publish_image
from labkit.image.tree import Limits
from labkit.image.unpack import unpack_image
from labkit.net import link as link_room
from labkit.net.arguments import link as link_text
from labkit.net.serving import Served, serving

ARMS = (
    "registry-one-stream",
    "registry-stock",
    "registry-parallel",
    "object-pull",
    "object-pull-zstd",
    "object-pull-none",
    "object-pull-unpipelined",
    "ctr",
    "ctr-docker-registry-s3",
)
SAMPLE_BYTES = 256 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--link",
        type=link_text,
        default="1gbit-bucket",
        help="emulated link (default 1gbit-bucket)",
    )
    parser.add_argument(
        "--image",
        default="subject",
        help=(
            "subject (built when missing), interpreter (its smallest part), tiny, or an OCI layout"
        ),
    )
    parser.add_argument(
        "--arms", type=names("--arms", ARMS), default=",".join(ARMS), help="default: all"
    )
    parser.add_argument(
        "--connections", type=count("--connections", 1, 1024), default=objectpull.CONNECTIONS
    )
    parser.add_argument("--part", type=part, default="2MiB", help="bytes of one range")


def part(text: str) -> str:
    from labkit.core.units import parse_bytes

    if not 4096 <= parse_bytes(text) <= 1 << 30:
        raise BadInput(f"--part {text}", why="a range has from 4 KiB to 1 GiB", fix="--part 2MiB")
    return text


@dataclass
class Setting:
    """What all arms share."""

    served: Served
    link: link_room.Link
    room: Path
    ledger: Ledger
    name: str
    layouts: dict[str, Layout]  # codec -> the image in it
    floors: dict[str, dict[str, float]]  # codec -> link_s, decompress_s, write_s
    connections: int
    part_bytes: int

    def floor_s(self, codec: str) -> float:
        return max(self.floors[codec][k] for k in ("link_s", "decompress_s", "write_s"))


def run(args: argparse.Namespace) -> dict[str, Any]:
    from labkit.core.units import parse_bytes

    return compare_pulls(
        *(a.strip() for a in args.arms.split(",") if a.strip()),
        image=args.image,
        link=args.link,
        blocks=args.blocks,
        seed=args.seed,
        connections=args.connections,
        part_bytes=parse_bytes(args.part),
        progress=None,
    )


def compare_pulls(
    *arms: str,
    image: str = "interpreter",
    link: str = "1gbit-bucket",
    blocks: int = 3,
    seed: int = 0,
    connections: int = objectpull.CONNECTIONS,
    part_bytes: int = objectpull.PART_BYTES,
    progress: Callable[[str], Any] | None = lambda _: None,
) -> dict[str, Any]:
    """The bench as a function, for notebooks (`progress=None`: a line a measurement on stderr):
    arms × blocks, the document of the last line."""
    unknown = set(arms) - set(ARMS)
    if unknown:
        raise BadInput(f"no arm called {', '.join(sorted(unknown))}", fix="of: " + ", ".join(ARMS))
    codecs = [c for c in ("zstd", "none") if f"object-pull-{c}" in arms]
    with setting(image, link, connections, part_bytes, codecs) as on, ExitStack() as ends:
        made = {arm: _arm(arm, on, ends) for arm in arms}
        # until here the server was filled, which is not what is measured
        on.served.set_link(on.link)
        results = interleave(made, blocks=blocks, seed=seed, progress=progress)
        sizes = {
            codec: layout.manifest(on.name).layers_bytes for codec, layout in on.layouts.items()
        }
    ratios = {
        "object-pull_vs_floor": ("object-pull", "floor"),
        "object-pull_vs_ctr": ("object-pull", "ctr"),
        "object-pull_vs_registry-stock": ("object-pull", "registry-stock"),
        "registry-parallel_vs_registry-one-stream": ("registry-parallel", "registry-one-stream"),
        "object-pull-zstd_vs_object-pull": ("object-pull-zstd", "object-pull"),
        "object-pull-none_vs_object-pull": ("object-pull-none", "object-pull"),
        "object-pull_vs_ctr-docker-registry-s3": ("object-pull", "ctr-docker-registry-s3"),
    }
    return document(
        "pull",
        results,
        {k: v for k, v in ratios.items() if v[0] in made and (v[1] in made or v[1] == "floor")},
        link_label=on.link.label,
        image={"name": on.name, **sizes},
        floors=on.floors,
    )


def sweep_connections(
    connections: Sequence[int],
    *,
    image: str = "interpreter",
    link: str = "1gbit-registry",
    repeats: int = 2,
    part_bytes: int = objectpull.PART_BYTES,
) -> tuple[list[dict[str, Any]], float, str]:
    """Seconds of a whole pull from the registry by number of connections; the floor; the link's
    label."""
    with setting(image, link, max(connections), part_bytes) as on:
        on.served.set_link(on.link)
        rows: list[dict[str, Any]] = [{"connections": c, "seconds": []} for c in connections]
        for _ in range(repeats):
            for row in rows:
                on.connections = row["connections"]
                row["seconds"].append(
                    _object_pull(on, f"{on.served.url}/{on.name}", pipelined=True)[0]
                )
        return rows, on.floor_s("gzip"), on.link.label


@contextmanager
def setting(
    image: str, link: str, connections: int, part_bytes: int, codecs: Sequence[str] = ()
) -> Iterator[Setting]:
    """The image in a registry and a bucket, in every codec asked for, served by one process over
    loopback (shape it with `set_link`)."""
    space, shaped = Workspace.default(), link_room.parse(link)
    with ExitStack() as ends:
        ledger = ends.enter_context(Ledger.open(space))
        room = ends.enter_context(scratch("bench-pull-", space.artifacts))
        source, name = image_of(image, space, room)
        layouts = {"gzip": source}
        for codec in codecs:
            layouts[codec] = Layout.create(room / f"layout-{codec}")
            push.recompress(source, name, layouts[codec], codec)
        for codec, layout in layouts.items():
            push.publish_objects(room / "store", layout, name, prefix=f"images-{codec}")
        publish_image(room / "registry", source.path, name)
        served = ends.enter_context(
            serving(
                "store",
                room / "store",
                ledger=ledger,
                options=("--with-registry", str(room / "registry")),
            )
        )
        yield Setting(
            served,
            shaped,
            room,
            ledger,
            name,
            layouts,
            {c: floors(lay, name, shaped, connections, room) for c, lay in layouts.items()},
            connections,
            part_bytes,
        )


def image_of(what: str, space: Workspace, room: Path) -> tuple[Layout, str]:
    if what == "tiny":
        from labkit.image.tiny import REFERENCE, tiny_layout

        tiny_layout(room / "tiny", 30_000_000)
        return Layout(room / "tiny"), REFERENCE
    if what == "interpreter":
        from labkit.image.build import build

        made = space.images / "interpreter"
        if not (made / "index.json").exists():
            build(made, parts=("interpreter",))
        return Layout(made), Layout(made).index()[0].annotations[oci.REF_NAME]
    if what == "subject":
        from labkit.image.build import ensure_image

        path, name = ensure_image(space)
        return Layout(path), name
    layout = Layout(what)
    return layout, layout.first_name()


def floors(
    layout: Layout, name: str, link: link_room.Link, connections: int, room: Path
) -> dict[str, float]:
    """Seconds below which no client on this host can come, and the rates they are made of."""
    manifest = layout.manifest_with_layers(name)
    largest = max(manifest.layers, key=lambda d: d.size_bytes)
    codec = codec_of(largest.media_type)
    plain, share, spent_s = 0, 1.0, 1e-9
    total = manifest.unpacked_bytes or manifest.layers_bytes
    if codec != "none":
        best = float("inf")
        for _ in range(2):
            plain, began_s = 0, time.monotonic()
            for chunk in decompress(
                file_chunks(layout.blob_path(largest.digest)), codec, fast=True
            ):
                plain += len(chunk)
                if plain >= SAMPLE_BYTES:
                    break
            best = min(best, time.monotonic() - began_s)
        spent_s = best
        hint = largest.annotations.get(oci.UNPACKED_BYTES, "")
        share = int(hint) / total if hint.isdigit() else largest.size_bytes / manifest.layers_bytes
    rate = plain / spent_s
    # A layer is one stream and one core's work; layers can be side by side.
    decompress_s = (
        0.0
        if codec == "none"
        else max(share * total / rate, total / rate / len(os.sched_getaffinity(0)))
    )
    block, began_s, written = memoryview(os.urandom(1 << 20)), time.monotonic(), 0
    with tempfile.TemporaryFile(dir=room, buffering=0) as file:
        while written < min(total, SAMPLE_BYTES):
            written += os.write(file.fileno(), block)
        write_rate = written / (time.monotonic() - began_s)
    return {
        "link_s": link.floor_s(manifest.layers_bytes, connections),
        "decompress_s": decompress_s,
        "write_s": total / write_rate,
        "decompress_bytes_per_s": rate,
        "write_bytes_per_s": write_rate,
        "image_bytes": manifest.layers_bytes,
        "unpacked_bytes": total,
    }


def _arm(arm: str, on: Setting, ends: ExitStack) -> Callable[[], Measured] | str:
    reference = f"{on.served.url}/{on.name}"
    if arm.startswith(("registry-parallel", "object-pull")):
        codec = (
            arm.removeprefix("object-pull-")
            if arm in ("object-pull-zstd", "object-pull-none")
            else "gzip"
        )
        image = reference if arm == "registry-parallel" else f"s3://lab/images-{codec}#{on.name}"
        return lambda: _measured(
            on,
            codec,
            lambda: _object_pull(on, image, pipelined=arm != "object-pull-unpipelined"),
            connections=on.connections,
        )
    if arm in ("registry-one-stream", "registry-stock"):
        streams = 1 if arm == "registry-one-stream" else 3
        return lambda: _measured(
            on, "gzip", lambda: _full_pull(on, reference, streams), connections=streams
        )
    why = rivals.missing("containerd", "ctr")
    if arm == "ctr" or why:
        return why or (
            lambda: _measured(
                on, "gzip", lambda: _ctr(on, f"{on.served.address}/{on.name}"), connections=3
            )
        )
    why = rivals.missing("docker-registry", "skopeo")
    if why:
        return why
    try:
        address = ends.enter_context(
            rivals.docker_registry(on.served.url, on.served.env, on.ledger, on.room)
        )
        rivals.skopeo_push(on.layouts["gzip"].path, on.name, f"{address}/{on.name}")
    except LabError as error:
        # a rival that cannot be prepared is missing, with its words; the others are measured
        return error.what
    return lambda: _measured(on, "gzip", lambda: _ctr(on, f"{address}/{on.name}"), connections=3)


def _measured(
    on: Setting, codec: str, pull: Callable[[], tuple[float, dict[str, Any]]], connections: int
) -> Measured:
    """One pull onto an empty node and a disk at rest; the counters of the server say whether the
    whole image crossed the link."""
    os.sync()  # what the arm before wrote is its own cost, not this one's
    on.served.reset()
    seconds, facts = pull()
    seen = on.served.stats()
    whole = on.layouts[codec].manifest(on.name).layers_bytes
    failed = (
        ""
        if seen["bytes_sent"] >= whole
        else (
            f"the server sent {seen['bytes_sent']} bytes of an image of {whole}: something was kept"
            " from before"
        )
    )
    if (
        connections > 3
        and seen["ranges"] <= len(on.layouts[codec].manifest(on.name).layers)
        and not failed
    ):
        failed = "no parallel ranges were asked for"
    return Measured(
        seconds,
        "node empty",
        on.link.name,
        on.floor_s(codec),
        failed=failed,
        evidence=(
            f"{seen['bytes_sent'] / 1e6:.0f} MB in {seen['requests']} requests,"
            f" {seen['peak_connections']} connections"
        ),
        extra={
            "rate_bytes_per_s": whole / seconds,
            **{k: v for k, v in facts.items() if isinstance(v, (int, float))},
        },
    )


def _node(on: Setting) -> Path:
    return Workspace.default().new_node(
        f"pull-{os.getpid()}-{time.monotonic_ns()}", lambda path: on.ledger.note("dir", path)
    )


def _object_pull(on: Setting, image: str, pipelined: bool) -> tuple[float, dict[str, Any]]:
    node, began_s = _node(on), time.monotonic()
    try:
        options = objectpull.PullOptions(
            connections=on.connections,
            part_bytes=on.part_bytes,
            limits=Limits(absolute_links=True),
            pipelined=pipelined,
            keep_blobs=True,
        )
        with source_of(image, {**os.environ, **on.served.env}) as source:
            facts = objectpull.pull(
                source, node / "rootfs", scratch=node / "blobs", options=options
            )
        return time.monotonic() - began_s, {
            "fetch_s": facts["fetch_s"],
            "hedges": facts["hedges"],
            "retries": facts["retries"],
        }
    finally:
        remove_tree(node)


def _full_pull(on: Setting, reference: str, streams: int) -> tuple[float, dict[str, Any]]:
    from labkit.image.pull import pull_into

    node, began_s = _node(on), time.monotonic()
    try:
        layout = Layout(node / "content")
        manifest, _ = pull_into(layout, reference, streams=streams)
        fetched_s = time.monotonic() - began_s
        unpack_image(layout, manifest, node / "rootfs", limits=Limits(absolute_links=True))
        return time.monotonic() - began_s, {"fetch_s": fetched_s}
    finally:
        remove_tree(node)


def _ctr(on: Setting, image: str) -> tuple[float, dict[str, Any]]:
    return rivals.ctr_pull(image, on.ledger, on.room), {}
