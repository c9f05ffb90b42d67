"""A conversion is complete, or it is refused: whatever the source is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from labkit.errors import BadInput
from labkit.subject.config import LlamaConfig
from labkit.subject.tokenizer import tokenizer_json
from labkit.weights.convert import convert

CONFIG = {
    "model_type": "qwen2",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "tie_word_embeddings": False,
}
NAMES = list(LlamaConfig.from_json(CONFIG).shapes())


def tensors(config=CONFIG) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {n: torch.randn(s) for n, s in LlamaConfig.from_json(config).shapes().items()}


def source(directory: Path, state: object = None, config=CONFIG, **how) -> Path:
    """A model directory; `state` as torch saves it, without one a single safetensors file."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    if state is None:
        save_file(tensors(), directory / "model.safetensors")
    else:
        torch.save(state, directory / "pytorch_model.bin", **how)
    return directory


def converted(directory: Path, to: str = "safetensors") -> dict[str, torch.Tensor]:
    facts = convert(directory, directory.parent / "out", to)
    found = load_file(directory.parent / "out" / "model.safetensors")
    assert facts["tensors"] == len(found)
    return found


@pytest.mark.parametrize(
    "state",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {**s, "epoch": 3},
        lambda s: {f"module.{n}": t for n, t in s.items()},
        lambda s: {n: t.t().contiguous().t() if t.dim() == 2 else t for n, t in s.items()},
        lambda s: _parts_of_one_storage(s),
    ],
    ids=["nested", "counters beside", "wrapped", "transposed", "one storage"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_every_tensor_of_a_pickle_is_converted_whatever_wraps_it(tmp_path, state, legacy):
    pickled = source(tmp_path / "in", state(tensors()), _use_new_zipfile_serialization=not legacy)
    found = converted(pickled)
    assert found.keys() == set(NAMES)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors().items())


def _parts_of_one_storage(state):
    flat, at, parts = torch.cat([t.reshape(-1) for t in state.values()]), 0, {}
    for name, tensor in state.items():
        parts[name] = flat[at : at + tensor.numel()].view(tensor.shape)
        at += tensor.numel()
    return parts


@pytest.mark.parametrize("to", ["safetensors", "pickle", "tensorizer"])
def test_a_tied_head_is_the_embedding_and_is_not_written_again(tmp_path, to):
    state = tensors()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    if to == "tensorizer":
        pytest.importorskip("tensorizer")
    tied = source(tmp_path / "in", state, {**CONFIG, "tie_word_embeddings": True})
    facts = convert(tied, tmp_path / "out", to)
    assert facts["tensors"] == len(NAMES) - 1


@pytest.mark.parametrize("to", ["safetensors", "gguf", "tensorizer", "pickle"])
@pytest.mark.parametrize("lost", [NAMES[0], NAMES[-1]])
def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_its_name(tmp_path, to, lost):
    state = tensors()
    del state[lost]
    with pytest.raises(BadInput, match=f"no tensor {lost}"):
        convert(source(tmp_path / "in", state), tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_of_a_model_that_the_lab_does_not_run_the_index_is_what_there_has_to_be(tmp_path):
    other = source(tmp_path / "in", config={"model_type": "other"})
    (other / "model.safetensors").rename(other / "model-00001-of-00001.safetensors")
    index = other / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": dict.fromkeys(NAMES, "model-00001-of-00001.safetensors")})
    )
    assert converted(other).keys() == set(NAMES)
    shutil.rmtree(tmp_path / "out")
    index.write_text(
        json.dumps({"weight_map": dict.fromkeys(["w", *NAMES], "model-00001-of-00001.safetensors")})
    )
    with pytest.raises(BadInput, match="no tensor w, which the index says"):
        convert(other, tmp_path / "out", "pickle")


def test_a_tensor_that_two_shards_hold_is_written_once_as_loaders_keep_it(tmp_path):
    twice = source(tmp_path / "in")
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (twice / "model.safetensors").rename(twice / shards[0])
    save_file({NAMES[0]: torch.zeros_like(tensors()[NAMES[0]])}, twice / shards[1])
    (twice / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {**dict.fromkeys(NAMES, shards[0]), NAMES[0]: shards[1]}})
    )
    facts = convert(twice, tmp_path / "out", "safetensors")
    held = [set(load_file(f)) for f in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert facts["tensors"] == len(NAMES) and held == [set(NAMES[1:]), {NAMES[0]}]


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-10]), "is said to lie at"),
        (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
        (lambda file: file.write_bytes(b""), "an empty file"),
        (lambda file: file.unlink(), "no weights to load"),
        (lambda file: save_file({"x": torch.ones(1)}, file), "no tensor model"),
    ],
    ids=["truncated", "pointer", "empty", "gone", "another model's"],
)
@pytest.mark.parametrize("to", ["pickle", "gguf"])
def test_bad_input_is_one_clear_error(tmp_path, damage, said, to):
    damaged = source(tmp_path / "in")
    damage(damaged / "model.safetensors")
    with pytest.raises(BadInput, match=said):
        convert(damaged, tmp_path / "out", to)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.mkdir, (tmp_path / "owned",))

    with pytest.raises(BadInput, match="would run code"):
        convert(source(tmp_path / "in", {"w": Payload()}), tmp_path / "out", "safetensors")
    assert not (tmp_path / "owned").exists()


def test_what_a_formats_library_does_not_take_is_said(tmp_path):
    sparse = source(tmp_path / "in", {"w": torch.eye(2).to_sparse()}, {"model_type": "other"})
    with pytest.raises(BadInput, match="cannot be written as safetensors"):
        convert(sparse, tmp_path / "out", "safetensors")


def test_gguf_takes_a_wrapped_pickle_without_its_tied_head_too(tmp_path):
    pytest.importorskip("gguf")
    config = {**CONFIG, "vocab_size": 300, "eos_token_id": 1, "tie_word_embeddings": True}
    state = tensors(config)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    pickled = source(tmp_path / "in", {f"module.{n}": t for n, t in state.items()}, config)
    (pickled / "tokenizer.json").write_bytes(tokenizer_json(300))
    assert convert(pickled, tmp_path / "out", "gguf:F32")["tensors"] == len(NAMES) - 1
