"""One start of a server that is not ours: executed at t0, watched until its answer is complete,
taken down. And the rehearsal before all others, off the clock: does it start, what is its model
called, which libraries does it map?

    rehearsal = rehearse(server, ledger, timeout_s=300)
    started = start(server, rehearsal.request, ledger, timeout_s=300)
    started.answer.first_token_s - started.answer.t0_s

Lesson: notebooks/09_decide."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labkit.byo.observe import StartObserver, listening
from labkit.byo.own_server import OwnServer
from labkit.core import client, observe, proc, secrets, timeline
from labkit.core.control_call import call_json, http_url
from labkit.core.json_types import JsonObject
from labkit.core.ledger import MARK, Ledger
from labkit.errors import BadInput, TrialError

PROMPT = "The first token of a cold start"
MAX_TOKENS = 8


@dataclass
class Start:
    """One start, watched. Everything is raw; `trials.judged` makes a record of it."""

    answer: client.Answer
    observer: StartObserver
    log: list[tuple[float, str]] = field(default_factory=list)
    facts: JsonObject = field(default_factory=dict)
    code: int | None = None
    request: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class Rehearsal:
    """What one start off the clock showed. `weights`: files of them that the server opened;
    `proven`: paths whose pages must be out (hot-node: in) before a trial; `around`: evicted too,
    without proof."""

    request: JsonObject
    text: str  # the greedy answer, which a trial has to repeat
    proven: list[str]
    around: list[str]
    weights: frozenset[Path]


def rehearse(server: OwnServer, ledger: Ledger, timeout_s: float) -> Rehearsal:
    """Start it once, off the clock. Raises BadInput, TrialError."""
    request: JsonObject = {
        "prompt": PROMPT,
        "max_tokens": MAX_TOKENS,
        **({"model": server.model_name} if server.model_name else {}),
    }
    started = start(server, request, ledger, timeout_s, rehearsal=True)
    if started.answer.first_token_s is None or started.answer.error:
        raise TrialError(
            f"{server.kind.name} did not come to a whole answer in the rehearsal:"
            f" {started.answer.error or 'it ended'}",
            why="\n".join(line for _, line in started.log[-15:]) or "it printed nothing",
            fix="run the command by hand and ask it: curl "
            + f"http://{server.host}:{server.port}{server.base}/completions; --model-name if it"
            " wants one",
        )
    opened = started.observer.opened
    trees = cold_trees(
        sorted(opened["weights"] | opened["config"]) or started.observer.files,
        started.facts.get("maps", []),
    )
    return Rehearsal(started.request, started.answer.text, *trees, frozenset(opened["weights"]))


def cold_trees(read: Sequence[Path], maps: list[str]) -> tuple[list[str], list[str]]:
    """(proven, evicted too): the files of the model that it read, each package and library that it
    mapped; and the whole package trees around those, whose .pyc files it reads without mapping
    them – but also files that others on this host may be holding.

    Lone libraries that any running process has mapped (libc, libstdc++, the interpreter's) are cold
    on no node: they are left out."""
    held = mapped_now()
    proven: dict[str, None] = {str(file): None for file in read}
    around: dict[str, None] = {}
    for path in maps:
        if not os.path.exists(path) or path.startswith(("/dev/", "/memfd:", "/proc/")):
            continue
        package = re.match(r"((.*/(?:site|dist)-packages)/[^/]+)", path)
        if package or path not in held:
            proven[package[1] if package else path] = None
        around[package[2] if package else path] = None
    return [
        t for t in proven if not any(t != other and t.startswith(other + "/") for other in proven)
    ], list(around)


def mapped_now() -> set[str]:
    """Files that running processes have mapped, as far as we may look."""
    found: set[str] = set()
    for pid in proc.all_pids():
        with contextlib.suppress(OSError):
            found.update(proc.mapped_files(pid))
    return found


def start(
    server: OwnServer,
    request: JsonObject,
    ledger: Ledger,
    timeout_s: float,
    rehearsal: bool = False,
) -> Start:
    """Ask at t0, execute the command, watch until the answer is complete, take everything down.

    A rehearsal waits for health first, to ask the server what its model is called: most want the
    name in the request."""
    if listening(server.port):
        raise BadInput(
            f"something listens on port {server.port} already",
            why="it would answer in place of the server under test",
            fix="end it, or serve on another port",
        )
    process: subprocess.Popen[bytes] | None = None
    entry = ""
    log: deque[tuple[float, str]] = deque(maxlen=20_000)
    readers: list[threading.Thread] = []
    started_s = timeline.now_s()
    with StartObserver(server.weights, server.host, server.port, server.kind) as observer:

        def execute() -> None:
            nonlocal process, entry
            process = subprocess.Popen(
                server.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, MARK: ledger.mark},
            )
            observer.root(process.pid)
            entry = ledger.note("group", process.pid)
            readers.append(threading.Thread(target=_read_log, args=(process, log), daemon=True))
            readers[0].start()

        def give_up() -> bool:
            return (
                process is not None and process.poll() is not None
            ) or timeline.now_s() - started_s > timeout_s

        try:
            if rehearsal:
                execute()
                while (
                    "health" if server.kind.health else "listening"
                ) not in observer.moments and not give_up():
                    time.sleep(0.02)
                request = {**_listed_model(server), **request}
            answer = client.ask(
                server.host,
                server.port,
                request,
                give_up=give_up,
                on_t0=None if rehearsal else execute,
                path=f"{server.base}/completions",
            )
            facts = _facts(observer)
            code = process.poll() if process else None
        finally:
            if process is not None:
                _end(process)
                ledger.done(entry)
    for reader in readers:
        reader.join(2)
    # only now: a chatty server's lines are not looked through while it is measured
    shown = secrets.Masker()
    answer.text, answer.error = shown.text(answer.text), shown.text(answer.error)
    return Start(
        answer, observer, [(at_s, shown.text(line)) for at_s, line in log], facts, code, request
    )


def _listed_model(server: OwnServer) -> dict[str, str]:
    """The name of the model, as /v1/models lists it; one that speaks of the weights' path before
    others."""
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        url = http_url(server.host, server.port, server.base + "/models")
        listed = [str(m["id"]) for m in call_json(url, timeout_s=10.0)["data"]]
        return {"model": next((m for m in listed if server.weights.name in m), listed[0])}
    return {}


def _read_log(process: subprocess.Popen[bytes], log: deque[tuple[float, str]]) -> None:
    """Lines with the time they came; a carriage return ends one too (progress bars)."""
    assert process.stdout
    rest = b""
    while data := process.stdout.read1(65536):  # type: ignore[attr-defined]
        now = timeline.now_s()
        *lines, rest = re.split(rb"[\r\n]+", rest + data)
        log.extend((now, line.decode(errors="replace")) for line in lines if line.strip())
    if rest.strip():
        log.append((timeline.now_s(), rest.decode(errors="replace")))


def _facts(observer: StartObserver) -> JsonObject:
    if not observer.family:
        return {}
    found = observe.process_facts(observer.family[0])
    return {
        "maps": found["maps"],
        "io": found["io"],
        "rss_bytes": found["rss_bytes"],
        "peak_rss_bytes": found["peak_rss_bytes"],
        "family": found["family"],
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """Politely, so that a container client takes its container down too; then the whole group."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
