"""The single GPU trials: each a fresh process that prints JSON lines, every one with all that was
measured so far.

    python -m labkit.device.gpu_parts model --preset 1b --formats safetensors,pickle
    python -m labkit.device.gpu_parts context --times 3            # fresh processes, arms in turn
    python -m labkit.device.gpu_parts checkpoint --preset 1b --times 5
    python -m labkit.device.gpu_parts decode --preset 1b --arms eager,fewer-graphs,all-graphs,cudnn
        --tokens 64
    python -m labkit.device.gpu_parts wake --preset 1b --times 3

Run by `labkit.device.gpu_trials`; the one with CRIU is labkit.snapshot.cuda. Exit status 0: all of
it worked; 1: the JSON says under `failed` what did not; 3: something is missing on this host.
Figures of LABKIT_FAKE_CUDA mean nothing, and say so. Limits: those of what is measured – bytes ÷
the bus's rate for parking and waking, a launch for each kernel of a token. Lesson:
notebooks/06_gpu_init, notebooks/07_checkpoints."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Collection, Sequence

from labkit.core import client, cold, interpreter, timeline
from labkit.core.json_types import JsonMapping, JsonObject
from labkit.core.workspace import Workspace
from labkit.device import cuda_checkpoint as cuda
from labkit.device import served
from labkit.device.graph_techniques import BATCHES
from labkit.device.nvml import device_used_bytes, persistence_mode
from labkit.device.trial_output import Notify, Work, cache_facts, driver_name, fail, report
from labkit.errors import LabError

# ---- model ---------------------------------------------------------------------------------------


def model(preset: str, formats: Sequence[str], found: JsonObject, notify: Notify) -> None:
    """The checkpoints that later trials start, made once."""
    from labkit.subject import checkpoint as checkpoints

    for form in formats:
        began = timeline.now_s()
        directory = checkpoints.ensure(Workspace.default(), preset, form)
        found[form] = {
            "make_s": timeline.now_s() - began,
            "bytes": sum(p.stat().st_size for p in directory.iterdir() if p.is_file()),
        }
        notify()


# ---- context -------------------------------------------------------------------------------------

CONTEXT_ARMS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "lazy": ({"CUDA_MODULE_LOADING": "LAZY"}, ()),
    "eager": ({"CUDA_MODULE_LOADING": "EAGER"}, ()),
    "lazy-no-nvml": ({"CUDA_MODULE_LOADING": "LAZY"}, ("--without-nvml",)),
    "eager-no-nvml": ({"CUDA_MODULE_LOADING": "EAGER"}, ("--without-nvml",)),
}


def context(arms: Sequence[str], times: int, found: JsonObject, notify: Notify) -> None:
    """The context taken apart, `times` fresh processes an arm, in turn. The first process pays for
    the cold import and is no sample."""
    found |= {
        "persistence_mode": persistence_mode(),
        "cache": "warm: one whole process before the first sample",
        "arms": {arm: [] for arm in arms},
    }
    found["before"] = _context("lazy", 60, copies=True)
    notify()
    for _ in range(times):
        for arm in arms:
            found["arms"][arm].append(_context(arm, 60))
            found["median_s"] = {arm: _medians(runs) for arm, runs in found["arms"].items() if runs}
            notify()
    measured = itertools.chain.from_iterable(found["arms"].values())
    bad = [run["failed"] for run in measured if "failed" in run]
    if bad:
        fail(found, f"{len(bad)} processes", bad[0])


def _context(arm: str, limit_s: float, copies: bool = False) -> JsonObject:
    environment, options = CONTEXT_ARMS[arm]
    try:
        done = subprocess.run(
            [
                *interpreter.module("labkit.device.context"),
                *options,
                *([] if copies else ["--without-copies"]),
            ],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        measured: JsonObject = json.loads(lines[-1]) if lines else {}
        if measured.get("device"):
            return measured
        return {**measured, "failed": f"exit status {done.returncode}: {done.stderr[-600:]}"}
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return {"failed": f"{type(error).__name__}: {error}"[-600:]}


def _medians(runs: Sequence[JsonMapping]) -> dict[str, float]:
    steps: dict[str, list[float]] = {}
    for run in runs:
        for step in run.get("steps", []):
            if "failed" not in step:
                steps.setdefault(step["name"], []).append(step["seconds"])
    return {name: round(statistics.median(seconds), 6) for name, seconds in steps.items()}


# ---- CUDA checkpoint -----------------------------------------------------------------------------


def checkpoint(preset: str, times: int, found: JsonObject, notify: Notify) -> None:
    """One server, parked and woken again and again; after each the same tokens."""
    driver = cuda.open_driver()
    found |= {
        "preset": preset,
        "driver": driver_name(driver),
        "persistence_mode": persistence_mode(),
        "device_used_before_bytes": device_used_bytes(),
        "times": [],
    }
    with served.server(preset) as serving:
        driver = cuda.open_driver()  # again: the simulated one knows the process from now on
        found |= {
            "start_s": serving.start_s,
            "start_phases_s": serving.phases_s,
            "held_running": served.held(serving.pid),
        }
        notify()
        for _ in range(times):
            one: JsonObject = {
                "resident_running_bytes": served.resident_bytes(serving.pid),
                "device_used_running_bytes": device_used_bytes(),
            }
            found["times"].append(one)
            parked = cuda.park(driver, serving.pid)
            one |= {
                "park": parked.seconds,
                "device_bytes": parked.memory_bytes["before"],
                "device_parked_bytes": parked.memory_bytes["checkpoint"],
                "device_used_parked_bytes": device_used_bytes(),
                "resident_parked_bytes": served.resident_bytes(serving.pid),
            }
            found.setdefault("held_parked", served.held(serving.pid))
            notify()
            woken = cuda.wake(driver, serving.pid)
            began = timeline.now_s()
            after = served.ask(serving.port, serving.ended)
            one |= {
                "wake": woken.seconds,
                "device_woken_bytes": woken.memory_bytes["unlock"],
                "device_used_woken_bytes": device_used_bytes(),
                "first_token_after_wake_s": (
                    (after.first_token_s - began) if after.first_token_s else None
                ),
                "equal_tokens": after.tokens == serving.answer.tokens,
            }
            moved = _moved(one)
            took_s = {
                "park": parked.seconds["checkpoint_s"],
                "wake": woken.seconds["restore_s"],
            }
            one["rates_bytes_per_s"] = {n: moved / s for n, s in took_s.items() if moved and s}
            notify()
            if not one["equal_tokens"]:
                fail(
                    found,
                    "after waking",
                    served.death(serving.pid, serving.log)
                    or after.error
                    or "other tokens than before",
                )
                if serving.ended():
                    return


def _moved(one: JsonMapping) -> int:
    """Bytes that left the device: by the process's own count, else by what the device had free
    before and after."""
    if one.get("device_bytes"):
        return int(one["device_bytes"]) - int(one.get("device_parked_bytes") or 0)
    return max(
        0,
        int(one.get("device_used_running_bytes") or 0)
        - int(one.get("device_used_parked_bytes") or 0),
    )


# ---- decode --------------------------------------------------------------------------------------

DECODE_ARMS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "eager": ((), {}),
    "fewer-graphs": (("--graphs", "1"), {}),
    "all-graphs": (("--graphs", ",".join(map(str, BATCHES))), {}),
    "cudnn": ((), {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "0"}),
}


def decode(
    preset: str, arms: Sequence[str], tokens: int, times: int, found: JsonObject, notify: Notify
) -> None:
    """A server an arm, warm: its start, its first token, then the time of each further one."""
    from labkit.subject import checkpoint as checkpoints

    began = timeline.now_s()
    there = cold.set_cache_state(
        [checkpoints.ensure(Workspace.default(), preset), *interpreter.packages()], "warm"
    )
    found |= {
        "preset": preset,
        "tokens": tokens,
        "cache": {**cache_facts(there), "settle_s": timeline.now_s() - began},
        "arms": {arm: [] for arm in arms},
    }
    notify()
    tokens_of: dict[str, list[int]] = {}
    for _ in range(times):
        for arm in arms:
            arguments, environment = DECODE_ARMS[arm]
            try:
                with served.server(preset, arguments, environment) as serving:
                    answer = served.ask(serving.port, serving.ended, max_tokens=tokens)
                    again = served.ask(serving.port, serving.ended, max_tokens=tokens)
                    found["arms"][arm].append(
                        {
                            "start_s": serving.start_s,
                            "start_phases_s": serving.phases_s,
                            "second_request": _pace(answer),
                            "third_request": _pace(again),
                            "tokens": len(again.tokens),
                            "device_used_bytes": device_used_bytes(),
                            "error": answer.error or again.error,
                        }
                    )
                    if answer.error or again.error or serving.ended():
                        fail(
                            found,
                            arm,
                            answer.error or again.error or served.death(serving.pid, serving.log),
                        )
                    tokens_of.setdefault(arm, again.tokens)
            except LabError as error:  # the other arms are measured all the same
                fail(found, arm, error)
            first = tokens_of.get(arms[0])
            found["equal_tokens"] = {a: t == first for a, t in tokens_of.items()}
            notify()


def _pace(answer: client.Answer) -> JsonObject:
    """Seconds to the first token, of the first decoded one, and the median of all that came
    after."""
    gaps = [b - a for a, b in zip(answer.times_s, answer.times_s[1:], strict=False)]
    return {
        "first_token_s": served.first_token_s(answer),
        "first_decode_s": gaps[0] if gaps else None,
        "decode_median_s": statistics.median(gaps[1:]) if len(gaps) > 1 else None,
        "decode_slowest_s": max(gaps[1:]) if len(gaps) > 1 else None,
    }


# ---- wake ----------------------------------------------------------------------------------------


def wake(preset: str, times: int, found: JsonObject, notify: Notify) -> None:
    """The served model asleep in registered host memory, woken `times` times; beside it the bus's
    own rate from the same memory."""
    import torch

    from labkit.device import standby
    from labkit.subject import checkpoint as checkpoints
    from labkit.subject import server

    memory = standby.memory_here()
    model_dir = checkpoints.ensure(Workspace.default(), preset)
    args = server.parser().parse_args(served.server_arguments(model_dir, 0, memory.device))
    built, _ = standby.warm_engine(args, preset)
    with torch.inference_mode():
        before = [p.data.sum(dtype=torch.float32).item() for p in built.parameters()]
    for _ in range(times):
        began = timeline.now_s()
        sleeping = standby.sleep(built, memory)
        slept_s, began = timeline.now_s() - began, timeline.now_s()
        standby.wake(sleeping, memory)
        took_s = timeline.now_s() - began
        bus_s = standby.bus_seconds(sleeping, memory)
        found.setdefault("times", []).append(
            {
                "sleep_s": slept_s,
                "wake_s": took_s,
                "rate_bytes_per_s": sleeping.size_bytes / took_s,
                "bus_rate_bytes_per_s": sleeping.arena_bytes / bus_s,
                "share_of_bus": (sleeping.size_bytes / took_s) / (sleeping.arena_bytes / bus_s),
            }
        )
        found |= {
            "preset": preset,
            "bytes": sleeping.size_bytes,
            "arena_bytes": sleeping.arena_bytes,
            "host_memory": sleeping.host_memory,
            "driver": memory.label or "the GPU's memory",
        }
        sleeping.release()
        notify()
    with torch.inference_mode():
        found["equal"] = [
            p.data.sum(dtype=torch.float32).item() for p in built.parameters()
        ] == before
    if not found["equal"]:
        fail(found, "after waking", "the weights are other ones than before")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m labkit.device.gpu_parts")
    parser.add_argument("part", choices=["model", "context", "checkpoint", "decode", "wake"])
    parser.add_argument("--preset", default="1b")
    parser.add_argument("--times", type=int, default=0)
    parser.add_argument("--formats", default="safetensors")
    parser.add_argument("--arms", default="")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args(argv)
    known: Collection[str] = ()
    if args.part in ("context", "decode"):
        known = CONTEXT_ARMS if args.part == "context" else DECODE_ARMS
    arms = [arm for arm in args.arms.split(",") if arm] or list(known)
    if strange := set(arms) - set(known):
        parser.error(f"no arm {', '.join(sorted(strange))}; there are {', '.join(known)}")
    parts: dict[str, Work] = {
        "model": lambda found, notify: model(args.preset, args.formats.split(","), found, notify),
        "context": lambda found, notify: context(arms, args.times or 3, found, notify),
        "checkpoint": lambda found, notify: checkpoint(args.preset, args.times or 3, found, notify),
        "decode": lambda found, notify: decode(
            args.preset, arms, args.tokens, args.times or 1, found, notify
        ),
        "wake": lambda found, notify: wake(args.preset, args.times or 3, found, notify),
    }
    return report(parts[args.part], {"part": args.part})


if __name__ == "__main__":
    sys.exit(main())
