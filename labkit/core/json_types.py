"""What a parsed JSON document is in signatures. Its keys are named by whoever writes it: a record's
by `labkit.core.record_schema`, a step's facts and a technique's evidence by their docstrings.

    def read(path: Path) -> JsonObject: ...

Lesson: none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
JsonMapping: TypeAlias = Mapping[str, Any]  # read, never changed
