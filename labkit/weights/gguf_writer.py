"""GGUF out of a public model directory, complete enough that llama.cpp answers from the file alone.

    write_gguf(Tensors.of(open_source("/models/tiny")), Path("model.gguf"), "Q8_0")

One file: architecture keys, the tokenizer (byte-level BPE: tokens padded to the vocabulary, types,
merges, special ids), the tensors – matrices in the type asked for, norms and biases in F32. Tensors
are quantised and written one at a time: peak memory is one tensor in float32, twice. Types: those
`gguf.quants` can write (no K-quants). Source: ggml's docs/gguf.md, llama.cpp's
convert_hf_to_gguf.py. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.formats.gguf_names import heads_of, to_gguf, to_neighbours
from labkit.weights.source import CheckpointSource
from labkit.weights.tensors import Tensors

WRITABLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}


def write_gguf(tensors: Tensors, path: Path, kind: str) -> JsonObject:
    """Facts: shards, tensors, kept_f16 (matrices whose rows do not divide into blocks). Raises
    BadInput."""
    import logging

    import gguf

    if kind not in WRITABLE:
        raise BadInput(
            f"GGUF type {kind!r} cannot be written",
            why="K-quants and IQ need llama.cpp's own quantiser",
            fix="one of " + ", ".join(WRITABLE),
        )
    source = tensors.source
    config = _json(source, "config.json")
    if config.get("model_type", "llama") not in ARCHITECTURES:
        raise BadInput(
            f"model_type {config.get('model_type')!r}",
            why="its tensors have no agreed GGUF names here",
            fix="use llama.cpp's convert_hf_to_gguf.py",
        )
    logging.getLogger("gguf").setLevel(logging.ERROR)
    kinds = gguf.GGMLQuantizationType
    architecture = ARCHITECTURES[config.get("model_type", "llama")]
    writer = gguf.GGUFWriter(str(path), architecture)
    _keys(writer, config, kind)
    _tokenizer(writer, source, int(config["vocab_size"]))
    plan = _plan(tensors, kind)
    frequencies = _frequency_factors(config)
    for _, name, shape, qtype in plan:
        plain_bytes = {kinds.F32: 4, kinds.F16: 2}.get(qtype)
        if plain_bytes:
            size = math.prod(shape) * plain_bytes
        else:
            size = math.prod(gguf.quants.quant_shape_to_byte_shape(shape, qtype))
        writer.add_tensor_info(name, shape, _numpy_dtype(qtype, gguf), size, raw_dtype=qtype)
    if frequencies is not None:
        writer.add_tensor_info(
            "rope_freqs.weight", frequencies.shape, frequencies.dtype, frequencies.nbytes
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    _write_tensors(writer, tensors, plan, config, architecture)
    if frequencies is not None:
        writer.write_tensor_data(frequencies)
    writer.close()
    kept = sum(q == gguf.GGMLQuantizationType.F16 for *_, q in plan) if kind != "F16" else 0
    return {"shards": 1, "tensors": len(plan), "kept_f16": kept}


def _numpy_dtype(qtype: Any, gguf: Any) -> Any:
    import numpy as np

    return {
        gguf.GGMLQuantizationType.F32: np.dtype(np.float32),
        gguf.GGMLQuantizationType.F16: np.dtype(np.float16),
    }.get(qtype, np.dtype(np.int8))


def _json(source: CheckpointSource, name: str) -> JsonObject:
    raw = source.read(name)
    try:
        doc = json.loads(raw or b"")
    except (ValueError, RecursionError):
        raise BadInput(
            f"{source.root}/{name} is missing or no JSON",
            why="a GGUF file carries configuration and tokenizer",
            fix="labkit model make --preset small DIR, or a complete public model directory",
        ) from None
    if not isinstance(doc, dict):
        raise BadInput(f"{source.root}/{name} is not a JSON object")
    return doc


def _head_dim(config: JsonObject) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _keys(writer: Any, config: JsonObject, kind: str) -> None:
    import gguf

    heads = int(config["num_attention_heads"])
    writer.add_name(
        "labkit " + str(config.get("_name_or_path") or config.get("model_type", "llama"))
    )
    writer.add_context_length(int(config.get("max_position_embeddings", 2048)))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_rope_dimension_count(_head_dim(config))
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta", 10_000.0)))
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_file_type(
        getattr(
            gguf.LlamaFileType,
            {"F32": "ALL_F32"}.get(kind, f"MOSTLY_{kind}"),
            gguf.LlamaFileType.MOSTLY_F16,
        )
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    scaling = config.get("rope_scaling") or rope
    if (scaling.get("rope_type") or scaling.get("type")) == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))


def _frequency_factors(config: JsonObject) -> Any:
    """Llama 3's stretched wavelengths as GGUF stores them: a divisor a frequency (float32), or
    None."""
    import numpy as np

    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if (scaling.get("rope_type") or scaling.get("type")) != "llama3":
        return None
    base = float(
        (config.get("rope_parameters") or {}).get("rope_theta")
        or config.get("rope_theta", 10_000.0)
    )
    half = np.arange(0, _head_dim(config), 2, dtype=np.float64) / _head_dim(config)
    wavelength = 2 * math.pi * base**half
    factor, low, high = (
        float(scaling["factor"]),
        float(scaling["low_freq_factor"]),
        float(scaling["high_freq_factor"]),
    )
    original = float(scaling["original_max_position_embeddings"])
    smooth = (original / wavelength - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(
        wavelength > original / low, factor, np.where(wavelength < original / high, 1.0, between)
    ).astype(np.float32)


def _tokenizer(writer: Any, source: CheckpointSource, vocabulary: int) -> None:
    import gguf

    doc = _json(source, "tokenizer.json")
    model = doc.get("model") or {}
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise BadInput(
            "tokenizer.json is not byte-level BPE",
            why="only that kind is written here",
            fix="use llama.cpp's convert_hf_to_gguf.py",
        )
    tokens, types = [f"[PAD{i}]" for i in range(vocabulary)], [gguf.TokenType.UNUSED] * vocabulary
    special = {t["id"] for t in doc.get("added_tokens", []) if t.get("special")}
    for text, number in {
        **model["vocab"],
        **{t["content"]: t["id"] for t in doc.get("added_tokens", [])},
    }.items():
        if 0 <= number < vocabulary:
            tokens[number], types[number] = (
                text,
                (gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL),
            )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(
        [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
    )
    config = _json(source, "config.json")
    begin, end = config.get("bos_token_id"), config.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    if isinstance(begin, int):
        writer.add_bos_token_id(begin)
        writer.add_add_bos_token(
            "TemplateProcessing" in json.dumps(doc.get("post_processor") or {})
        )
    if isinstance(end, int):
        writer.add_eos_token_id(end)
    unknown = next((t["id"] for t in doc.get("added_tokens", []) if "unk" in t["content"]), None)
    if unknown is not None:
        writer.add_unk_token_id(unknown)


def _plan(tensors: Tensors, kind: str) -> list[tuple[str, str, tuple[int, ...], Any]]:
    """(public name, GGUF name, shape, type) in the order of the shards."""
    import gguf

    plan = []
    for names in tensors.of_shard.values():
        for public in names:
            name, shape = to_gguf(public), tensors.shapes[public]
            if name is None:
                if public.endswith("rotary_emb.inv_freq"):
                    continue
                raise BadInput(
                    f"{public} has no GGUF name",
                    why="a file without it would answer nonsense",
                    fix="use llama.cpp's convert_hf_to_gguf.py",
                )
            qtype = gguf.GGMLQuantizationType.F32
            if len(shape) > 1:
                qtype = getattr(gguf.GGMLQuantizationType, kind)
                if shape[-1] % gguf.GGML_QUANT_SIZES[qtype][0]:
                    qtype = gguf.GGMLQuantizationType.F16
            plan.append((public, name, shape, qtype))
    return plan


def _write_tensors(
    writer: Any,
    tensors: Tensors,
    plan: list[tuple[str, str, tuple[int, ...], Any]],
    config: JsonObject,
    architecture: str,
) -> None:
    import gguf
    import torch

    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    shard_of: JsonObject = {}
    shards = iter(tensors.of_shard)
    for public, _, _, qtype in plan:
        while public not in shard_of:
            shard_of = tensors.shard(next(shards))
        tensor = shard_of[public].to(torch.float32)
        turned = heads_of(public, heads, kv_heads) if architecture == "llama" else 0
        data = (to_neighbours(tensor, turned) if turned else tensor).contiguous().numpy()
        writer.write_tensor_data(gguf.quants.quantize(data, qtype))
