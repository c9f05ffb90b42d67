"""A library we did not write reads the files we write, and agrees on logits; llama.cpp is asked in
test_llama_cpp."""

from __future__ import annotations

import json

import pytest
import torch

from labkit.subject.checkpoint import make_checkpoint
from labkit.subject.config import LlamaConfig
from labkit.subject.llama import Llama
from labkit.subject.tokenizer import Tokenizer
from labkit.weights.convert import convert
from labkit.weights.loaders import safe

PROMPT = "The first token of a cold start"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of the lab, to pickle and back again."""
    root = tmp_path_factory.mktemp("model")
    make_checkpoint(root / "tiny", preset="tiny")
    convert(root / "tiny", root / "pickle", "pickle")
    convert(root / "pickle", root / "back", "safetensors")
    return root / "back"


def logits_of(load, directory, config_dir) -> torch.Tensor:
    with torch.device("meta"):
        model = Llama(LlamaConfig.from_dir(config_dir), dtype=torch.float32)
    load(model, str(directory), "cpu")
    with torch.inference_mode():
        return model.finish()(torch.tensor([Tokenizer.from_dir(config_dir).encode(PROMPT)]))[0]


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.3, "beta_fast": 16.0},
        {"rope_type": "yarn", "factor": 8.0, "mscale": 1.0, "mscale_all_dim": 0.5},
    ],
)
def test_transformers_agrees_on_the_safetensors_we_convert_back(checkpoint, tmp_path, rope):
    transformers = pytest.importorskip(
        "transformers", reason="the test-only oracle (pip install transformers)"
    )
    for file in checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "rope_scaling": rope or config["rope_scaling"]})
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.tensor([Tokenizer.from_dir(tmp_path).encode(PROMPT)])
    with torch.inference_mode():
        ours = logits_of(safe.load_pread, tmp_path, tmp_path)
        assert (theirs(ids).logits[0] - ours).abs().max() < 1e-3
