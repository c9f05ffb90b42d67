"""Runs made of a known law of the phases, so that tests know what a fit must find. Not measured on
any machine."""

from __future__ import annotations

import random
from collections.abc import Callable

from labkit.core.records import Run, Trial

Law = Callable[[float, float], dict[str, float]]


def law(image_bytes: float, model_bytes: float, link: float = 125e6) -> dict[str, float]:
    return {
        "pull": 0.2 + image_bytes / (0.9 * link),
        "unpack": image_bytes * 2.4 / 150e6,
        "start": 0.3,
        "import": 2.5,
        "build": 0.02 + model_bytes / 1.2e9,
        "load": 0.2 + model_bytes / 60e6,
        "warmup": 0.1 + model_bytes / 5e9,
        "ready": 0.01,
        "first_token": 0.05,
    }


def run_of(
    preset: str,
    image_bytes: float,
    model_bytes: float,
    *,
    arms: dict[str, Law] | None = None,
    stacks: dict[str, dict[str, str]] | None = None,
    host: str = "h1",
    link: str = "1gbit",
    noise: float = 0.0,
    n: int = 5,
    seed: int = 1,
) -> Run:
    arms = arms or {"naive": law}
    draw, trials = random.Random(seed), []
    for name, phases_of in arms.items():
        for block in range(n):
            phases = {
                p: s * (1 + draw.uniform(-noise, noise))
                for p, s in phases_of(image_bytes, model_bytes).items()
            }
            trials.append(
                Trial(
                    name,
                    block,
                    0,
                    total_s=sum(phases.values()),
                    phases=phases,
                    cache={"state": "cold"},
                    spans=[
                        {
                            "name": "load",
                            "start_s": 0.0,
                            "end_s": 1.0,
                            "source": "server",
                            "detail": {"size_bytes": model_bytes},
                        }
                    ],
                    facts={
                        "steps": {
                            "pull": {"bytes_fetched": image_bytes},
                            "unpack": {"written_bytes": image_bytes * 2.4},
                        }
                    },
                )
            )
    described = [
        {
            "name": a,
            "scenario": "fresh-node",
            "link": link,
            "stack": (stacks or {}).get(a, {"image": "full-pull", "weights": "pickle"}),
        }
        for a in arms
    ]
    return Run(
        f"run-{preset}",
        "now",
        host={"id": host, "title": "no machine"},
        experiment={"arms": described, "preset": preset},
        trials=tuple(trials),
        floors={
            "disk_read_bytes_per_s": 1e9,
            "loopback_bytes_per_s": 2e9,
            "decompress_gzip_bytes_per_s": 3e8,
            "memcpy_bytes_per_s": 1e10,
            "cpus": 2,
        },
    )


def three(noise: float = 0.0) -> list[Run]:
    return [
        run_of("tiny", 100e6, 5e6, noise=noise, seed=1),
        run_of("small", 300e6, 250e6, noise=noise, seed=2),
        run_of("1b", 1000e6, 2200e6, noise=noise, seed=3),
    ]
