"""`labkit bench import`: what `import labkit` adds to a bare Python, and that it loads no torch,
matplotlib or IPython.

A cold-start lab is judged by its own cold start. Each measurement is the median of several fresh
interpreters, files in the page cache; `import_ms` is the median over blocks of labkit − bare. Goal:
50 ms at most. Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

from labkit.bench.engine import Measured, document, interleave
from labkit.core import stats
from labkit.core.arguments import count
from labkit.core.json_types import JsonObject
from labkit.errors import BadInput

HEAVY = (
    "torch",
    "matplotlib",
    "IPython",
    "numpy",
    "pandas",
    "ipywidgets",
    "pynvml",
    "asyncio",
    "urllib.request",
)
FORBIDDEN = ("torch", "matplotlib", "IPython")
ARMS = {
    "bare": "pass",
    "labkit": "import labkit",
    "records": "from labkit import Run, read_run",
    "command line": "import labkit.cli as c; c.parser('run')",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--starts",
        type=count("--starts", 1, 1000),
        default=9,
        help="interpreters started for one measurement (default 9)",
    )


def run(args: argparse.Namespace) -> JsonObject:
    loaded = {arm: modules_loaded(code) for arm, code in ARMS.items()}

    def arm_of(arm: str, code: str) -> Callable[[], Measured]:
        def measure() -> Measured:
            took = [start_s(code) for _ in range(args.starts)]
            bad = [m for m in loaded[arm] if m in FORBIDDEN]
            return Measured(
                stats.median(took),
                cache="warm",
                link="none",
                failed=f"loads {', '.join(bad)}" if bad else "",
                evidence="heavy modules loaded: " + (", ".join(loaded[arm]) or "none"),
            )

        return measure

    for code in ARMS.values():  # the first start of each compiles and warms; it is not counted
        start_s(code)
    results = interleave(
        {arm: arm_of(arm, code) for arm, code in ARMS.items()}, blocks=args.blocks, seed=args.seed
    )
    doc = document("import", results, {"labkit_vs_bare": ("labkit", "bare")})
    differences = added_ms(results["labkit"], results["bare"])
    return {
        **doc,
        "import_ms": stats.median(differences) if differences else None,
        "import_ms_interval": stats.interval(differences) if differences else None,
        "modules_loaded": loaded["labkit"],
    }


def added_ms(arm: list[Measured] | str, bare: list[Measured] | str) -> list[float]:
    """Block by block, milliseconds of the arm above the bare interpreter."""
    if isinstance(arm, str) or isinstance(bare, str):
        return []
    return [
        (a.seconds - b.seconds) * 1e3
        for a, b in zip(arm, bare, strict=True)
        if not a.failed and not b.failed
    ]


def start_s(code: str) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True
    )
    took = time.perf_counter() - began
    if done.returncode:
        raise BadInput(
            f"python -c {code!r} failed",
            why=done.stderr.decode(errors="replace").strip()[-500:],
            fix="pip install -e .",
        )
    return took


def modules_loaded(code: str) -> list[str]:
    """Which of the heavy modules a fresh interpreter holds after `code`."""
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                f"import sys, json\n{code}\nprint(json.dumps([m for m in {HEAVY!r} if m in"
                " sys.modules]))"
            ),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    return json.loads(finished.stdout.decode().strip().split("\n")[-1])
