"""One set of assertions over every loader of the catalog that is installed here, on one small
checkpoint in all formats."""

from __future__ import annotations

import importlib
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from labkit.errors import BadInput, LabError
from labkit.formats.weight_files import LAYOUT
from labkit.subject.tokenizer import tokenizer_json
from labkit.weights import tensors as source_tensors
from labkit.weights.catalog import LOADERS
from labkit.weights.convert import convert

GPU = torch.cuda.is_available()
HERE = [name for name, loader in LOADERS.items() if not loader.missing(gpu=GPU)]
DEVICE = {name: "cuda" if LOADERS[name].needs_gpu else "cpu" for name in HERE}
CONFIG = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(64), nn.RMSNorm(64)
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        for name, rows in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)):
            setattr(self.self_attn, name, nn.Linear(64, rows, bias=False))
        self.mlp.gate_proj, self.mlp.up_proj = (
            nn.Linear(64, 96, bias=False),
            nn.Linear(64, 96, bias=False),
        )
        self.mlp.down_proj = nn.Linear(96, 64, bias=False)


class Model(nn.Module):
    """The public names of a Llama-family checkpoint, without the arithmetic."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(512, 64)
        self.model.layers = nn.ModuleList(Block() for _ in range(3))
        self.model.norm = nn.RMSNorm(64)
        self.lm_head = nn.Linear(64, 512, bias=False)


def build(init: str = "meta") -> Model:
    with torch.device(init):
        return Model().to(torch.bfloat16)


def run(name: str, model: Model, directory: Path, **options):
    module, _, function = LOADERS[name].call.partition(":")
    return getattr(importlib.import_module(module), function)(
        model, str(directory), DEVICE[name], **{**LOADERS[name].options, **options}
    )


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Format -> model directory, two shards where the format has shards; "reference" holds the
    tensors."""
    root = tmp_path_factory.mktemp("formats")
    source = root / "safetensors"
    source.mkdir()
    torch.manual_seed(7)
    # Values that F16 holds too, so that every format can be exact.
    tensors = {
        k: torch.randn(v.shape).to(torch.float16).to(torch.bfloat16)
        for k, v in build().state_dict().items()
    }
    names = list(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[:12],
        "model-00002-of-00002.safetensors": names[12:],
    }
    for shard, members in shards.items():
        save_file({n: tensors[n] for n in members}, source / shard, metadata={"format": "pt"})
    (source / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {n: s for s, m in shards.items() for n in m}})
    )
    (source / "config.json").write_text(json.dumps(CONFIG))
    (source / "tokenizer.json").write_bytes(tokenizer_json(300))
    made = {"safetensors": source}
    for format in {LOADERS[n].format for n in HERE} - {"safetensors"}:
        made[format] = root / format.replace(":", "-")
        convert(source, made[format], format)
    torch.save(tensors, root / "reference.pt")
    return made | {"reference": root / "reference.pt"}


@pytest.fixture(scope="session")
def reference(checkpoints) -> dict[str, torch.Tensor]:
    return torch.load(checkpoints["reference"], weights_only=True)


@pytest.fixture
def unchecked(monkeypatch):
    """A conversion refuses by itself what is incomplete; here the loaders are asked."""
    monkeypatch.setattr(source_tensors, "check", lambda *_: None)


def files_of(directory: Path, format: str) -> list[Path]:
    suffix = LAYOUT[format.partition(":")[0]][0].rpartition(".")[2]
    return sorted(directory.glob(f"*.{suffix}"))


