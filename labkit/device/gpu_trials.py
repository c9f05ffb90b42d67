"""The article's table on a GPU, as two commands: what works on this host, then what it is worth for
an 8B model.

    make gpu                                                       # both, into runs/gpu
    python -m labkit.device.gpu_trials --plan first --out DIR      # under 6 minutes: facts, and
        every trial with the 1b shape
    python -m labkit.device.gpu_trials --plan second --out DIR     # 8 minutes: the 8b shape (16
        GB), what is asked for most first

Each trial is a process of its own, under its own time limit, and is begun only while the time left
can hold it: else it is in the record as `skipped`, with the reason. A trial prints JSON lines, each
with everything measured so far, and the last one is kept, also when the process then fails, dies or
is ended: its outcome says which. The record is written after every trial, with the host card. A
host without a GPU gets a record in which every trial says `unavailable`, and exit status 3.

Files in DIR: gpu-trials-PLAN.json, the run records that the trials made, log-PLAN.txt. Everything
else is in LABKIT_HOME. Outcomes: ok · failed (it measured, and says itself what did not work) ·
timeout · crashed · unavailable · skipped. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from labkit.core import host, outputs, printable, proc, secrets, takedown, timeline
from labkit.core.beside import replacing, scratch
from labkit.core.interpreter import module
from labkit.errors import LabError

SCHEMA = 2
PARTS, CRIU = "labkit.device.gpu_parts", "labkit.snapshot.cuda"
LOADERS = (
    "safetensors,safetensors-device,runai-streamer,fastsafetensors,instanttensor,labkit-streamer"
)
DONE = ("ok", "failed")  # it was there and it measured: what comes after it can be tried


@dataclass(frozen=True)
class TrialPart:
    """One trial: `python -m command…`, ended after `limit_s`, not begun with less than `least_s`
    left or without `after` (another trial).

    In the command, "{out}" is the directory of the record, "{preset}" the plan's shape."""

    limit_s: int
    command: tuple[str, ...]
    least_s: int = 20
    after: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def _run(
    name: str, *stacks: str, blocks: int, scenario: str = "warm-node", timeout: int = 90
) -> tuple[str, ...]:
    """`labkit run` of these stacks over the no-image one ("" is that one itself), into
    {out}/NAME-{preset}.json."""
    return (
        "labkit",
        "run",
        *(",".join(("no-image", *filter(None, (stack,)))) for stack in stacks),
        "--device",
        "cuda",
        "--preset",
        "{preset}",
        "--scenario",
        scenario,
        "--blocks",
        str(blocks),
        "--timeout",
        str(timeout),
        "--out",
        f"{{out}}/{name}-{{preset}}.json",
        "--overwrite",
        "--json",
    )


def _resumed(command: tuple[str, ...]) -> tuple[str, ...]:
    """The same, into the record that is there."""
    return tuple("--resume" if word == "--overwrite" else word for word in command)


def _load(cache: str, blocks: int) -> tuple[str, ...]:
    return (
        "labkit",
        "bench",
        "load",
        "--preset",
        "{preset}",
        "--cache",
        cache,
        "--device",
        "cuda",
        "--blocks",
        str(blocks),
        "--loaders",
        LOADERS,
        "--json",
    )


STREAMED = "weights=labkit-streamer"
RESIDENT = "weights=device-resident"

#: What works on this host, and the article's rows with the 1b shape (2.2 GB).
FIRST: dict[str, TrialPart] = {
    "facts": TrialPart(75, ("labkit.device.gpu_facts",)),
    "model": TrialPart(
        60, (PARTS, "model", "--preset", "{preset}", "--formats", "safetensors,pickle"), 15, "facts"
    ),
    "cuda-checkpoint": TrialPart(
        70, (PARTS, "checkpoint", "--preset", "{preset}", "--times", "5"), 25, "model"
    ),
    "cuda-checkpoint-criu": TrialPart(100, (CRIU, "--preset", "{preset}"), 40, "model"),
    "stack": TrialPart(
        150,
        _run(
            "stack",
            "",
            STREAMED,
            f"{STREAMED},device=fewer-graphs",
            "device=warm-standby",
            blocks=1,
            timeout=60,
        ),
        50,
        "model",
    ),
    "decode": TrialPart(
        70,
        (
            PARTS,
            "decode",
            "--preset",
            "{preset}",
            "--arms",
            "eager,fewer-graphs,all-graphs,cudnn",
            "--tokens",
            "48",
        ),
        30,
        "model",
    ),
    "wake": TrialPart(45, (PARTS, "wake", "--preset", "{preset}", "--times", "3"), 20, "model"),
    "load-warm": TrialPart(90, _load("warm", 1), 40, "model"),
    "context": TrialPart(90, (PARTS, "context", "--times", "3"), 40),
    "resident": TrialPart(60, _run("resident", RESIDENT, blocks=2, timeout=45), 30, "model"),
    "compile": TrialPart(
        120,
        _run(
            "compile",
            f"{STREAMED},device=compile-cold",
            f"{STREAMED},device=compile-cache",
            blocks=1,
            scenario="hot-node",
            timeout=100,
        ),
        60,
        "model",
    ),
}
OVERLAP = "weights=overlap"
STANDBY = f"{STREAMED},device=warm-standby"

