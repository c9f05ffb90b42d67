"""The command line: one module a command, imported only when it is called. A module gives
`add_arguments(parser)` and `run(args) -> int`.

Exit codes, of every command:
    0    done
    1    measured, and something failed: the record or the output says what
    2    a mistake in the call, or the environment refuses (a full disk, no right, a limit): what,
        why and the fix are on stderr
    3    a capability is missing here; labkit doctor says which
    4    image mount: the registry did not deliver
    5    not comparable: records, or a run and its baseline, answer different questions
    70   a mistake of the lab itself: the message says where its traceback is
    130  interrupted; everything started was taken down
    141  nobody reads stdout any more
Who reads stdout decides what a command ends with. In a terminal it is text, as wide as that. In a
pipe the last line after the text is one compact JSON document, in ASCII; with --json that is all.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from functools import partial

from labkit.core import secrets, stdout
from labkit.core.arguments import Paragraphs, Parser
from labkit.errors import BadInput, LabError

COMMANDS = {
    "doctor": "what this host can show, and what would unlock more",
    "run": "take a stack cold to its first token, several times",
    "show": "a recorded run: phases, floors, evidence",
    "trace": "one trial as a Chrome trace, for Perfetto and chrome://tracing",
    "compare": "runs against each other, or why they cannot be",
    "study": "the article's ladder on this host, measured once and read everywhere",
    "report": "the whole lab, headless, as one HTML page",
    "lab": "your copy of the notebooks, in JupyterLab",
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

#: What a command may end with.
EXIT_CODES = (0, 1, 2, 3, 4, 5, 70, 130, 141)
_BUG = 70

EPILOG = """exit codes: 0 done; 1 measured, and something failed; 2 a mistake in the call, or the
environment refuses; 3 a capability is missing (labkit doctor); 4 image mount: the registry did not
deliver; 5 not comparable (records, or a run and its baseline); 70 a mistake of the lab;
130 interrupted; 141 nobody reads stdout any more.

output: in a terminal, text as wide as the terminal. In a pipe, the last line after the text is one
JSON document; --json gives that line alone.

environment: LABKIT_HOME the workspace (default ~/.cache/labkit); LABKIT_TRACEBACK=1 shows where an
error comes from; LABKIT_DISPLAY=plain shows progress as lines; COLUMNS the width of the text."""


def _module(command: str) -> str:
    return "labkit.cli." + command.replace("-", "_")


def parser(command: str | None = None) -> Parser:
    """All commands, each filled by its module when it is parsed; `command` is filled at once."""
    top = Parser(
        prog="labkit",
        description="The cold-start lab: measure every technique on your own machine.",
        epilog=EPILOG,
        formatter_class=Paragraphs,
    )
    top.add_argument("--version", action="version", version=f"labkit {_version()}")
    subs = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        sub = subs.add_parser(
            name,
            help=help_text,
            description=help_text.capitalize() + ".",
            formatter_class=Paragraphs,
            fill=partial(_fill, name),
        )
        if name == command:
            sub.filled()
    return top


def _fill(command: str, sub: argparse.ArgumentParser) -> None:
    importlib.import_module(_module(command)).add_arguments(sub)


def _version() -> str:
    from labkit import __version__

    return __version__


@secrets.screened()
def main(argv: Sequence[str]) -> int:
    """Run one command. Returns its exit code; whatever goes wrong is said on stderr in three lines,
    never as a bare traceback."""
    from labkit.core import ledger

    secrets.learn_argv(argv)
    command = next((a for a in argv if a in COMMANDS), "")
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _terminate)
    with ledger.command():
        try:
            args = parser().parse_args(list(argv))
            if not args.command:
                parser().print_help()
                return 2
            with stdout.only_json(getattr(args, "json", False)):
                return int(importlib.import_module(_module(args.command)).run(args) or 0)
        except SystemExit as end:  # --help, --version
            return end.code if isinstance(end.code, int) else 0
        except KeyboardInterrupt:
            ledger.close_current()  # before it is said
            print("labkit: interrupted; everything started was taken down", file=sys.stderr)
            return 130
        except BaseException as error:
            return failed(error, command)


def failed(error: BaseException, command: str) -> int:
    """Say on stderr what ended a command, and give its exit code."""
    from labkit.cli import streams
    from labkit.core import printable
    from labkit.core.refusals import refusal

    if os.environ.get("LABKIT_TRACEBACK"):
        print(secrets.mask("".join(traceback.format_exception(error))), file=sys.stderr)
    if error in streams.failures:
        return streams.undone(streams.failures[0])
    refused = refusal(error)
    text = (
        f"{' '.join(['labkit', command]).strip()}:"
        f" {printable.text(refused or _own_mistake(error, command))}"
    )
    print(stdout.fitted(text, sys.stderr), file=sys.stderr)
    if refused is None:
        return _BUG
    return refused.exit_code


def _own_mistake(error: BaseException, command: str) -> LabError:
    """An exception nobody expected: its traceback goes into a file of this user alone, as it may
    hold arguments."""
    text = "".join(traceback.format_exception(error))
    kept = "LABKIT_TRACEBACK=1 shows the traceback"
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="labkit-failure-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(secrets.mask(text))
        kept = f"report it with {path}, which holds the traceback"
    return BadInput(
        f"a mistake of the lab, not yours: {type(error).__name__}: {error}",
        why=f"labkit {command} did not expect it; everything started was taken down",
        fix=kept,
    )


def _terminate(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt
