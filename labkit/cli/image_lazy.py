"""`labkit image convert LAYOUT OUT` and `labkit image mount REF DIR`; `labkit.cli.image` dispatches
to them."""

from __future__ import annotations

import argparse

from labkit.core.arguments import count, output_directory, readable_file
from labkit.core.stdout import add_json


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    from labkit.core.units import parse_bytes

    parser.add_argument("layout", help="OCI image layout; layers gzip, zstd or plain")
    parser.add_argument("out", help="layout to write (made if missing)")
    parser.add_argument(
        "--name", default="", help="which image of the layout (default: the only one)"
    )
    parser.add_argument(
        "--access-record",
        metavar="FILE",
        help="order of first touches: of `labkit image mount --record`, or of ctr-remote",
    )
    parser.add_argument(
        "--chunk-size",
        type=parse_bytes,
        default=1 << 20,
        metavar="SIZE",
        help="bytes of a chunk (default 1 MiB)",
    )
    parser.add_argument(
        "--level",
        type=count("--level", 1, 12),
        default=6,
        help="of libdeflate, 1 to 12 (default 6: zlib 9's size)",
    )
    parser.add_argument("--threads", type=count("--threads", 1, 1024), default=None)
    add_json(parser)


def run_convert(args: argparse.Namespace) -> int:
    from labkit.cli.image_push import name_in
    from labkit.core.stdout import last_line, say
    from labkit.core.units import show_bytes, show_s
    from labkit.image import access_record
    from labkit.image.estargz.convert import convert
    from labkit.image.estargz.layer_cache import Options
    from labkit.image.oci_layout import Layout

    if args.access_record:
        readable_file(
            args.access_record, "--access-record", "labkit image mount --record FILE writes one"
        )
    output_directory(args.out, "OUT")
    source = Layout(args.layout)
    name = name_in(source, args.name)
    record = access_record.read(args.access_record) if args.access_record else []
    image = convert(
        source,
        name,
        Layout.create(args.out),
        record=record,
        options=Options(args.chunk_size, args.level),
        threads=args.threads,
    )
    for number, layer in enumerate(image.layers):
        say(
            f"layer {number}: {show_bytes(layer.size_bytes)} in {layer.chunk_count} chunks,"
            f" {show_bytes(layer.prefetch_bytes)} of it before the landmark"
        )
    say(
        f"{name}: {show_bytes(image.source_bytes)} → {show_bytes(image.size_bytes)} in"
        f" {show_s(image.convert_s)}"
    )
    last_line(
        {
            "name": name,
            "digest": image.manifest.digest,
            "source_bytes": image.source_bytes,
            "size_bytes": image.size_bytes,
            "convert_s": round(image.convert_s, 3),
            "layers": [
                {
                    "digest": w.digest,
                    "diff_id": w.diff_id,
                    "toc_digest": w.toc_digest,
                    "prefetch_bytes": w.prefetch_bytes,
                    "chunks": w.chunk_count,
                }
                for w in image.layers
            ],
            **image.facts,
        }
    )
    return 0


def add_mount_arguments(parser: argparse.ArgumentParser) -> None:
    from labkit.image.lazyfs.__main__ import add_arguments

    add_arguments(parser)
    add_json(parser)


def run_mount(args: argparse.Namespace) -> int:
    from labkit.image.lazyfs.__main__ import serve

    return serve(args)
