"""Everything that needs a GPU, in one command of less than nine minutes: what is measured there is replayed elsewhere.

    make gpu            # python -m labkit.device.gpu_trials --out DIR

Context taken apart (lazy and eager module loading), the compile cache cold and carried, CUDA graphs of one and of four shapes,
weights woken from pinned memory, the device parked and woken by CUDA checkpoint, and CUDA checkpoint + CRIU from process gone
to first token. Each trial runs in a process of its own, under its own time limit; one that fails or hangs is a line in the
record, and what was measured before it stays: the record is written after every trial, with the host card. A host without a
GPU gets a record in which every trial says `unavailable`, and exit status 3. Lesson: notebooks/06_gpu_init.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from labkit.core import host, timeline

TRIALS: dict[str, tuple[int, list[str]]] = {
    "context-lazy": (60, ["labkit.device.context"]),
    "context-eager": (60, ["labkit.device.context"]),
    "compile-cold": (120, ["labkit.device.gpu_parts", "compile"]),
    "compile-cache": (90, ["labkit.device.gpu_parts", "compile"]),
    "graphs-4": (60, ["labkit.device.gpu_parts", "graphs", "--shapes", "4"]),
    "graphs-1": (60, ["labkit.device.gpu_parts", "graphs", "--shapes", "1"]),
    "pinned-wake-up": (60, ["labkit.device.gpu_parts", "wake"]),
    "cuda-checkpoint": (90, ["labkit.device.gpu_parts", "checkpoint"]),
    "cuda-checkpoint-criu": (150, ["labkit.snapshot.cuda"]),
}
BUDGET_S = 520.0


def run(out: Path, only: tuple[str, ...] = (), execute: Callable[[str, list[str], dict[str, str], float], dict[str, Any]] | None = None,
        has_gpu: bool | None = None) -> dict[str, Any]:
    """The record, also at out/gpu-trials.json. `execute(name, module and arguments, environment, seconds)` is exchanged in tests."""
    out.mkdir(parents=True, exist_ok=True)
    there = bool(host.gpus()) if has_gpu is None else has_gpu
    record: dict[str, Any] = {"schema": 1, "kind": "gpu-trials", "created": datetime.now(timezone.utc).isoformat(timespec="seconds"), "host": host.card(), "trials": []}
    began = timeline.now_s()
    cache = out / "compile-cache"
    for name, (limit_s, command) in TRIALS.items():
        if only and name not in only:
            continue
        left_s = BUDGET_S - (timeline.now_s() - began)
        environment = {**({"CUDA_MODULE_LOADING": "EAGER"} if name == "context-eager" else {}),
                       **({"TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")} if name.startswith("compile") else {})}
        if not there:
            done: dict[str, Any] = {"outcome": "unavailable", "error": "no GPU"}
        elif left_s < 20:
            done = {"outcome": "unavailable", "error": "the time for all trials is used up"}
        else:
            try:
                done = (execute or in_process)(name, command, environment, min(limit_s, left_s))
            except Exception as error:
                done = {"outcome": "crashed", "error": f"{type(error).__name__}: {error}"}
        record["trials"].append({"name": name, **done})
        _write(out / "gpu-trials.json", record)
    return record


def in_process(name: str, command: list[str], environment: dict[str, str], limit_s: float) -> dict[str, Any]:
    """`python -m module …` in a session of its own; its last line of output is JSON."""
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
    if process.returncode or not lines:
        return {"outcome": "crashed", "seconds": timeline.now_s() - began, "error": (errors or said)[-800:], "status": process.returncode}
    return {"outcome": "ok", "seconds": timeline.now_s() - began, "result": json.loads(lines[-1])}


def _write(path: Path, record: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1, default=str))
    os.replace(temporary, path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m labkit.device.gpu_trials", description="Every GPU trial of the lab, in less than nine minutes.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="names, comma-separated: " + ", ".join(TRIALS))
    args = parser.parse_args()
    record = run(args.out, tuple(n for n in args.only.split(",") if n))
    for trial in record["trials"]:
        print(f"{trial['name']:22} {trial['outcome']:12} {trial.get('seconds', 0):7.1f} s  {trial.get('error', '')[:120]}")
    outcomes = [t["outcome"] for t in record["trials"]]
    print(json.dumps({"record": str(args.out / "gpu-trials.json"), "ok": outcomes.count("ok"), "trials": len(outcomes)}))
    return 3 if all(o == "unavailable" for o in outcomes) else 0 if "ok" in outcomes else 1


if __name__ == "__main__":
    sys.exit(main())
