"""`labkit image push LAYOUT --to s3://…` and `labkit image recompress LAYOUT --codec … --out …`;
`labkit.cli.image` dispatches to them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from labkit.core.arguments import bucket_url, count, output_directory
from labkit.core.stdout import add_json

if TYPE_CHECKING:
    from labkit.image.oci_layout import Layout


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("layout", help="OCI image layout")
    parser.add_argument(
        "--to",
        required=True,
        type=bucket_url,
        help="s3://BUCKET/PREFIX or gs://… (AWS_ENDPOINT_URL and keys from the environment)",
    )
    parser.add_argument(
        "--name", default="", help="which image of the layout (default: the only one)"
    )
    add_json(parser)


def add_recompress_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("layout", help="OCI image layout")
    parser.add_argument("--codec", required=True, choices=("gzip", "zstd", "none"))
    parser.add_argument(
        "--level", type=count("--level", 1, 22), default=None, help="default: gzip 6, zstd 3"
    )
    parser.add_argument("--out", required=True, help="layout to write (made if missing)")
    parser.add_argument(
        "--name", default="", help="which image of the layout (default: the only one)"
    )
    add_json(parser)


def name_in(layout: Layout, wanted: str) -> str:
    """The image that is meant, where a layout holds one or `wanted` says which. Raises BadInput."""
    from labkit.errors import BadInput
    from labkit.image.oci import REF_NAME

    listed = list(dict.fromkeys(d.annotations.get(REF_NAME, "") for d in layout.index()))
    if not listed:
        raise BadInput(
            f"{layout.path} holds no image",
            why="there is nothing to take from it",
            fix=f"labkit image build --out {layout.path}",
        )
    if wanted or len(listed) == 1:
        return wanted or listed[0]
    raise BadInput(
        f"{layout.path} holds {len(listed)} images",
        fix="--name " + " or --name ".join(name for name in listed if name),
    )


def run_push(args: argparse.Namespace) -> int:
    import time

    from labkit.core.stdout import last_line, say
    from labkit.core.units import show_bytes, show_s
    from labkit.image import push
    from labkit.image.oci_layout import Layout
    from labkit.objects.client import open_bucket

    layout, began_s = Layout(args.layout), time.monotonic()
    with open_bucket(args.to) as bucket:
        facts = push.push(layout, name_in(layout, args.name), bucket)
    seconds = time.monotonic() - began_s
    say(
        f"{args.to}: {facts['reference']}, {facts['sent_blobs']} blobs sent"
        f" ({show_bytes(facts['sent_bytes'])}), {facts['there']} were there, in {show_s(seconds)}"
    )
    last_line({"pushed": args.to, **facts, "seconds": round(seconds, 3)})
    return 0


def run_recompress(args: argparse.Namespace) -> int:
    import time

    from labkit.core.stdout import last_line, say
    from labkit.core.units import show_bytes
    from labkit.image import push
    from labkit.image.oci_layout import Layout

    output_directory(args.out, "--out")
    source, target, began_s = Layout(args.layout), Layout.create(args.out), time.monotonic()
    name = name_in(source, args.name)
    before = source.manifest(name).layers_bytes
    manifest = push.recompress(source, name, target, args.codec, level=args.level)
    say(f"{name}: {show_bytes(before)} → {show_bytes(manifest.layers_bytes)} as {args.codec}")
    last_line(
        {
            "codec": args.codec,
            "name": name,
            "size_bytes": manifest.layers_bytes,
            "before_bytes": before,
            "digest": manifest.digest,
            "seconds": round(time.monotonic() - began_s, 3),
        }
    )
    return 0
