"""`labkit image build | inspect | pull | unpack`: an image made, looked at, fetched and unpacked by
hand."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from labkit.core.arguments import count, directory, output_directory, web_url
from labkit.core.stdout import add_json


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="LAYOUT", help="where the OCI layout goes (default: the workspace, cached)"
    )
    parser.add_argument(
        "--with-weights",
        type=Path,
        metavar="DIR",
        help="put this model directory into the image, too",
    )
    parser.add_argument(
        "--level",
        type=int,
        default=6,
        choices=range(1, 10),
        help="gzip level (default 6, the stock builders')",
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="a 3 MB image with links, whiteouts and odd names instead, in a second",
    )
    parser.add_argument(
        "--name", default="", help="name in the layout (default lab/subject:latest)"
    )
    add_json(parser)


def run_build(args: argparse.Namespace) -> int:
    from labkit.core.stdout import last_line, say
    from labkit.core.units import show_bytes, show_s
    from labkit.core.workspace import Workspace
    from labkit.image import build, tiny
    from labkit.image.oci_layout import Layout

    began = time.monotonic()
    if args.with_weights:
        directory(
            args.with_weights, "--with-weights", "labkit model make --preset small DIR makes one"
        )
    if args.out:
        output_directory(args.out, "--out")
    if args.tiny:
        name = args.name or tiny.REFERENCE
        path = Path(args.out) if args.out else Workspace.default().images / "tiny"
        tiny.tiny_layout(path, name=name)
    elif args.out:
        name, path = args.name or build.REFERENCE, Path(args.out)
        build.build(path, with_weights=args.with_weights, level=args.level, name=name, say=_note)
    else:
        path, name = build.ensure_image(
            Workspace.default(), with_weights=args.with_weights, say=_note
        )
    layout = Layout(path)
    manifest = layout.manifest(name)
    seconds = time.monotonic() - began
    say(
        f"{name}  {manifest.digest[:19]}…  {len(manifest.layers)} layers,"
        f" {show_bytes(manifest.layers_bytes)} to pull, {show_bytes(manifest.unpacked_bytes)}"
        f" unpacked, in {show_s(seconds)}\n{path}"
    )
    last_line(
        {
            "layout": str(path),
            "name": name,
            "digest": manifest.digest,
            "layers": len(manifest.layers),
            "layers_bytes": manifest.layers_bytes,
            "unpacked_bytes": manifest.unpacked_bytes,
            "seconds": round(seconds, 3),
        }
    )
    return 0


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("layout", type=Path)
    parser.add_argument("--name", default="", help="which image of the layout (default: the first)")
    parser.add_argument(
        "--files",
        type=count("--files", 0, 1_000_000),
        default=0,
        metavar="N",
        help="list the N largest files of each layer (reads the layers)",
    )
    add_json(parser)


def run_inspect(args: argparse.Namespace) -> int:
    from labkit.core.stdout import last_line, say, table
    from labkit.core.units import show_bytes
    from labkit.image import oci
    from labkit.image.codecs import codec_of
    from labkit.image.oci_layout import Layout
    from labkit.image.tar import TarReader

    layout = Layout(args.layout)
    manifest = layout.manifest(args.name)
    config = layout.config(manifest)
    rows, largest = [], []
    for i, (layer, diff_id) in enumerate(
        zip(manifest.layers, config["rootfs"]["diff_ids"], strict=True)
    ):
        title = layer.annotations.get("org.coldstartlab.layer", "")
        plain = layer.annotations.get(oci.UNPACKED_BYTES, "")
        rows.append(
            [
                i,
                title,
                codec_of(layer.media_type),
                show_bytes(layer.size_bytes),
                show_bytes(int(plain)) if plain.isdigit() else "",
                layer.digest[:19],
            ]
        )
        if args.files:
            with layout.plain_layer(layer, diff_id) as tar:
                found = sorted(((m.size_bytes, m.name) for m in TarReader(tar)), reverse=True)
            largest += [[i, show_bytes(size), name] for size, name in found[: args.files]]
    say(table(rows, ["layer", "part", "codec", "to pull", "unpacked", "digest"]))
    if largest:
        say("\n" + table(largest, ["layer", "size", "file"]))
    last_line(
        {
            "digest": manifest.digest,
            "layers": [layer.as_json() for layer in manifest.layers],
            "layers_bytes": manifest.layers_bytes,
            "config": config.get("config", {}),
        }
    )
    return 0


def add_pull_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", type=web_url, help="http://HOST:PORT/NAME:TAG")
    parser.add_argument("layout", type=Path, help="layout to fetch into (made if missing)")
    parser.add_argument(
        "--streams",
        type=count("--streams", 1, 256),
        default=3,
        help="layers at a time (default 3, as stock clients do)",
    )
    add_json(parser)


def run_pull(args: argparse.Namespace) -> int:
    from labkit.core.stdout import last_line, say
    from labkit.core.units import show_bytes, show_s
    from labkit.image.oci_layout import Layout
    from labkit.image.pull import pull_into

    output_directory(args.layout, "LAYOUT")
    began = time.monotonic()
    manifest, facts = pull_into(Layout(args.layout), args.reference, streams=args.streams)
    seconds = time.monotonic() - began
    say(
        f"{args.reference}  {manifest.digest[:19]}…  {len(manifest.layers)} layers,"
        f" {show_bytes(manifest.layers_bytes)}, in {show_s(seconds)}\n{args.layout}"
    )
    last_line(
        {
            "layout": str(args.layout),
            "digest": manifest.digest,
            "seconds": round(seconds, 3),
            **facts,
        }
    )
    return 0


def add_unpack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("layout", type=Path)
    parser.add_argument("rootfs", type=Path, help="directory to make")
    parser.add_argument("--name", default="", help="which image of the layout (default: the first)")
    parser.add_argument(
        "--fast", action="store_true", help="decompress with ISA-L in place of zlib"
    )
    parser.add_argument(
        "--absolute-links",
        action="store_true",
        help="keep symlinks out of the root (they lead to the host's files outside a container)",
    )
    add_json(parser)


def run_unpack(args: argparse.Namespace) -> int:
    from labkit.core.stdout import last_line, say
    from labkit.core.units import show_bytes, show_s
    from labkit.image.oci_layout import Layout
    from labkit.image.tree import Limits
    from labkit.image.unpack import unpack_image

    layout, began = Layout(args.layout), time.monotonic()
    facts = unpack_image(
        layout,
        layout.manifest(args.name),
        args.rootfs,
        fast=args.fast,
        limits=Limits(absolute_links=args.absolute_links),
    )
    seconds = time.monotonic() - began
    say(
        f"{args.rootfs}: {facts['members']} members of {facts['layers']} layers,"
        f" {show_bytes(facts['written_bytes'])} written, in {show_s(seconds)}"
    )
    last_line({"rootfs": str(args.rootfs), "seconds": round(seconds, 3), **facts})
    return 0
