"""`config.json` of a Llama-family model, read strictly: a shape the server cannot reproduce is
refused, never approximated.

Reads the public files of Llama 2/3, Mistral without a window, TinyLlama, Qwen2/2.5 and alike, in
both spellings of the rotary settings (`rope_theta` + `rope_scaling`, and the newer
`rope_parameters`). The config is hostile input: any field may be missing, of another type or
absurdly large.

    config = LlamaConfig.from_dir("DIR")        # or LlamaConfig.from_json(doc, "where it came
        from")
    config.shapes()["model.layers.0.self_attn.k_proj.weight"]   # (1024, 4096), without building
        anything

Lesson: notebooks/04_model_formats.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from os import PathLike

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.subject.config_fields import Fields
from labkit.subject.rope import NOT_SCALED, Rope, read_rope

#: torch's names of the dtypes that can be computed in, with their second names.
DTYPES = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
    "float32": "float32",
    "float": "float32",
    "float64": "float64",
    "double": "float64",
}
FAMILIES = ("llama", "qwen2", "mistral")
#: What a chat model adds to its config: tokens beside the config's that end an answer.
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class LlamaConfig:
    """Shapes and constants of one model. `head_dim` need not be hidden ÷ heads."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope: Rope = NOT_SCALED
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    family: str = "llama"
    dtype: str = "bfloat16"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @staticmethod
    def from_dir(directory: str | PathLike[str]) -> LlamaConfig:
        """From a local model directory or a URL (http(s)://…, s3://bucket/prefix), with the stop
        ids of its generation_config.json, and the checkpoint's own dtype where config.json names
        none. Raises BadInput."""
        from labkit.subject.source import read_with

        raw, generation = read_with(directory, "config.json", GENERATION)
        where = f"{directory}/config.json"
        doc = parsed(raw, where)
        config = LlamaConfig.from_json(doc, where)
        if not names_dtype(doc):
            from labkit.subject.stored_dtype import stored_dtype

            config = replace(config, dtype=stored_dtype(directory))
        if generation is None:
            return config
        more = parsed(generation, f"{directory}/{GENERATION}", "its stop tokens are unknown")
        ids = _ids(more.get("eos_token_id")) if isinstance(more, dict) else ()
        return replace(config, eos_token_ids=ids or config.eos_token_ids)

    @staticmethod
    def from_bytes(raw: bytes, where: str = "config.json") -> LlamaConfig:
        return LlamaConfig.from_json(parsed(raw, where), where)

    @staticmethod
    def from_json(doc: object, where: str = "config.json") -> LlamaConfig:
        fields = Fields(doc if isinstance(doc, dict) else {}, where)
        if not isinstance(doc, dict):
            raise fields.refused(f"a JSON {type(doc).__name__} where an object belongs")
        family = doc.get("model_type", "llama")
        if family not in FAMILIES:
            raise fields.refused(
                f"model_type {family!r:.80}",
                "the reference server knows " + ", ".join(FAMILIES),
                "use a model of these families, or your own server: labkit run --command …",
            )
        if doc.get("hidden_act", "silu") not in ("silu", "swish"):
            raise fields.refused(
                f"hidden_act {doc.get('hidden_act')!r:.80}",
                "the reference server computes SwiGLU only",
            )
        if (doc.get("use_sliding_window") or family == "mistral") and doc.get("sliding_window"):
            raise fields.refused(
                f"sliding_window {doc['sliding_window']!r:.40}",
                "the reference server attends to everything: tokens would differ past the window",
            )
        if doc.get("quantization_config"):
            raise fields.refused(
                "quantization_config is set",
                "quantised tensors need the kernels of their own library",
                "use the unquantised model",
            )
        size = {
            k: fields.whole(k)
            for k in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
            )
        }
        heads = size["num_attention_heads"]
        kv_heads = fields.whole("num_key_value_heads", default=heads)
        if heads % kv_heads:
            raise fields.refused(
                f"{heads} attention heads are not a multiple of {kv_heads} key/value heads"
            )
        if doc.get("head_dim") is None and size["hidden_size"] % heads:
            raise fields.refused(
                f"hidden_size {size['hidden_size']} is not a multiple of {heads} heads and there is"
                " no head_dim",
            )
        head_dim = fields.whole("head_dim", default=size["hidden_size"] // heads)
        if head_dim % 2:
            raise fields.refused(f"head_dim {head_dim} is odd", "rotary embedding turns pairs")
        max_position = fields.whole("max_position_embeddings", default=2048)
        bias = fields.flag("attention_bias", family == "qwen2")
        return LlamaConfig(
            **size,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=max_position,
            rms_norm_eps=fields.real("rms_norm_eps", 1e-6, 0.0, 1.0),
            rope=read_rope(fields, max_position),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            qkv_bias=True if family == "qwen2" else bias,
            o_bias=False if family == "qwen2" else bias,
            mlp_bias=fields.flag("mlp_bias", False),
            family=family,
            dtype=_dtype(fields),
            bos_token_id=next(iter(_ids(doc.get("bos_token_id"))), None),
            eos_token_ids=_ids(doc.get("eos_token_id")),
        )

    def to_json(self) -> JsonObject:
        """The public spelling (`rope_theta` + `rope_scaling`), which old and new readers take."""
        classes = {
            "llama": "LlamaForCausalLM",
            "qwen2": "Qwen2ForCausalLM",
            "mistral": "MistralForCausalLM",
        }
        doc = {
            "architectures": [classes[self.family]],
            "model_type": self.family,
            "hidden_act": "silu",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope.theta,
            "rope_scaling": self.rope.to_json(),
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": self.o_bias,
            "mlp_bias": self.mlp_bias,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
            "torch_dtype": self.dtype,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": (
                self.eos_token_ids[0]
                if len(self.eos_token_ids) == 1
                else list(self.eos_token_ids) or None
            ),
        }
        if self.family == "qwen2":
            doc["use_sliding_window"] = False
        if self.family == "mistral":
            doc["sliding_window"] = None
        return doc

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint under its public name, in the order in which the model
        uses them."""
        width, inner = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, width)}
        for i in range(self.num_hidden_layers):
            at = f"model.layers.{i}."
            shapes[at + "input_layernorm.weight"] = (width,)
            for name, rows, columns, bias in (
                ("self_attn.q_proj", q, width, self.qkv_bias),
                ("self_attn.k_proj", kv, width, self.qkv_bias),
                ("self_attn.v_proj", kv, width, self.qkv_bias),
                ("self_attn.o_proj", width, q, self.o_bias),
                ("mlp.gate_proj", inner, width, self.mlp_bias),
                ("mlp.up_proj", inner, width, self.mlp_bias),
                ("mlp.down_proj", width, inner, self.mlp_bias),
            ):
                if name == "mlp.gate_proj":
                    shapes[at + "post_attention_layernorm.weight"] = (width,)
                shapes[f"{at}{name}.weight"] = (rows, columns)
                if bias:
                    shapes[f"{at}{name}.bias"] = (rows,)
        shapes["model.norm.weight"] = (width,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, width)
        return shapes

    @property
    def parameters(self) -> int:
        return sum(math.prod(s) for s in self.shapes().values())


def parsed(raw: bytes, where: str, why: str = "the model's shape is unknown without it") -> object:
    """The JSON of a configuration file. Raises BadInput."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{where}: not JSON ({str(error)[:120]})",
            why=why,
            fix="fetch it again from where the model came",
        ) from None


def names_dtype(doc: object) -> bool:
    """Does this config.json say in which dtype to compute?"""
    return (
        isinstance(doc, dict) and (doc.get("dtype") or doc.get("torch_dtype") or "auto") != "auto"
    )


def _dtype(fields: Fields) -> str:
    if not names_dtype(fields.doc):
        return "bfloat16"
    name = fields.doc.get("dtype") or fields.doc.get("torch_dtype")
    found = DTYPES.get(str(name).removeprefix("torch."))
    if found is None:
        raise fields.refused(
            f"dtype {name!r:.80}",
            "the reference server computes in " + ", ".join(sorted(set(DTYPES.values()))),
        )
    return found


def _ids(value: object) -> tuple[int, ...]:
    found = value if isinstance(value, list) else [value]
    return tuple(v for v in found if isinstance(v, int) and not isinstance(v, bool) and v >= 0)