@pytest.mark.parametrize("name", HERE)
class TestLoader:
    def test_parameters_are_bit_identical(self, name, checkpoints, reference):
        model = build()
        facts = run(name, model, checkpoints[LOADERS[name].format])
        state = model.state_dict()
        assert all(
            torch.equal(state[k].cpu().view(torch.uint8), reference[k].view(torch.uint8))
            for k in reference
        )
        assert facts["tensors"] == len(reference) and facts["size_bytes"] == sum(
            t.numel() * t.element_size() for t in reference.values()
        )

    def test_initialised_models_are_filled_in_place(self, name, checkpoints, reference):
        model = build("cpu").to(DEVICE[name])
        before = {k: p.data_ptr() for k, p in model.named_parameters()}
        run(name, model, checkpoints[LOADERS[name].format])
        assert {k: p.data_ptr() for k, p in model.named_parameters()} == before
        assert all(torch.equal(p.cpu(), reference[k]) for k, p in model.named_parameters())

    def test_a_second_load_does_not_overwrite_the_first(
        self, name, checkpoints, reference, tmp_path
    ):
        first = build()
        run(name, first, checkpoints[LOADERS[name].format])
        other = tmp_path / "other"
        other.mkdir()
        save_file(
            {k: torch.zeros_like(t) for k, t in reference.items()}, other / "model.safetensors"
        )
        for extra in ("config.json", "tokenizer.json"):
            shutil.copy(checkpoints["safetensors"] / extra, other)
        converted = other
        if LOADERS[name].format != "safetensors":
            converted = tmp_path / "converted"
            convert(other, converted, LOADERS[name].format)
        second = build()
        run(name, second, converted)
        assert all(not p.any() for p in second.parameters())
        assert all(torch.equal(p.cpu(), reference[k]) for k, p in first.named_parameters())

    def test_a_removed_model_directory_does_not_take_the_parameters_with_it(
        self, name, checkpoints, reference, tmp_path
    ):
        copy = tmp_path / "copy"
        shutil.copytree(checkpoints[LOADERS[name].format], copy)
        model = build()
        run(name, model, copy)
        shutil.rmtree(copy)
        assert all(torch.equal(p.cpu(), reference[k]) for k, p in model.named_parameters())

    def test_a_truncated_file_is_refused(self, name, checkpoints, tmp_path):
        copy = tmp_path / "copy"
        shutil.copytree(checkpoints[LOADERS[name].format], copy)
        last = files_of(copy, LOADERS[name].format)[-1]
        last.write_bytes(last.read_bytes()[: -last.stat().st_size // 3])
        with pytest.raises(LabError) as refused:
            run(name, build(), copy)
        assert refused.value.what

    def test_noise_in_the_header_is_refused_or_harmless(
        self, name, checkpoints, reference, tmp_path
    ):
        noise = random.Random(3)
        for attempt in range(6):
            copy = tmp_path / f"copy-{attempt}"
            shutil.copytree(checkpoints[LOADERS[name].format], copy)
            first = files_of(copy, LOADERS[name].format)[0]
            data = bytearray(first.read_bytes())
            at = noise.randrange(64)
            data[at : at + 4] = noise.randbytes(4)
            first.write_bytes(data)
            try:
                run(name, build(), copy)
            except LabError as refused:
                assert refused.what

    def test_a_missing_tensor_is_named(self, name, checkpoints, reference, tmp_path, unchecked):
        less = tmp_path / "less"
        less.mkdir()
        save_file(
            {k: t for k, t in reference.items() if k != "model.norm.weight"},
            less / "model.safetensors",
        )
        for extra in ("config.json", "tokenizer.json"):
            shutil.copy(checkpoints["safetensors"] / extra, less)
        converted = less
        if LOADERS[name].format != "safetensors":
            converted = tmp_path / "converted"
            convert(less, converted, LOADERS[name].format)
        with pytest.raises(BadInput, match="model.norm.weight"):
            run(name, build(), converted)

    def test_a_tensor_of_another_shape_is_refused(
        self, name, checkpoints, reference, tmp_path, unchecked
    ):
        wrong = tmp_path / "wrong"
        wrong.mkdir()
        save_file(
            reference | {"model.norm.weight": torch.zeros(32, dtype=torch.bfloat16)},
            wrong / "model.safetensors",
        )
        for extra in ("config.json", "tokenizer.json"):
            shutil.copy(checkpoints["safetensors"] / extra, wrong)
        converted = wrong
        if LOADERS[name].format != "safetensors":
            converted = tmp_path / "converted"
            convert(wrong, converted, LOADERS[name].format)
        with pytest.raises(BadInput, match="shape"):
            run(name, build(), converted)

    def test_no_directory_is_a_clear_error(self, name, tmp_path):
        with pytest.raises(BadInput):
            run(name, build(), tmp_path / "nowhere")
        with pytest.raises(BadInput, match="no .* checkpoint"):
            run(name, build(), tmp_path)


def test_the_streamers_ring_gives_the_same_bytes(checkpoints, reference):
    model = build()
    facts = run(
        "labkit-streamer",
        model,
        checkpoints["safetensors"],
        ring=True,
        chunk_bytes=8192,
        threads=3,
        slots=4,
    )
    assert facts["mode"] == "ring" and facts["chunks"] > 20
    assert all(torch.equal(p, reference[k]) for k, p in model.named_parameters())
