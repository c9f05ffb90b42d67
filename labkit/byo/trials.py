"""Cold starts of a server that is not ours, recorded as any other run: same client, same cache
proof, same record.

    run(command="python -m llama_cpp.server --model M.gguf --port 8000",
        url="http://127.0.0.1:8000", weights="M.gguf", blocks=5)

A rehearsal first, off the clock: does it start, what is its model called, which libraries does it
map? Those and the weights are then evicted and proven cold before each trial (hot-node: warmed). t0
is the client's first attempt, when nothing listens yet; the command is executed right after it. The
server gets its keys as they were given; what is kept of the command, the log and the answers shows
none (labkit.core.secrets). Lesson: notebooks/09_decide."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections import deque
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from labkit.byo import phases, servers
from labkit.byo.observe import StartObserver, listening
from labkit.core import (
    client,
    cold,
    floor,
    host,
    observe,
    proc,
    question,
    rates,
    records,
    secrets,
    timeline,
)
from labkit.core.ledger import MARK, Ledger
from labkit.core.records import Run, Trial
from labkit.core.workspace import Workspace
from labkit.errors import BadInput, TrialError
from labkit.net.http import split

PROMPT = "The first token of a cold start"
MAX_TOKENS = 8


@dataclass(frozen=True)
class OwnServer:
    """What the user told, checked."""

    argv: tuple[str, ...]
    host: str
    port: int
    base: str  # path before /completions, usually /v1
    weights: Path
    kind: servers.ServerKind
    image: str = ""
    model_name: str = ""

    @staticmethod
    def of(
        command: str, url: str, weights: str, image: str = "", model_name: str = ""
    ) -> OwnServer:
        """Raises BadInput for what cannot be measured."""
        secrets.learn_command(command)
        secrets.learn_command(url)
        try:
            argv = tuple(shlex.split(command))
        except ValueError as error:
            raise BadInput(
                f"--command: {error}", fix="quote it as the shell would take it"
            ) from None
        if not argv or not shutil.which(argv[0]):
            raise BadInput(
                f"--command: {secrets.mask_argv(argv)[0] if argv else 'nothing'} is not a program"
                " here",
                why="the server is started by it at t0",
                fix=(
                    "write env before the variables: env NAME=VALUE …"
                    if argv and "=" in argv[0]
                    else "give the full path, or install the server"
                ),
            )
        try:
            place, target = split(url)
        except ValueError:
            place, target = None, ""
        if place is None or place.scheme != "http":
            raise BadInput(
                f"--url {secrets.mask(url)!r}",
                why="the client asks there from t0 on",
                fix="--url http://127.0.0.1:8000, as the command serves it",
            )
        path = Path(weights).expanduser() if weights else None
        if path is None or not path.exists():
            raise BadInput(
                f"--weights {weights!r}: no such file or directory",
                why="its files are evicted before each trial, and watched in it",
                fix="give the directory (or file) that the server reads its weights from",
            )
        if path.is_dir() and not any(p.is_file() for p in path.rglob("*")):
            raise BadInput(
                f"--weights {weights!r}: no file in it",
                why="with nothing to evict, every start would be called cold",
                fix="give the directory (or file) that the server reads its weights from",
            )
        base = target.partition("?")[0].rstrip("/")
        return OwnServer(
            argv,
            place.host,
            place.port,
            base if base.endswith("/v1") else base + "/v1",
            path.resolve(),
            servers.recognise(argv),
            image,
            model_name,
        )


@dataclass
class Start:
    """One start, watched. Everything is raw; `trial` makes a record of it."""

    answer: client.Answer
    seen: StartObserver
    log: list[tuple[float, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    code: int | None = None
    request: dict[str, Any] = field(default_factory=dict)


def run(
    *,
    command: str,
    url: str,
    weights: str,
    image: str = "",
    model_name: str = "",
    blocks: int = 5,
    scenario: str = "warm-node",
    timeout_s: float = 300.0,
    out: str | Path = "",
    resume: bool = False,
    overwrite: bool = False,
    progress: Any = None,
    workspace: Workspace | None = None,
) -> Run:
    """Measure; write the record after each trial; return it. Raises BadInput, TrialError (the
    rehearsal did not come to a token)."""
    records.refuse_overwriting(out, resume, overwrite)
    server = OwnServer.of(command, url, weights, image, model_name)
    # Whatever the server needs is on this host's disk: a fresh node is not what is measured here.
    scenario = "hot-node" if scenario == "hot-node" else "warm-node"
    space = workspace or Workspace.default()
    created = datetime.now(timezone.utc)
    target = Path(out) if out else space.runs / f"{created.strftime('%Y%m%dT%H%M%S%f')[:-3]}.json"
    tell = lambda method, *a: getattr(progress, method, lambda *_: None)(*a)  # noqa: E731
    made = _record(server, target, created, scenario, blocks, timeout_s, resume)
    with Ledger.open(space) as ledger:
        tell(
            "note",
            f"rehearsal of {server.kind.name}"
            + (
                ""
                if server.kind.tested
                else " (its log patterns were never tested; /proc and the port tell its phases)"
            ),
        )
        request, expected, cold_paths = rehearse(server, ledger, timeout_s)
        tell("note", "measuring this host's floors")
        made = replace(made, floors=made.floors or rates.measure(space))
        done = {t.block for t in made.trials}
        for block in (b for b in range(blocks) if b not in done):
            tell("trial_started", server.kind.name, block, blocks)
            made = replace(
                made,
                trials=(
                    *made.trials,
                    trial(
                        server,
                        request,
                        expected,
                        cold_paths,
                        scenario,
                        ledger,
                        timeout_s,
                        block,
                        made.floors,
                    ),
                ),
            )
            records.write(made, target)
            tell("trial_done", made.trials[-1])
    return made


def _record(
    server: OwnServer,
    target: Path,
    created: datetime,
    scenario: str,
    blocks: int,
    timeout_s: float,
    resume: bool,
) -> Run:
    """The record that trials are added to: a new one, or one that is there and holds the same.
    Raises BadInput, before anything is started."""
    # no digest of a secret either: a short one could be guessed from it
    shown = secrets.mask_argv(server.argv)
    # as told: what the server lists is its own answer, not the user's choice
    model_name = server.model_name
    conditions = question.chosen(
        preset="own",
        model_dir=str(server.weights),
        model_identity=question.identity(server.weights),
        image=server.image,
        timeout_s=float(timeout_s),
        command=question.digest("\0".join(shown)),
        url=f"http://{server.host}:{server.port}{server.base}",
        prompt=PROMPT,
        max_tokens=MAX_TOKENS,
        model_name=model_name,
    )
    made = Run(
        id=target.stem,
        created=created.isoformat(timespec="seconds"),
        host=host.card(),
        experiment={
            "arms": [
                {
                    "name": server.kind.name,
                    "stack": {"server": " ".join(shown)},
                    "scenario": scenario,
                    "link": "loopback",
                }
            ],
            "blocks": blocks,
            "seed": 0,
            "preset": "own",
            "model_dir": str(server.weights),
            "max_tokens": MAX_TOKENS,
            "notes": {"image": server.image, "tested": server.kind.tested},
            "conditions": conditions,
        },
    )
    if resume and target.exists():
        before = records.read(target)
        question.refuse_mixing(before, made, target)
        made = replace(
            made, trials=before.trials, floors=before.floors, id=before.id, created=before.created
        )
    return made


def rehearse(
    server: OwnServer, ledger: Ledger, timeout_s: float
) -> tuple[dict[str, Any], str, tuple[list[str], list[str]]]:
    """Start it once, off the clock: (request, the answer's text, paths to make cold). Raises
    BadInput, TrialError."""
    request: dict[str, Any] = {
        "prompt": PROMPT,
        "max_tokens": MAX_TOKENS,
        **({"model": server.model_name} if server.model_name else {}),
    }
    started = start(server, request, ledger, timeout_s, rehearsal=True)
    if started.answer.first_token_s is None:
        raise TrialError(
            f"{server.kind.name} did not come to a token in the rehearsal:"
            f" {started.answer.error or 'it ended'}",
            why="\n".join(line for _, line in started.log[-15:]) or "it printed nothing",
            fix="run the command by hand and ask it: curl "
            + f"http://{server.host}:{server.port}{server.base}/completions; --model-name if it"
            " wants one",
        )
    return started.request, started.answer.text, cold_trees(server, started.facts.get("maps", []))


def cold_trees(server: OwnServer, maps: list[str]) -> tuple[list[str], list[str]]:
    """(proven, evicted too): the weights, each package and library that the server mapped; and the
    whole package trees around those, whose .pyc files it reads without mapping them – but also
    files that others on this host may be holding.

    Lone libraries that any running process has mapped (libc, libstdc++, the interpreter's) are cold
    on no node: they are left out."""
    held = mapped_now()
    proven: dict[str, None] = {str(server.weights): None}
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
    request: dict[str, Any],
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
    began_s = timeline.now_s()
    with StartObserver(server.weights, server.host, server.port, server.kind) as seen:

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
            seen.root(process.pid)
            entry = ledger.note("group", process.pid)
            readers.append(threading.Thread(target=_read_log, args=(process, log), daemon=True))
            readers[0].start()

        def give_up() -> bool:
            return (
                process is not None and process.poll() is not None
            ) or timeline.now_s() - began_s > timeout_s

        try:
            if rehearsal:
                execute()
                while (
                    "health" if server.kind.health else "listening"
                ) not in seen.moments and not give_up():
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
            facts = _facts(seen)
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
        answer, seen, [(at_s, shown.text(line)) for at_s, line in log], facts, code, request
    )


def _listed_model(server: OwnServer) -> dict[str, str]:
    """The name of the model, as /v1/models lists it; one that speaks of the weights' path before
    others."""
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        with urllib.request.urlopen(
            f"http://{server.host}:{server.port}{server.base}/models", timeout=10
        ) as reply:
            listed = [str(m["id"]) for m in json.loads(reply.read())["data"]]
        return {"model": next((m for m in listed if server.weights.name in m), listed[0])}
    return {}


def _read_log(process: subprocess.Popen[bytes], log: deque[tuple[float, str]]) -> None:
    """Lines with the time they came; a carriage return ends one too (progress bars)."""
    assert process.stdout
    left = b""
    while data := process.stdout.read1(65536):  # type: ignore[attr-defined]
        now = timeline.now_s()
        *lines, left = re.split(rb"[\r\n]+", left + data)
        log.extend((now, line.decode(errors="replace")) for line in lines if line.strip())
    if left.strip():
        log.append((timeline.now_s(), left.decode(errors="replace")))


def _facts(seen: StartObserver) -> dict[str, Any]:
    if not seen.family:
        return {}
    found = observe.process_facts(seen.family[0])
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


def trial(
    server: OwnServer,
    request: dict[str, Any],
    expected: str,
    cold_paths: tuple[list[str], list[str]],
    scenario: str,
    ledger: Ledger,
    timeout_s: float,
    block: int,
    rates: dict[str, Any],
) -> Trial:
    """One cold start as a record."""
    want = "warm" if scenario == "hot-node" else "cold"
    proven, around = cold_paths
    (cold.warm if want == "warm" else cold.evict)(around)
    cache = cold.set_cache_state(proven, want).as_json()
    made = Trial(arm=server.kind.name, block=block, order=0, cache=cache)
    if cache["state"] == "unverified":
        return replace(
            made,
            outcome="cache_unproven",
            error={
                "kind": "CacheUnproven",
                "what": cache.get("note", ""),
                "why": "a warm trial in a cold column",
                "fix": "end what maps these files",
            },
        )
    started = start(server, request, ledger, timeout_s)
    return judged(
        replace(made, log_tail="\n".join(line for _, line in started.log[-40:])[-4000:]),
        started,
        expected,
        server,
        scenario,
        rates,
    )


def judged(
    made: Trial,
    started: Start,
    expected: str,
    server: OwnServer,
    scenario: str,
    rates: dict[str, Any],
) -> Trial:
    """Phases, evidence and outcome of a start."""
    answer, seen = started.answer, started.seen
    t0, end = answer.t0_s, answer.first_token_s
    noticed = {n: {"at_s": round(m.at_s - t0, 4), "how": m.how} for n, m in seen.moments.items()}
    facts: dict[str, Any] = {
        "attempts": answer.attempts,
        "text": answer.text,
        "moments": noticed,
        "proc": {k: v for k, v in started.facts.items() if k != "maps"},
        "health_path": seen.health_path,
    }
    if end is None:
        outcome = "crashed" if started.code is not None else "timeout"
        return replace(
            made,
            outcome=outcome,
            facts=facts,
            error={
                "kind": "NoToken",
                "what": answer.error or "no token",
                "why": made.log_tail[-1500:],
                "fix": "run the command by hand",
            },
        )
    weights_bytes = sum(f.stat().st_size for f in seen.files)
    marks = [m for m in servers.read_marks(server.kind, started.log) if t0 <= m[2] <= end + 1]
    moments = dict(seen.moments)
    arrived = phases.weights_in(
        moments, seen.looks, weights_bytes, end, marks, seen.weights_closed_s
    )
    if arrived:
        moments["weights_in"] = arrived
        noticed["weights_in"] = {"at_s": round(arrived.at_s - t0, 4), "how": arrived.how}
    spans = phases.attribute(moments, seen.looks, t0, end)
    details = [
        timeline.Span(name, max(a, t0), min(b, end), "log", {"line": line})
        for name, a, b, line in marks
        if a < end
    ]
    rows = [
        {
            "name": s.name,
            "start_s": round(s.start_s - t0, 6),
            "end_s": round(s.end_s - t0, 6),
            "source": s.source,
            "detail": s.detail,
        }
        for s in (*spans, *details)
    ]
    totals = {
        p: round(timeline.union_s([s for s in spans if s.name == p], t0, end), 6)
        for p in timeline.PHASES
        if any(s.name == p for s in spans)
    }
    io = started.facts.get("io", {})
    evidence: list[dict[str, Any]] = [
        {
            "technique": server.kind.name,
            "engaged": "weights" in moments,
            "facts": {"weights_bytes": weights_bytes, "read_bytes": io.get("read_bytes", 0)},
            "how": (
                f"opened {moments['weights'].at_s - t0:.2f} s after t0; "
                + (arrived.how if arrived else "their arrival left no trace")
                if "weights" in moments
                else f"none of the {len(seen.files)} weight files under {server.weights} was opened"
            ),
        }
    ]
    made = replace(
        made,
        total_s=round(end - t0, 6),
        phases=totals,
        spans=rows,
        evidence=evidence,
        facts=facts,
        tokens=answer.tokens,
        unaccounted_s=round((end - t0) - timeline.union_s(spans, t0, end), 6),
        floors=floor.phase_floors({"load": weights_bytes}, rates, None, scenario),
    )
    if not evidence[0]["engaged"]:
        return replace(
            made,
            outcome="no_evidence",
            error={
                "kind": "NoEvidence",
                "what": evidence[0]["how"],
                "why": "the server reads its weights elsewhere, so they were not proven cold",
                "fix": "--weights: the directory it really reads (lsof -p PID)",
            },
        )
    if answer.text != expected:
        return replace(
            made,
            outcome="wrong_tokens",
            error={
                "kind": "WrongTokens",
                "what": f"answered {answer.text!r:.80}, in the rehearsal {expected!r:.80}",
                "why": "greedy answers of one server should repeat",
                "fix": "is its sampling fixed to temperature 0?",
            },
        )
    return made
