"""Cold starts of a server that is not ours, recorded as any other run: same client, same cache
proof, same record.

    run(OwnOptions(command="python -m llama_cpp.server --model M.gguf --port 8000",
        url="http://127.0.0.1:8000", weights="M.gguf", blocks=5))

A rehearsal first, off the clock (labkit.byo.start). The libraries that it mapped and the weights
are then evicted and proven cold before each trial (hot-node: warmed). t0 is the client's first
attempt, when nothing listens yet; the command is executed right after it. The server gets its keys
as they were given; what is kept of the command, the log and the answers shows none
(labkit.core.secrets). Lesson: notebooks/09_decide."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from labkit.byo import phases, servers
from labkit.byo.own_server import OwnServer
from labkit.byo.start import MAX_TOKENS, PROMPT, Rehearsal, Start, rehearse, start
from labkit.core import (
    cold,
    disturbance,
    floor,
    host,
    observe,
    question,
    rates,
    records,
    sampler,
    secrets,
    timeline,
)
from labkit.core.beside import scratch
from labkit.core.json_types import JsonObject
from labkit.core.ledger import Ledger
from labkit.core.outcomes import CacheUnproven, NoEvidence, NoToken, Refused, WrongTokens
from labkit.core.records import Run, Trial
from labkit.core.trial import timed
from labkit.core.turn import beside, turn
from labkit.core.workspace import Workspace
from labkit.stack.progress import notify


@dataclass(frozen=True, kw_only=True)
class OwnOptions:
    """What is measured, and where the record goes.

    `command` is executed at each t0; `url`: where it answers then; `weights`: the file or directory
    that it reads them from. `image` and `model_name` are noted, the latter asked for too. `out`: by
    default a new file in the workspace's runs/; one that is there is gone on with (`resume`) or
    replaced (`overwrite`)."""

    command: str
    url: str
    weights: str
    image: str = ""
    model_name: str = ""
    blocks: int = 5
    scenario: str = "warm-node"
    timeout_s: float = 300.0
    out: str | Path = ""
    resume: bool = False
    overwrite: bool = False

    @property
    def measured_scenario(self) -> str:
        """Whatever the server needs is on this host's disk: a fresh node is not measured here."""
        return "hot-node" if self.scenario == "hot-node" else "warm-node"


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a run have in common. `rates`: this host's, for the floors."""

    server: OwnServer
    rehearsal: Rehearsal
    scenario: str
    timeout_s: float
    rates: JsonObject


def run(
    options: OwnOptions, *, progress: object | None = None, workspace: Workspace | None = None
) -> Run:
    """Measure; write the record after each trial; return it. `progress`: as in
    `labkit.stack.progress`. Raises BadInput, TrialError (no answer came in the rehearsal)."""
    records.refuse_overwriting(options.out, options.resume, options.overwrite)
    server = OwnServer.of(
        options.command, options.url, options.weights, options.image, options.model_name
    )
    space = workspace or Workspace.default()
    created = datetime.now(timezone.utc)
    default = space.runs / f"{created.strftime('%Y%m%dT%H%M%S%f')[:-3]}.json"
    target = Path(options.out) if options.out else default
    record = _record(server, target, created, options)
    with turn(lambda text: notify(progress, "note", text)), Ledger.open(space) as ledger:
        untested = " (its log patterns were never tested; /proc and the port tell its phases)"
        name = server.kind.name
        notify(progress, "note", f"rehearsal of {name}" + ("" if server.kind.tested else untested))
        rehearsal = rehearse(server, ledger, options.timeout_s)
        notify(progress, "note", "measuring this host's floors")
        record = replace(record, floors=record.floors or rates.measure(space))
        setup = TrialSetup(
            server, rehearsal, options.measured_scenario, options.timeout_s, record.floors
        )
        done = {t.block for t in record.trials}
        left = [block for block in range(options.blocks) if block not in done]
        notify(progress, "plan", [name] * len(left))
        for block in left:
            # a disturbed one is measured again, once
            for _ in range(1 if beside() else 2):
                notify(progress, "trial_started", name, block, options.blocks)
                trial = _trial(setup, ledger, block)
                record = replace(record, trials=(*record.trials, trial))
                records.write(record, target)
                notify(progress, "trial_done", trial)
                if not (trial.ok and trial.disturbed):
                    break
    return record


def _record(server: OwnServer, target: Path, created: datetime, options: OwnOptions) -> Run:
    """The record that trials are added to: a new one, or one that is there and holds the same.
    Raises BadInput, before anything is started."""
    # no digest of a secret either: a short one could be guessed from it
    shown = secrets.mask_argv(server.argv)
    conditions = question.chosen(
        preset="own",
        model_dir=str(server.weights),
        model_identity=question.identity(server.weights),
        image=server.image,
        timeout_s=float(options.timeout_s),
        command=question.digest("\0".join(shown)),
        url=f"http://{server.host}:{server.port}{server.base}",
        prompt=PROMPT,
        max_tokens=MAX_TOKENS,
        # as given: what the server lists is its own answer, not the user's choice
        model_name=server.model_name,
    )
    record = Run(
        id=target.stem,
        created=created.isoformat(timespec="seconds"),
        host=host.card(),
        experiment={
            "arms": [
                {
                    "name": server.kind.name,
                    "stack": {"server": " ".join(shown)},
                    "scenario": options.measured_scenario,
                    "link": "loopback",
                }
            ],
            "blocks": options.blocks,
            "seed": 0,
            "preset": "own",
            "model_dir": str(server.weights),
            "max_tokens": MAX_TOKENS,
            "notes": {"image": server.image, "tested": server.kind.tested},
            "conditions": conditions,
        },
    )
    if options.resume and target.exists():
        before = records.read(target)
        question.refuse_mixing(before, record, target)
        record = replace(
            record, trials=before.trials, floors=before.floors, id=before.id, created=before.created
        )
    return record


