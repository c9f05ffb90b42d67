"""The server that is dumped and restored: started in a pid namespace of its own, asked, shrunk, and
held against its snapshot.

    command = server_command(model, port, loader)
    with serving(command, port, short_environment(), request) as running:
        running.tokens

The subject has /dev/null as standard streams (the other end of a pipe would be missing later) and a
short environment (everything in it is in the CRIU image). A restored process gets its old id back,
which on the host may be taken: hence the namespace. Limit: the start. Lesson:
notebooks/07_checkpoints."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from labkit.core import client, exits, interpreter, ledger, timeline
from labkit.core.control_call import call_json
from labkit.core.host import cpu_features
from labkit.core.json_types import JsonObject
from labkit.core.proc import children, read_text, start_time
from labkit.errors import TrialError
from labkit.net.guard import CONTROL
from labkit.snapshot import criu, readahead, store
from labkit.snapshot.explain import SnapshotError, SnapshotRefused

PROMPT = "The first token of a cold start"


@dataclass(frozen=True)
class Running:
    """A serving subject: host pid of the server (the root of the dump), its port, its greedy tokens
    and its identity."""

    pid: int
    port: int
    tokens: tuple[int, ...]
    identity: JsonObject
    start_s: float


def get(port: int, path: str, *, post: bool = False, timeout_s: float = 30) -> JsonObject:
    """The server's JSON answer. Raises OSError, ValueError."""
    answer: JsonObject = call_json(
        f"http://127.0.0.1:{port}{path}",
        method="POST" if post else "GET",
        headers=CONTROL,
        timeout_s=timeout_s,
    )
    return answer


def first_tokens(
    port: int, request: JsonObject, alive: Callable[[], bool], timeout_s: float = 300
) -> client.Answer:
    """Ask until a token comes; given up when `alive()` says that nobody will answer."""
    until = timeline.now_s() + timeout_s
    return client.ask(
        "127.0.0.1", port, request, give_up=lambda: timeline.now_s() > until or not alive()
    )


def server_command(
    model: Path | str,
    port: int,
    loader: str,
) -> list[str]:
    return [
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
        "--loader",
        loader,
    ]


def short_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**interpreter.environment(), **(more or {})}


@contextmanager
def serving(
    command: Sequence[str], port: int, environment: Mapping[str, str], request: JsonObject
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
            why = answer.error
            if outer.poll() is not None:  # started again, for its last words
                why = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    env=dict(environment),
                    cwd="/",
                    timeout=60,
                ).stderr[-800:]
            raise TrialError(
                "the subject did not serve a token, so there is nothing to dump",
                why,
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


def shrink(port: int) -> JsonObject:
    """Drop what can be rebuilt, and wait until no connection is open any more: a live one would
    stop the dump."""
    freed = get(port, "/_labkit/shrink", post=True)
    until = time.monotonic() + 5
    while _connections(port) and time.monotonic() < until:
        time.sleep(0.01)
    return freed


def _connections(port: int) -> int:
    """Established (or closing) connections of a local port: /proc/net/tcp, state 0A is the
    listening socket itself."""
    rows = [line.split() for line in read_text("/proc/net/tcp").splitlines()[1:]]
    return sum(
        local.endswith(f":{port:04X}") and state not in ("0A", "06")
        for _, local, _, state, *_ in rows
    )


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
    details = [
        exits.kernel_line(pid),
        log.strip()[-400:],
        (
            f"CPU features here: {' '.join(cpu_features()) or 'none of note'}; CPU permissions at"
            f" the dump: {granted}"
        ),
    ]
    return SnapshotError(
        f"the restored process {exits.describe(code)} before it answered",
        "; ".join(filter(None, [why, *details])),
        fix or "labkit snapshot dump again; then an issue with the log",
    )
