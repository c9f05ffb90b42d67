"""The shapes that a checkpoint can be made in: four presets, and one for any size of tensors.

    PRESETS["1b"]                               # TinyLlama's shape
    config_of(size_bytes=500_000_000)           # a Llama shape whose tensors weigh this, within 2 %

A start's lower limit is set by bytes, not by what the weights say: a made checkpoint of the same
shape starts as the published one does. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import math
from dataclasses import replace

from labkit.errors import BadInput
from labkit.subject.config import LlamaConfig
from labkit.subject.rope import Rope

_LLAMA3 = Rope(500_000.0, "llama3", 8.0, 1.0, 4.0, 8192)


def _shape(
    vocabulary: int,
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int,
    context: int,
    rope: Rope,
) -> LlamaConfig:
    return LlamaConfig(
        vocabulary,
        hidden,
        inner,
        layers,
        heads,
        kv_heads,
        hidden // heads,
        context,
        rope=rope,
        bos_token_id=0,
        eos_token_ids=(1,),
    )


#: tiny for tests, small for notebooks on two cores, 1b as TinyLlama, 8b as Llama 3.1 8B.
PRESETS = {
    "tiny": _shape(4096, 128, 448, 6, 4, 2, 131_072, _LLAMA3),
    "small": _shape(32_000, 768, 2048, 12, 12, 4, 131_072, _LLAMA3),
    "1b": _shape(32_000, 2048, 5632, 22, 32, 4, 2048, Rope()),
    "8b": _shape(128_256, 4096, 14_336, 32, 32, 8, 131_072, _LLAMA3),
}


def config_of(preset: str = "", size_bytes: int = 0, family: str = "llama") -> LlamaConfig:
    """The shape of a preset, or one with a given weight of tensors (within 2 %). Raises
    BadInput."""
    if bool(preset) == bool(size_bytes):
        raise BadInput("give a preset or a size", fix="--preset tiny|small|1b|8b, or --bytes 500MB")
    if preset and preset not in PRESETS:
        raise BadInput(f"no preset {preset!r}", fix="one of: " + ", ".join(PRESETS))
    if family not in ("llama", "qwen2"):
        raise BadInput(f"no family {family!r}", fix="--family llama or qwen2")
    config = PRESETS[preset] if preset else _sized(size_bytes)
    if family == "qwen2":
        return replace(config, family="qwen2", qkv_bias=True, rope=Rope(1_000_000.0))
    return config


def _sized(size_bytes: int) -> LlamaConfig:
    """A Llama shape of about this size: layers and width grow as the published models' do, the
    MLP's width takes up the rest."""
    if not 1_000_000 <= size_bytes <= 2_000_000_000_000:
        raise BadInput(
            f"{size_bytes} bytes",
            why="shapes from 1 MB to 2 TB look like a language model",
            fix="--bytes 250MB",
        )
    nearest = min(PRESETS.values(), key=lambda c: abs(math.log(c.parameters * 2 / size_bytes)))
    ratio = size_bytes / (nearest.parameters * 2)
    layers = max(1, round(nearest.num_hidden_layers * ratio ** (1 / 3)))
    step = nearest.head_dim * (nearest.num_attention_heads // nearest.num_key_value_heads)
    hidden = max(step, round(nearest.hidden_size * ratio ** (1 / 3) / step) * step)
    vocabulary = nearest.vocab_size
    while True:
        config = replace(
            nearest,
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // nearest.head_dim,
            num_key_value_heads=hidden // step,
            intermediate_size=1,
        )
        inner = (size_bytes // 2 - config.parameters) // (3 * hidden * layers) + 1
        if inner >= hidden or vocabulary <= 1024:
            break
        vocabulary //= 2  # the embeddings would leave no bytes for the layers
    return replace(config, intermediate_size=max(8, inner // 8 * 8))
