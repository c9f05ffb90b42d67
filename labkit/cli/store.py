"""`labkit store serve|add`: the embedded object store as a command, for any S3 client and the lab's
own."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from labkit.core.arguments import bucket_url, directory, output_directory
from labkit.core.stdout import add_json

if TYPE_CHECKING:
    from labkit.net.message import Request, Response


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from labkit.net.serving import add_serve_arguments

    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    serve = actions.add_parser(
        "serve", help="serve a folder as a bucket store: S3's API, GCS's read paths (plain HTTP)"
    )
    add_serve_arguments(serve)
    serve.add_argument(
        "--bucket", action="append", default=[], help="make this bucket at start (default: lab)"
    )
    serve.add_argument(
        "--with-registry",
        default="",
        metavar="DIR",
        help="serve this folder as a registry too, over the same link: a node has one",
    )
    serve.add_argument("--open-writes", action="store_true", help="accept unsigned writes")
    add = actions.add_parser(
        "add", help="put a folder into the store under a key prefix, by hard link where possible"
    )
    add.add_argument("folder")
    add.add_argument("url", type=bucket_url, help="s3://BUCKET/PREFIX")
    add.add_argument("--root", required=True)
    add_json(add)


def run(args: argparse.Namespace) -> int:
    from labkit.core.stdout import last_line, say
    from labkit.core.units import show_bytes
    from labkit.errors import BadInput
    from labkit.net.serving import serve

    output_directory(args.root, "--root")
    if args.action == "serve":
        from labkit.net.guard import is_loopback
        from labkit.objects.store import KEYS, Store, environment

        # The usual keys stand in the source: they keep nobody out who can reach the port.
        keys = KEYS if is_loopback(args.host) else {"labkit": secrets.token_urlsafe(24)}
        store = Store(
            args.root,
            buckets=tuple(args.bucket or ["lab"]),
            open_writes=args.open_writes,
            keys=keys,
        )
        app: Callable[[Request], Response] = store
        if args.with_registry:
            from labkit.image.registry import Registry

            registry = Registry(
                args.with_registry, read_only=not (is_loopback(args.host) or args.open_writes)
            )

            def both(request: Request) -> Response:
                if request.path.startswith("/v2/") or request.path == "/v2":
                    return registry(request)
                return store(request)

            app = both

        exposed = "its objects can be read" + (
            ", written and deleted" if args.open_writes else "; writes want the keys printed here"
        )
        return serve(
            app,
            args,
            name="labkit-store",
            exposes=(exposed, "leave out --open-writes" if args.open_writes else ""),
            env=lambda server: environment(server.url, keys),
        )
    from labkit.objects.publish import publish_model

    directory(args.folder, "FOLDER", "labkit model make --preset small DIR makes a checkpoint")
    scheme, _, rest = args.url.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket or not key:
        raise BadInput(
            f"not an object prefix: {args.url}", fix="write it like s3://lab/models/small"
        )
    facts = publish_model(args.root, args.folder, key, bucket=bucket)
    say(
        f"{facts['url']}: {facts['objects']} objects, {show_bytes(facts['size_bytes'])}, in"
        f" {args.root}"
    )
    last_line(facts)
    return 0
