"""`labkit image …`: one module a subcommand, imported only when it is called; each gives
`add_arguments(parser)` and `run(args)`.

A subcommand's hooks may carry its name where a module serves several (`add_push_arguments`,
`run_push`)."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from functools import partial

#: subcommand -> (module, help)
SUBCOMMANDS = {
    "build": ("labkit.cli.image_build", "the subject's image from this host, as an OCI layout"),
    "inspect": ("labkit.cli.image_build", "what an image is made of: layers, sizes, files"),
    "pull": (
        "labkit.cli.image_build",
        "fetch an image from a registry into a layout (stock full pull)",
    ),
    "unpack": ("labkit.cli.image_build", "layers to a root directory; hostile ones are refused"),
    "push": ("labkit.cli.image_push", "to an object store, content-addressed"),
    "recompress": ("labkit.cli.image_push", "the same image with gzip, zstd or plain layers"),
    "convert": ("labkit.cli.image_lazy", "to eStargz, optimised by a recorded access order"),
    "mount": ("labkit.cli.image_lazy", "an eStargz image lazily, without a container runtime"),
}


def _hook(command: str, name: str) -> Callable[..., int | None]:
    hook: Callable[..., int | None] = getattr(
        importlib.import_module(SUBCOMMANDS[command][0]), name
    )
    return hook


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subs = parser.add_subparsers(dest="image_command", metavar="SUBCOMMAND", required=True)
    for name, (_, help_text) in SUBCOMMANDS.items():
        subs.add_parser(
            name,
            help=help_text,
            description=help_text[0].upper() + help_text[1:] + ".",
            fill=partial(_fill, name),
        )


def _fill(name: str, sub: argparse.ArgumentParser) -> None:
    _hook(name, f"add_{name}_arguments")(sub)


def run(args: argparse.Namespace) -> int:
    return int(_hook(args.image_command, f"run_{args.image_command}")(args) or 0)
