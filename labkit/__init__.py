"""The cold-start lab. Names resolve on first use: `import labkit` loads no torch, no matplotlib, no
IPython.

A cold-start lab is judged by its own cold start; `labkit bench import` measures it.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "LabError": "labkit.errors",
    "Workspace": "labkit.core.workspace",
    "span": "labkit.core.timeline",
    "read_run": "labkit.core.records:read",
    "Run": "labkit.core.records",
    "Trial": "labkit.core.records",
    "doctor": "labkit.core.capabilities",
    "host_card": "labkit.core.host:card",
    "techniques": "labkit.technique",
    "Stack": "labkit.stack",
    "experiment": "labkit.stack",
    "Experiment": "labkit.stack",
    "waterfall": "labkit.viz.waterfall",
    "strip": "labkit.viz.compare",
    "check": "labkit.lessons.check",
}

__all__ = ["__version__", *_NAMES]


def __getattr__(name: str) -> Any:
    where = _NAMES.get(name)
    if where is None:
        raise AttributeError(f"module 'labkit' has no attribute {name!r}")
    module, _, attribute = where.partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted(__all__)
