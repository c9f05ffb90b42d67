"""A trial: one cold start of one plan, in fresh processes, with a proven cache state, and
everything taken down after.

    trial = run_trial(plan, arm="naive", workspace=ws, ledger=ledger)
    trial.outcome, trial.total_s, trial.phases

Order: empty node directory → node agent started, its modules imported → caches evicted (hot-node:
warmed) and proven → t0: the client asks, the agent is told "go" → first token → what can be seen
from outside is looked at → take-down. Nothing is forked from the harness: agent and server are
exec'd fresh. Time-out, OOM, kill, crash, wrong tokens and an unproven cache are outcomes in the
record. Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from labkit.core import client, exits, observe, sampler, secrets, timeline
from labkit.core.interpreter import module
from labkit.core.ledger import MARK, Ledger, remove_tree
from labkit.core.plan import LaunchPlan
from labkit.core.proc import start_time
from labkit.core.records import Trial
from labkit.core.workspace import Workspace
from labkit.errors import LabError, TrialError

#: Evidence for a plan from what was seen: a list of {"technique", "engaged", "how", "facts"}.
Judge = Callable[[dict[str, Any]], list[dict[str, Any]]]


REPORT_PATIENCE_S = 10.0
LOG_TAIL_CHARS = 8000  # a server whose files fail tells it a dozen times before its last word


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _Agent:
    """The harness's end of the node agent: a reader thread turns its messages into attributes."""

    def __init__(self, spec_path: Path, mark: str, log_path: Path):
        self.failed: dict[str, str] = {}
        self.exited: dict[str, Any] = {}
        self.server_pid: int | None = None
        self.facts: dict[str, Any] = {}
        self.log = ""
        self.ready = threading.Event()
        self.up = threading.Event()  # every step in the foreground is done and reported
        self.gone = threading.Event()
        self.lost = False  # it ended before it was told to
        with open(log_path, "wb", opener=secrets.private_opener) as errors:
            self.process = subprocess.Popen(
                [*module("labkit.core.agent"), str(spec_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                env={**os.environ, MARK: mark},
            )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            self.log = message.get("log") or self.log
            if "ready" in message:
                self.ready.set()
            elif "step" in message:
                self.facts.setdefault(message["step"]["phase"], {}).update(
                    message["step"]["facts"] or {}
                )
            elif "up" in message:
                self.server_pid = message["up"]["server_pid"]
                self.up.set()
            elif "failed" in message:
                self.failed = message["failed"]
                self.up.set()
            elif "exited" in message:
                self.exited = message["exited"]
                self.log = message["exited"].get("log") or self.log
        self.gone.set()
        self.up.set()
        self.ready.set()  # nobody waits for one that ended

    def say(self, word: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            assert self.process.stdin
            self.process.stdin.write(word.encode() + b"\n")
            self.process.stdin.flush()

    @property
    def over(self) -> bool:
        return bool(self.failed or self.exited or self.gone.is_set())

    def end(self, patience_s: float = 30.0) -> None:
        self.say("stop")
        with contextlib.suppress(OSError, ValueError):
            assert self.process.stdin
            self.process.stdin.close()
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.reader.join(5)


def _oom_kills() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def run_trial(
    plan: LaunchPlan,
    *,
    arm: str,
    workspace: Workspace,
    ledger: Ledger,
    block: int = 0,
    order: int = 0,
    judge: Judge | None = None,
    instrument: bool = True,
    on_phase: Callable[[str, float], Any] | None = None,
    at_t0: str = "",
    port: int | None = None,
) -> Trial:
    """Carry out `plan` once. Returns a Trial whatever happened, except for KeyboardInterrupt, which
    takes everything down first.

    `judge` turns observations into evidence. `instrument=False` runs the same start without spans,
    sampling and observation (what `labkit bench overhead` compares with). `on_phase(name,
    seconds_since_t0)` is called as phases end. `at_t0`: a shell command started at t0 with
    LABKIT_URL set – a client outside the lab; its output goes to facts."""
    noted: list[str] = []
    home = workspace.new_node(
        f"{os.getpid()}-{time.monotonic_ns()}", lambda path: noted.append(ledger.note("dir", path))
    )
    (home / "node").mkdir()
    (home / "run").mkdir(mode=0o777)
    made = Trial(arm=arm, block=block, order=order)
    try:
        return _carry_out(
            plan, made, home, ledger, judge, instrument, on_phase, at_t0, port or free_port()
        )
    except LabError as error:
        return replace(made, outcome="crashed", error=error.as_json())
    finally:
        remove_tree(home)
        for entry in noted:
            ledger.done(entry)


def _carry_out(
    plan: LaunchPlan,
    made: Trial,
    home: Path,
    ledger: Ledger,
    judge: Judge | None,
    instrument: bool,
    on_phase: Callable[[str, float], Any] | None,
    at_t0: str,
    port: int,
) -> Trial:
    timeline_path = home / "run" / "timeline.jsonl"
    spec = {
        "plan": plan.as_json(),
        "node": str(home / "node"),
        "port": port,
        "mark": ledger.mark,
        "ledger": str(ledger.path),
        "timeline": str(timeline_path) if instrument else "/dev/null",
    }
    secrets.learn_environment(plan.server_env)
    secrets.learn_argv(plan.server_args)
    secrets.learn_command(at_t0)
    secrets.write_private(home / "spec.json", json.dumps(spec, default=str))
    agent = _Agent(home / "spec.json", ledger.mark, home / "agent.log")
    agent_entry = ledger.note("group", agent.process.pid)
    watching: observe.Watch = observe.nothing()
    outside: subprocess.Popen[bytes] | None = None
    try:
        # What a technique keeps resident is made before t0: a standby or a daemon that loads 16 GB
        # takes its time.
        if not agent.ready.wait(max(60.0, plan.timeout_s)) or agent.gone.is_set():
            raise TrialError(
                "the node agent did not start",
                why=secrets.mask((home / "agent.log").read_text(errors="replace"))[-2000:],
                fix="labkit doctor",
            )
        cache = observe.settle_cache(plan, home / "node")
        if cache["state"] == "unverified" and instrument:
            return replace(
                made,
                outcome="cache_unproven",
                cache=cache,
                error={
                    "kind": "CacheUnproven",
                    "what": (
                        "the cache state is not proven: "
                        + (
                            cache.get("note")
                            or f"{cache['files']} files on a node that should be empty"
                        )
                    ),
                    "why": "a warm trial in a cold column",
                    "fix": "close what maps these files, or use --scenario hot-node",
                },
            )
        if instrument:
            watching = observe.start(home / "run", ledger)
        before = observe.store_counters(plan) if instrument else {}
        oom_before, started_s = _oom_kills(), timeline.now_s()

        def give_up() -> bool:
            return agent.over or timeline.now_s() - started_s > plan.timeout_s

        def at_start() -> None:
            nonlocal outside
            agent.say("go")
            if at_t0:
                outside = subprocess.Popen(
                    ["bash", "-c", at_t0],
                    env={**os.environ, "LABKIT_URL": f"http://127.0.0.1:{port}"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

        phases = observe.PhaseFollower(timeline_path, started_s, on_phase)
        with phases:
            answer = client.ask("127.0.0.1", port, plan.request, give_up=give_up, on_t0=at_start)
        seen = (
            _look(plan, agent, answer, before, port) if instrument and answer.first_token_s else {}
        )
        heard = _outside(outside)
        samples = sampler.relative(watching.end(), answer.t0_s)
        agent.lost = agent.gone.is_set()
        agent.end()
        facts = {
            "attempts": answer.attempts,
            "steps": agent.facts,
            **({"outside_client": heard} if heard else {}),
            **(
                {
                    "proc": {
                        k: v
                        for k, v in seen["proc"].items()
                        if k in ("io", "rss_bytes", "peak_rss_bytes")
                    },
                    "stores": seen["stores"],
                }
                if seen
                else {}
            ),
        }
        made = replace(
            made,
            cache=cache,
            tokens=answer.tokens,
            samples=samples,
            facts=facts,
            log_tail=agent.log[-LOG_TAIL_CHARS:],
        )
        made = _timed(made, answer, timeline.read(timeline_path))
        return _judged(made, plan, answer, agent, seen, judge, _oom_kills() > oom_before)
    finally:
        watching.end()
        _outside(outside, patience_s=0)
        agent.end(5)
        ledger.done(agent_entry)
        if os.environ.get("LABKIT_KEEP"):
            _keep(home, Path(os.environ["LABKIT_KEEP"]))


def _keep(home: Path, target: Path) -> None:
    """What a trial wrote, for whoever looks into one (LABKIT_KEEP): the timeline, the samples, the
    agent's log."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (*(home / "run").rglob("*"), home / "agent.log"):
        if path.is_file():
            copy = target / (
                path.relative_to(home / "run") if path.is_relative_to(home / "run") else path.name
            )
            copy.parent.mkdir(parents=True, exist_ok=True)
            secrets.write_private(copy, secrets.mask(path.read_text(errors="surrogateescape")))


def _outside(process: subprocess.Popen[bytes] | None, patience_s: float = 60) -> str:
    """What the client outside the lab printed; ended if it does not end by itself."""
    if process is None:
        return ""
    try:
        return secrets.mask(process.communicate(timeout=patience_s)[0].decode(errors="replace"))[
            -2000:
        ]
    except (subprocess.TimeoutExpired, ValueError):
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return ""


def _look(
    plan: LaunchPlan, agent: _Agent, answer: client.Answer, before: dict[str, Any], port: int
) -> dict[str, Any]:
    """Everything techniques may ask for, gathered from outside them, right after the answer."""
    # A short start can answer before the agent's own report of it has come through the pipe.
    agent.up.wait(REPORT_PATIENCE_S)
    pid = agent.server_pid
    return {
        "facts": agent.facts,
        "proc": observe.process_facts(int(pid)) if pid and start_time(int(pid)) else {},
        "stores": observe.store_difference(before, observe.store_counters(plan)),
        "log": agent.log,
        "identity": observe.identity(port),
        "tokens": answer.tokens,
        "residency": observe.residency_after(plan),
    }


def _timed(made: Trial, answer: client.Answer, spans: list[timeline.Span]) -> Trial:
    """Spans relative to t0, phases, and the time no phase accounts for."""
    t0, end = answer.t0_s, answer.first_token_s
    whole = complete(spans, t0, end)
    rows = [
        {
            "name": s.name,
            "start_s": round(s.start_s - t0, 6),
            "end_s": round(s.end_s - t0, 6),
            "source": s.source,
            "detail": s.detail,
        }
        for s in whole
    ]
    if end is None:
        return replace(made, spans=rows)
    tops = [s for s in whole if s.is_phase]
    phases = {
        p: round(timeline.union_s([s for s in tops if s.name == p], t0, end), 6)
        for p in timeline.PHASES
        if any(s.name == p for s in tops)
    }
    return replace(
        made,
        spans=rows,
        total_s=round(end - t0, 6),
        phases=phases,
        unaccounted_s=round((end - t0) - timeline.union_s(tops, t0, end), 6),
    )


def complete(
    spans: list[timeline.Span], t0_s: float, first_token_s: float | None
) -> list[timeline.Span]:
    """Close the two seams that no process can see alone.

    `start` lasts until the server's first own line: exec, dynamic linking and interpreter start
    belong to it, but only the server knows when it got the floor. `first_token` lasts from the
    server's readiness to the client's socket."""
    made = list(spans)
    first_own = min((s.start_s for s in spans if s.source == "server" and s.is_phase), default=None)
    for i, s in enumerate(made):
        if s.name == "start" and first_own is not None and first_own > s.end_s:
            made[i] = replace(s, end_s=first_own)
    if first_token_s is not None:
        ready = max((s.end_s for s in spans if s.name in ("ready", "restore")), default=None)
        if ready is None:
            ready = max((s.end_s for s in made if s.is_phase), default=t0_s)
        made.append(
            timeline.Span("first_token", min(ready, first_token_s), first_token_s, "client", {})
        )
    return made


def _judged(
    made: Trial,
    plan: LaunchPlan,
    answer: client.Answer,
    agent: _Agent,
    seen: dict[str, Any],
    judge: Judge | None,
    oom: bool,
) -> Trial:
    """The outcome, in the order in which one explains the next."""
    if answer.first_token_s is None:
        code = agent.exited.get("code")
        if oom:
            return replace(
                made,
                outcome="oom",
                error={
                    "kind": "OutOfMemory",
                    "what": "the kernel killed the server for memory",
                    "why": "",
                    "fix": "a smaller --preset, or more memory",
                },
            )
        if agent.failed:
            return replace(made, outcome="crashed", error=agent.failed)
        if (
            code is not None
            and code < 0
            and -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
        ):
            return replace(
                made,
                outcome="killed",
                error={
                    "kind": "Killed",
                    "what": f"the server {exits.describe(code)}",
                    "why": "",
                    "fix": "",
                },
            )
        if agent.exited or agent.lost:
            why, fix = exits.advice(code)
            said = "\n".join(
                filter(None, [why, str(agent.exited.get("kernel") or ""), agent.log[-1500:]])
            )
            what = (
                f"the server {exits.describe(code)} before a token"
                if agent.exited
                else "the node agent was lost before a token"
            )
            return replace(
                made,
                outcome="crashed",
                error={
                    "kind": "ServerExited",
                    "what": what,
                    "why": said,
                    "fix": fix or "the log tail says what it met",
                },
            )
        if answer.error and "gave up" not in answer.error:
            return replace(
                made,
                outcome="crashed",
                error={"kind": "Refused", "what": answer.error, "why": "", "fix": ""},
            )
        return replace(
            made,
            outcome="timeout",
            error={
                "kind": "TimeOut",
                "what": f"no token within {plan.timeout_s:.0f} s",
                "why": agent.log[-1500:],
                "fix": "--timeout SECONDS",
            },
        )
    if plan.expected_tokens is not None and tuple(answer.tokens) != plan.expected_tokens:
        return replace(
            made,
            outcome="wrong_tokens",
            error={
                "kind": "WrongTokens",
                "what": f"tokens {answer.tokens}, expected {list(plan.expected_tokens)}",
                "why": "weights arrived wrong, or another server answered",
                "fix": "labkit model verify DIR",
            },
        )
    if judge and seen:
        evidence = judge(
            {**seen, "plan": plan, "spans": tuple(timeline.Span(**s) for s in made.spans)}
        )
        made = replace(made, evidence=evidence)
        missing = [e for e in evidence if not e["engaged"]]
        if missing:
            return replace(
                made,
                outcome="no_evidence",
                error={
                    "kind": "NoEvidence",
                    "what": "; ".join(f"{e['technique']}: {e['how']}" for e in missing),
                    "why": "a fast trial whose mechanism was not at work measures something else",
                    "fix": "",
                },
            )
    return made
