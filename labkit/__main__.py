"""`python -m labkit` is `labkit`."""

from __future__ import annotations

import os
import sys


def main() -> int:
    _leave_the_working_directory()
    from labkit.cli import main as run
    from labkit.cli import streams
    from labkit.core.secrets import excepthook

    sys.excepthook = excepthook
    streams.settle()
    return streams.finish(run(sys.argv[1:]))


def _leave_the_working_directory() -> None:
    """`python -m` looks for modules there first: a learner's json.py is not ours. A checkout that
    is not installed is found there, and stays."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        if (
            ("-m", "labkit") in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
            and sys.path[0] in ("", os.getcwd())
            and os.path.realpath(sys.path[0] or ".") != os.path.realpath(root)
        ):
            del sys.path[0]
    except (OSError, IndexError):  # no such directory any more, so nothing in it
        pass


if __name__ == "__main__":
    sys.exit(main())
