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
import statistics
import sys
from collections.abc import Collection, Sequence
from typing import Any

from labkit.core import client, cold, interpreter, timeline
from labkit.core.workspace import Workspace
from labkit.device import served
from labkit.device.checkpoint_cycles import checkpoint
from labkit.device.context_arms import CONTEXT_ARMS, context
from labkit.device.graph_techniques import BATCHES
from labkit.device.nvml import device_used_bytes
from labkit.device.trial_output import Notify, Work, cache_facts, fail, report
from labkit.errors import LabError

# ---- model ---------------------------------------------------------------------------------------


def model(preset: str, formats: Sequence[str], found: dict[str, Any], notify: Notify) -> None:
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


# ---- decode --------------------------------------------------------------------------------------

DECODE_ARMS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "eager": ((), {}),
    "fewer-graphs": (("--graphs", "1"), {}),
    "all-graphs": (("--graphs", ",".join(map(str, BATCHES))), {}),
    "cudnn": ((), {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "0"}),
}


def decode(
    preset: str, arms: Sequence[str], tokens: int, times: int, found: dict[str, Any], notify: Notify
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


def _pace(answer: client.Answer) -> dict[str, Any]:
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


def wake(preset: str, times: int, found: dict[str, Any], notify: Notify) -> None:
    """The served model asleep in registered host memory, woken `times` times; beside it the bus's
    own rate from the same memory."""
    import torch

    from labkit.device import standby
    from labkit.subject import checkpoint as checkpoints
    from labkit.subject import server

    memory = standby.memory_here()
    model_dir = checkpoints.ensure(Workspace.default(), preset)
    args = server.parser().parse_args(served.server_arguments(model_dir, 0, memory.device))
    server.make_context(args.device, 0)
    built, words = server.build(args)
    server.load(built, args)
    engine = server.make_engine(args, built, words, preset)
    engine.warm_up(2)
    engine.shrink()
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
