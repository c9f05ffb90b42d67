"""What config.json says is in the GGUF file, or the conversion is refused with words."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from labkit.errors import BadInput
from labkit.formats.read import read_layout
from labkit.subject.config import LlamaConfig
from labkit.subject.llama import Llama
from labkit.subject.tokenizer import Tokenizer, tokenizer_json
from labkit.weights import commands
from labkit.weights.convert import convert
from labkit.weights.loaders import ggufs
from tests.support.public_tokenizers import tokenizer_json as public_form

gguf = pytest.importorskip("gguf")
CONFIG = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}


def source(directory: Path, settings: dict, weight: float | None = None, **files: object) -> Path:
    """A model directory; `weight`: one value of a matrix."""
    directory.mkdir()
    doc = {**CONFIG, **settings}
    (directory / "config.json").write_text(json.dumps(doc))
    (directory / "tokenizer.json").write_bytes(tokenizer_json(300))
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    torch.manual_seed(2)
    tensors = {n: torch.randn(s) for n, s in LlamaConfig.from_json(doc).shapes().items()}
    if weight is not None:
        tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = weight
    save_file(tensors, directory / "model.safetensors")
    return directory


def keys(tmp_path: Path, settings: dict, **files: object) -> dict:
    convert(source(tmp_path / "in", settings, **files), tmp_path / "out", "gguf:F32")
    return dict(read_layout(tmp_path / "out" / "model.gguf").metadata)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_yarn_is_written_with_its_keys(tmp_path, key):
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    found = keys(tmp_path, {"model_type": "qwen2", key: rope})
    scaling = {k.split(".")[-1]: v for k, v in found.items() if "rope.scaling" in k}
    assert scaling == {
        "type": "yarn",
        "factor": 4.0,
        "original_context_length": 128,
        "attn_factor": 1.0,
    }


def test_llama3s_wavelengths_are_a_tensor(tmp_path):
    keys(tmp_path, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}})
    layout = read_layout(tmp_path / "out" / "model.gguf")
    assert layout.tensors[-1].name == "rope_freqs.weight" and layout.tensors[-1].shape == (8,)


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope type 'longrope'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 16}}, "beta_fast 16"),
        (
            {"model_type": "qwen2", "rope_scaling": {"type": "llama3", "factor": 8.0}},
            "rope type llama3",
        ),
        ({"model_type": "qwen2", "head_dim": 32}, "heads of 32"),
        ({"model_type": "qwen2", "mlp_bias": True}, "mlp_bias"),
        ({"model_type": "qwen3"}, "model_type 'qwen3'"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding_window"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"eos_token_id": None}, "no eos_token_id"),
        ({"eos_token_id": [1, 2, 3, 4]}, "4 tokens that end"),
        ({"bos_token_id": 4000}, "the token 4000|no token"),
        ({"vocab_size": 290}, "the embedding 290 rows"),
    ],
)
def test_what_llama_cpp_has_no_key_for_is_refused_with_words(tmp_path, settings, named):
    shaped = {k: v for k, v in settings.items() if k in ("head_dim", "mlp_bias", "vocab_size")}
    family = {"model_type": "qwen2"} if settings.get("model_type") == "qwen2" else {}
    directory = source(tmp_path / "in", {**shaped, **family})
    (directory / "config.json").write_text(json.dumps({**CONFIG, **settings}))
    if "bos_token_id" in settings:  # the tokenizer's own beginning is the one that counts
        doc = json.loads((directory / "tokenizer.json").read_text())
        (directory / "tokenizer.json").write_text(json.dumps({**doc, "post_processor": None}))
    with pytest.raises(BadInput, match=named):
        convert(directory, tmp_path / "out", "gguf:F32")
    assert not (tmp_path / "out").exists()


def test_every_end_of_an_answer_the_fill_and_the_chat_template_are_written(tmp_path):
    found = keys(
        tmp_path,
        {},
        generation_config={"eos_token_id": [1, 7, 9]},
        tokenizer_config={"pad_token": {"content": "<|unknown|>"}, "chat_template": "{{ x }}"},
    )
    ids = {k.removeprefix("tokenizer.ggml.").removesuffix("_token_id"): v for k, v in found.items()}
    assert [ids[name] for name in ("bos", "eos", "eot", "eom", "padding")] == [0, 1, 7, 9, 2]
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.chat_template"] == "{{ x }}"


def test_chat_templates_of_several_names_are_all_written(tmp_path):
    given = {"default": "{{ a }}", "tool-use": "{{ b }}", "": 7}
    listed = [{"name": name, "template": text} for name, text in given.items()]
    found = keys(tmp_path, {}, tokenizer_config={"chat_template": [*listed, "odd"]})
    written = {k: v for k, v in found.items() if "chat_template" in k}
    assert list(written.pop("tokenizer.chat_templates").first) == ["tool_use"]
    assert written == {
        "tokenizer.chat_template": "{{ a }}",
        "tokenizer.chat_template.tool_use": "{{ b }}",
    }


def test_texts_that_llama_cpp_cuts_otherwise_are_told(tmp_path, capsys):
    content = public_form("mistral 0.3")
    directory = source(tmp_path / "in", {"vocab_size": Tokenizer.from_bytes(content).size})
    (directory / "tokenizer.json").write_bytes(content)
    commands.convert(Namespace(source=directory, target=tmp_path / "out", to="gguf:F32"))
    *told, last = capsys.readouterr().out.splitlines()
    assert [line for line in told if line.startswith("other tokens: text that begins with")]
    assert len(json.loads(last)["cut_otherwise"]) == 2


@pytest.mark.parametrize(
    "kind, limit", [("F16", 65_504), ("Q8_0", 127 * 65_504), ("Q4_1", -65_504)]
)
def test_a_value_beyond_a_type_is_refused_and_one_within_is_kept(tmp_path, kind, limit):
    convert(source(tmp_path / "within", {}, float(limit)), tmp_path / "out", f"gguf:{kind}")
    path = tmp_path / "out" / "model.gguf"
    back = dict(ggufs.tensors(path, read_layout(path)))["model.layers.0.mlp.up_proj.weight"]
    assert back.isfinite().all() and abs(float(back[3, 5]) / limit - 1) < 0.05
    with pytest.raises(BadInput, match=f"is infinite as {kind}"):
        convert(source(tmp_path / "beyond", {}, limit * 1.5), tmp_path / "no", f"gguf:{kind}")
    convert(tmp_path / "beyond", tmp_path / "wide", "gguf:BF16")


# -- files that others wrote -----------------------------------------------------------------------


def split(directory: Path) -> list[Path]:
    """One file of two tensors in two parts, as llama-gguf-split writes them."""
    paths = []
    for number, name in enumerate(("token_embd.weight", "output_norm.weight")):
        path = directory / f"Tiny-{number + 1:05d}-of-00002.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        if number == 0:
            writer.add_head_count(2)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_tensor(name, torch.full((4, 8), float(number)).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = torch.nn.Module()
        for name in ("embed_tokens", "norm"):
            setattr(self.model, name, torch.nn.Module())
            getattr(self.model, name).weight = torch.nn.Parameter(torch.zeros(4, 8))


def test_the_parts_of_a_file_are_loaded_as_one(tmp_path):
    split(tmp_path)
    model = Two()
    assert ggufs.load(model, str(tmp_path))["shards"] == 2
    assert model.model.norm.weight.eq(1).all() and model.model.embed_tokens.weight.eq(0).all()


def test_a_missing_part_and_parts_in_the_wrong_place_are_refused(tmp_path):
    first, second = split(tmp_path)
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(BadInput, match="00002-of-00002.gguf: no such file"):
        ggufs.load(Two(), str(tmp_path))
    second.write_bytes(first.read_bytes())
    first.write_bytes(kept)
    with pytest.raises(BadInput, match="file 0 of 2.*its header says 1 of 2"):
        ggufs.load(Two(), str(tmp_path))


@pytest.mark.parametrize(
    "architecture, heads, named",
    [("gemma", 2, "'gemma'"), ("llama", [2, 2], "Items"), ("llama", None, "None heads")],
)
def test_an_architecture_that_keeps_other_values_is_refused(tmp_path, architecture, heads, named):
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), architecture)
    if heads is not None:
        writer.add_head_count(heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with pytest.raises(BadInput, match=named):
        ggufs.load(Two(), str(tmp_path))


def test_a_type_that_the_gguf_package_does_not_unpack_is_named(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "qwen2")
    writer.add_tensor("output_norm.weight", torch.ones(4, 8, dtype=torch.int32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadInput, match="output_norm.weight is I32"):
        ggufs.load(Two(), str(tmp_path))


def test_a_big_endian_file_is_named_as_one(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with pytest.raises(BadInput, match="GGUF version 3, big-endian"):
        read_layout(tmp_path / "model.gguf")


def test_what_is_loaded_from_a_gguf_file_answers_as_its_source(tmp_path):
    directory = source(tmp_path / "in", {"tie_word_embeddings": True, "attention_bias": True})
    convert(directory, tmp_path / "out", "gguf:F32")
    with torch.device("meta"):
        model = Llama(LlamaConfig.from_dir(directory), dtype=torch.float32)
    ggufs.load(model, str(tmp_path / "out"))
    from safetensors.torch import load_file

    stored = load_file(directory / "model.safetensors")
    assert all(torch.equal(p, stored[n]) for n, p in model.named_parameters() if n in stored)
