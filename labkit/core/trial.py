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
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labkit.core import (
    client,
    disturbance,
    exits,
    observe,
    sampler,
    secrets,
    timeline,
    transfers,
)
from labkit.core.agent_client import AgentClient
from labkit.core.json_types import JsonObject
from labkit.core.ledger import Ledger, remove_tree
from labkit.core.outcomes import (
    CacheUnproven,
    Killed,
    NoEvidence,
    OutOfMemory,
    Refused,
    Reported,
    ServerExited,
    TimeOut,
    TrialFailure,
    WrongTokens,
)
from labkit.core.plan import LaunchPlan
from labkit.core.proc import start_time
from labkit.core.records import Trial
from labkit.core.workspace import Workspace
from labkit.errors import LabError, TrialError

#: Evidence for a plan from what was seen: a list of {"technique", "engaged", "how", "facts"}.
Judge = Callable[[JsonObject], list[JsonObject]]


REPORT_PATIENCE_S = 10.0
LOG_TAIL_CHARS = 8000  # a server whose files fail prints it a dozen times before its last word
PROC_KEPT = ("io", "rss_bytes", "peak_rss_bytes")  # in the record


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _oom_kills() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """How a trial is watched. `judge` turns observations into evidence. `instrument=False` runs the
    same start without spans, sampling and observation (what `labkit bench overhead` compares with).
    `on_phase(name, seconds_since_t0)` is called as phases end. `at_t0`: a shell command started at
    t0 with LABKIT_URL set – a client outside the lab; its output goes to facts. `port`: the
    server's; by default a free one."""

    judge: Judge | None = None
    instrument: bool = True
    on_phase: Callable[[str, float], Any] | None = None
    at_t0: str = ""
    port: int | None = None


AS_USUAL = TrialOptions()


def run_trial(
    plan: LaunchPlan,
    *,
    arm: str,
    workspace: Workspace,
    ledger: Ledger,
    block: int = 0,
    order: int = 0,
    options: TrialOptions = AS_USUAL,
) -> Trial:
    """Carry out `plan` once. Returns a Trial whatever happened, except for KeyboardInterrupt, which
    takes everything down first."""
    noted: list[str] = []
    home = workspace.new_node(
        f"{os.getpid()}-{time.monotonic_ns()}", lambda path: noted.append(ledger.note("dir", path))
    )
    (home / "node").mkdir()
    (home / "run").mkdir(mode=0o777)
    trial = Trial(arm=arm, block=block, order=order)
    try:
        return _carry_out(plan, trial, home, ledger, options)
    except LabError as error:
        return replace(trial, outcome="crashed", error=error.as_json())
    finally:
        remove_tree(home)
        for entry in noted:
            ledger.done(entry)


