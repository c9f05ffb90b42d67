"""`python -m labkit` is `labkit`."""

from __future__ import annotations

import sys


def main() -> int:
    from labkit.cli import main as run
    from labkit.cli import streams

    streams.settle()
    return streams.finish(run(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
