"""Rotary settings of a model's config.json: how fast each pair of values turns, and how that is
stretched for a context longer than the one that was trained on.

    read_rope(Fields({"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4}}, "…"),
        32_768).attention_factor                       # 1.139: 0.1 · ln 4 + 1

Both spellings: `rope_theta` beside `rope_scaling`, and the newer `rope_parameters`. What would turn
otherwise than the reference does is refused. Source: transformers, modeling_rope_utils.py. Lesson:
notebooks/04_model_formats."""

from __future__ import annotations

import math
from dataclasses import dataclass

from labkit.core.json_types import JsonObject
from labkit.subject.config_fields import Fields

KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """`kind`: default, linear (all frequencies ÷ factor), llama3 (only the long wavelengths) or
    yarn (those that turn seldom; cos and sin × attention_factor)."""

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0

    def to_json(self) -> JsonObject | None:
        """`rope_scaling` in the public spelling."""
        if self.kind == "default":
            return None
        doc: JsonObject = {"rope_type": self.kind, "factor": self.factor}
        if self.kind == "linear":
            return doc
        doc["original_max_position_embeddings"] = self.original_max_position
        if self.kind == "llama3":
            names = ["low_freq_factor", "high_freq_factor"]
        else:
            names = ["beta_fast", "beta_slow", "attention_factor"]
        return doc | {name: getattr(self, name) for name in names}


NOT_SCALED = Rope()


def yarn_attention_factor(factor: float, weight: float = 1.0) -> float:
    """How much longer cos and sin are made where positions are packed `factor` times closer."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def read_rope(fields: Fields, max_position: int) -> Rope:
    """Raises BadInput."""
    doc = fields.doc
    new, old = doc.get("rope_parameters"), doc.get("rope_scaling")
    for key, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise fields.refused(f"{key} is a {type(value).__name__}, expected an object")
    settings = {**(old or {}), **(new or {})}
    nested = next((key for key, value in settings.items() if isinstance(value, dict)), None)
    if nested is not None:
        raise fields.refused(
            f"rotary settings for {nested!r:.80} alone",
            "the reference server turns all layers alike",
        )
    scaling = Fields(settings, fields.where)
    theta = (scaling if settings.get("rope_theta") is not None else fields).real(
        "rope_theta", 10_000.0, 0.0, 1e12
    )
    kind = settings.get("rope_type") or settings.get("type") or "default"
    key, whole = "partial_rotary_factor", (None, 1, 1.0)
    if settings.get(key) not in whole or doc.get(key) not in whole:
        raise fields.refused(f"{key} is set", "the reference server turns whole heads")
    if kind == "default":
        return Rope(theta)
    if kind not in KINDS:
        raise fields.refused(
            f"rope type {kind!r:.80}",
            f"the reference server knows {', '.join(KINDS)}; another would shift every position",
        )
    factor = scaling.real("factor", 0.0, 0.0, 1e6)
    if not factor:
        raise fields.refused(f"rope type {kind} without a factor")
    if kind == "linear":
        return Rope(theta, kind, factor)
    name = "original_max_position_embeddings"
    original = doc.get(name) or settings.get(name) or max_position
    if isinstance(original, bool) or not isinstance(original, int) or original < 1:
        raise fields.refused(f"{name} is {original!r:.80}")
    if kind == "yarn":
        return _yarn(scaling, theta, factor, original)
    low = scaling.real("low_freq_factor", 1.0, 0.0, 1e6)
    high = scaling.real("high_freq_factor", 4.0, 0.0, 1e6)
    if high <= low:
        raise fields.refused(f"high_freq_factor {high:g} is not above low_freq_factor {low:g}")
    return Rope(theta, kind, factor, low, high, original)


def _yarn(scaling: Fields, theta: float, factor: float, original: int) -> Rope:
    if factor < 1 or theta <= 1:
        raise scaling.refused(f"rope type yarn with factor {factor:g} and rope_theta {theta:g}")
    if not scaling.flag("truncate", True):
        raise scaling.refused(
            "rope type yarn with truncate: false", "the reference server rounds to whole pairs"
        )
    fast, slow = scaling.real("beta_fast", 32.0, 0.0, 1e6), scaling.real("beta_slow", 1.0, 0.0, 1e6)
    if fast < slow:
        raise scaling.refused(f"beta_fast {fast:g} is below beta_slow {slow:g}")
    attention = scaling.real("attention_factor", 0.0, 0.0, 1e6)
    above = scaling.real("mscale", 0.0, -1.0, 1e6)
    below = scaling.real("mscale_all_dim", 0.0, -1.0, 1e6)
    if not attention and above and below:
        attention = yarn_attention_factor(factor, above) / yarn_attention_factor(factor, below)
    return Rope(
        theta,
        "yarn",
        factor,
        original_max_position=original,
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=attention or yarn_attention_factor(factor),
    )
