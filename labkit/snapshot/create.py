"""Making a snapshot, off the clock: start the subject, let it serve one token, shrink it, dump it,
prove it, seal it.

The subject stands in a pid namespace of its own (a restored process gets its old id back, which on
the host may be taken), with /dev/null as standard streams (the other end of a pipe would be missing
later) and a short environment (everything in it is in the image). Before it is sealed a snapshot is
restored once, from a cold cache: the same greedy tokens must come back, and what the process
touched until then is kept as its working set, read ahead at every later restore.

    snapshot = make_process(model_dir, target, loader="labkit.weights.loaders.safe:load",
        tokens=(17, 4))

Limit: start + image bytes ÷ write rate + bytes ÷ read rate. Lesson: notebooks/07_checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from labkit.core import client, cold, exits, interpreter, ledger, timeline
from labkit.core.beside import scratch
from labkit.core.control_call import call_json
from labkit.core.host import cpu_features
from labkit.core.proc import children, environ, read_text, start_time
from labkit.core.trial import free_port
from labkit.errors import TrialError
from labkit.net.guard import CONTROL
from labkit.snapshot import criu, images, process, readahead, store
from labkit.snapshot.explain import SnapshotError, SnapshotRefused
from labkit.snapshot.takedown import MARK

PROMPT = "The first token of a cold start"


@dataclass(frozen=True)
class Running:
    """A serving subject: host pid of the server (the root of the dump), its port, its greedy tokens
    and its identity."""

    pid: int
    port: int
    tokens: tuple[int, ...]
    identity: dict[str, Any]
    start_s: float


def get(port: int, path: str, *, post: bool = False, timeout_s: float = 30) -> dict[str, Any]:
    return call_json(
        f"http://127.0.0.1:{port}{path}",
        method="POST" if post else "GET",
        headers=CONTROL,
        timeout_s=timeout_s,
    )


def first_tokens(
    port: int, request: dict[str, Any], alive: Any, timeout_s: float = 300
) -> client.Answer:
    until = timeline.now_s() + timeout_s
    return client.ask(
        "127.0.0.1", port, request, give_up=lambda: timeline.now_s() > until or not alive()
    )


def server_command(
    model: Path | str,
    port: int,
    loader: str,
    options: Mapping[str, Any] | None = None,
    extra: Sequence[str] = (),
) -> list[str]:
    made = [
        sys.executable,
        "-m",
        "labkit.subject.server",
        "--model",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--init",
        "meta",
    ]
    made += ["--loader", loader] if loader else []
    return [*made, *(["--loader-options", json.dumps(dict(options))] if options else []), *extra]


def short_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**interpreter.environment(), **(more or {})}


@contextmanager
def serving(
    command: Sequence[str], port: int, environment: Mapping[str, str], request: dict[str, Any]
) -> Iterator[Running]:
    """The server in its own pid namespace, having served one request. Ended with the block if it
    still runs."""
    began = timeline.now_s()
    # Marked outside, where it is found, and not inside: a later run's clone would carry the mark of
    # this one.
    unmarked = [word for name in ledger.marked({}) for word in ("-u", name)]
    outer = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "--", "env", *unmarked, "setsid", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ledger.marked(dict(environment)),
        cwd="/",
        start_new_session=True,
    )
    entry = ledger.current().note("group", outer.pid)
    try:
        answer = first_tokens(port, request, lambda: outer.poll() is None)
        inner = children(outer.pid)
        if answer.first_token_s is None or not inner:
            again = (
                subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    env=dict(environment),
                    cwd="/",
                    timeout=60,
                )
                if outer.poll() is not None
                else None
            )
            raise TrialError(
                "the subject did not serve a token, so there is nothing to dump",
                (again.stderr[-800:] if again else answer.error),
                "labkit run naive",
            )
        yield Running(
            inner[0],
            port,
            tuple(answer.tokens),
            get(port, "/_labkit/identity"),
            answer.first_token_s - began,
        )
    finally:
        criu.end(children(outer.pid))
        with contextlib.suppress(OSError):
            os.killpg(outer.pid, signal.SIGKILL)
        outer.wait()
        ledger.current().done(entry)


def shrink(port: int) -> dict[str, Any]:
    """Drop what can be rebuilt, and wait until no connection is open any more: a live one would
    stop the dump."""
    made = get(port, "/_labkit/shrink", post=True)
    until = time.monotonic() + 5
    while _connections(port) and time.monotonic() < until:
        time.sleep(0.01)
    return made


def _connections(port: int) -> int:
    """Established (or closing) connections of a local port: /proc/net/tcp, state 0A is the
    listening socket itself."""
    rows = [line.split() for line in read_text("/proc/net/tcp").splitlines()[1:]]
    return sum(
        local.endswith(f":{port:04X}") and state not in ("0A", "06")
        for _, local, _, state, *_ in rows
    )


def make_process(
    model: Path,
    target: Path,
    *,
    loader: str,
    options: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    request: dict[str, Any] | None = None,
    dump_options: Sequence[str] = (),
    extra: Sequence[str] = (),
    work: Path | None = None,
) -> store.Snapshot:
    """A snapshot of the subject as a process of this host. Raises SnapshotError; nothing is left of
    a failed one."""
    began = timeline.now_s()
    asked = {"prompt": PROMPT, "max_tokens": 8, **(request or {})}
    port, env = (
        free_port(),
        {
            **(environment if environment is not None else short_environment()),
            MARK: target.name,
        },
    )
    with (
        store.writing(target) as part,
        scratch(".criu-", work or target.parent) as room,
        clones_ended(target.name),
    ):
        with serving(
            server_command(model, port, loader, options, extra), port, env, asked
        ) as running:
            inside = environ(running.pid)
            freed = shrink(port)
            dumped = criu.dump(running.pid, part / "images", room, options=dump_options)
        mapped = {
            p: os.path.getsize(p)
            for p in images.mapped_files(part / "images").values()
            if p.startswith(str(model.resolve()) + "/")
        }
        manifest = manifest_of(
            part / "images",
            "criu-process",
            running,
            asked,
            inside,
            mapped,
            {
                **dumped,
                "start_s": running.start_s,
                "shrunk": freed,
                "mark": target.name,
                "contents": images.contents(part / "images"),
            },
        )
        proven = _prove(part, manifest, room)
        libraries = {p: list(process.stamp_of(p)) for p in proven if p not in mapped}
        store.seal(
            part,
            store.Manifest(
                **{
                    **manifest.__dict__,
                    "working_set": proven,
                    "libraries": libraries,
                    "facts": {**manifest.facts, "prepare_s": timeline.now_s() - began},
                }
            ),
        )
    return store.open_snapshot(target)


def manifest_of(
    where: Path,
    technique: str,
    running: Running,
    request: dict[str, Any],
    environment: Mapping[str, str],
    mapped: dict[str, int],
    facts: dict[str, Any],
) -> store.Manifest:
    permissions = facts.pop("permissions", {})
    return store.Manifest(
        technique=technique,
        permissions=permissions,
        place=store.host_fingerprint(),
        criu=criu.version(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files=store.describe(where),
        port=running.port,
        pid=running.pid,
        nonce=str(running.identity.get("nonce", "")),
        tokens=running.tokens,
        request=request,
        secrets=tuple(store.secrets_in(environment)),
        mapped=mapped,
        facts=facts,
    )


@contextmanager
def clones_ended(mark: str) -> Iterator[None]:
    """While a snapshot may be restored: its processes carry the environment of their dump, so the
    run's own mark does not find them."""
    entry = ledger.current().note("action", "snapshot:end-orphans", mark_of_snapshot=mark)
    try:
        yield
    finally:
        ledger.current().done(entry)


