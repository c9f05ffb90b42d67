"""`labkit workshop`: the lab in one archive, for rooms whose machines have no internet.

labkit workshop pack --out workshop.tar            wheels, lab, image, checkpoints, recorded runs,
and unpack.sh labkit workshop pack --preset tiny --no-image      a small one labkit workshop check
DIR                          an unpacked archive: complete, and every file as it was packed"""

from __future__ import annotations

import argparse
from pathlib import Path

from labkit.core.arguments import directory, new_file, readable_file
from labkit.core.stdout import add_json
from labkit.subject.arguments import preset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="workshop", metavar="COMMAND", required=True)
    pack = commands.add_parser("pack", help="make the archive on a machine that has internet")
    pack.add_argument(
        "--out",
        default="workshop.tar",
        metavar="FILE",
        help="the archive (default: workshop.tar; not compressed, wheels already are)",
    )
    pack.add_argument(
        "--preset",
        type=preset,
        action="append",
        default=[],
        help="checkpoints to pack (default: tiny and small)",
    )
    pack.add_argument(
        "--no-image",
        action="store_true",
        help=(
            "leave the image out: each machine builds its own from what is installed (about a"
            " minute)"
        ),
    )
    pack.add_argument(
        "--no-wheels",
        action="store_true",
        help="leave the packages out, where the room has a package mirror",
    )
    pack.add_argument(
        "--record", action="append", default=[], metavar="FILE", help="a further run record to pack"
    )
    add_json(pack)
    verify = commands.add_parser("check", help="verify an unpacked archive")
    verify.add_argument("dir", metavar="DIR")


def run(args: argparse.Namespace) -> int:
    from labkit.core.stdout import last_line, say
    from labkit.core.units import show_bytes
    from labkit.lessons import pack

    if args.workshop == "check":
        count = pack.verify(
            directory(
                args.dir, "DIR", "tar xf workshop.tar, then labkit workshop check labkit-workshop"
            )
        )
        say(f"{count} files are as they were packed")
        return 0
    for path in args.record:
        readable_file(path, "--record", "labkit run naive --out FILE makes one")
    new_file(args.out, "--out")
    archive = pack.pack(
        Path(args.out),
        presets=args.preset or ["tiny", "small"],
        image=not args.no_image,
        wheels=not args.no_wheels,
        records=[Path(p) for p in args.record],
        say=say,
    )
    say(
        f"{archive.path}: {archive.files} files, {show_bytes(archive.size_bytes)}. On each machine:"
        f" tar xf {archive.path.name} && labkit-workshop/unpack.sh"
    )
    last_line(
        {
            "pack": str(archive.path),
            "files": archive.files,
            "size_bytes": archive.size_bytes,
            "parts_bytes": archive.parts_bytes,
        }
    )
    return 0
