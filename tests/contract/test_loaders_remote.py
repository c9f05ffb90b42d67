"""Loaders over the embedded bucket: same bytes, requests seen by the store, faults survived or
told."""

from __future__ import annotations

import importlib

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from labkit.errors import LabError
from labkit.net.serving import serving
from labkit.objects.publish import publish_model
from labkit.weights.catalog import LOADERS
from labkit.weights.convert import convert

HERE = [
    n
    for n, loader in LOADERS.items()
    if not loader.missing(gpu=False) and not loader.format.startswith("gguf")
]


def empty() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(900, 1000, bias=False), nn.Linear(1000, 600)).to(
            torch.bfloat16
        )


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    root = tmp_path_factory.mktemp("bucket")
    torch.manual_seed(5)
    tensors = {k: torch.randn(t.shape).to(torch.bfloat16) for k, t in empty().state_dict().items()}
    (root / "safetensors").mkdir()
    save_file(tensors, root / "safetensors" / "model.safetensors")
    with serving("store", root / "store") as served:
        for format in {LOADERS[n].format for n in HERE}:
            if format != "safetensors":
                convert(root / "safetensors", root / format, format)
            publish_model(root / "store", root / format, f"models/{format}")
        yield served, tensors


@pytest.fixture
def environment(bucket, monkeypatch):
    served, _ = bucket
    for key, value in {
        **served.env,
        "AWS_ENDPOINT_URL": served.url,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
    }.items():
        monkeypatch.setenv(key, value)
    served.set_faults(())
    served.reset()
    yield served
    served.set_faults(())


def run(name: str, key: str = "", **options) -> nn.Module:
    module, _, function = LOADERS[name].call.partition(":")
    model = empty()
    getattr(importlib.import_module(module), function)(
        model, f"s3://lab/models/{key or LOADERS[name].format}", "cpu", **options
    )
    return model


def right(model: nn.Module, tensors: dict) -> bool:
    return all(torch.equal(p, tensors[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", HERE)
def test_parameters_are_bit_identical_and_the_store_saw_their_bytes(name, bucket, environment):
    assert right(run(name), bucket[1])
    sent = sum(
        c["bytes_sent"]
        for p, c in environment.stats()["by_path"].items()
        if f"models/{LOADERS[name].format}" in p
    )
    assert sent >= sum(t.numel() * 2 for t in bucket[1].values())


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize(
    "fault",
    [
        "503:rate=0.2,retry_after=0.01",
        "reset:rate=0.2",
        "truncate:rate=0.2",
        "straggler:nth=4,slowed_to=20kB/s",
    ],
)
def test_the_streamer_survives_faults_with_no_wrong_byte(bucket, environment, fault, ring):
    environment.set_faults([fault], seed=4)
    assert right(run("labkit-streamer", ring=ring, chunk_bytes=64 << 10, connections=6), bucket[1])


@pytest.mark.parametrize("name", HERE)
def test_a_model_that_is_not_there_is_a_clear_error(name, environment):
    with pytest.raises(LabError):
        run(name, key="nothing-here")


def test_no_endpoint_is_a_clear_error(monkeypatch):
    for name in (
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ACCESS_KEY_ID",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
    ):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LabError, match="endpoint"):
        run("labkit-streamer")
