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
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from labkit.bench import pull_rivals as rivals
from labkit.bench.engine import Arm, Measured, among, document, interleave, rounds
from labkit.bench.pull_setup import PullSetup, pull_setup
from labkit.core.arguments import count, names
from labkit.core.json_types import JsonObject
from labkit.core.ledger import remove_tree
from labkit.core.units import parse_bytes
from labkit.core.workspace import Workspace
from labkit.errors import BadInput, LabError
from labkit.image import objectpull
from labkit.image.image_source import source_of
from labkit.image.oci_layout import Layout
from labkit.image.tree import Limits
from labkit.image.unpack import unpack_image
from labkit.net.arguments import link as link_text

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
    if not 4096 <= parse_bytes(text) <= 1 << 30:
        raise BadInput(f"--part {text}", why="a range has from 4 KiB to 1 GiB", fix="--part 2MiB")
    return text


def run(args: argparse.Namespace) -> JsonObject:
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
    progress: Callable[[str], object] | None = lambda _: None,
) -> JsonObject:
    """The bench as a function, for notebooks (`progress=None`: a line a measurement on stderr):
    arms × blocks, the document of the last line."""
    unknown = set(arms) - set(ARMS)
    if unknown:
        raise BadInput(f"no arm called {', '.join(sorted(unknown))}", fix="of: " + ", ".join(ARMS))
    codecs = [c for c in ("zstd", "none") if f"object-pull-{c}" in arms]
    with pull_setup(image, link, connections, part_bytes, codecs) as setup, ExitStack() as ends:
        pulls = {arm: _arm(arm, setup, ends) for arm in arms}
        # until here the server was filled, which is not what is measured
        setup.served.set_link(setup.link)
        results = interleave(pulls, blocks=blocks, seed=seed, progress=progress)
        sizes = {
            codec: layout.manifest(setup.name).layers_bytes
            for codec, layout in setup.layouts.items()
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
        among(arms, ratios),
        link_label=setup.link.label,
        image={"name": setup.name, **sizes},
        floors=setup.floors,
    )


def sweep_connections(
    connections: Sequence[int],
    *,
    image: str = "interpreter",
    link: str = "1gbit-registry",
    repeats: int = 2,
    part_bytes: int = objectpull.PART_BYTES,
) -> tuple[list[JsonObject], float, str]:
    """Seconds of a whole pull from the registry by number of connections; the floor; the link's
    label."""
    with pull_setup(image, link, max(connections), part_bytes) as setup:
        setup.served.set_link(setup.link)

        def pull_s(count: int) -> float:
            setup.connections = count
            image = f"{setup.served.url}/{setup.name}"
            return _object_pull(setup, image, pipelined=True)[0]

        rows = rounds("connections", connections, repeats, pull_s)
        return rows, setup.floor_s("gzip"), setup.link.label


def _arm(arm: str, setup: PullSetup, ends: ExitStack) -> Arm | str:
    reference = f"{setup.served.url}/{setup.name}"
    if arm.startswith(("registry-parallel", "object-pull")):
        codec = {"object-pull-zstd": "zstd", "object-pull-none": "none"}.get(arm, "gzip")
        image = reference if arm == "registry-parallel" else f"s3://lab/images-{codec}#{setup.name}"
        return lambda: _measured(
            setup,
            codec,
            lambda: _object_pull(setup, image, pipelined=arm != "object-pull-unpipelined"),
            connections=setup.connections,
        )
    if arm in ("registry-one-stream", "registry-stock"):
        streams = 1 if arm == "registry-one-stream" else 3
        return lambda: _measured(
            setup, "gzip", lambda: _full_pull(setup, reference, streams), connections=streams
        )
    why = rivals.missing("containerd", "ctr")
    if arm == "ctr" or why:
        return why or (
            lambda: _measured(
                setup,
                "gzip",
                lambda: _ctr(setup, f"{setup.served.address}/{setup.name}"),
                connections=3,
            )
        )
    why = rivals.missing("docker-registry", "skopeo")
    if why:
        return why
    try:
        address = ends.enter_context(
            rivals.docker_registry(
                setup.served.url, setup.served.env, setup.ledger, setup.directory
            )
        )
        rivals.skopeo_copy(
            f"oci:{setup.layouts['gzip'].path}:{setup.name}",
            f"docker://{address}/{setup.name}",
            "--dest-tls-verify=false",
        )
    except LabError as error:
        # a rival that cannot be prepared is missing, with its words; the others are measured
        return error.what
    return lambda: _measured(
        setup, "gzip", lambda: _ctr(setup, f"{address}/{setup.name}"), connections=3
    )


def _measured(
    setup: PullSetup, codec: str, pull: Callable[[], tuple[float, JsonObject]], connections: int
) -> Measured:
    """One pull onto an empty node and a disk at rest; the counters of the server say whether the
    whole image crossed the link."""
    os.sync()  # what the arm before wrote is its own cost, not this one's
    setup.served.reset()
    seconds, facts = pull()
    counted = setup.served.stats()
    whole = setup.layouts[codec].manifest(setup.name).layers_bytes
    failed = ""
    if counted["bytes_sent"] < whole:
        failed = (
            f"the server sent {counted['bytes_sent']} bytes of an image of {whole}: something was"
            " kept from before"
        )
    elif connections > 3 and counted["ranges"] <= len(
        setup.layouts[codec].manifest(setup.name).layers
    ):
        failed = "no parallel ranges were asked for"
    return Measured(
        seconds,
        "node empty",
        setup.link.name,
        setup.floor_s(codec),
        failed=failed,
        evidence=(
            f"{counted['bytes_sent'] / 1e6:.0f} MB in {counted['requests']} requests,"
            f" {counted['peak_connections']} connections"
        ),
        extra={
            "rate_bytes_per_s": whole / seconds,
            **{k: v for k, v in facts.items() if isinstance(v, (int, float))},
        },
    )


def _node(setup: PullSetup) -> Path:
    return Workspace.default().new_node(
        f"pull-{os.getpid()}-{time.monotonic_ns()}", lambda path: setup.ledger.note("dir", path)
    )


def _object_pull(setup: PullSetup, image: str, pipelined: bool) -> tuple[float, JsonObject]:
    node, start_s = _node(setup), time.monotonic()
    try:
        options = objectpull.PullOptions(
            connections=setup.connections,
            part_bytes=setup.part_bytes,
            limits=Limits(absolute_links=True),
            pipelined=pipelined,
            keep_blobs=True,
        )
        with source_of(image, {**os.environ, **setup.served.env}) as source:
            facts = objectpull.pull(
                source, node / "rootfs", scratch=node / "blobs", options=options
            )
        return time.monotonic() - start_s, {
            "fetch_s": facts["fetch_s"],
            "hedges": facts["hedges"],
            "retries": facts["retries"],
        }
    finally:
        remove_tree(node)


def _full_pull(setup: PullSetup, reference: str, streams: int) -> tuple[float, JsonObject]:
    from labkit.image.pull import pull_into

    node, start_s = _node(setup), time.monotonic()
    try:
        layout = Layout(node / "content")
        manifest, _ = pull_into(layout, reference, streams=streams)
        fetched_s = time.monotonic() - start_s
        unpack_image(
            layout, manifest, node / "rootfs", limits=Limits(absolute_links=True), fetched=True
        )
        return time.monotonic() - start_s, {"fetch_s": fetched_s}
    finally:
        remove_tree(node)


def _ctr(setup: PullSetup, image: str) -> tuple[float, JsonObject]:
    return rivals.ctr_pull(image, setup.ledger, setup.directory), {}
