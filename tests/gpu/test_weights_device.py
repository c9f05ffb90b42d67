"""On a GPU: every loader puts the same bytes there, and the pinned ring's copies run while reads
do."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from labkit.weights import streamer
from labkit.weights.loaders import fast, instant, runai, safe

pytestmark = pytest.mark.needs("gpu")
LOADS = {
    "safetensors": safe.load,
    "safetensors-lazy": safe.load_lazy,
    "safetensors-pread": safe.load_pread,
    "safetensors-device": safe.load_device,
    "runai-streamer": runai.load,
    "fastsafetensors": fast.load,
    "instanttensor": instant.load,
    "labkit-streamer": streamer.load,
}
PACKAGES = {
    "runai-streamer": "runai_model_streamer",
    "fastsafetensors": "fastsafetensors",
    "instanttensor": "instanttensor",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    home = tmp_path_factory.mktemp("device")
    torch.manual_seed(2)
    save_file(
        {f"{i}.weight": torch.randn(4096, 4096).to(torch.bfloat16) for i in range(6)},
        home / "model.safetensors",
    )
    return home


def empty() -> nn.Module:
    with torch.device("meta"):
        return nn.ModuleList(
            nn.Linear(4096, 4096, bias=False, dtype=torch.bfloat16) for _ in range(6)
        )


@pytest.mark.parametrize("name", LOADS)
def test_parameters_on_the_device_are_bit_identical(name, directory):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name], reason=f"{name} is an extra")
    from safetensors.torch import load_file

    model = empty()
    LOADS[name](model, str(directory), "cuda")
    torch.cuda.synchronize()
    reference = load_file(directory / "model.safetensors")
    assert all(
        p.is_cuda and torch.equal(p.cpu(), reference[n]) for n, p in model.named_parameters()
    )


def test_copies_overlap_with_reads(directory):
    facts = streamer.load(empty(), str(directory), "cuda", chunk_bytes=4 << 20, threads=4)
    assert facts["mode"] == "ring" and facts["overlapped_copies"] > 0


def test_an_initialised_model_keeps_the_bytes_that_were_loaded_over_its_random_numbers(directory):
    from safetensors.torch import load_file

    with torch.device("cuda"):
        model = nn.ModuleList(
            nn.Linear(4096, 4096, bias=False, dtype=torch.bfloat16) for _ in range(6)
        )
    streamer.load(model, str(directory), "cuda")
    torch.cuda.synchronize()
    reference = load_file(directory / "model.safetensors")
    assert all(torch.equal(p.cpu(), reference[n]) for n, p in model.named_parameters())
