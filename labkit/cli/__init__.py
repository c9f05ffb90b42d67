"""The command line: one module a command, imported only when it is called. A module gives `add_arguments(parser)` and `run(args) -> int`.

Exit codes: 0 done · 1 measured, and something failed (the record says what) · 2 a mistake in the call · 3 a capability
is missing · 130 interrupted. The last line of stdout of every command that measures is one compact JSON document.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from labkit.core import secrets

COMMANDS = {
    "doctor": "what this host can show, and what would unlock more",
    "run": "take a stack cold to its first token, several times",
    "show": "a recorded run: phases, floors, evidence",
    "compare": "runs against each other, or why they cannot be",
    "report": "the whole lab, headless, as one HTML page",
    "notebooks": "run notebooks headless and say what happened",
    "bench": "the lab's performance claims, measured here",
    "model": "make, verify, convert and inspect checkpoints",
    "image": "build, convert, push, pull and mount images",
    "registry": "serve the embedded registry, with an emulated link",
    "store": "serve the embedded object store, with an emulated link",
    "snapshot": "checkpoint and restore the subject",
    "cuda-checkpoint": "the arguments of NVIDIA's utility, through the driver's API",
    "ablate": "which techniques add up, which overlap",
    "plan": "your model, your image, your budget: what to do first",
    "workshop": "pack the lab for hosts without internet",
    "site": "the gallery of executed notebooks and figures",
}


def _module(command: str) -> str:
    return "labkit.cli." + command.replace("-", "_")


def parser(command: str | None = None) -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="labkit", description="The cold-start lab: measure every technique on your own machine.")
    top.add_argument("--version", action="version", version=f"labkit {_version()}")
    subs = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        sub = subs.add_parser(name, help=help_text, description=help_text.capitalize() + ".",
                              formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == command:
            importlib.import_module(_module(name)).add_arguments(sub)
    return top


def _version() -> str:
    from labkit import __version__

    return __version__


@secrets.screened()
def main(argv: Sequence[str]) -> int:
    from labkit.core import ledger, printable
    from labkit.errors import LabError, MissingCapability

    ledger.command()
    signal.signal(signal.SIGTERM, _terminate)
    secrets.learn_argv(argv)
    command = next((a for a in argv if a in COMMANDS), None)
    try:
        args = parser(command).parse_args(argv)
        if not args.command:
            parser().print_help()
            return 2
        return int(importlib.import_module(_module(args.command)).run(args) or 0)
    except LabError as error:
        if os.environ.get("LABKIT_TRACEBACK"):
            raise
        print(f"labkit {command or ''}: {printable.text(error)}", file=sys.stderr)
        return 3 if isinstance(error, MissingCapability) else 2
    except KeyboardInterrupt:
        ledger.close_current()  # before it is said
        print("labkit: interrupted; everything started was taken down", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _terminate(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt
