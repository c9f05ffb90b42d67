"""A config.json that names no dtype: the checkpoint's own is computed in, as by transformers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from labkit.core.ledger import Ledger
from labkit.errors import BadInput
from labkit.net.serving import serving
from labkit.objects.publish import publish_model
from labkit.subject.config import LlamaConfig
from labkit.weights.convert import convert

CONFIG = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


def directory(path, dtype, fmt="safetensors", **config):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    shapes = LlamaConfig.from_json(CONFIG).shapes()
    state = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
    if fmt == "safetensors":
        save_file(state, path / "model.safetensors")
    else:
        torch.save(state, path / "pytorch_model.bin", _use_new_zipfile_serialization=fmt == "zip")
    return path


@pytest.mark.parametrize("fmt", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_it_is_the_checkpoints_own(tmp_path, dtype, fmt):
    model = directory(tmp_path / "m", getattr(torch, dtype), fmt, torch_dtype=None)
    assert LlamaConfig.from_dir(model).dtype == dtype


def test_of_mixed_tensors_it_is_that_of_the_first_by_name(tmp_path):
    model = directory(tmp_path / "m", torch.float16)
    first = {"a": torch.ones(3, dtype=torch.int64), "lm_head.weight": torch.ones(2)}
    norm = {"model.norm.weight": torch.ones(2, dtype=torch.float16)}
    save_file({**norm, **first}, model / "model.safetensors")
    assert LlamaConfig.from_dir(model).dtype == "float32"


def test_a_conversion_says_it_for_formats_that_do_not(tmp_path):
    model = directory(tmp_path / "m", torch.float16)
    convert(model, tmp_path / "out", "pickle")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"


def test_in_a_bucket_it_is_read_from_the_header_alone(tmp_path, workspace, monkeypatch):
    model = directory(tmp_path / "m", torch.float16)
    publish_model(tmp_path / "root", model, "m")
    with Ledger.open(workspace) as ledger, serving("store", tmp_path / "root", ledger=ledger) as s:
        for name, value in {**s.env, "AWS_ENDPOINT_URL": s.url}.items():
            monkeypatch.setenv(name, value)
        assert LlamaConfig.from_dir("s3://lab/m").dtype == "float16"
        sent = s.stats()["by_path"]["/lab/m/model.safetensors"]["bytes_sent"]
        assert sent < (model / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    "name, found",
    [
        ("torch.float16", "float16"),
        ("half", "float16"),
        ("float", "float32"),
        ("double", "float64"),
    ],
)
def test_second_names_are_known(name, found):
    assert LlamaConfig.from_json({**CONFIG, "torch_dtype": name}).dtype == found


@pytest.mark.parametrize("name", ["int8", "float8_e4m3fn", 7, ["float16"]])
def test_what_cannot_be_computed_in_is_refused(name):
    with pytest.raises(BadInput, match="dtype"):
        LlamaConfig.from_json({**CONFIG, "dtype": name})
