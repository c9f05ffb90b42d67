"""Rotary positions: each pair of values of a head is turned by an angle that grows with the
position.

    cos, sin = rotary_tables(config, 4096, device, torch.bfloat16)
    rotate(queries, cos, sin)

No checkpoint holds them: they are computed from config.json, after the weights. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labkit.subject.config import LlamaConfig
from labkit.subject.rope import Rope


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + head_dim/2) by its position's angle: the public checkpoints' "rotate
    half" layout."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Radians per position of each pair, (head_dim/2,) float32. llama3: wavelengths beyond the
    original context are stretched by `factor`, short ones kept, those between blended (Llama 3.1
    model card). yarn: the same by how often a pair turns within the original context, blended
    pair by pair (arXiv 2309.00071; transformers, `_compute_yarn_parameters`)."""
    frequencies = 1.0 / (
        rope.theta
        ** (torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim)
    )
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        wavelength = 2 * math.pi / frequencies
        longest, shortest = (
            rope.original_max_position / rope.low_freq_factor,
            rope.original_max_position / rope.high_freq_factor,
        )
        blend = (rope.original_max_position / wavelength - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        between = (1 - blend) * frequencies / rope.factor + blend * frequencies
        return torch.where(
            wavelength > longest,
            frequencies / rope.factor,
            torch.where(wavelength < shortest, frequencies, between),
        )
    if rope.kind == "yarn":
        first, last = (
            head_dim
            * math.log(rope.original_max_position / (turns * 2 * math.pi))
            / (2 * math.log(rope.theta))
            for turns in (rope.beta_fast, rope.beta_slow)
        )
        low, high = max(math.floor(first), 0), min(math.ceil(last), head_dim - 1)
        pairs = torch.arange(head_dim // 2, dtype=torch.float32, device="cpu")
        stretched = ((pairs - low) / (high - low or 0.001)).clamp(0, 1)
        return frequencies / rope.factor * stretched + frequencies * (1 - stretched)
    return frequencies


def rotary_tables(
    config: LlamaConfig, context: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin, (context, head_dim), computed in float32 and kept in the model's dtype; yarn
    lengthens both."""
    angles = torch.outer(
        torch.arange(context, dtype=torch.float32, device="cpu"),
        inverse_frequencies(config.rope, config.head_dim),
    )
    angles = torch.cat((angles, angles), dim=-1)
    cos, sin = angles.cos(), angles.sin()
    if config.rope.attention_factor != 1.0:
        cos, sin = cos * config.rope.attention_factor, sin * config.rope.attention_factor
    return cos.to(device, dtype), sin.to(device, dtype)
