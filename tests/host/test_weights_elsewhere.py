"""Programs we did not write read the files we write, and agree on tokens and logits."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from labkit.subject.checkpoint import make_checkpoint
from labkit.subject.config import LlamaConfig
from labkit.subject.llama import Llama
from labkit.subject.tokenizer import Tokenizer
from labkit.weights.convert import convert
from labkit.weights.loaders import ggufs, safe

PROMPT = "The first token of a cold start"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    make_checkpoint(root / "tiny", preset="tiny")
    return root / "tiny"


def logits_of(load, directory, config_dir) -> torch.Tensor:
    with torch.device("meta"):
        model = Llama(LlamaConfig.from_dir(config_dir), dtype=torch.float32)
    load(model, str(directory), "cpu")
    with torch.inference_mode():
        return model.finish()(torch.tensor([Tokenizer.from_dir(config_dir).encode(PROMPT)]))[0]


PROGRAM = """
import sys, json, numpy as np, llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=128, logits_all=True, verbose=False, n_threads=2, type_k=0, type_v=0)  # keys and values in F32
ids = model.tokenize(sys.argv[2].encode(), add_bos=True, special=True)
model.eval(ids)
np.save(sys.argv[3], np.array(model.scores[:len(ids)]))
print(json.dumps([int(i) for i in ids]))
"""  # noqa: E501 - a program's own lines


@pytest.mark.needs("llamacpp")
@pytest.mark.parametrize("kind, within", [("F32", 1e-4), ("F16", 2e-3), ("Q8_0", 5e-2)])
def test_llama_cpp_agrees_on_tokens_and_logits(checkpoint, tmp_path, kind, within):
    import json

    convert(checkpoint, tmp_path / "gguf", f"gguf:{kind}")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM,
            str(tmp_path / "gguf" / "model.gguf"),
            PROMPT,
            str(tmp_path / "logits.npy"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == Tokenizer.from_dir(checkpoint).encode(PROMPT)
    theirs = torch.from_numpy(np.load(tmp_path / "logits.npy"))
    ours = logits_of(ggufs.load, tmp_path / "gguf", checkpoint)
    # F32 shows that the file is right. Of the others llama.cpp also rounds activations to F16 or 8
    # bits, layer by layer: its distance is judged against the spread of the logits.
    assert (theirs - ours).abs().max() < within * max(1.0, float(ours.std()))


def test_transformers_agrees_on_the_safetensors_we_convert_back(checkpoint, tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="the test-only oracle (pip install transformers)"
    )
    convert(checkpoint, tmp_path / "pickle", "pickle")
    convert(tmp_path / "pickle", tmp_path / "back", "safetensors")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "back", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.tensor([Tokenizer.from_dir(checkpoint).encode(PROMPT)])
    with torch.inference_mode():
        assert (
            theirs(ids).logits[0] - logits_of(safe.load_pread, tmp_path / "back", checkpoint)
        ).abs().max() < 1e-3
