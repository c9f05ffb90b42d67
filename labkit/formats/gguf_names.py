"""The public (Hugging Face) names of a Llama-family checkpoint, and GGUF's for the same tensors.

llama.cpp turns pairs of neighbours where the public checkpoints turn halves: for the architecture
`llama` the rows of Q and K are reordered on the way in and back on the way out (`qwen2` keeps
halves). Source: llama.cpp, convert_hf_to_gguf.py (`LlamaModel.permute`) and gguf-py's tensor map.
Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_BACK = {v: k for k, v in PARTS.items()}
_PUBLIC = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_GGUF = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")


def to_gguf(name: str) -> str | None:
    if name in TOP:
        return TOP[name]
    match = _PUBLIC.fullmatch(name)
    return f"blk.{match[1]}.{PARTS[match[2]]}.{match[3]}" if match and match[2] in PARTS else None


def to_public(name: str) -> str | None:
    for public, other in TOP.items():
        if other == name:
            return public
    match = _GGUF.fullmatch(name)
    return (
        f"model.layers.{match[1]}.{_BACK[match[2]]}.{match[3]}"
        if match and match[2] in _BACK
        else None
    )


def heads_of(name: str, heads: int, kv_heads: int) -> int:
    """Heads whose rows are reordered in this tensor (public name); 0 for the others."""
    if ".q_proj." in name:
        return heads
    return kv_heads if ".k_proj." in name else 0


def to_neighbours(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (head, half, i) → (head, i, half): a tensor of shape (rows, …)."""
    rows, rest = tensor.shape[0], tuple(tensor.shape[1:])
    return tensor.reshape(heads, 2, rows // heads // 2, *rest).swapaxes(1, 2).reshape(rows, *rest)


def to_halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (head, i, half) → (head, half, i), back again."""
    rows, rest = tensor.shape[0], tuple(tensor.shape[1:])
    return tensor.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(rows, *rest)
