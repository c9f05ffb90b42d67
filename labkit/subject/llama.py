"""A Llama-family decoder in plain torch: RMSNorm, rotary positions, grouped-query attention,
SwiGLU, a KV cache.

Parameters carry the public checkpoint names, so that a state dict is a checkpoint. Build it under
`torch.device("meta")` and nothing is allocated: a loader then puts each tensor in its place, and
`finish()` computes what no checkpoint holds (the rotary tables). Built without it, every weight is
first drawn at random, as torch's layers do by default, and thrown away on load: the naive start
pays for both.

Tokens out of it: `labkit.subject.decode`. The limit of a pass over one token is reading every
weight once: bytes ÷ memory bandwidth.

    with torch.device("meta"):
        model = Llama(LlamaConfig.from_dir(DIR), dtype=torch.bfloat16)
    ...load...
    logits = model.finish()(prompt_ids)

Lesson: notebooks/01_anatomy.
"""

from __future__ import annotations

import copy
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import BadInput
from labkit.subject.config import LlamaConfig
from labkit.subject.rotary import rotary_tables, rotate


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float, dtype: torch.dtype | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # The mean of squares in float32, as every public implementation: bfloat16 has 8 bits.
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(
            x.dtype
        )


class Linear(nn.Linear):
    """torch's own, but on meta nothing is drawn: torch would import its compiler (818 modules, 1 s)
    to pretend to."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class KVCache:
    """Keys and values of what was read so far: per layer (batch, kv_heads, context, head_dim)."""

    def __init__(
        self,
        config: LlamaConfig,
        context: int,
        device: torch.device,
        dtype: torch.dtype,
        batch: int = 1,
    ):
        shape = (batch, config.num_key_value_heads, context, config.head_dim)
        self.context = context
        self.keys, self.values = (
            [
                torch.zeros(shape, device=device, dtype=dtype)
                for _ in range(config.num_hidden_layers)
            ]
            for _ in range(2)
        )

    def beginning(self, batch: int) -> KVCache:
        """The first `batch` requests of it, over the same memory."""
        part = copy.copy(self)
        part.keys, part.values = ([t[:batch] for t in ts] for ts in (self.keys, self.values))
        return part

    @property
    def size_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int, dtype: torch.dtype | None):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        q = config.num_attention_heads * config.head_dim
        kv = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, q, bias=config.qkv_bias, dtype=dtype)
        self.k_proj = Linear(config.hidden_size, kv, bias=config.qkv_bias, dtype=dtype)
        self.v_proj = Linear(config.hidden_size, kv, bias=config.qkv_bias, dtype=dtype)
        self.o_proj = Linear(q, config.hidden_size, bias=config.o_bias, dtype=dtype)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        positions: Tensor,
        cache: KVCache | None,
        reach: int | None,
        mask: Tensor | None,
    ) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            p(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *turn), rotate(k, *turn)
        if cache is not None:
            keys, values = cache.keys[self.layer], cache.values[self.layer]
            keys.index_copy_(2, positions, k)
            values.index_copy_(2, positions, v)
            k, v = (keys, values) if reach is None else (keys[:, :, :reach], values[:, :, :reach])
        seen = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and length > 1, enable_gqa=True
        )
        return self.o_proj(seen.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig, dtype: torch.dtype | None):
        super().__init__()
        self.gate_proj = Linear(
            config.hidden_size, config.intermediate_size, bias=config.mlp_bias, dtype=dtype
        )
        self.up_proj = Linear(
            config.hidden_size, config.intermediate_size, bias=config.mlp_bias, dtype=dtype
        )
        self.down_proj = Linear(
            config.intermediate_size, config.hidden_size, bias=config.mlp_bias, dtype=dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int, dtype: torch.dtype | None):
        super().__init__()
        self.self_attn = Attention(config, layer, dtype)
        self.mlp = MLP(config, dtype)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)

    def forward(self, x: Tensor, *where: object) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *where)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: LlamaConfig, dtype: torch.dtype | None):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        self.layers = nn.ModuleList(
            Layer(config, i, dtype) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)


class Llama(nn.Module):
    """`forward(ids (batch, length)) → logits (batch, length, vocabulary)`. A tied head has no
    parameter of its own."""

    def __init__(self, config: LlamaConfig, dtype: torch.dtype | None = None):
        super().__init__()
        self.config = config
        self.model = Decoder(config, dtype)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)
        )
        # Not buffers: made by finish(), after the weights, on their device. On meta they would be
        # lost.
        self._cos: Tensor | None = None
        self._sin: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.norm.weight.dtype

    def finish(self, context: int | None = None) -> Llama:
        """What comes after the weights: rotary tables for `context` positions, evaluation mode.
        Raises BadInput if a weight is missing."""
        empty = [name for name, p in self.named_parameters() if p.is_meta]
        if empty:
            raise BadInput(
                f"{len(empty)} parameters have no data, the first is {empty[0]}",
                why="the loader left them on the meta device",
                fix="labkit model verify DIR, then try another --loader",
            )
        if self.device.type == "cuda":
            prefer_flash()
        self._cos, self._sin = rotary_tables(
            self.config,
            context or min(self.config.max_position_embeddings, 4096),
            self.device,
            self.dtype,
        )
        return self.eval().requires_grad_(False)

    def placement(self) -> dict[str, int]:
        """Where the parameters are: how many, how many of them on a GPU, their bytes there, and
        what torch's allocator holds and held there at most."""
        parameters = list(self.parameters())
        on_gpu = [p for p in parameters if p.is_cuda]
        facts = {
            "parameters": len(parameters),
            "device_parameters": len(on_gpu),
            "device_bytes": sum(p.nbytes for p in on_gpu),
        }
        if on_gpu:
            facts |= {
                "allocated_bytes": torch.cuda.memory_allocated(),
                "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
            }
        return facts

    def new_cache(self, context: int, batch: int = 1) -> KVCache:
        return KVCache(self.config, context, self.device, self.dtype, batch)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        reach: int | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Read `ids` at `positions` (default: from 0). With a cache, attend to its first `reach`
        positions; `reach=None` attends to all of it under a mask, which keeps every shape static
        for torch.compile."""
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
            reach = ids.shape[1]
        if self._cos is None:
            self.finish()
        assert self._cos is not None and self._sin is not None
        turn = (self._cos[positions], self._sin[positions])
        mask = None
        if cache is not None and (reach is None or (ids.shape[1] > 1 and reach > ids.shape[1])):
            mask = (
                torch.arange(reach or cache.context, device=ids.device)[None, :]
                <= positions[:, None]
            )
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, turn, positions, cache, reach, mask)
        x = self.model.norm(x[:, -1:] if last_only else x)
        return (
            F.linear(x, self.model.embed_tokens.weight) if self.lm_head is None else self.lm_head(x)
        )


#: Read by torch (2.9 and later) once, at the first attention of a process.
CUDNN_LAST = "TORCH_CUDNN_SDPA_DEPRIORITIZED"


def prefer_flash() -> str:
    """On Hopper and later torch asks cuDNN for attention first, which builds a plan for every new
    shape: each token of an eager decode is one. A start would then measure that. What the
    environment says (0: torch's own choice) is left alone."""
    os.environ.setdefault(CUDNN_LAST, "1")
    return (
        "torch's own choice of attention"
        if os.environ[CUDNN_LAST] in ("", "0")
        else "attention by cuDNN last"
    )
