"""Made-up records of GPU trials: every trial of both plans, with round numbers that no device ever
gave. Never under data/recorded.

write(folder / "invented", plan="second", preset="8b")      # folder: what LABKIT_RECORDED names
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CARD = {
    "id": "0" * 12,
    "title": "an invented host, INVENTED GPU",
    "cpu": {"model": "invented", "count": 4, "features": []},
    "memory_bytes": 64_000_000_000,
    "kernel": "0",
    "distribution": "none",
    "virtualisation": "",
    "python": "3.12",
    "torch": "2.11.0",
    "gpus": [
        {
            "name": "INVENTED GPU",
            "memory_bytes": 80_000_000_000,
            "driver": "580.1",
            "mig": False,
            "persistence": True,
        }
    ],
}
BYTES = {"1b": 2_000_000_000, "8b": 16_000_000_000, "tiny": 4_000_000}
PHASES = {"import": 2.0, "context": 0.5, "build": 0.1, "load": 1.0, "warmup": 0.4, "ready": 0.001}
HELD = {"descriptors": {"9": "/dev/nvidiactl"}, "mappings": ["/dev/nvidia0 (3 times)"]}


def load(cache: str, size: int) -> dict[str, Any]:
    rows = [
        {
            "arm": f"{name}.{cache}",
            "n": 3,
            "failed": 0,
            "cache": cache,
            "link": "loopback",
            "median_s": s,
            "low_s": s,
            "high_s": s,
            "floor_s": 0.5,
            "evidence": "invented",
            "load_s": s,
            "touch_s": 0.0,
            "first_token_s": s + 0.1,
            "weights_bytes": size,
        }
        for name, s in (("labkit-streamer", 1.0), ("safetensors", 2.0))
    ]
    rows.append(
        {
            "arm": f"instanttensor.{cache}",
            "n": 0,
            "failed": 1,
            "missing": "no such library was invented",
        }
    )
    return {
        "bench": "load",
        "blocks": 3,
        "results": rows,
        "ratios": {},
        "floor_by": f"{cache}: invented",
        "rates": {},
    }


def results(preset: str) -> dict[str, dict[str, Any]]:
    """Trial -> what it said, of everything."""
    size = BYTES[preset]
    moved = {"park": size / 2.0, "wake": size / 1.0}
    times = [
        {
            "device_bytes": size,
            "device_parked_bytes": 0,
            "park": {"lock_s": 0.5, "checkpoint_s": 1.5 + i / 10},
            "wake": {"restore_s": 0.9, "unlock_s": 0.1},
            "rates_bytes_per_s": moved,
            "first_token_after_wake_s": 0.02,
            "equal_tokens": True,
        }
        for i in range(3)
    ]
    pace = {
        "first_token_s": 0.02,
        "first_decode_s": 0.01,
        "decode_median_s": 0.01,
        "decode_slowest_s": 0.02,
    }
    decoded = {
        "start_s": 4.0,
        "start_phases_s": PHASES,
        "second_request": pace,
        "third_request": pace,
        "tokens": 48,
        "device_used_bytes": size,
        "error": "",
    }
    restore = {
        "descriptors": "untouched",
        "cache": {"image": {"state": "cold"}, "mapped_files": {"state": "cold"}},
        "criu_restore_s": 3.0,
        "cuda": {"restore_s": 0.9, "unlock_s": 0.1},
        "woken_s": 4.0,
        "gone_to_first_token_s": 4.1,
        "equal_tokens": True,
        "outcome": "ok",
    }
    steps = [
        {"name": n, "seconds": s}
        for n, s in (("driver", 0.1), ("import", 2.0), ("context", 0.3), ("cudnn", 0.2))
    ] + [{"name": "nvml", "seconds": 0.1, "failed": "invented"}]
    arms = [("no-image", 20.0), ("no-image,weights=labkit-streamer", 6.0)]
    ran = {
        "bench": "run",
        "floors": {"disk_read_bytes_per_s": 4e9, "h2d_pinned_bytes_per_s": 50e9},
        "ratios": {
            f"{arms[1][0]}_vs_no-image": {
                "median": 0.3,
                "low": 0.28,
                "high": 0.33,
                "n": 5,
                "significant": True,
            }
        },
        "results": [
            {
                "arm": a,
                "n": 5,
                "failed": 0,
                "cache": "cold",
                "scenario": "warm-node",
                "median_s": s,
                "floor_s": 4.0,
                "phases": {**PHASES, "load": s / 2},
            }
            for a, s in arms
        ],
    }
    return {
        "facts": {
            "bus": {
                "h2d_pinned_bytes_per_s": 50e9,
                "d2h_pinned_bytes_per_s": 50e9,
                "h2d_pageable_bytes_per_s": 8e9,
            },
            "disk": {"disk_read_bytes_per_s": 4e9},
            "torch": {"version": "2.11.0+cu130", "import_s": 6.0},
            "tools": {"criu": {"said": "Version: 4.2"}},
        },
        "model": {"safetensors": {"make_s": 1.0, "bytes": size}},
        "cuda-checkpoint": {
            "preset": preset,
            "times": times,
            "start_s": 4.0,
            "start_phases_s": PHASES,
            "held_running": HELD,
            "held_parked": {"descriptors": {}, "mappings": []},
        },
        "cuda-checkpoint-criu": {
            "preset": preset,
            "dumps": [
                {"descriptors": "untouched", "outcome": "ok", "dump_s": 5.0, "image_bytes": size}
            ],
            "start_s": 4.0,
            "start_phases_s": PHASES,
            "restores": [
                {"want": "cold", **restore},
                {
                    "want": "warm",
                    **restore,
                    "outcome": "died",
                    "error": "the process was ended by signal SIGINVENTED",
                    "equal_tokens": False,
                },
            ],
        },
        "import-warm": {
            "preset": preset,
            "start_s": 4.0,
            "dump": {"dump_s": 1.0, "image_bytes": 500_000_000},
            "restores": [{"want": "cold", **restore}],
        },
        "context": {
            "persistence_mode": "on",
            "before": {
                "steps": [
                    *steps,
                    {
                        "name": "copy_pinned",
                        "seconds": 1.0,
                        "rate_bytes_per_s": 50e9,
                        "host_memory": "registered",
                    },
                ]
            },
            "arms": {
                arm: [{"steps": steps}] * 3
                for arm in ("lazy", "eager", "lazy-no-nvml", "eager-no-nvml")
            },
        },
        "decode": {
            "preset": preset,
            "arms": {"eager": [decoded], "fewer-graphs": [decoded], "cudnn": []},
            "equal_tokens": {"eager": True, "fewer-graphs": False},
        },
        "wake": {
            "preset": preset,
            "bytes": size,
            "times": (
                [
                    {
                        "sleep_s": 1.0,
                        "wake_s": 0.35,
                        "rate_bytes_per_s": 46e9,
                        "bus_rate_bytes_per_s": 50e9,
                        "share_of_bus": 0.92,
                    }
                ]
                * 3
            ),
        },
        "load-warm": load("warm", size),
        "load-cold": load("cold", size),
        "stack": ran,
    }


def record(
    plan: str = "second", preset: str = "8b", without: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Every trial passed, but `without`, and "resident", which crashed, and "compile", which
    was skipped."""
    trials: list[dict[str, Any]] = [
        {"name": name, "outcome": "ok", "seconds": 1.0, "status": 0, "result": said}
        for name, said in results(preset).items()
        if name not in without
    ]
    trials += [
        {"name": name, "outcome": "skipped", "error": f"{name} was left out of what was invented"}
        for name in without
    ]
    trials += [
        {
            "name": "resident",
            "outcome": "crashed",
            "seconds": 2.0,
            "status": 1,
            "error": "Traceback …\nRuntimeError: it was never there",
        },
        {"name": "compile", "outcome": "skipped", "error": "no time was invented for it"},
    ]
    return {
        "schema": 2,
        "kind": "gpu-trials",
        "plan": plan,
        "preset": preset,
        "created": f"2026-01-0{1 if plan == 'first' else 2}T00:00:00+00:00",
        "host": CARD,
        "trials": trials,
        "seconds": 9.0,
    }


def write(
    folder: Path, plan: str = "second", preset: str = "8b", without: tuple[str, ...] = ()
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"gpu-trials-{plan}.json"
    target.write_text(json.dumps(record(plan, preset, without), indent=1))
    return target
