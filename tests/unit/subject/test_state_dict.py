"""Pickled checkpoints as the field keeps them: what torch.load(weights_only=True) reads is read."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import BadInput
from labkit.subject.state_dict import can_map, read_state_dict

STATE = {"model.norm.weight": torch.arange(4.0), "lm_head.weight": torch.ones(2, 4)}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {**s, "epoch": 3},
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"state": {}}},
        lambda s: {f"module.{n}": t for n, t in s.items()},
        lambda s: {f"module._orig_mod.{n}": t for n, t in s.items()},
        lambda s: {"state_dict": {f"model.{n}": t for n, t in s.items()}},
        lambda s: {n: torch.nn.Parameter(t) for n, t in s.items()},
    ],
    ids=["flat", "extra", "nested", "trainer", "module", "compiled", "lightning", "parameters"],
)
def test_the_tensors_come_out_of_whatever_wraps_them(tmp_path, wrap, legacy):
    path = tmp_path / "pytorch_model.bin"
    torch.save(wrap(STATE), path, _use_new_zipfile_serialization=not legacy)
    found = read_state_dict(path, mmap=can_map(path))
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


def test_names_of_a_causal_model_keep_their_own_first_word(tmp_path):
    torch.save({"model.norm.weight": torch.ones(2)}, tmp_path / "shard.bin")
    assert list(read_state_dict(tmp_path / "shard.bin")) == ["model.norm.weight"]


@pytest.mark.parametrize(
    "save, said",
    [
        (lambda path: torch.save({"epoch": 3, "lr": 0.1}, path), "holds a dict of 'epoch', 'lr'"),
        (lambda path: torch.save([torch.ones(1)], path), "holds a list"),
        (lambda path: torch.save({0: torch.ones(1)}, path), "not a state dict"),
        (lambda path: torch.save({"w": print}, path), "torch.load refused it"),
        (lambda path: path.write_bytes(b"PK\x03\x04 cut"), "torch.load refused it"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
    ],
)
def test_what_holds_no_tensors_by_name_is_refused_in_words(tmp_path, save, said):
    save(tmp_path / "x.bin")
    with pytest.raises(BadInput, match=said):
        read_state_dict(tmp_path / "x.bin")


def test_what_cannot_be_mapped_says_how_it_can_be_rewritten(tmp_path):
    torch.save(STATE, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(BadInput, match="labkit model convert"):
        read_state_dict(tmp_path / "x.bin", mmap=True)
