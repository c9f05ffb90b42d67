"""Facts of a small experiment that is no run of trials: measured here, or recorded elsewhere and then stamped.

    touched, stamp = live_or_recorded(lambda: touch(…), "03_lazy_pull", "touched")

Records lie in data/recorded/<host>/facts/<name>.json: {"host": title, key: facts, …}. Only a missing capability is
replaced. Lesson: notebooks/03_lazy_pull.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from labkit.errors import MissingCapability
from labkit.lessons.replay import folder


def live_or_recorded(measure: Callable[[], dict[str, Any]], name: str, key: str) -> tuple[dict[str, Any], str]:
    """(facts, ""), or (facts of a record, "replayed from <host>"). Raises MissingCapability where there is no record either."""
    try:
        return measure(), ""
    except MissingCapability as missing:
        for path in sorted(folder().glob(f"*/facts/{name}.json")):
            doc = json.loads(path.read_text(encoding="utf-8"))
            print(f"Not measured here: {missing.what}. What follows was recorded on: {doc['host']}.\nTo change that: {missing.fix}")
            return doc[key], f"replayed from {doc['host']}"
        raise