def _carry_out(
    plan: LaunchPlan,
    trial: Trial,
    home: Path,
    ledger: Ledger,
    options: TrialOptions,
) -> Trial:
    port, instrument = options.port or free_port(), options.instrument
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
    secrets.learn_command(options.at_t0)
    secrets.write_private(home / "spec.json", json.dumps(spec, default=str))
    agent = AgentClient(home / "spec.json", ledger.mark, home / "agent.log")
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
        cache = observe.set_cache_state_of(plan, home / "node")
        if cache["state"] == "unverified" and instrument:
            note = cache.get("note") or f"{cache['files']} files on a node that should be empty"
            return CacheUnproven(
                f"the cache state is not proven: {note}",
                why="a warm trial in a cold column",
                fix="close what maps these files, or use --scenario hot-node",
            ).failed(trial, cache=cache)
        if instrument:
            watching = observe.start(home / "run", ledger)
        before = observe.store_counters(plan) if instrument else {}
        oom_before, started_s = _oom_kills(), timeline.now_s()

        def give_up() -> bool:
            return agent.over or timeline.now_s() - started_s > plan.timeout_s

        def at_start() -> None:
            nonlocal outside
            agent.say("go")
            if options.at_t0:
                outside = subprocess.Popen(
                    ["bash", "-c", options.at_t0],
                    env={**os.environ, "LABKIT_URL": f"http://127.0.0.1:{port}"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

        phases = observe.PhaseFollower(timeline_path, started_s, options.on_phase)
        with phases:
            answer = client.ask("127.0.0.1", port, plan.request, give_up=give_up, on_t0=at_start)
        seen = (
            _look(plan, agent, answer, before, port) if instrument and answer.first_token_s else {}
        )
        heard = _outside(outside)
        samples = sampler.relative(watching.end(), answer.t0_s)
        agent.lost = agent.gone.is_set()
        agent.end()
        facts = {"attempts": answer.attempts, "steps": agent.facts}
        if heard:
            facts["outside_client"] = heard
        if seen:
            proc = {k: seen["proc"][k] for k in PROC_KEPT if k in seen["proc"]}
            facts |= {"proc": proc, "stores": seen["stores"]}
            if seen["transfers"]:
                facts["transfers"] = seen["transfers"]
        trial = replace(
            trial,
            cache=cache,
            tokens=answer.tokens,
            samples=samples,
            disturbed=disturbance.disturbed(samples),
            facts=facts,
            log_tail=agent.log[-LOG_TAIL_CHARS:],
        )
        spans = complete(timeline.read(timeline_path), answer.t0_s, answer.first_token_s)
        phase_spans = [s for s in spans if s.is_phase]
        trial = timed(trial, spans, phase_spans, answer.t0_s, answer.first_token_s)
        if answer.first_token_s is None:
            oom = _oom_kills() > oom_before
            return _without_token(plan, answer, agent, oom).failed(trial)
        return _judged(trial, plan, seen, options.judge)
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
    plan: LaunchPlan, agent: AgentClient, answer: client.Answer, before: JsonObject, port: int
) -> JsonObject:
    """Everything techniques may ask for, gathered from outside them, right after the answer."""
    # A short start can answer before the agent's own report of it has arrived through the pipe.
    agent.up.wait(REPORT_PATIENCE_S)
    pid = agent.server_pid
    proc = observe.process_facts(int(pid)) if pid and start_time(int(pid)) else {}
    stores = observe.store_difference(before, observe.store_counters(plan))
    requests = sum(counters["requests"] for counters in stores.values())
    return {
        "facts": agent.facts,
        "proc": proc,
        "stores": stores,
        "transfers": transfers.of_trial(plan.stat_urls, answer.t0_s, requests),
        "log": agent.log,
        "identity": observe.identity(port),
        "tokens": answer.tokens,
        "residency": observe.residency_after(plan),
    }


def timed(
    trial: Trial,
    spans: Iterable[timeline.Span],
    phases: Sequence[timeline.Span],
    t0_s: float,
    first_token_s: float | None,
) -> Trial:
    """`trial` with its spans relative to t0 and, where a token came, with seconds of each phase and
    the time that no phase accounts for. `phases`: the spans that count as such."""
    rows = [
        {
            "name": s.name,
            "start_s": round(s.start_s - t0_s, 6),
            "end_s": round(s.end_s - t0_s, 6),
            "source": s.source,
            "detail": s.detail,
        }
        for s in spans
    ]
    if first_token_s is None:
        return replace(trial, spans=rows)
    seconds = {
        p: round(timeline.union_s([s for s in phases if s.name == p], t0_s, first_token_s), 6)
        for p in timeline.PHASES
        if any(s.name == p for s in phases)
    }
    total_s = first_token_s - t0_s
    return replace(
        trial,
        spans=rows,
        total_s=round(total_s, 6),
        phases=seconds,
        unaccounted_s=round(total_s - timeline.union_s(phases, t0_s, first_token_s), 6),
    )


def complete(
    spans: list[timeline.Span], t0_s: float, first_token_s: float | None
) -> list[timeline.Span]:
    """Close the two seams that no process can see alone.

    `start` lasts until the server's first own line: exec, dynamic linking and interpreter start
    belong to it, but only the server knows when it got the floor. `first_token` lasts from the
    server's readiness to the client's socket."""
    closed = list(spans)
    first_own = min((s.start_s for s in spans if s.source == "server" and s.is_phase), default=None)
    for i, s in enumerate(closed):
        if s.name == "start" and first_own is not None and first_own > s.end_s:
            closed[i] = replace(s, end_s=first_own)
    if first_token_s is not None:
        ready = max((s.end_s for s in spans if s.name in ("ready", "restore")), default=None)
        if ready is None:
            ready = max((s.end_s for s in closed if s.is_phase), default=t0_s)
        closed.append(
            timeline.Span("first_token", min(ready, first_token_s), first_token_s, "client", {})
        )
    return closed


def _without_token(
    plan: LaunchPlan, answer: client.Answer, agent: AgentClient, oom: bool
) -> TrialFailure:
    """Why no token came, in the order in which one explains the next."""
    code = agent.exited.get("code")
    if oom:
        return OutOfMemory(
            "the kernel killed the server for memory", fix="a smaller --preset, or more memory"
        )
    if agent.failed:
        return Reported(agent.failed)
    if code is not None and -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        return Killed(f"the server {exits.describe(code)}")
    if agent.exited or agent.lost:
        why, fix = exits.advice(code)
        last_words = [why, str(agent.exited.get("kernel") or ""), agent.log[-1500:]]
        return ServerExited(
            f"the server {exits.describe(code)} before a token"
            if agent.exited
            else "the node agent was lost before a token",
            why="\n".join(filter(None, last_words)),
            fix=fix or "the log tail says what it met",
        )
    if answer.error and "gave up" not in answer.error:
        return Refused(answer.error)
    return TimeOut(
        f"no token within {plan.timeout_s:.0f} s", why=agent.log[-1500:], fix="--timeout SECONDS"
    )


def _judged(trial: Trial, plan: LaunchPlan, seen: JsonObject, judge: Judge | None) -> Trial:
    """A start that answered: were these the tokens, and was every mechanism at work?"""
    if plan.expected_tokens is not None and tuple(trial.tokens) != plan.expected_tokens:
        return WrongTokens(
            f"tokens {trial.tokens}, expected {list(plan.expected_tokens)}",
            why="weights arrived wrong, or another server answered",
            fix="labkit model verify DIR",
        ).failed(trial)
    if not judge or not seen:
        return trial
    spans = tuple(timeline.Span(**s) for s in trial.spans)
    evidence = judge({**seen, "plan": plan, "spans": spans})
    missing = [f"{e['technique']}: {e['how']}" for e in evidence if not e["engaged"]]
    if missing:
        return NoEvidence(
            "; ".join(missing),
            why="a fast trial whose mechanism was not at work measures something else",
        ).failed(trial, evidence=evidence)
    return replace(trial, evidence=evidence)
