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
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from labkit.core import host, outputs, printable, proc, secrets, takedown, timeline
from labkit.core.beside import replacing, scratch
from labkit.core.interpreter import module
from labkit.core.json_types import JsonMapping, JsonObject
from labkit.device.gpu_plans import FIRST, PLANS, SECOND, TrialPart
from labkit.errors import LabError

SCHEMA = 2
DONE = ("ok", "failed")  # it was there and it measured: what comes after it can be tried


Execute = Callable[[str, list[str], dict[str, str], float], JsonObject]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What of a plan is run. `preset`: another shape than the plan's; `budget_s`: seconds in all, 0
    for the plan's own; `only`, `without`: names of trials. What one of `only` needs comes along."""

    preset: str = ""
    budget_s: float = 0
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def names(self, parts: Mapping[str, TrialPart]) -> list[str]:
        wanted = {*self.only, *(parts[n].after for n in self.only if n in parts)} or parts
        return [n for n in parts if n in wanted and n not in self.without]


def run(
    out: Path,
    plan: str = "first",
    selection: Selection = Selection(),
    *,
    execute: Execute | None = None,
    has_gpu: bool | None = None,
    now: Callable[[], float] = timeline.now_s,
) -> JsonObject:
    """The record, also at out/gpu-trials-PLAN.json. `execute(name, module and arguments,
    environment, seconds)` and `now` are exchanged in tests."""
    out.mkdir(parents=True, exist_ok=True)
    parts, preset, limit_s = PLANS[plan]
    preset, limit_s = selection.preset or preset, selection.budget_s or limit_s
    here = bool(host.gpus()) if has_gpu is None else has_gpu
    record: JsonObject = {
        "schema": SCHEMA,
        "kind": "gpu-trials",
        "plan": plan,
        "preset": preset,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": host.card(),
        "trials": [],
    }
    began = now()
    outcomes: dict[str, str] = {}
    log = out / f"log-{plan}.txt"
    log.write_text("")
    for name in selection.names(parts):
        part, left_s = parts[name], limit_s - (now() - began)
        trial: JsonObject
        if not here:
            trial = {"outcome": "unavailable", "error": "no GPU"}
        elif outcomes.get(part.after, "ok") not in DONE:
            trial = {
                "outcome": "skipped",
                "error": f"it needs {part.after}, which was not done ({outcomes[part.after]})",
            }
        elif left_s < part.least_s:
            trial = {
                "outcome": "skipped",
                "error": (
                    f"{max(left_s, 0):.0f} s of the {limit_s:.0f} s for all trials were left, it"
                    f" needs {part.least_s}"
                ),
            }
        else:
            command = [
                a.replace("{out}", str(out.resolve())).replace("{preset}", preset)
                for a in part.command
            ]
            try:
                trial = (execute or in_process)(
                    name, command, dict(part.environment), min(part.limit_s, left_s)
                )
            except Exception as error:
                trial = {"outcome": "crashed", "error": f"{type(error).__name__}: {error}"}
            _note(
                log,
                f"== {name}: {trial['outcome']} {trial.get('seconds', 0):.1f}"
                f" s\n{trial.pop('log', '')}\n",
            )
        outcomes[name] = trial["outcome"]
        record["trials"].append({"name": name, **trial})
        record["seconds"] = now() - began
        _write(out / f"gpu-trials-{plan}.json", record)
        print(line_of(record["trials"][-1]), flush=True)
    return record


GRACE_S = 6.0


def in_process(
    name: str, command: list[str], environment: dict[str, str], limit_s: float
) -> JsonObject:
    """`python -m module …` in a session of its own: the last JSON line that it printed, whatever
    became of it, and what it wrote beside.

    Exit status 3 says that something is missing there. At its limit it is interrupted, so that it
    can put away what it started; what is left of it `GRACE_S` later is killed, with everything
    below it."""
    began = timeline.now_s()
    with (
        scratch(f"labkit-trial-{name}-") as work,
        open(work / "out", "w+b") as output,
        open(work / "err", "w+b") as errors,
    ):
        process = subprocess.Popen(
            [*module(command[0]), *command[1:]],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
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
        took_s, printed, logged = timeline.now_s() - began, _tail(output), _tail(errors)
    document = _last_document(printed)
    outcome = _outcome(late, process.returncode, document is not None)
    trial: JsonObject = {"outcome": outcome, "seconds": took_s, "status": process.returncode}
    if document is not None:
        trial["result"] = document
    if outcome != "ok":
        late_words = f"it did not end within {limit_s:.0f} s. " if late else ""
        trial["error"] = late_words + (logged.strip() or printed.strip())[-1200:]
    return {**trial, "log": logged[-20_000:]}


def _outcome(late: bool, status: int, measured: bool) -> str:
    if late:
        return "timeout"
    if status == 3:
        return "unavailable"
    return {0: "ok", 1: "failed"}.get(status, "crashed") if measured else "crashed"


def _tail(file: BinaryIO, most: int = 4 << 20) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - most))
    return file.read().decode(errors="replace")


def _last_document(text: str) -> JsonObject | None:
    """The last whole JSON object that stands on a line of its own."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                return dict(json.loads(line))
    return None


def _note(log: Path, text: str) -> None:
    with open(log, "a", encoding="utf-8", errors="replace") as file:
        file.write(secrets.masked(text))


def _write(path: Path, record: JsonObject) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(secrets.masked(record), indent=1))


def line_of(trial: JsonMapping) -> str:
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
    selection = Selection(
        preset=args.preset,
        budget_s=args.budget,
        only=_names(args.only),
        without=_names(args.without),
    )
    records = [run(args.out, plan, selection) for plan in plans]
    outcomes = [trial["outcome"] for record in records for trial in record["trials"]]
    print(
        json.dumps(
            {
                "records": [str(args.out / f"gpu-trials-{plan}.json") for plan in plans],
                "ok": outcomes.count("ok"),
                "trials": len(outcomes),
            }
        )
    )
    if outcomes and set(outcomes) == {"unavailable"}:
        return 3
    return 0 if "ok" in outcomes else 1


def _names(text: str) -> tuple[str, ...]:
    return tuple(n.strip() for n in text.split(",") if n.strip())


if __name__ == "__main__":
    sys.exit(main())
