"""Checkpoints: deterministic, whole or absent, in the public layout; damaged ones are refused by
file and tensor."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import BadInput
from labkit.formats import safetensors_header
from labkit.subject import checkpoint, values
from labkit.subject import shards as shards_of
from labkit.subject.config import LlamaConfig
from labkit.subject.directory import open_directory, read_header
from labkit.subject.presets import PRESETS
from labkit.subject.verify import verify


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("made") / "tiny"
    checkpoint.make_checkpoint(directory, "tiny", shards=3)
    return directory


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def test_the_same_preset_gives_the_same_bytes(tiny, tmp_path):
    checkpoint.make_checkpoint(tmp_path / "again", "tiny", shards=3)
    assert {p.name: p.read_bytes() for p in tiny.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }


@pytest.mark.parametrize("fmt", shards_of.FORMATS)
def test_shards_written_side_by_side_are_the_shards_written_one_by_one(tmp_path, monkeypatch, fmt):
    for name, cpus in (("alone", 1), ("many", 16)):
        monkeypatch.setattr(shards_of, "cpu_count", lambda cpus=cpus: cpus)
        checkpoint.make_checkpoint(tmp_path / name, "tiny", fmt=fmt, shards=5)
    assert [f.name for f in sorted((tmp_path / "alone").iterdir())] == [
        f.name for f in sorted((tmp_path / "many").iterdir())
    ]
    assert all(
        (tmp_path / "many" / f.name).read_bytes() == f.read_bytes()
        for f in (tmp_path / "alone").iterdir()
    )


def test_shards_of_pickle_are_held_as_far_as_memory_goes(monkeypatch):
    monkeypatch.setattr(shards_of, "cpu_count", lambda: 16)
    monkeypatch.setattr(shards_of, "meminfo_bytes", lambda name: 7 * shards_of.SHARD_BYTES)
    assert (
        shards_of._side_by_side(15, "pickle"),
        shards_of._side_by_side(15, "safetensors"),
        shards_of._side_by_side(1, "pickle"),
    ) == (3, 15, 1)


def test_a_shard_that_cannot_be_written_ends_the_making_and_leaves_nothing(tmp_path, monkeypatch):
    write = shards_of.write_safetensors

    def one_is_full(path, *rest):
        if "00002" in path.name:
            raise OSError(28, "No space left on device")
        write(path, *rest)

    monkeypatch.setattr(shards_of, "write_safetensors", one_is_full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.make_checkpoint(tmp_path / "m", "tiny", shards=4)
    assert list(tmp_path.iterdir()) == []


def test_the_values_do_not_depend_on_this_host(tiny):
    """Digests noted when the recipe was made: another CPU or numpy gives the same ones."""
    noted = json.loads(
        (Path(__file__).parents[3] / "data/fixtures/subject/tiny-digests.json").read_text()
    )
    assert {
        n: d["sha256"]
        for n, d in json.loads((tiny / "digests.json").read_text())["tensors"].items()
    } == noted


def whole(name, shape, config):
    return np.concatenate([task() for task in values.tasks(name, shape, config)])


def test_one_tensor_can_be_made_again_alone(tiny):
    where, config = open_directory(tiny), LlamaConfig.from_dir(tiny)
    for name in ("model.layers.3.mlp.down_proj.weight", "lm_head.weight", "model.norm.weight"):
        at = where.tensors[name]
        alone = whole(name, at.shape, config).tobytes()
        assert alone == at.file.read_bytes()[at.start : at.end]


def test_blocks_do_not_change_the_anchored_head(monkeypatch):
    """The head leans on embeddings of other blocks; every row finds its own."""
    config = PRESETS["tiny"]
    monkeypatch.setattr(values, "BLOCK", 128 * 128)
    shape = (config.vocab_size, config.hidden_size)
    head = values.to_float32(whole("lm_head.weight", shape, config)).reshape(shape)
    embedding = values.to_float32(whole("model.embed_tokens.weight", shape, config)).reshape(shape)
    tokens = np.arange(3, config.vocab_size)
    assert (
        np.argmax(embedding[tokens] @ head.T, axis=1) == values.successor(tokens, config.vocab_size)
    ).mean() > 0.99


@pytest.mark.parametrize("fmt", shards_of.FORMATS)
@pytest.mark.parametrize("shards", [1, 4])
def test_every_format_holds_the_same_tensors(tiny, tmp_path, fmt, shards):
    checkpoint.make_checkpoint(tmp_path / "other", "tiny", fmt=fmt, shards=shards)
    report = verify(tmp_path / "other")
    assert report["wrong"] == [] and report["files"] == shards and report["tensors"] == 57
    sums = [
        {n: d["sha256"] for n, d in json.loads((p / "digests.json").read_text())["tensors"].items()}
        for p in (tiny, tmp_path / "other")
    ]
    assert sums[0] == sums[1]


def test_the_reference_library_reads_what_we_wrote(tiny):
    safetensors = pytest.importorskip("safetensors.torch")
    for file in sorted(tiny.glob("*.safetensors")):
        assert {n: tuple(t.shape) for n, t in safetensors.load_file(file).items()} == {
            n: t.shape for n, t in read_header(file).items()
        }


def test_one_flipped_bit_is_found_and_named(copy):
    at = open_directory(copy).tensors["model.layers.2.mlp.up_proj.weight"]
    with open(at.file, "r+b") as file:
        file.seek(at.start + 7)
        byte = file.read(1)[0]
        file.seek(at.start + 7)
        file.write(bytes([byte ^ 1]))
    assert [w["tensor"] for w in verify(copy)["wrong"]] == ["model.layers.2.mlp.up_proj.weight"]


def test_a_killed_maker_leaves_nothing_at_all(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "labkit", "model", "make", "--bytes", "3GB", str(tmp_path / "m")],
        stdout=subprocess.DEVNULL,
    )
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".m.*.part/*.safetensors")) and time.monotonic() < until:
        time.sleep(0.01)
    assert list(tmp_path.iterdir()), "it was killed in the middle"
    process.send_signal(signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 60
    while list(tmp_path.iterdir()) and time.monotonic() < until:  # the watchdog's work
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_maker_removes_its_work(tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.make_checkpoint(tmp_path / "m", "tiny", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_never_overwritten(tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(BadInput, match="not empty"):
        checkpoint.make_checkpoint(tmp_path, "tiny")


def test_ensure_makes_once_and_then_finds(workspace, monkeypatch):
    made = checkpoint.ensure(workspace, "tiny")
    monkeypatch.setattr(checkpoint, "make_checkpoint", lambda *a, **k: pytest.fail("made again"))
    assert checkpoint.ensure(workspace, "tiny") == made == workspace.models / "tiny-safetensors"


@given(st.integers(0, 57))
@settings(max_examples=30, deadline=None)
def test_splitting_keeps_every_tensor_once_in_order(shards):
    shapes = PRESETS["tiny"].shapes()
    groups = shards_of.split(shapes, shards)
    assert (
        [n for g in groups for n in g] == list(shapes)
        and len(groups) == max(1, shards)
        and all(groups)
    )


# ---- damaged and hostile directories -------------------------------------------------------------


def test_a_truncated_shard_names_file_and_tensor(copy):
    shard = sorted(copy.glob("*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - 10)
    with pytest.raises(BadInput, match=rf"{shard.name}.*model.* is said to lie at"):
        open_directory(copy)


def test_a_missing_shard_names_it_and_a_tensor_it_holds(copy):
    shard = sorted(copy.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(
        BadInput, match=rf"{shard.name}: no such file; the index says it holds model\."
    ):
        open_directory(copy)


def test_a_missing_index_entry_is_named(copy):
    index = copy / "model.safetensors.index.json"
    doc = json.loads(index.read_text())
    shard = doc["weight_map"].pop("model.norm.weight")
    doc["weight_map"] = {n: f for n, f in doc["weight_map"].items() if f != shard}
    index.write_text(json.dumps(doc))
    with pytest.raises(BadInput, match="no tensor .*, which config.json asks for"):
        open_directory(copy)


def test_an_index_that_points_elsewhere_is_refused(copy):
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../../etc/passwd"}}))
    with pytest.raises(BadInput, match="etc/passwd"):
        open_directory(copy)


def test_a_config_of_another_model_names_the_tensor(copy):
    doc = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**doc, "intermediate_size": 512}))
    with pytest.raises(
        BadInput,
        match=(
            r"tensor model\.layers\.0\.mlp\.gate_proj\.weight has shape \(448, 128\), config.json"
            r" asks for \(512, 128\)"
        ),
    ):
        open_directory(copy)


def test_a_tensor_nobody_asked_for_is_named(copy):
    doc = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**doc, "num_hidden_layers": 5}))
    with pytest.raises(BadInput, match=r"model\.layers\.5\..*not one that config.json asks for"):
        open_directory(copy)


def test_a_directory_without_weights_says_so(copy):
    for file in copy.glob("model*"):
        file.unlink()
    with pytest.raises(BadInput, match="no model.safetensors"):
        open_directory(copy)


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "raw, said",
    [
        (b"", "an empty file"),
        (b"1234", "too few"),
        (file_of({}, length=2**63), "header says 9223372036854775808 bytes"),
        (file_of({}, length=3), "header says 3 bytes"),
        (file_of(b"[[[["), "not JSON"),
        (file_of([]), "not a JSON object"),
        (file_of({"t": 1}), "a tensor has dtype"),
        (
            file_of({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
            "t is said to lie at",
        ),
        (
            file_of(
                {"t": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}},
                b"12345678",
            ),
            "more than 2.63 elements",
        ),
        (
            file_of({"t": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
            "a dimension is -1",
        ),
        (
            file_of({"t": {"dtype": "XX", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
            "unknown dtype XX",
        ),
        (
            file_of(
                {n: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for n in "ab"}, b"1234"
            ),
            "overlaps the tensor before it",
        ),
        (
            file_of({"a": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}, b"1234"),
            "between tensors",
        ),
        (
            file_of({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, b"1234"),
            "after the last tensor",
        ),
        (file_of(b'{"a":' * 50_000), "nests too deeply"),
    ],
)
def test_a_lying_header_is_refused_with_its_reason(tmp_path, raw, said):
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(BadInput, match=said):
        read_header(tmp_path / "model.safetensors")


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "U8", "", 3]),
        "shape": st.lists(st.integers(-2, 2**65), max_size=4),
        "data_offsets": st.lists(st.integers(-2, 2**65), max_size=3),
    },
)


@given(
    st.binary(max_size=200)
    | st.builds(
        file_of,
        st.dictionaries(st.text(max_size=5), ENTRY | st.integers() | st.none(), max_size=4),
        st.binary(max_size=64),
    )
)
@settings(max_examples=500, deadline=None)
def test_any_header_gives_tensors_inside_the_file_or_one_bad_input(raw):
    try:
        length = safetensors_header.header_length(raw[:8], len(raw))
        found = safetensors_header.parse(raw[8 : 8 + length], len(raw)).tensors
    except BadInput:
        return
    assert all(8 <= t.offset <= t.end <= len(raw) for t in found)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, copy):
    import pickle

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    for file in copy.glob("model*"):
        file.unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(BadInput, match="pytorch_model.bin: torch.load refused it"):
        verify(copy)
    assert not (tmp_path / "owned").exists()