#: The 8b shape (16 GB). The naive arm draws 8 billion random numbers first, on one core: it comes
#: after what it is compared with, into the same record (`--resume`), and once.
SECOND: dict[str, TrialPart] = {
    "model": TrialPart(
        110, (PARTS, "model", "--preset", "{preset}", "--formats", "safetensors,pickle"), 60
    ),
    "stack": TrialPart(130, _run("stack", STREAMED, OVERLAP, blocks=1, timeout=170), 60, "model"),
    "cuda-checkpoint": TrialPart(
        70, (PARTS, "checkpoint", "--preset", "{preset}", "--times", "2"), 45, "model"
    ),
    "naive": TrialPart(
        190,
        _resumed(_run("stack", STREAMED, OVERLAP, STANDBY, "", blocks=1, timeout=170)),
        120,
        "stack",
    ),
    "cuda-checkpoint-criu": TrialPart(
        100, (CRIU, "--preset", "{preset}", "--warm", "0"), 70, "model"
    ),
    "wake": TrialPart(45, (PARTS, "wake", "--preset", "{preset}", "--times", "3"), 30, "model"),
    "context": TrialPart(60, (PARTS, "context", "--times", "3", "--arms", "lazy,eager"), 30),
    "load-cold": TrialPart(120, _load("cold", 1), 40, "model"),
    "resident": TrialPart(60, _run("resident", RESIDENT, blocks=1, timeout=50), 40, "model"),
    "decode": TrialPart(
        90,
        (
            PARTS,
            "decode",
            "--preset",
            "{preset}",
            "--arms",
            "eager,fewer-graphs,all-graphs,cudnn",
            "--tokens",
            "48",
        ),
        40,
        "model",
    ),
    "compile": TrialPart(
        150,
        _run(
            "compile",
            f"{STREAMED},device=compile-cold",
            f"{STREAMED},device=compile-cache",
            blocks=1,
            scenario="hot-node",
            timeout=140,
        ),
        80,
        "model",
    ),
}
# trials, shape, seconds in all
PLANS = {"first": (FIRST, "1b", 330.0), "second": (SECOND, "8b", 480.0)}

Execute = Callable[[str, list[str], dict[str, str], float], dict[str, Any]]


def run(
    out: Path,
    plan: str = "first",
    *,
    preset: str = "",
    budget_s: float = 0,
    only: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    execute: Execute | None = None,
    has_gpu: bool | None = None,
    now: Callable[[], float] = timeline.now_s,
) -> dict[str, Any]:
    """The record, also at out/gpu-trials-PLAN.json. `execute(name, module and arguments,
    environment, seconds)` and `now` are exchanged in tests."""
    out.mkdir(parents=True, exist_ok=True)
    parts, shape, seconds = PLANS[plan]
    shape, seconds = preset or shape, budget_s or seconds
    there = bool(host.gpus()) if has_gpu is None else has_gpu
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "gpu-trials",
        "plan": plan,
        "preset": shape,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": host.card(),
        "trials": [],
    }
    began = now()
    outcomes: dict[str, str] = {}
    log = out / f"log-{plan}.txt"
    log.write_text("")
    for name, part in parts.items():
        if (
            only and name not in only and name not in {parts[n].after for n in only if n in parts}
        ) or name in without:
            continue
        left_s = seconds - (now() - began)
        if not there:
            done: dict[str, Any] = {"outcome": "unavailable", "error": "no GPU"}
        elif outcomes.get(part.after, "ok") not in DONE:
            done = {
                "outcome": "skipped",
                "error": f"it needs {part.after}, which was not done ({outcomes[part.after]})",
            }
        elif left_s < part.least_s:
            done = {
                "outcome": "skipped",
                "error": (
                    f"{max(left_s, 0):.0f} s of the {seconds:.0f} s for all trials were left, it"
                    f" needs {part.least_s}"
                ),
            }
        else:
            command = [
                a.replace("{out}", str(out.resolve())).replace("{preset}", shape)
                for a in part.command
            ]
            try:
                done = (execute or in_process)(
                    name, command, dict(part.environment), min(part.limit_s, left_s)
                )
            except Exception as error:
                done = {"outcome": "crashed", "error": f"{type(error).__name__}: {error}"}
            _note(
                log,
                f"== {name}: {done['outcome']} {done.get('seconds', 0):.1f}"
                f" s\n{done.pop('log', '')}\n",
            )
        outcomes[name] = done["outcome"]
        record["trials"].append({"name": name, **done})
        record["seconds"] = now() - began
        _write(out / f"gpu-trials-{plan}.json", record)
        print(line_of(record["trials"][-1]), flush=True)
    return record


