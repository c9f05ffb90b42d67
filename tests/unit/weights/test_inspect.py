"""`labkit model inspect` on directories as training leaves them."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file

from labkit.errors import BadInput
from labkit.weights import commands


def inspected(path, capsys) -> tuple[int, dict]:
    code = commands.inspect(Namespace(file=str(path), all=False, json=True))
    return code, json.loads(capsys.readouterr().out)


def test_what_is_no_checkpoint_beside_the_weights_is_named_and_hides_nothing(tmp_path, capsys):
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"lr": 1e-4}, tmp_path / "training_args.bin")
    (tmp_path / "tokenizer.bin").write_bytes(b"\0\1\2\3 not a pickle")
    code, doc = inspected(tmp_path, capsys)
    assert code == 0
    assert [f["tensor_count"] for f in doc["files"]] == [1, 0]
    assert list(doc["no_checkpoint"]) == ["tokenizer.bin"]


def test_weights_that_a_loader_would_read_and_cannot_are_an_error(tmp_path, capsys):
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BadInput, match="Git LFS"):
        inspected(tmp_path, capsys)


def test_a_directory_without_any_says_what_is_there_instead(tmp_path, capsys):
    (tmp_path / "snapshots" / "0123").mkdir(parents=True)
    with pytest.raises(BadInput, match="one of its snapshots"):
        inspected(tmp_path, capsys)
