"""Fields of a model's config.json, read strictly: what is missing, of another type or absurdly
large is refused with the file's name.

    fields = Fields({"vocab_size": 32_000}, "DIR/config.json")
    fields.whole("vocab_size")              # 32000
    fields.flag("mlp_bias", False)          # False: it is not there

Lesson: notebooks/04_model_formats."""

from __future__ import annotations

from typing import NamedTuple

from labkit.core.json_types import JsonMapping
from labkit.errors import BadInput

#: Above any model there is; what exceeds it is a damaged file, not a model.
LIMITS = {
    "vocab_size": 4_000_000,
    "hidden_size": 262_144,
    "intermediate_size": 2_097_152,
    "num_hidden_layers": 2048,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 16_384,
    "max_position_embeddings": 2**31,
}


class Fields(NamedTuple):  # a dataclass would cost 1 ms more of each start
    """A JSON object, and the name of the file that it came from. Every reading raises BadInput."""

    doc: JsonMapping
    where: str

    def refused(
        self,
        problem: str,
        why: str = "the model cannot be built from it",
        fix: str = "compare config.json with its source",
    ) -> BadInput:
        return BadInput(f"{self.where}: {problem}", why, fix)

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number from 1 to its limit."""
        value = self.doc.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LIMITS[key]:
            found = repr(value)[:80] if key in self.doc else "missing"
            raise self.refused(f"{key} is {found}, expected an integer from 1 to {LIMITS[key]}")
        return value

    def real(self, key: str, default: float, low: float, high: float) -> float:
        """A number above `low`, at most `high`."""
        value = self.doc.get(key)
        if value is None:
            return default
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not low < value <= high
        ):
            raise self.refused(
                f"{key} is {value!r:.80}, expected a number above {low:g}, at most {high:g}"
            )
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.doc.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refused(f"{key} is {value!r:.80}, expected true or false")
        return value
