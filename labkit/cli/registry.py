"""`labkit registry serve|add`: the embedded registry as a command, for `skopeo`, `ctr` and the
lab's own pulls."""

from __future__ import annotations

import argparse

from labkit.core.arguments import directory, output_directory
from labkit.core.stdout import add_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from labkit.net.serving import add_serve_arguments

    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    serve = actions.add_parser("serve", help="serve a folder as a registry (plain HTTP)")
    add_serve_arguments(serve)
    serve.add_argument("--read-only", action="store_true", help="refuse pushes")
    serve.add_argument(
        "--open-writes",
        action="store_true",
        help="with a --host that others reach: they may push and delete",
    )
    add = actions.add_parser(
        "add", help="put an OCI image layout into a registry's folder, by hard link where possible"
    )
    add.add_argument("layout")
    add.add_argument("reference", help="name:tag, like lab/subject:latest")
    add.add_argument("--root", required=True)
    add_json(add)


def run(args: argparse.Namespace) -> int:
    from labkit.core.stdout import last_line, say
    from labkit.core.units import show_bytes
    from labkit.image.publish import publish_image
    from labkit.image.registry import Registry
    from labkit.net.serving import serve

    output_directory(args.root, "--root")
    if args.action == "serve":
        from labkit.errors import BadInput
        from labkit.net.guard import is_loopback

        if not is_loopback(args.host) and not (args.read_only or args.open_writes):
            raise BadInput(
                f"--host {args.host}: whoever reaches it could push and delete images",
                why="this registry has no login",
                fix=(
                    "--read-only; or --open-writes if that is meant; or keep --host 127.0.0.1 and"
                    " use ssh -L"
                ),
            )
        exposed = "its images can be read" + ("" if args.read_only else ", pushed and deleted")
        return serve(
            Registry(args.root, read_only=args.read_only),
            args,
            name="labkit-registry",
            exposes=(exposed, "" if args.read_only else "--read-only"),
        )
    directory(args.layout, "LAYOUT", "labkit image build --out LAYOUT makes one")
    facts = publish_image(args.root, args.layout, args.reference)
    say(
        f"{args.reference}: {facts['blobs']} blobs, {show_bytes(facts['size_bytes'])}, in"
        f" {args.root}"
    )
    last_line(facts)
    return 0
