"""Formats: what a header says is read, what it claims falsely is refused, and nothing in a file is
ever run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from labkit.errors import BadInput
from labkit.formats import (
    gguf_header,
    gguf_names,
    pickle_listing,
    pickle_program,
    safetensors_header,
    zip_directory,
)
from labkit.formats.read import read_layout
from labkit.subject.tokenizer import tokenizer_json
from labkit.weights.convert import convert
from labkit.weights.source import open_source

#: 10 000 a format in a release: LABKIT_FUZZ=10000 pytest tests/unit/formats/test_formats.py
FUZZ = int(os.environ.get("LABKIT_FUZZ", "400"))
ROWS = 300  # of the embedding
CONFIG = {
    "model_type": "llama",
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "rope_theta": 1e4,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """One small model in all formats."""
    root = tmp_path_factory.mktemp("models")
    source = root / "safetensors"
    source.mkdir()
    torch.manual_seed(1)
    shapes = {
        "model.embed_tokens.weight": (ROWS, 32),
        "model.norm.weight": (32,),
        "lm_head.weight": (ROWS, 32),
    }
    layer = {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32),
        "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (64, 32),
        "mlp.up_proj": (64, 32),
        "mlp.down_proj": (32, 64),
        "input_layernorm": (32,),
        "post_attention_layernorm": (32,),
    }
    shapes |= {f"model.layers.0.{k}.weight": s for k, s in layer.items()}
    save_file(
        {k: torch.randn(s).to(torch.bfloat16) for k, s in shapes.items()},
        source / "model.safetensors",
        metadata={"format": "pt"},
    )
    (source / "config.json").write_text(json.dumps(CONFIG))
    (source / "tokenizer.json").write_bytes(tokenizer_json(ROWS))
    for to in ("pickle", "gguf:Q8_0"):
        convert(source, root / to.partition(":")[0], to)
    return {
        "safetensors": source / "model.safetensors",
        "pickle": root / "pickle" / "pytorch_model.bin",
        "gguf": root / "gguf" / "model.gguf",
    }


class Payload:
    def __reduce__(self):
        return (os.system, ("touch /tmp/labkit-payload-ran",))


@pytest.mark.parametrize("format", ["safetensors", "pickle"])
def test_a_layouts_places_are_where_the_bytes_are(models, format):
    layout, raw = read_layout(models[format]), models[format].read_bytes()
    tensors = load_file(models["safetensors"])
    assert {e.name for e in layout.tensors} == set(tensors)
    for entry in layout.tensors:
        assert (
            raw[entry.offset : entry.end]
            == tensors[entry.name].contiguous().view(torch.uint8).numpy().tobytes()
        )


def test_a_gguf_header_agrees_with_the_reference_reader(models):
    gguf = pytest.importorskip("gguf")
    layout, reference = read_layout(models["gguf"]), gguf.GGUFReader(str(models["gguf"]))
    theirs = {
        t.name: (int(t.data_offset), int(t.n_bytes), t.tensor_type.name) for t in reference.tensors
    }
    assert {e.name: (e.offset, e.size_bytes, e.dtype) for e in layout.tensors} == theirs
    assert (
        layout.metadata["tokenizer.ggml.tokens"].count == ROWS
        and layout.metadata["llama.block_count"] == 1
    )


def test_the_type_table_is_ggmls():
    gguf = pytest.importorskip("gguf")
    for kind, (name, block, size) in gguf_header.TYPES.items():
        assert gguf.GGMLQuantizationType(kind).name == name and gguf.GGML_QUANT_SIZES[kind] == (
            block,
            size,
        )


@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_gguf_keeps_every_bit_of_a_bf16_checkpoint(models, tmp_path, kind):
    from labkit.weights.loaders.ggufs import tensors

    convert(models["safetensors"].parent, tmp_path / "out", f"gguf:{kind}")
    path = tmp_path / "out" / "model.gguf"
    back, there = dict(tensors(path, read_layout(path))), load_file(models["safetensors"])
    assert set(back) == set(there) and all(
        torch.equal(back[k].to(torch.bfloat16), there[k]) for k in there
    )


def test_dequantised_values_are_those_of_the_reference(models):
    gguf = pytest.importorskip("gguf")
    from labkit.weights.loaders.ggufs import tensors

    mine = dict(tensors(models["gguf"], read_layout(models["gguf"])))
    for t in gguf.GGUFReader(str(models["gguf"])).tensors:
        public = gguf_names.to_public(t.name)
        wanted = torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()).reshape(
            mine[public].shape
        )
        heads = gguf_names.heads_of(public, 2, 1)
        assert torch.equal(
            mine[public].float(), gguf_names.to_halves(wanted, heads) if heads else wanted
        )


@given(heads=st.integers(1, 4), half=st.integers(1, 4), width=st.integers(1, 3))
def test_reordering_rows_is_undone_by_its_inverse(heads, half, width):
    rows = torch.arange(heads * 2 * half * width).reshape(heads * 2 * half, width)
    assert torch.equal(gguf_names.to_halves(gguf_names.to_neighbours(rows, heads), heads), rows)


def test_a_conversion_carries_digests_and_never_overwrites(models, tmp_path):
    source = models["safetensors"].parent
    (source / "digests.json").write_text("{}")
    convert(source, tmp_path / "out", "pickle")
    assert (tmp_path / "out" / "digests.json").exists() and (
        tmp_path / "out" / "tokenizer.json"
    ).exists()
    with pytest.raises(BadInput, match="exists"):
        convert(source, tmp_path / "out", "pickle")
    with pytest.raises(BadInput, match="no format"):
        convert(source, tmp_path / "other", "onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


# -- pickle ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickles_payload_is_named_and_not_run(tmp_path, protocol):
    marker = Path("/tmp/labkit-payload-ran")
    marker.unlink(missing_ok=True)
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"weights": [1, 2], "x": Payload()}, protocol=protocol))
    findings = read_layout(path).findings
    assert any("would call" in f and "system" in f and "touch" in f for f in findings)
    torch.save({"w": torch.ones(2), "x": Payload()}, tmp_path / "evil.bin")
    assert any("system" in f for f in read_layout(tmp_path / "evil.bin").findings)
    assert not marker.exists()


def test_a_plain_checkpoint_has_no_findings(models):
    assert read_layout(models["pickle"]).findings == ()


STATES = {
    "uint16": {"w": torch.arange(8).to(torch.uint16)},
    "float8": {"w": torch.arange(8.0).to(torch.float8_e4m3fn)[2:]},
    "parameter": {"w": torch.nn.Parameter(torch.ones(2, 3))},
    "parts": {"w": torch.arange(100)[10:20], "v": torch.tensor(1.0), "e": torch.zeros(0, 3)},
    "nested": {"state_dict": {"w": torch.ones(2), "v": torch.arange(3)}, "epoch": 3},
    "a dtype": {"w": torch.ones(2), "dtype": torch.bfloat16, "n": 3},
    "a number": {0: torch.ones(2, dtype=torch.complex64)},
}


@pytest.mark.parametrize(
    "state, legacy",
    [
        pytest.param(state, legacy, id=f"{name} {'before 1.6' if legacy else 'zip'}")
        for name, state in STATES.items()
        for legacy in (False, True)
        # torch does not read its own untyped storages in the old format
        if not (legacy and name in ("uint16", "float8"))
    ],
)
def test_a_pickle_that_weights_only_takes_is_listed_without_a_finding(tmp_path, state, legacy):
    path = tmp_path / "x.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    torch.load(path, weights_only=True)
    layout, raw = read_layout(path), path.read_bytes()
    inside = state.get("state_dict", state)
    tensors = {str(n): t for n, t in inside.items() if isinstance(t, torch.Tensor)}
    assert layout.findings == () and {e.name for e in layout.tensors} == tensors.keys()
    for entry in layout.tensors:
        tensor = tensors[entry.name].detach().contiguous()
        assert entry.shape == tuple(tensor.shape)
        assert raw[entry.offset : entry.end] == bytes(tensor.flatten().view(torch.uint8).numpy())


def test_tensors_without_one_storage_are_listed_by_name(tmp_path):
    torch.save({"w": torch.eye(2).to_sparse()}, tmp_path / "x.bin")
    layout = read_layout(tmp_path / "x.bin")
    assert [(e.name, e.offset) for e in layout.tensors] == [("w", -1)] and not layout.findings


def test_every_way_to_call_is_found():
    inst = b"(S'true'\nios\nsystem\n."
    obj = b"(cos\nsystem\nS'true'\no."
    for program in (inst, obj, b"cos\nsystem\n(S'true'\ntR."):
        follow = pickle_program.Follow()
        follow.run(program)
        assert any("would call os.system('true')" in f for f in follow.findings()), program


# -- hostile headers -------------------------------------------------------------------------------


def _safetensors(doc, tail: bytes = b"") -> bytes:
    raw = doc if isinstance(doc, bytes) else json.dumps(doc).encode()
    return struct.pack("<Q", len(raw)) + raw + tail


HOSTILE = {
    "length beyond the file": struct.pack("<Q", 1 << 60) + b"{}",
    "nesting": _safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "overlap": _safetensors(
        {
            "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
            "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]},
        },
        b"123456",
    ),
    "hole": _safetensors({"a": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}, b"1234"),
    "past the end": _safetensors(
        {"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}, b"1234"
    ),
    "negative": _safetensors(
        {"a": {"dtype": "U8", "shape": [-4], "data_offsets": [0, -4]}}, b"1234"
    ),
    "huge shape": _safetensors(
        {"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}}, b"1234"
    ),
    "huge number": _safetensors(
        b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', b"1234"
    ),
    "twice": _safetensors(
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        b"1234",
    ),
    "not text": _safetensors(b'{"\xff\xff":1}'),
    "NaN": _safetensors(b'{"a":NaN}'),
    "trailing bytes": _safetensors(
        {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"1234"
    ),
    "gguf 10^9 tensors": b"GGUF" + struct.pack("<IQQ", 3, 10**9, 0),
    "gguf a long array": (
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + struct.pack("<Q", 1)
        + b"k"
        + struct.pack("<IIQ", 9, 4, 1 << 61)
    ),
    "gguf nested arrays": (
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + struct.pack("<Q", 1)
        + b"k"
        + struct.pack("<I", 9)
        + struct.pack("<IQ", 9, 1) * 50
    ),
    "gguf a long key": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 50),
    "pickle without an end": b"\x80\x04N",
    "pickle underflow": b"\x80\x04\x85R.",
    "pickle of a length that lies": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50) + b"x.",
    "zip without a directory": b"PK\x03\x04" + b"\0" * 100,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_in_words(tmp_path, case):
    path = tmp_path / "hostile"
    path.write_bytes(HOSTILE[case])
    with pytest.raises(BadInput) as refused:
        read_layout(path)
    assert refused.value.what and len(str(refused.value)) < 1000


READERS = {
    "safetensors": lambda raw: safetensors_header.parse(
        raw[8 : 8 + safetensors_header.header_length(raw[:8], len(raw))], len(raw)
    ),
    "gguf": lambda raw: gguf_header.parse(io.BytesIO(raw), len(raw)),
    "pickle": lambda raw: pickle_listing.parse(io.BytesIO(raw), len(raw)),
}


def mangled(raw: bytes, noise: random.Random) -> bytes:
    """A few of: flipped bytes, forged numbers, cut, doubled – in the header more often than behind
    it."""
    data = bytearray(raw)
    for _ in range(noise.randint(1, 4)):
        at = noise.randrange(min(len(data), noise.choice((16, 256, 4096, len(data)))) or 1)
        kind = noise.randrange(5)
        if kind == 0:
            data[at] ^= 1 << noise.randrange(8)
        elif kind == 1:
            data[at : at + 8] = struct.pack(
                "<Q",
                noise.choice((0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, noise.getrandbits(64))),
            )
        elif kind == 2:
            del data[noise.randrange(len(data)) :]
        elif kind == 3:
            data[at:at] = data[at : at + noise.randrange(64)]
        else:
            data[at : at + 4] = noise.choice((b"[[[[", b"}}}}", b"-1e9", b"\x80\x04(R", b"cos\n"))
        data = data or bytearray(b"\0")
    return bytes(data)


@pytest.mark.parametrize("format", READERS)
def test_fuzzed_headers_are_read_or_refused_in_bounded_memory(models, format):
    raw, noise = models[format].read_bytes(), random.Random(20)
    tracemalloc.start()
    refused = 0
    try:
        for _ in range(FUZZ):
            try:
                READERS[format](mangled(raw, noise))
            except BadInput:
                refused += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused and peak < 512 << 20


@given(st.binary(max_size=400))
def test_noise_is_never_more_than_a_refusal(raw):
    for prefix, format in (
        (b"", "safetensors"),
        (b"GGUF\x03\0\0\0", "gguf"),
        (b"\x80\x04", "pickle"),
        (b"PK\x03\x04", "pickle"),
    ):
        with contextlib.suppress(BadInput):
            READERS[format](prefix + raw)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8), st.lists(st.integers(0, 5), max_size=3), max_size=6
    )
)
def test_what_the_reference_library_writes_we_read(tmp_path_factory, shapes):
    tensors = {
        name: torch.zeros(shape, dtype=torch.float16)
        for name, shape in shapes.items()
        if name != "__metadata__"
    }
    path = tmp_path_factory.mktemp("st") / "x.safetensors"
    save_file(tensors, path)
    assert {e.name: e.shape for e in safetensors_header.read(path).tensors} == {
        n: tuple(t.shape) for n, t in tensors.items()
    }


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header, tail",
    [
        ({"__metadata__": None, "a": ONE}, 8),
        ({"__metadata__": {"step": 3}, "a": ONE}, 8),
        ({"__metadata__": [], "a": ONE}, 8),
        ({"a": {**ONE, "note": {"b": 1}}}, 8),
        ({"a": {**ONE, "shape": [2] + [1] * 40}}, 8),
        ({}, 0),
        ({"a": ONE, "z": {**ONE, "shape": [0], "data_offsets": [4, 4]}}, 8),
        ({"a": {**ONE, "dtype": "F4", "shape": [16]}}, 8),
        ({"a": {**ONE, "dtype": "F4", "shape": [15]}}, 8),
        ({"a": {**ONE, "dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}, 3),
        ({"a": {**ONE, "dtype": "C64", "shape": []}}, 8),
        ({"\ud800": ONE}, 8),
        (
            {
                f"{'x' * 100}{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}
                for i in range(60_000)
            },
            60_000,
        ),
    ],
)
def test_headers_are_taken_and_refused_as_the_reference_does(header, tail):
    import safetensors

    raw = _safetensors(header, bytes(tail))
    try:
        wanted = {name: tuple(about["shape"]) for name, about in safetensors.deserialize(raw)}
    except safetensors.SafetensorError:
        with pytest.raises(BadInput):
            READERS["safetensors"](raw)
    else:
        assert {e.name: e.shape for e in READERS["safetensors"](raw).tensors} == wanted


def test_an_index_may_not_leave_its_directory(tmp_path):
    for name in ("../secret", "/etc/passwd", "", "a/b", 3):
        (tmp_path / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"w": name}})
        )
        with pytest.raises(BadInput):
            open_source(tmp_path).shards("safetensors")


def test_of_two_zip_directories_the_one_that_pytorch_reads_is_listed():
    """zipfile reads the other one: what would run could hide from it."""
    import zipfile

    import torch

    def archive(program: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as written:
            written.writestr("archive/data.pkl", program)
            written.writestr("archive/version", b"3\n")
        return file.getvalue()

    shown, hidden = archive(b"first"), archive(b"other")
    raw = shown[: shown.rfind(b"PK\x05\x06")] + hidden
    begin, length, _ = zip_directory.members(io.BytesIO(raw), len(raw))["archive/data.pkl"]
    assert raw[begin : begin + length] == b"first"
    assert torch._C.PyTorchFileReader(io.BytesIO(raw)).get_record("data.pkl") == b"first"
    with zipfile.ZipFile(io.BytesIO(raw)) as other:
        assert other.read("archive/data.pkl") == b"other"