def _trial(setup: TrialSetup, ledger: Ledger, block: int) -> Trial:
    """One cold start as a record."""
    server, rehearsal = setup.server, setup.rehearsal
    want = "warm" if setup.scenario == "hot-node" else "cold"
    (cold.warm if want == "warm" else cold.evict)(rehearsal.around)
    cache = cold.set_cache_state(rehearsal.proven, want).as_json()
    trial = Trial(arm=server.kind.name, block=block, order=0, cache=cache)
    if cache["state"] == "unverified":
        return CacheUnproven(
            cache.get("note", ""),
            why="a warm trial in a cold column",
            fix="end what maps these files",
        ).failed(trial)
    with scratch("lk-") as directory:
        watching = observe.start(directory, ledger)
        try:
            started = start(server, rehearsal.request, ledger, setup.timeout_s)
        finally:
            samples = watching.end()
    log_tail = "\n".join(line for _, line in started.log[-40:])[-4000:]
    trial = replace(
        trial,
        log_tail=log_tail,
        samples=sampler.relative(samples, started.answer.t0_s),
        disturbed=disturbance.disturbed(samples),
    )
    return judged(trial, started, setup)


def judged(trial: Trial, started: Start, setup: TrialSetup) -> Trial:
    """The trial with phases, evidence and outcome of its start."""
    server, expected = setup.server, setup.rehearsal.text
    answer, observer = started.answer, started.observer
    t0, end = answer.t0_s, answer.first_token_s
    noticed = {
        n: {"at_s": round(m.at_s - t0, 4), "how": m.how} for n, m in observer.moments.items()
    }
    facts: JsonObject = {
        "attempts": answer.attempts,
        "text": answer.text,
        "moments": noticed,
        "proc": {k: v for k, v in started.facts.items() if k != "maps"},
        "health_path": observer.health_path,
    }
    if end is None:
        return NoToken(
            answer.error or "no token",
            why=trial.log_tail[-1500:],
            fix="run the command by hand",
        ).failed(trial, outcome="crashed" if started.code is not None else "timeout", facts=facts)
    opened = observer.opened["weights"]
    weights_bytes = sum(file.stat().st_size for file in opened)
    marks = [m for m in servers.read_marks(server.kind, started.log) if t0 <= m[2] <= end + 1]
    moments = dict(observer.moments)
    loaded = phases.weights_in(
        moments, observer.samples, weights_bytes, end, marks, observer.weights_closed_s
    )
    if loaded:
        moments["weights_in"] = loaded
        noticed["weights_in"] = {"at_s": round(loaded.at_s - t0, 4), "how": loaded.how}
    spans = phases.attribute(moments, observer.samples, t0, end)
    details = [
        timeline.Span(name, max(a, t0), min(b, end), "log", {"line": line})
        for name, a, b, line in marks
        if a < end
    ]
    io = started.facts.get("io", {})
    how = f"none of the {len(observer.files)} weight files under {server.weights} was opened"
    if "weights" in moments:
        how = f"opened {moments['weights'].at_s - t0:.2f} s after t0; " + (
            loaded.how if loaded else "their arrival left no trace"
        )
    evidence = {
        "technique": server.kind.name,
        "engaged": "weights" in moments,
        "facts": {
            "weights_bytes": weights_bytes,
            "weight_files": len(opened),
            "read_bytes": io.get("read_bytes", 0),
        },
        "how": how,
    }
    trial = replace(
        timed(trial, (*spans, *details), spans, t0, end),
        evidence=[evidence],
        facts=facts,
        tokens=answer.tokens,
        floors=floor.phase_floors({"load": weights_bytes}, setup.rates, None, setup.scenario),
    )
    if not evidence["engaged"]:
        return NoEvidence(
            how,
            why="the server reads its weights elsewhere, so they were not proven cold",
            fix="--weights: the directory it really reads (lsof -p PID)",
        ).failed(trial)
    if unproven := opened - setup.rehearsal.weights:
        return CacheUnproven(
            f"{min(unproven)} was opened, which was not in the rehearsal",
            why="it was neither evicted nor proven before this trial",
            fix="a command that always loads the same model",
        ).failed(trial)
    if answer.error:
        return Refused(
            f"after {answer.text!r:.80}: {answer.error}",
            why="an answer that breaks off is no answer",
            fix="the log tail says what it met",
        ).failed(trial)
    if answer.text != expected:
        return WrongTokens(
            f"answered {answer.text!r:.80}, in the rehearsal {expected!r:.80}",
            why="greedy answers of one server should repeat",
            fix="is its sampling fixed to temperature 0?",
        ).failed(trial)
    return trial
