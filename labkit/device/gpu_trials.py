"""Every GPU trial of the lab, in one command of less than nine minutes: what is measured there is replayed elsewhere.

    make gpu            # python -m labkit.device.gpu_trials --out DIR

Context taken apart (lazy and eager module loading), the compile cache cold and carried, CUDA graphs of one and of four shapes,
weights woken from pinned memory, loaders onto the device, whole cold starts with the GPU's techniques, the device parked and
woken by CUDA checkpoint, and CUDA checkpoint + CRIU from process gone to first token, for the 1b shape and, last, for the 8b one.
Each trial runs in a process of its own, under its own time limit, and is begun only while the time left can hold it: else it
is in the record as `skipped`, with the reason. One that fails or hangs is a line in the record, and what was measured before
it stays: the record is written after every trial, with the host card. A host without a GPU gets a record in which every
trial says `unavailable`, and exit status 3. Lesson: notebooks/06_gpu_init.
"""

from __future__ import annotations

import argparse
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

from labkit.core import host, outputs, printable, secrets, timeline
from labkit.core.beside import replacing
from labkit.errors import LabError

PARTS, CRIU = "labkit.device.gpu_parts", "labkit.snapshot.cuda"


@dataclass(frozen=True)
class Part:
    """One trial: `python -m command…`, ended after `limit_s`, not begun with less than `least_s` left or without `after` (another trial)."""

    limit_s: int
    command: tuple[str, ...]
    least_s: int = 20
    after: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


#: "{out}" is the directory of the record. In this order: what is short and asked for most comes first, 16 GB come last.
TRIALS: dict[str, Part] = {
    "context-lazy": Part(60, ("labkit.device.context",)),
    "context-eager": Part(60, ("labkit.device.context",), environment={"CUDA_MODULE_LOADING": "EAGER"}),
    "compile-cold": Part(120, (PARTS, "compile"), 40, environment={"TORCHINDUCTOR_CACHE_DIR": "{out}/compile-cache", "TRITON_CACHE_DIR": "{out}/compile-cache/triton"}),
    "compile-cache": Part(90, (PARTS, "compile"), after="compile-cold",
                          environment={"TORCHINDUCTOR_CACHE_DIR": "{out}/compile-cache", "TRITON_CACHE_DIR": "{out}/compile-cache/triton"}),
    "graphs-4": Part(60, (PARTS, "graphs", "--shapes", "4")),
    "graphs-1": Part(60, (PARTS, "graphs", "--shapes", "1")),
    "pinned-wake-up": Part(60, (PARTS, "wake")),
    "model-1b": Part(90, (PARTS, "model", "--preset", "1b"), 30),
    "cuda-checkpoint": Part(90, (PARTS, "checkpoint"), 30, after="model-1b"),
    "cuda-checkpoint-criu": Part(150, (CRIU,), 60, after="model-1b"),
    "load-1b": Part(120, ("labkit", "bench", "load", "--preset", "1b", "--cache", "warm", "--device", "cuda", "--blocks", "1", "--loaders",
                          "safetensors,safetensors-device,runai-streamer,fastsafetensors,instanttensor,labkit-streamer", "--json"), 40, after="model-1b"),
    "techniques-1b": Part(150, ("labkit", "run", "no-image,weights=safetensors-device", *(f"no-image,weights=safetensors-device,device={t}" for t in
                                ("all-graphs", "fewer-graphs", "warm-standby")), "--device", "cuda", "--preset", "1b", "--scenario", "hot-node", "--blocks", "2",
                                "--timeout", "60", "--out", "{out}/gpu-techniques-1b.json", "--overwrite", "--json"), 60, after="model-1b"),
    "model-8b": Part(150, (PARTS, "model", "--preset", "8b"), 90),
    "pinned-wake-up-8b": Part(60, (PARTS, "wake", "--weights-bytes", "16_060_000_000"), 30),
    "cuda-checkpoint-8b": Part(120, (PARTS, "checkpoint", "--preset", "8b"), 60, after="model-8b"),
    "cuda-checkpoint-criu-8b": Part(180, (CRIU, "--preset", "8b"), 120, after="model-8b"),
}
BUDGET_S = 520.0


