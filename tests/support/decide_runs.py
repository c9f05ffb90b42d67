"""Runs made of a known law of the phases, so that tests know what a fit must find. Not measured on
any machine."""

from __future__ import annotations

import random
from collections.abc import Callable

from labkit.core.records import Run, Trial
from labkit.study.record import Study, of_run

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


def safetensors(image_bytes: float, model_bytes: float) -> dict[str, float]:
    return {**law(image_bytes, model_bytes), "load": 0.1 + model_bytes / 600e6, "build": 0.01}


def streamer(image_bytes: float, model_bytes: float) -> dict[str, float]:
    return {**safetensors(image_bytes, model_bytes), "load": 0.05 + model_bytes / 2e9}


def lazy(image_bytes: float, model_bytes: float) -> dict[str, float]:
    whole = law(image_bytes, model_bytes)
    return {
        "mount": 0.2,
        **{p: s for p, s in whole.items() if p not in ("pull", "unpack")},
        "import": 2.5 + image_bytes / 1e9,
    }


#: label, technique, kind, law, what it changes of the naive stack
STUDIED = (
    ("naive", "", "naive", law, {}),
    ("lazy pull", "estargz-lazy", "alone", lazy, {"image": "estargz-lazy"}),
    ("safetensors", "safetensors", "alone", safetensors, {"weights": "safetensors"}),
    ("streaming", "labkit-streamer", "alone", streamer, {"weights": "labkit-streamer"}),
    (
        "streaming",
        "labkit-streamer",
        "rung",
        streamer,
        {"image": "full-pull", "weights": "labkit-streamer"},
    ),
)


def study_of(noise: float = 0.0, n: int = 5, laws: dict[str, Law] | None = None) -> Study:
    """A study made of known laws: techniques alone, one rung on top of safetensors, and naive at
    three sizes. `laws`: others, by technique."""
    naive = {"image": "full-pull", "process": "runc", "weights": "pickle"}
    arms, stacks, steps = {}, {}, []
    for label, technique, kind, known, changed in STUDIED:
        arm = "ladder: safetensors + streaming" if kind == "rung" else technique or "naive"
        if kind == "rung":
            steps.append(
                {"label": "safetensors", "technique": "safetensors", "arm": "safetensors"}
                | {"kind": "rung"}
            )
        arms[arm] = (laws or {}).get(technique, known)
        stacks[arm] = {**naive, **changed}
        steps.append({"label": label, "technique": technique, "arm": arm, "kind": kind})
    ladder = run_of("small", 300e6, 250e6, arms=arms, stacks=stacks, noise=noise, n=n)
    ladder.experiment["notes"] = {"study": {"steps": steps, "left_out": {}}}
    sizes = tuple(
        run_of(
            name,
            image,
            model,
            arms={"naive": law},
            stacks={"naive": naive},
            noise=noise,
            n=2,
            seed=k,
        )
        for k, (name, image, model) in enumerate(
            (("tiny", 500e6, 5e6), ("1GB", 700e6, 1e9), ("600MB", 300e6, 600e6)), 2
        )
    )
    return of_run(ladder, sizes)
