"""The embedded registry or store as a process of its own, on a free port, noted in the ledger, gone
at the end of the `with`.

A server inside the measured process would share its interpreter lock with what is measured; a
process of its own is what a registry is. It ends with the `with`, with its parent (the end of a
pipe), or by the ledger's watchdog.

    with serving("registry", root, link="1gbit", ledger=ledger) as served:
        served.url, served.stats()["bytes_sent"]

Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from labkit.core import secrets, stdout
from labkit.core.control_call import call, host_port
from labkit.core.interpreter import module
from labkit.core.json_types import JsonObject
from labkit.core.ledger import Ledger, Unnoted, current
from labkit.errors import BadInput, LabError
from labkit.net import link as links
from labkit.net.guard import CONTROL, exposure, warn
from labkit.net.server import App, HTTPServer

KINDS = ("registry", "store")
START_TIMEOUT_S = 30


@dataclass(frozen=True)
class Served:
    """A running server. `env`: what a client of the store needs in its environment (endpoint, keys,
    path style)."""

    kind: str
    root: Path
    host: str
    port: int
    pid: int
    env: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def address(self) -> str:
        return host_port(self.host, self.port)

    def stats(self) -> JsonObject:
        """Counters since the start or the last `reset`: requests, bytes_sent, by_path,
        peak_connections, faults, link …"""
        return self._ask("GET", "stats")

    def reset(self) -> JsonObject:
        return self._ask("POST", "reset")

    def set_link(self, link: str | links.Link) -> JsonObject:
        return self._ask("POST", "link", links.parse(link).spec)

    def set_faults(self, faults: Iterable[str] = (), seed: int = 0) -> JsonObject:
        return self._ask("POST", "faults", json.dumps({"faults": list(faults), "seed": seed}))

    def _ask(self, method: str, name: str, body: str = "") -> JsonObject:
        try:
            status, raw = call(
                f"{self.url}/_labkit/{name}",
                method=method,
                body=body.encode() or None,
                headers=CONTROL,
                timeout_s=10.0,
            )
        except OSError as error:
            raise LabError(
                f"the {self.kind} at {self.url} does not answer: {error}",
                fix="it may have been stopped; start it again",
            ) from None
        if status != 200:
            raise BadInput(raw.decode("utf-8", "replace").strip())
        return json.loads(raw)


@contextmanager
def serving(
    kind: str,
    root: str | os.PathLike[str],
    *,
    link: str | links.Link | None = None,
    faults: Iterable[str] = (),
    seed: int = 0,
    ledger: Ledger | Unnoted | None = None,
    port: int = 0,
    options: Iterable[str] = (),
) -> Iterator[Served]:
    """Start `labkit registry serve` or `labkit store serve` beside this process and stop it at the
    end.

    `options`: further arguments of that command. Raises LabError with the server's own words when
    it does not start."""
    if kind not in KINDS:
        raise BadInput(f"no server called {kind!r}", fix="one of " + ", ".join(KINDS))
    argv = [
        *module("labkit"),
        kind,
        "serve",
        "--root",
        str(root),
        "--port",
        str(port),
        "--child",
        "--link",
        links.parse(link).spec,
        "--seed",
        str(seed),
        *(f"--fault={f}" for f in faults),
        *options,
    ]
    ledger = ledger or current()
    env = {**os.environ, **ledger.environment}  # found by the watchdog even before it is noted
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=env,
    )
    entry = ledger.note("group", process.pid)
    errors: list[bytes] = []
    try:
        ready = _ready_line(process, argv, errors)
        yield Served(kind, Path(root), ready["host"], ready["port"], process.pid, ready["env"])
    finally:
        _end(process)
        ledger.done(entry)


def _ready_line(
    process: subprocess.Popen[bytes], command: list[str], errors: list[bytes]
) -> JsonObject:
    assert process.stdout and process.stderr
    until, line = time.monotonic() + START_TIMEOUT_S, b""
    while not line.endswith(b"\n") and time.monotonic() < until:
        if select.select([process.stdout], [], [], 0.5)[0]:
            got = os.read(process.stdout.fileno(), 65536)
            if not got:
                break
            line += got
    try:
        ready = json.loads(line)
    except ValueError:
        process.kill()
        output = process.stderr.read().decode("utf-8", "replace").strip()[-2000:]
        raise LabError(
            f"the server did not start: {output or 'it said nothing'}",
            why="nothing can be pulled from it",
            fix=" ".join(command[1:7]),
        ) from None
    # A full pipe would block the server; keep the tail for whoever asks.
    threading.Thread(target=_drain, args=(process.stderr, errors), daemon=True).start()
    return ready


def _drain(pipe: IO[bytes], into: list[bytes]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in pipe:
            into.append(line)
            del into[:-200]


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        assert process.stdin
        process.stdin.close()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)
    assert process.stdout
    process.stdout.close()


# -- the other side: the commands' shared part -----------------------------------------------------


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    from labkit.core.arguments import port

    parser.add_argument("--root", required=True, help="folder that holds everything served")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this host only)"
    )
    parser.add_argument(
        "--port", type=port(least=0), default=0, help="0 takes a free one (default)"
    )
    parser.add_argument(
        "--link",
        default="loopback",
        help="emulated link: "
        + ", ".join(links.PRESETS)
        + ", 300mbit, or rate=…,connection=…,first_byte=…",
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        help="e.g. 503:rate=0.01,retry_after=1 · reset:nth=3 · straggler:nth=2,slowed_to=100kB/s",
    )
    parser.add_argument("--seed", type=int, default=0, help="which requests the faults hit")
    parser.add_argument(
        "--child", action="store_true", help="say where in one JSON line, end when stdin ends"
    )
    stdout.add_json(parser)


def serve(
    app: App,
    args: argparse.Namespace,
    *,
    name: str,
    exposes: tuple[str, str],
    env: Callable[[HTTPServer], dict[str, str]] = lambda _: {},
) -> int:
    """Run one server until SIGTERM, Ctrl-C or (with --child) the end of stdin. `exposes`:
    what `exposure` takes."""
    from labkit.net import faults

    warn(exposure(args.host, *exposes))
    server = HTTPServer(
        app,
        host=args.host,
        port=args.port,
        link=links.parse(args.link),
        faults=faults.parse(args.fault, args.seed),
        name=name,
    )
    with server:
        doc = {
            "url": server.url,
            "host": server.host,
            "port": server.port,
            "root": str(args.root),
            "link": server.link.label,
            "env": env(server),
        }
        if args.child:
            stdout.last_line(doc, unmasked=True)
            with contextlib.suppress(KeyboardInterrupt):
                while os.read(0, 4096):
                    pass
            return 0
        if not args.json:
            stdout.say(
                f"{name} at {server.url}, root {args.root}, {server.link.label}; Ctrl-C ends it"
            )
            for key, value in doc["env"].items():
                print(f"export {key}={value}", file=secrets.own_words(), flush=True)
        stdout.last_line(doc, unmasked=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        return 0