GRACE_S = 6.0


def in_process(
    name: str, command: list[str], environment: dict[str, str], limit_s: float
) -> dict[str, Any]:
    """`python -m module …` in a session of its own: the last JSON line that it printed, whatever
    became of it, and what it wrote beside.

    Exit status 3 says that something is missing there. At its limit it is interrupted, so that it
    can put away what it started; what is left of it `GRACE_S` later is killed, with everything
    below it."""
    began = timeline.now_s()
    with (
        scratch(f"labkit-trial-{name}-") as room,
        open(room / "out", "w+b") as said,
        open(room / "err", "w+b") as errors,
    ):
        process = subprocess.Popen(
            [*module(command[0]), *command[1:]],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=errors,
            start_new_session=True,
        )
        late = False
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            late = True
            below = proc.descendants(process.pid)
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            takedown.kill([*proc.descendants(process.pid), *below, process.pid])
            process.wait()
        done = {"seconds": timeline.now_s() - began, "status": process.returncode}
        texts = [_tail(file) for file in (said, errors)]
    document = _last_document(texts[0])
    words = (texts[1].strip() or texts[0].strip())[-1200:]
    if document is not None:
        done["result"] = document
    outcome = (
        "timeout"
        if late
        else (
            "unavailable"
            if process.returncode == 3
            else (
                "ok"
                if process.returncode == 0 and document is not None
                else "failed"
                if process.returncode == 1 and document is not None
                else "crashed"
            )
        )
    )
    return {
        "outcome": outcome,
        **done,
        **(
            {}
            if outcome == "ok"
            else {"error": (f"it did not end within {limit_s:.0f} s. " if late else "") + words}
        ),
        "log": texts[1][-20_000:],
    }


def _tail(file: Any, most: int = 4 << 20) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - most))
    return file.read().decode(errors="replace")


def _last_document(text: str) -> dict[str, Any] | None:
    """The last whole JSON object that stands on a line of its own."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                return dict(json.loads(line))
    return None


def _note(log: Path, text: str) -> None:
    with open(log, "a", encoding="utf-8", errors="replace") as file:
        file.write(secrets.masked(text))


def _write(path: Path, record: dict[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(secrets.masked(record), indent=1))


def line_of(trial: Mapping[str, Any]) -> str:
    return (
        f"{trial['name']:22} {trial['outcome']:12} {trial.get('seconds', 0):7.1f} s "
        f" {printable.line(trial.get('error', '')[-160:])}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m labkit.device.gpu_trials",
        description=(
            "The article's table on a GPU: what works here, then what it is worth for an 8B model."
        ),
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plan", choices=[*PLANS, "both"], default="both")
    parser.add_argument(
        "--preset", default="", help="another shape than the plan's: tiny rehearses it"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=0,
        metavar="SECONDS",
        help="in all, for each plan (default: 330 and 480)",
    )
    parser.add_argument(
        "--only",
        default="",
        help="names, comma-separated: " + ", ".join(dict.fromkeys((*FIRST, *SECOND))),
    )
    parser.add_argument("--without", default="", help="names, comma-separated")
    args = parser.parse_args()
    plans = list(PLANS) if args.plan == "both" else [args.plan]
    try:
        for plan in plans:
            outputs.refuse_stranger(
                args.out / f"gpu-trials-{plan}.json",
                lambda head: b'"kind": "gpu-trials"' in head,
                "a record of GPU trials",
            )
    except LabError as error:
        print(printable.text(error), file=sys.stderr)
        return 2
    outcomes: list[str] = []
    for plan in plans:
        record = run(
            args.out,
            plan,
            preset=args.preset,
            budget_s=args.budget,
            only=_names(args.only),
            without=_names(args.without),
        )
        outcomes += [t["outcome"] for t in record["trials"]]
    print(
        json.dumps(
            {
                "records": [str(args.out / f"gpu-trials-{plan}.json") for plan in plans],
                "ok": outcomes.count("ok"),
                "trials": len(outcomes),
            }
        )
    )
    return (
        3
        if outcomes and all(o == "unavailable" for o in outcomes)
        else 0
        if "ok" in outcomes
        else 1
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(n.strip() for n in text.split(",") if n.strip())


if __name__ == "__main__":
    sys.exit(main())
