"""Which files of a directory are its weights: as transformers chooses, and in words where none
are."""

from __future__ import annotations

import json

import pytest

from labkit.errors import BadInput
from labkit.formats import weight_files
from labkit.formats.not_weights import instead_of_weights

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def holding(directory, *names, shards=(), index="model.safetensors.index.json"):
    """A directory of these files, eight bytes each, and an index of shards."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(b"8 bytes.")
    if shards:
        weight_map = {f"t{i}": name for i, name in enumerate(shards)}
        (directory / index).write_text(json.dumps({"weight_map": weight_map}))
    return directory


@pytest.mark.parametrize(
    "names, shards, chosen",
    [
        (["model.safetensors", "pytorch_model.bin"], (), ["model.safetensors"]),
        (["model.safetensors"], SHARDS, ["model.safetensors"]),
        (["model.safetensors", *SHARDS], SHARDS, ["model.safetensors"]),
        ([*SHARDS, "pytorch_model.bin"], SHARDS[::-1], list(SHARDS)),
        ([*SHARDS, "consolidated.safetensors", "model.fp16.safetensors"], SHARDS, list(SHARDS)),
        (["pytorch_model.bin", "consolidated.00.pth", "training_args.bin"], (), None),
        (["model.safetensors", "adapter_model.safetensors", "original/a.pth"], (), None),
        (["Tiny-Q8_0.gguf", "config.json"], (), None),
        (["model.gguf", "Tiny-Q8_0.gguf"], (), None),
    ],
)
def test_the_files_are_those_that_transformers_loads(tmp_path, names, shards, chosen):
    found = weight_files.local(holding(tmp_path, *names, shards=shards))
    assert list(found.names) == (chosen or names[:1])
    assert found.size_bytes == 8 * len(found.names)


def test_what_lies_beside_them_is_no_weights_and_no_index_of_others(tmp_path):
    names = ("config.json", "model.safetensors", "pytorch_model.bin", "optimizer.pt", "tf_model.h5")
    holding(tmp_path, *names, shards=SHARDS)
    assert weight_files.local(tmp_path).beside_names == ("config.json",)
    assert weight_files.local(tmp_path, "pickle").names == ("pytorch_model.bin",)


@pytest.mark.parametrize("absolute", [False, True])
def test_files_are_where_their_links_lead(tmp_path, absolute):
    blobs, snapshot = holding(tmp_path / "blobs", "a1", "b2"), tmp_path / "snapshot"
    snapshot.mkdir()
    for name, blob in (("model.safetensors", "a1"), ("config.json", "b2")):
        (snapshot / name).symlink_to(blobs / blob if absolute else f"../blobs/{blob}")
    found = weight_files.local(snapshot)
    assert (found.paths, found.beside) == ((blobs / "a1",), (blobs / "b2",))
    assert found.size_bytes == 8


@pytest.mark.parametrize(
    "names, shards, said",
    [
        ([SHARDS[0]], SHARDS, "00002.safetensors: no such file; the index says it holds t1"),
        (list(SHARDS), (), "no index"),
        (["model.fp16.safetensors"], (), "only a variant"),
        (["adapter_model.safetensors", "adapter_config.json"], (), "is an adapter"),
        (["consolidated.00.pth"], (), "layout of the model's authors"),
        (["snapshots/0123/model.safetensors"], (), "one of its snapshots"),
        (["a-Q4_0.gguf", "a-Q8_0.gguf"], (), "several GGUF files"),
        (["config.json"], (), "no weights to load"),
    ],
)
def test_what_is_there_instead_is_said(tmp_path, names, shards, said):
    if names[0].startswith("snapshots"):
        (tmp_path / "snapshots").mkdir()
    with pytest.raises(BadInput, match=said):
        weight_files.local(holding(tmp_path, *names, shards=shards))


def test_a_broken_link_is_named_with_what_it_led_to(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("../blobs/gone")
    with pytest.raises(BadInput, match=r"a link to \.\./blobs/gone, which is not there"):
        weight_files.local(tmp_path)
    holding(tmp_path, SHARDS[0], shards=SHARDS)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / SHARDS[1]).symlink_to("../blobs/gone")
    with pytest.raises(BadInput, match=r"00002.* a link to \.\./blobs/gone"):
        weight_files.local(tmp_path)


@pytest.mark.parametrize(
    "head, said",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b'{"error":"Access to model is restricted"}', "error message"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "AccessDenied"),
        (b"", "an empty file"),
    ],
)
def test_a_download_that_went_wrong_is_called_what_it_is(tmp_path, head, said):
    (tmp_path / "model.safetensors").write_bytes(head)
    found = instead_of_weights(tmp_path / "model.safetensors")
    assert found and said in str(found)
    (tmp_path / "other").write_bytes(b"PK\x03\x04")
    assert instead_of_weights(tmp_path / "other") is None
