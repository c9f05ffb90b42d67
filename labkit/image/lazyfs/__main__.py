"""`python -m labkit.image.lazyfs REF DIR`: mount an image and serve it until it is unmounted or
gets a signal.

With `--resident` alone it waits for its arguments as one line of JSON on stdin. One line on stdout
once the mount stands: {"mounted": DIR, …}. SIGTERM, SIGINT and SIGHUP unmount; so does `umount
DIR`. Exit codes: 0 unmounted · 2 refused · 3 no FUSE here · 4 the registry did not deliver. Lesson:
notebooks/03_lazy_pull."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from labkit.core import outputs, stdout
from labkit.core.arguments import count, seconds, web_url
from labkit.core.ledger import current
from labkit.core.units import parse_bytes, show_bytes
from labkit.errors import LabError, MissingCapability, TransferError
from labkit.image import access_record
from labkit.image.lazyfs.session import Options, Session
from labkit.image.lazyfs.stats import prefetched
from labkit.image.takedown import UNMOUNT_LAZY


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "reference",
        type=reference,
        help="http://HOST:PORT/NAME:TAG, or oci:LAYOUT:NAME:TAG; its layers must be eStargz",
    )
    parser.add_argument("target", help="an empty directory")
    parser.add_argument(
        "--cache",
        type=Path,
        help=(
            "folder for what arrives, shared by mounts (default: artifacts/lazyfs of the workspace)"
        ),
    )
    parser.add_argument("--cache-limit", type=parse_bytes, default=64 << 30, metavar="SIZE")
    parser.add_argument(
        "--memory",
        type=parse_bytes,
        default=256 << 20,
        metavar="SIZE",
        help="decompressed chunks held (default 256 MiB)",
    )
    parser.add_argument("--connections", type=count("--connections", 1, 1024), default=4)
    parser.add_argument(
        "--io-timeout",
        type=seconds("--io-timeout"),
        default=30.0,
        metavar="S",
        help=(
            "a read without bytes fails with EIO after this (default 30); once nothing came for so"
            " long, after 1 s"
        ),
    )
    parser.add_argument("--no-prefetch", action="store_true")
    parser.add_argument("--no-background", action="store_true", help="fetch only what is touched")
    parser.add_argument("--record", type=Path, help="write the order of first touches here")
    parser.add_argument("--stats", type=Path, help="keep counters in this JSON file")
    parser.add_argument(
        "--extra-dir",
        action="append",
        default=[],
        help="an empty directory to show (a mount point for a runtime)",
    )
    parser.add_argument("--extra-file", action="append", default=[])
    parser.add_argument("--allow-other", action="store_true", default=None)
    parser.add_argument(
        "--read-ahead-kb",
        type=count("--read-ahead-kb", 0, 1 << 20),
        default=0,
        help=(
            "how far the kernel reads ahead, as root (default 256 with a recorded order, else 1024)"
        ),
    )
    parser.add_argument("--log", default="", help="append log lines to this file (default: stderr)")


def reference(text: str) -> str:
    if not text.startswith("oci:"):
        web_url(text)
    return text


def options_of(args: argparse.Namespace) -> Options:
    cache = args.cache
    if cache is None:
        from labkit.core.workspace import Workspace

        cache = Workspace.default().artifacts / "lazyfs"
    return Options(
        cache,
        args.cache_limit,
        args.memory,
        args.connections,
        args.io_timeout,
        not args.no_prefetch,
        not args.no_background,
        args.record,
        args.stats,
        tuple(args.extra_dir),
        tuple(args.extra_file),
        args.allow_other,
        args.read_ahead_kb,
    )


def serve(args: argparse.Namespace) -> int:
    sys.setswitchinterval(0.0005)  # a request must not wait 5 ms for a thread that hashes
    logging.basicConfig(
        filename=args.log or None,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    try:
        if args.record:
            access_record.refuse_stranger(args.record)
        if args.stats:
            outputs.refuse_stranger(
                args.stats,
                lambda head: not head.strip() or b'"fetched_bytes"' in head,
                "counters of a mount",
                "--stats",
            )
        noted = current().note("action", UNMOUNT_LAZY, path=os.path.realpath(args.target))
        with Session(args.reference, args.target, options_of(args)) as session:

            def on_signal(_number: int, _frame: object) -> None:
                threading.Thread(target=session.stop, daemon=True).start()

            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, on_signal)
            threading.Thread(target=_announce, args=(session,), daemon=True).start()
            # signals need a main thread that is free
            session_thread = threading.Thread(target=session.serve, daemon=True)
            session_thread.start()
            while session_thread.is_alive() and not session.over:
                session_thread.join(0.2)
        current().done(noted)
    except LabError as error:
        stdout.last_line({"error": error.as_json()})
        print(error, file=sys.stderr)
        if isinstance(error, MissingCapability):
            return 3
        return 4 if isinstance(error, TransferError) else 2
    return 0


def _announce(session: Session) -> None:
    session.after_mount()
    fetched_bytes = sum(session.stats.bytes.values())
    if stdout.terminal():
        stdout.say(
            f"mounted on {session.target}, {show_bytes(fetched_bytes)} fetched; Ctrl-C unmounts it"
        )
    stdout.last_line(
        {
            "mounted": session.target,
            "pid": os.getpid(),
            "fetched_bytes": fetched_bytes,
            **session.facts,
            "config": session.config,
        },
        unmasked=True,
    )
    if session.stats.path:
        session.feed.ahead.prefetched.wait()
        prefetched(session.stats.path).touch()


def main(argv: Sequence[str]) -> int:
    # imported and waiting before there is anything to mount, as a node's snapshotter does
    if list(argv) == ["--resident"]:
        print("{}", flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            return 0
        argv = json.loads(line)
    parser = argparse.ArgumentParser(
        prog="python -m labkit.image.lazyfs", description=__doc__.partition("\n")[0]
    )
    add_arguments(parser)
    return serve(parser.parse_args(argv))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # a reader that still holds a file of a detached mount must not keep this process
    os._exit(code)
