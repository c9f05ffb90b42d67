"""GGUF out of a public model directory, complete enough that llama.cpp answers from the file alone.

    write_gguf(Tensors.of(open_source("/models/tiny")), Path("model.gguf"), "Q8_0")

One file: architecture keys, the tokenizer (`labkit.weights.gguf_vocabulary`), the tensors –
matrices in the type asked for, norms and biases in F32. Both are read by the functions that the
lab's own server loads them with; what llama.cpp has no key for is refused. Tensors
are quantised and written one at a time: peak memory is one tensor in float32, twice. Types: those
`gguf.quants` can write (no K-quants). Source: ggml's docs/gguf.md, llama.cpp's
convert_hf_to_gguf.py. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.formats.gguf_names import heads_of, to_gguf, to_neighbours
from labkit.subject.config import LlamaConfig
from labkit.subject.rope import yarn_attention_factor
from labkit.subject.tokenizer import Tokenizer
from labkit.weights.gguf_tokenizer import add_tokenizer
from labkit.weights.gguf_vocabulary import vocabulary_of
from labkit.weights.tensors import Tensors

WRITABLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
#: Above it a value, or the scale of its block, may be no number in float16.
F16_MAX = 65_504


def write_gguf(tensors: Tensors, path: Path, kind: str) -> JsonObject:
    """Facts: shards, tensors, kept_f16 (matrices whose rows do not divide into blocks),
    cut_otherwise (texts that llama.cpp makes other tokens of). Raises BadInput."""
    import logging

    import gguf

    if kind not in WRITABLE:
        raise BadInput(
            f"GGUF type {kind!r} cannot be written",
            why="K-quants and IQ need llama.cpp's own quantiser",
            fix="one of " + ", ".join(WRITABLE),
        )
    config = LlamaConfig.from_dir(tensors.source.root)
    _check_expressible(config, tensors.source.root)
    tokenizer = Tokenizer.from_dir(tensors.source.root)
    vocabulary = vocabulary_of(tokenizer, config.vocab_size)
    logging.getLogger("gguf").setLevel(logging.ERROR)
    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(str(path), ARCHITECTURES[config.family])
    writer.add_name(Path(tensors.source.root).resolve().name)
    _add_shape(writer, config, kind)
    _add_rope(writer, config)
    add_tokenizer(writer, vocabulary, tokenizer, config, tensors.source)
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
    _write_tensors(writer, tensors, plan, config)
    if frequencies is not None:
        writer.write_tensor_data(frequencies)
    writer.close()
    kept = sum(q == kinds.F16 for *_, q in plan) if kind != "F16" else 0
    facts = {"shards": 1, "tensors": len(plan), "kept_f16": kept}
    return facts | ({"cut_otherwise": list(vocabulary.differs)} if vocabulary.differs else {})


def _check_expressible(config: LlamaConfig, where: str) -> None:
    """Raises BadInput for what llama.cpp's reader of the architecture has no place for."""
    rope, architecture = config.rope, ARCHITECTURES[config.family]
    problem = ""
    if rope.kind == "yarn" and (rope.beta_fast, rope.beta_slow) != (32, 1):
        problem = f"rope type yarn with beta_fast {rope.beta_fast:g}, beta_slow {rope.beta_slow:g}"
    if architecture == "qwen2":
        if rope.kind == "llama3":
            problem = "rope type llama3"
        if config.num_attention_heads * config.head_dim != config.hidden_size:
            problem = f"heads of {config.head_dim} that are not hidden_size together"
        if config.mlp_bias:
            problem = "mlp_bias"
    if problem:
        raise BadInput(
            f"{where}/config.json: {problem}",
            why=f"llama.cpp reads no such thing for the architecture {architecture}: the file would"
            " not load, or answer nonsense",
            fix="keep the model in safetensors, or serve it with transformers or vLLM",
        )


def _numpy_dtype(qtype: Any, gguf: Any) -> Any:
    import numpy as np

    return {
        gguf.GGMLQuantizationType.F32: np.dtype(np.float32),
        gguf.GGMLQuantizationType.F16: np.dtype(np.float16),
    }.get(qtype, np.dtype(np.int8))


def _add_shape(writer: Any, config: LlamaConfig, kind: str) -> None:
    import gguf

    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(
        getattr(
            gguf.LlamaFileType,
            {"F32": "ALL_F32"}.get(kind, f"MOSTLY_{kind}"),
            gguf.LlamaFileType.MOSTLY_F16,
        )
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_rope(writer: Any, config: LlamaConfig) -> None:
    """llama3's stretched wavelengths are a tensor (`_frequency_factors`). Of yarn, llama.cpp takes
    what `attn_factor` leaves to the factor of the paper."""
    import gguf

    rope = config.rope
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope.theta)
    if rope.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope.kind))
        writer.add_rope_scaling_factor(rope.factor)
    if rope.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope.original_max_position)
        writer.add_rope_scaling_attn_factors(
            rope.attention_factor / yarn_attention_factor(rope.factor)
        )


def _frequency_factors(config: LlamaConfig) -> Any:
    """Llama 3's stretched wavelengths as GGUF stores them: a divisor a frequency (float32), or
    None."""
    if config.rope.kind != "llama3":
        return None
    from labkit.subject.rope import Rope
    from labkit.subject.rotary import inverse_frequencies

    plain = inverse_frequencies(Rope(config.rope.theta), config.head_dim)
    return (plain / inverse_frequencies(config.rope, config.head_dim)).numpy()


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
    config: LlamaConfig,
) -> None:
    import torch

    turns = ARCHITECTURES[config.family] == "llama"
    shard_of: JsonObject = {}
    shards = iter(tensors.of_shard)
    for public, _, _, qtype in plan:
        while public not in shard_of:
            shard_of = tensors.shard(next(shards))
        tensor = shard_of[public].to(torch.float32)
        heads = heads_of(public, config.num_attention_heads, config.num_key_value_heads)
        data = (to_neighbours(tensor, heads) if turns and heads else tensor).contiguous().numpy()
        writer.write_tensor_data(_quantized(data, qtype, public))


def _quantized(data: Any, qtype: Any, name: str) -> Any:
    """Raises BadInput where a value is beyond what the type, or the scale of its block, can
    hold."""
    import gguf
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        packed = gguf.quants.quantize(data, qtype)
        if data.size and not -F16_MAX <= data.min() <= data.max() <= F16_MAX:
            back = gguf.quants.dequantize(packed, qtype)
            if not np.isfinite(back).all() and np.isfinite(data).all():
                peak = float(np.abs(data).max())
                raise BadInput(
                    f"{name}: a value of {peak:g} is infinite as {qtype.name}",
                    why=f"{qtype.name} ends at {F16_MAX}, or the scale of a block does: the model"
                    " would answer NaN",
                    fix="--to gguf:BF16, or gguf:F32",
                )
    return packed