def _prove(part: Path, manifest: store.Manifest, work: Path) -> dict[str, list[list[int]]]:
    """Restore what was just dumped, cold; the same process must give the same tokens. Returns its
    working set."""
    for path in (part / "images").iterdir():
        store._sync(path)
    cold.evict([part, *manifest.mapped])
    pid, _ = criu.restore(part / "images", work, permissions=manifest.permissions)
    try:
        return check_answer(pid, manifest.port, manifest)
    finally:
        criu.end([pid])


def check_answer(
    pid: int, port: int, manifest: store.Manifest, log: Sequence[str] = ()
) -> dict[str, list[list[int]]]:
    """Tokens and identity of a restored server against the manifest; its working set. Raises
    SnapshotError, SnapshotRefused.

    `log`: its output so far, a deque that goes on growing."""
    answer = first_tokens(port, manifest.request, lambda: start_time(pid) != 0, 120)
    if answer.first_token_s is None and not start_time(pid):
        raise refusal_of_dead(pid, manifest, "".join(log))
    who = get(port, "/_labkit/identity") if answer.first_token_s else {}
    if tuple(answer.tokens) != manifest.tokens or who.get("nonce") != manifest.nonce:
        raise SnapshotRefused(
            f"the restored process answered {answer.tokens or answer.error}, before the dump it was"
            f" {list(manifest.tokens)}",
            "a snapshot that does not answer alike is not kept",
            "labkit snapshot dump again; then an issue with the log",
        )
    return readahead.working_set(pid)


