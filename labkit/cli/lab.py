"""`labkit lab DIR`: your own copy of the notebooks, opened in JupyterLab.

labkit lab my-lab                  notebooks/ copied to my-lab/, JupyterLab opened there
labkit lab my-lab --copy-only      the copy alone; what you have changed is never overwritten
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from labkit.core.stdout import add_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory",
        nargs="?",
        default="cold-start-lab",
        metavar="DIR",
        help="where your copy stands, or goes (default: cold-start-lab)",
    )
    parser.add_argument("--copy-only", action="store_true", help="do not open JupyterLab")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from labkit.core import shipped
    from labkit.core.stdout import last_line, say

    written, kept = shipped.copy_notebooks(args.directory)
    if not args.json:
        left = f", {len(kept)} that were there are left as they are" if kept else ""
        say(f"{len(written)} notebooks copied to {args.directory}{left}")
    last_line(
        {
            "command": "lab",
            "directory": args.directory,
            "written": [str(p) for p in written],
            "kept": [str(p) for p in kept],
        }
    )
    if args.copy_only:
        return 0
    command = [sys.executable, "-m", "jupyterlab", "--notebook-dir", args.directory]
    command += ["--no-browser"] if args.no_browser else []
    # it may speak on stdout
    return subprocess.run(command, stdout=2 if args.json else None).returncode
