"""`labkit snapshot dump | restore | list | explain | push | pull | soak`: checkpoints by hand."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from labkit.core.arguments import bucket_url, count, directory, free_port, port
from labkit.core.stdout import add_json
from labkit.errors import BadInput
from labkit.subject.arguments import preset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    dump = actions.add_parser(
        "dump", help="start the subject, let it serve a token, shrink it, dump it, prove it"
    )
    dump.add_argument(
        "name", help="what to call it (a directory below LABKIT_HOME/artifacts), or a path"
    )
    dump.add_argument("--preset", type=preset, default="small")
    dump.add_argument("--model", default="", help="a model directory in place of the preset")
    dump.add_argument(
        "--pid",
        type=count("--pid", 1, 1 << 22),
        default=0,
        help="dump this process as it stands instead (it goes on running)",
    )
    dump.add_argument(
        "--whole",
        action="store_true",
        help="weights inside the CRIU image in place of mapped from the model's file",
    )
    dump.add_argument(
        "--scrub",
        action="store_true",
        help="start the subject without the secrets of this environment",
    )
    dump.add_argument(
        "--keep-environment",
        action="store_true",
        help="give the subject this shell's whole environment (default: a short one)",
    )
    dump.add_argument(
        "--tcp-established", action="store_true", help="with --pid: keep open connections"
    )
    restore = actions.add_parser(
        "restore", help="bring it back, on any port, and say how long its first token took"
    )
    restore.add_argument("name")
    restore.add_argument("--port", type=port(least=0), default=0, help="default: a free one")
    restore.add_argument(
        "--lazy-pages",
        action="store_true",
        help="let it run at once, pages come when they are touched",
    )
    restore.add_argument(
        "--cold", action="store_true", help="evict its files from the page cache first"
    )
    restore.add_argument("--stay", action="store_true", help="leave it serving until Ctrl-C")
    listing = actions.add_parser("list", help="snapshots here: size, place, whole or not")
    listing.add_argument(
        "--verify", action="store_true", help="read every byte; exit 1 when one is damaged"
    )
    explain = actions.add_parser("explain", help="a CRIU log in words; or what is in a snapshot")
    explain.add_argument("what", help="a dump.log or restore.log, or a snapshot's name")
    push = actions.add_parser("push", help="publish it to a bucket")
    push.add_argument("name")
    push.add_argument("url", type=bucket_url, help="s3://BUCKET/PREFIX")
    push.add_argument("--compress", choices=["none", "zstd"], default="none")
    pull = actions.add_parser("pull", help="fetch a published one, ranges in parallel")
    pull.add_argument("url", type=bucket_url)
    pull.add_argument("name")
    soak = actions.add_parser(
        "soak", help="dump and restore again and again while a client keeps asking"
    )
    soak.add_argument("--cycles", type=count("--cycles", 1, 100_000), default=50)
    soak.add_argument("--preset", type=preset, default="tiny")
    for measures in (dump, restore, listing, push, pull, soak):
        add_json(measures)
    parser.epilog = (
        "A snapshot holds the process's memory: its files are 0600, and `list` names the secrets"
        " inside."
    )


def run(args: argparse.Namespace) -> int:
    return globals()["_" + args.action](args)


def _place(name: str) -> Path:
    from labkit.core.workspace import Workspace

    return Path(name).resolve() if "/" in name else Workspace.default().artifacts / name


def _dump(args: argparse.Namespace) -> int:
    from labkit.core.stdout import last_line, say
    from labkit.core.units import show_bytes, show_s
    from labkit.core.workspace import Workspace
    from labkit.snapshot import create, store, subject_server
    from labkit.snapshot.techniques import COPIED, MAPPED
    from labkit.subject import checkpoint

    target = _place(args.name)
    store.refuse_stranger(target)
    if args.pid:
        snapshot = create.dump_running(
            args.pid, target, options=["--tcp-established"] if args.tcp_established else []
        )
    else:
        if args.model:
            directory(args.model, "--model", "labkit model make --preset small DIR makes one")
        model = (
            Path(args.model).resolve()
            if args.model
            else checkpoint.ensure(Workspace.default(), args.preset)
        )
        environment = subject_server.short_environment(
            dict(os.environ) if args.keep_environment else None
        )
        inside = store.secrets_in(environment)
        if inside and not args.scrub:
            say(
                f"inside the snapshot will be: {', '.join(inside)} (--scrub starts the subject"
                " without them)"
            )
        snapshot = create.make_process(
            Path(model),
            target,
            loader=COPIED if args.whole else MAPPED,
            environment=store.scrubbed(environment) if args.scrub else environment,
        )
    about = snapshot.manifest
    say(
        f"{snapshot.path}: {show_bytes(about.size_bytes)}, dumped in"
        f" {show_s(about.facts['dump_s'])}"
    )
    for kind, size in list(about.facts.get("contents", {}).items())[:6]:
        say(f"  {show_bytes(size):>10}  {kind}")
    for path, size in about.mapped.items():
        say(f"  {show_bytes(size):>10}  stays outside: {path}")
    last_line(
        {
            "snapshot": str(snapshot.path),
            "size_bytes": about.size_bytes,
            "dump_s": about.facts["dump_s"],
            "secrets": list(about.secrets),
            "tokens": list(about.tokens),
        }
    )
    return 0


def _restore(args: argparse.Namespace) -> int:
    from labkit.core import cold
    from labkit.core.stdout import last_line, say
    from labkit.core.units import show_s
    from labkit.core.workspace import Workspace
    from labkit.snapshot import store, subject_server
    from labkit.snapshot.cycle import restored

    free_port(args.port)
    snapshot = store.open_snapshot(_place(args.name))
    if args.cold:
        cold.evict([snapshot.path, *snapshot.manifest.working_set])
    with restored(snapshot, Workspace.default(), port=args.port, lazy=args.lazy_pages) as back:
        same = tuple(back.answer.tokens) == snapshot.manifest.tokens
        who = subject_server.get(back.port, "/_labkit/identity") if snapshot.manifest.nonce else {}
        itself = who.get("nonce") == snapshot.manifest.nonce
        say(
            f"restored on port {back.port} as pid {back.pid} ({who.get('pid', '?')} inside): first"
            f" token after {show_s(back.first_token_s)};"
            f" {'the dumped process itself' if itself else 'ANOTHER PROCESS'},"
            f" {'equal' if same else 'OTHER'} tokens"
        )
        if args.stay:
            try:
                while True:
                    time.sleep(3600)
            except KeyboardInterrupt:
                say("taken down")
        last_line(
            {
                "port": back.port,
                "first_token_s": back.first_token_s,
                "equal_tokens": same,
                "same_process": who.get("nonce") == snapshot.manifest.nonce,
                "facts": back.facts,
            }
        )
    return 0 if same else 1


def _list(args: argparse.Namespace) -> int:
    from labkit.core.stdout import last_line, say, table
    from labkit.core.units import show_bytes
    from labkit.core.workspace import Workspace
    from labkit.snapshot import store
    from labkit.snapshot.explain import SnapshotError

    rows, docs = [], []
    for path in sorted(Workspace.default().artifacts.glob("*/manifest.json")):
        if not (path.parent / "images").is_dir() or path.parent.name.endswith(".packed"):
            continue
        state = "whole"
        try:
            snapshot = store.open_snapshot(path.parent)
            snapshot.refuse_if_foreign()
            if missing := snapshot.missing_files():
                state = f"damaged: {missing[0]}"
            elif args.verify:
                snapshot.verify()
            about: Any = snapshot.manifest
            rows.append(
                [
                    path.parent.name,
                    about.technique,
                    show_bytes(about.size_bytes),
                    about.created,
                    ", ".join(about.secrets) or "none",
                    state,
                ]
            )
        except SnapshotError as error:
            state = error.what
            rows.append([path.parent.name, "", "", "", "", state])
        docs.append({"name": path.parent.name, "state": state})
    if args.verify and not rows:
        raise BadInput(
            "no snapshot to verify",
            why="of nothing, nothing was read",
            fix="labkit snapshot dump NAME",
        )
    say(
        table(rows, ["snapshot", "technique", "size", "made", "secrets inside", "state"])
        if rows
        else "no snapshots here: labkit snapshot dump NAME"
    )
    last_line({"snapshots": docs})
    return 1 if args.verify and any(d["state"] != "whole" for d in docs) else 0


def _explain(args: argparse.Namespace) -> int:
    from labkit.core.criu_log import error_lines
    from labkit.core.stdout import say
    from labkit.core.units import show_bytes
    from labkit.snapshot import criu_images, explain, store

    path = Path(args.what)
    if path.is_file():
        log = path.read_text(errors="replace")
        found = explain.cause(log)
        if found is None and not error_lines(log):
            say("nothing in this log went wrong")
            return 0
        say(str(explain.refusal("restore" if "restore" in path.name else "dump", log)))
        return 0
    if not (where := _place(args.what)).exists():
        raise BadInput(f"neither a log nor a snapshot: {args.what}", fix="labkit snapshot list")
    snapshot = store.open_snapshot(where)
    for kind, size in criu_images.contents(snapshot.criu_images).items():
        say(f"{show_bytes(size):>10}  {kind}")
    return 0


def _push(args: argparse.Namespace) -> int:
    from labkit.core.beside import scratch
    from labkit.core.stdout import last_line, say
    from labkit.core.workspace import Workspace
    from labkit.objects.client import open_bucket
    from labkit.snapshot import packing, store

    snapshot = store.open_snapshot(_place(args.name))
    with scratch("packed-", Workspace.default().nodes) as packed:
        facts = packing.pack(snapshot, packed, args.compress)
        with open_bucket(args.url) as bucket:
            for path in sorted(p for p in packed.rglob("*") if p.is_file()):
                bucket.put_file(path.relative_to(packed).as_posix(), path)
    say(f"{args.url}: {facts['stored_bytes']} bytes stored for {facts['raw_bytes']}")
    inside = list(snapshot.manifest.secrets)
    say(
        "whoever may read the bucket can read the process's memory in"
        f" it{', with the values of ' + ', '.join(inside) if inside else ''}"
    )
    last_line({"url": args.url, **facts, "secrets": inside})
    return 0


def _pull(args: argparse.Namespace) -> int:
    from labkit.core.stdout import last_line, say
    from labkit.objects.client import open_bucket
    from labkit.snapshot import store, transport

    target = _place(args.name)
    with store.writing(target) as part, open_bucket(args.url) as bucket:
        facts = transport.pull(bucket, part)
        store.Snapshot(part, store.open_manifest(part)).verify()
    say(f"{target}: {facts['bytes_fetched']} bytes fetched, every one checked")
    last_line({"snapshot": str(target), **facts})
    return 0


def _soak(args: argparse.Namespace) -> int:
    from labkit.core.stdout import last_line, say
    from labkit.core.workspace import Workspace
    from labkit.snapshot.cycle import soak

    found = soak(Workspace.default(), preset=args.preset, cycles=args.cycles, say=say)
    last_line(found)
    return 0 if found["ok"] else 1