def refusal_of_dead(pid: int, manifest: store.Manifest, log: str = "") -> SnapshotError:
    """For a restored process that ended in place of an answer: its signal, its last words, and what
    this CPU and its permissions were."""
    code = exits.exit_code(pid)
    why, fix = exits.advice(code)
    granted = ", ".join(hex(mask) for mask in manifest.permissions.values()) or "none recorded"
    said = [
        exits.kernel_line(pid),
        log.strip()[-400:],
        (
            f"CPU features here: {' '.join(cpu_features()) or 'none of note'}; CPU permissions at"
            f" the dump: {granted}"
        ),
    ]
    return SnapshotError(
        f"the restored process {exits.describe(code)} before it answered",
        "; ".join(filter(None, [why, *said])),
        fix or "labkit snapshot dump again; then an issue with the log",
    )


def dump_running(pid: int, target: Path, *, options: Sequence[str] = ()) -> store.Snapshot:
    """Any process, as it stands; it goes on running, also when CRIU refuses. Not proven: nobody
    knows what to ask it."""
    if not start_time(pid):
        raise SnapshotRefused(
            f"there is no process {pid}", "nothing to dump", "ps ax shows what runs"
        )
    with store.writing(target) as part, scratch(".criu-", target.parent) as room:
        inside = environ(pid)
        stopped = ledger.current().note("action", "snapshot:wake", pid=pid)
        dumped = criu.dump(pid, part / "images", room, leave_running=True, options=options)
        ledger.current().done(stopped)
        ports = images.listening_ports(part / "images")
        store.seal(
            part,
            manifest_of(
                part / "images",
                "process",
                Running(pid, ports[0] if ports else 0, (), {}, 0.0),
                {},
                inside,
                {},
                {**dumped, "contents": images.contents(part / "images")},
            ),
        )
    return store.open_snapshot(target)


def dump_again(pid: int, port: int, target: Path, before: store.Snapshot) -> store.Snapshot:
    """Dump a process that came from a snapshot, in its place. The process is gone afterwards."""
    with store.writing(target) as part, scratch(".criu-", target.parent) as room:
        identity = get(port, "/_labkit/identity")
        shrink(port)
        dumped = criu.dump(pid, part / "images", room)
        again = Running(pid, port, before.manifest.tokens, identity, 0.0)
        made = manifest_of(
            part / "images",
            before.manifest.technique,
            again,
            before.manifest.request,
            {},
            before.manifest.mapped,
            {**before.manifest.facts, **dumped},
        )
        store.seal(
            part,
            store.Manifest(
                **{
                    **made.__dict__,
                    "working_set": before.manifest.working_set,
                    "secrets": before.manifest.secrets,
                }
            ),
        )
    return store.open_snapshot(target)