def run(out: Path, only: tuple[str, ...] = (), execute: Callable[[str, list[str], dict[str, str], float], dict[str, Any]] | None = None,
        has_gpu: bool | None = None, now: Callable[[], float] = timeline.now_s) -> dict[str, Any]:
    """The record, also at out/gpu-trials.json. `execute(name, module and arguments, environment, seconds)` and `now` are exchanged in tests."""
    out.mkdir(parents=True, exist_ok=True)
    there = bool(host.gpus()) if has_gpu is None else has_gpu
    record: dict[str, Any] = {"schema": 1, "kind": "gpu-trials", "created": datetime.now(timezone.utc).isoformat(timespec="seconds"), "host": host.card(), "trials": []}
    began, outcomes = now(), {}
    for name, part in TRIALS.items():
        if only and name not in only and name not in {TRIALS[n].after for n in only if n in TRIALS}:
            continue
        left_s = BUDGET_S - (now() - began)
        if not there:
            done: dict[str, Any] = {"outcome": "unavailable", "error": "no GPU"}
        elif outcomes.get(part.after, "ok") != "ok":
            done = {"outcome": "skipped", "error": f"it needs {part.after}, which was not done ({outcomes[part.after]})"}
        elif left_s < part.least_s:
            done = {"outcome": "skipped", "error": f"{max(left_s, 0):.0f} s of the {BUDGET_S:.0f} s for all trials were left, it needs {part.least_s}"}
        else:
            try:
                done = (execute or in_process)(name, [a.replace("{out}", str(out.resolve())) for a in part.command],
                                               {k: v.replace("{out}", str(out.resolve())) for k, v in part.environment.items()}, min(part.limit_s, left_s))
            except Exception as error:
                done = {"outcome": "crashed", "error": f"{type(error).__name__}: {error}"}
        outcomes[name] = done["outcome"]
        record["trials"].append({"name": name, **done})
        _write(out / "gpu-trials.json", record)
    return record


def in_process(name: str, command: list[str], environment: dict[str, str], limit_s: float) -> dict[str, Any]:
    """`python -m module …` in a session of its own; its last line of output is JSON. Exit status 3 says that something is missing there."""
    began = timeline.now_s()
    process = subprocess.Popen([sys.executable, "-m", *command], env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        said, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, errors = process.communicate()
        return {"outcome": "timeout", "seconds": timeline.now_s() - began, "error": errors[-500:], "said": said[-500:]}
    lines = [line for line in said.splitlines() if line.startswith("{")]
    if process.returncode == 3:
        return {"outcome": "unavailable", "seconds": timeline.now_s() - began, "error": (errors or said)[-800:]}
    if process.returncode or not lines:
        return {"outcome": "crashed", "seconds": timeline.now_s() - began, "error": (errors or said)[-800:], "status": process.returncode}
    return {"outcome": "ok", "seconds": timeline.now_s() - began, "result": json.loads(lines[-1])}


def _write(path: Path, record: dict[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(secrets.masked(record), indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m labkit.device.gpu_trials", description="Every GPU trial of the lab, in less than nine minutes.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="names, comma-separated: " + ", ".join(TRIALS))
    args = parser.parse_args()
    try:
        outputs.refuse_stranger(args.out / "gpu-trials.json", lambda head: b'"kind": "gpu-trials"' in head, "a record of GPU trials")
    except LabError as error:
        print(printable.text(error), file=sys.stderr)
        return 2
    record = run(args.out, tuple(n for n in args.only.split(",") if n))
    for trial in record["trials"]:
        print(f"{trial['name']:22} {trial['outcome']:12} {trial.get('seconds', 0):7.1f} s  {trial.get('error', '')[:120]}")
    outcomes = [t["outcome"] for t in record["trials"]]
    print(json.dumps({"record": str(args.out / "gpu-trials.json"), "ok": outcomes.count("ok"), "trials": len(outcomes)}))
    return 3 if outcomes and all(o == "unavailable" for o in outcomes) else 0 if "ok" in outcomes else 1


if __name__ == "__main__":
    sys.exit(main())
