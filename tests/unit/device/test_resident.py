"""Weights that a daemon holds: the loader's contract over the simulated device, what it refuses,
and what counts as evidence."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from labkit.core import interpreter
from labkit.core.plan import LaunchPlan
from labkit.core.timeline import Span
from labkit.device import resident
from labkit.errors import BadInput
from labkit.technique import Artifact, Observation, technique


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = (
            nn.Embedding(32, 16),
            nn.RMSNorm(16),
            nn.Linear(16, 32, bias=False),
        )


def build(where: str = "meta") -> Model:
    with torch.device(where):
        return Model().to(torch.bfloat16)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(3)
    tensors = {n: torch.randn(p.shape).to(torch.bfloat16) for n, p in build().state_dict().items()}
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder, tensors


@pytest.fixture
def daemon(checkpoint, tmp_path):
    """(process, its folder, what it said): the weights in shared host memory."""
    folder = tmp_path / ("a-long-name-" * 12)
    folder.mkdir(mode=0o700)
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [
            *interpreter.module("labkit.device.resident"),
            str(write_end),
            str(folder),
            str(checkpoint[0]),
            "cpu",
        ],
        stdin=subprocess.PIPE,
        pass_fds=(write_end,),
    )
    os.close(write_end)
    with os.fdopen(read_end) as answers:
        said = json.loads(answers.readline() or "{}")
    yield process, folder, said
    process.kill()
    process.wait()
    process.stdin.close()


def test_parameters_are_views_of_the_daemons_memory_and_bit_identical(checkpoint, daemon):
    source, tensors = checkpoint
    process, folder, said = daemon
    one, two = build(), build()
    facts = [resident.load(m, str(source), "cpu", folder=str(folder)) for m in (one, two)]
    for model, fact in zip((one, two), facts, strict=True):
        assert all(torch.equal(model.state_dict()[n], t) for n, t in tensors.items())
        assert fact["copied_bytes"] == 0 and fact["mapped_bytes"] == fact["size_bytes"] == sum(
            t.nbytes for t in tensors.values()
        )
    one.norm.weight.data.fill_(7)  # they are the same bytes
    assert bool((two.norm.weight == 7).all())
    assert said["pid"] == process.pid == facts[0]["daemon_pid"] and "simulated" in facts[0]["label"]


def test_initialised_models_are_filled_and_the_copy_is_counted(checkpoint, daemon):
    source, tensors = checkpoint
    model = build("cpu")
    before = {n: p.data_ptr() for n, p in model.named_parameters()}
    facts = resident.load(model, str(source), "cpu", folder=str(daemon[1]))
    assert (
        {n: p.data_ptr() for n, p in model.named_parameters()} == before
        and facts["copied_bytes"] == facts["size_bytes"]
        and not facts["mapped_bytes"]
    )
    assert all(torch.equal(p, tensors[n]) for n, p in model.named_parameters())


def test_the_daemon_ends_with_whoever_started_it(daemon):
    process = daemon[0]
    process.stdin.close()
    assert process.wait(30) == 0


def test_what_is_not_of_this_daemon_is_refused(checkpoint, daemon, tmp_path, monkeypatch):
    source, _ = checkpoint
    with pytest.raises(BadInput, match="the daemon holds"):
        resident.load(build(), str(tmp_path), "cpu", folder=str(daemon[1]))
    with pytest.raises(BadInput, match="host memory"):
        resident.load(build(), str(source), "cuda:0", folder=str(daemon[1]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no daemon answers"):
        resident.load(build(), str(source), "cpu", folder=str(tmp_path / "empty"))
    monkeypatch.delenv(resident.WHERE, raising=False)
    with pytest.raises(BadInput, match="no daemon holds"):
        resident.load(build(), str(source), "cpu")
    other = nn.Module()
    other.another = nn.Linear(2, 2)
    with pytest.raises(BadInput, match="no parameter in the model"):
        resident.load(other, str(source), "cpu", folder=str(daemon[1]))


def test_a_daemon_that_cannot_load_says_why(tmp_path):
    read_end, write_end = os.pipe()
    done = subprocess.run(
        [
            *interpreter.module("labkit.device.resident"),
            str(write_end),
            str(tmp_path),
            str(tmp_path),
            "cpu",
        ],
        stdin=subprocess.DEVNULL,
        pass_fds=(write_end,),
    )
    os.close(write_end)
    with os.fdopen(read_end) as answers:
        assert "no safetensors checkpoint" in json.loads(answers.readline())["failed"]
    assert done.returncode == 2


def artifact(tmp_path) -> Artifact:
    return Artifact(
        "device-resident",
        "d",
        {"model_dir": str(tmp_path)},
        {
            "model_key": "models/m",
            "prepare_s": 0.0,
            "size_bytes": 0,
            "weights_bytes": 2_000_000_000,
            "files": [str(tmp_path / "model.safetensors")],
            "weight_files": [str(tmp_path / "model.safetensors")],
        },
    )


def plan(tmp_path, scenario="warm-node", **stack) -> LaunchPlan:
    return technique("device-resident").apply(
        LaunchPlan(
            stack={"image": "host-env", **stack},
            scenario=scenario,
            device="cuda",
            cold_paths=("/x/site-packages/torch",),
        ),
        artifact(tmp_path),
    )


def test_no_byte_is_asked_of_disk_or_bus_and_what_the_daemon_maps_is_said(tmp_path):
    made = plan(tmp_path)
    assert not [k for k in made.floors_bytes if k.startswith("load")]
    assert made.cold_paths == (
        str(tmp_path / "model.safetensors"),
    ) and made.state.resident_before_t0 == ("/x/site-packages/torch",)
    assert [s.call for s in made.steps] == ["labkit.device.resident:offer"]
    for wrong in ({"scenario": "fresh-node"}, {"image": "full-pull"}):
        with pytest.raises(BadInput):
            plan(tmp_path, **wrong)


GOOD = {
    "mapped_bytes": 2_000_000_000,
    "copied_bytes": 0,
    "read_in_load_bytes": 30_000,
    "daemon_pid": 41,
    "parameters": 9,
    "device_parameters": 9,
    "device_bytes": 2_000_000_000,
    "allocated_bytes": 34_000_000,
}
HELD = {"pid": 41, "weights_bytes": 2_000_000_000, "device_bytes_held": 2_500_000_000, "label": ""}


@pytest.mark.parametrize(
    ("load", "held", "proc", "good"),
    [
        ({}, {}, {}, True),
        ({}, {"device_bytes_held": None}, {}, True),  # NVML shows no processes in many containers
        ({"mapped_bytes": 1_000_000_000}, {}, {}, False),
        ({"copied_bytes": 1}, {}, {}, False),
        ({"read_in_load_bytes": 200_000_000}, {}, {}, False),
        ({"allocated_bytes": 2_034_000_000}, {}, {}, False),
        ({"device_parameters": 8}, {}, {}, False),
        ({"daemon_pid": 42}, {}, {}, False),
        ({}, {"device_bytes_held": 500_000_000}, {}, False),
        ({}, {}, {"io": {"rchar": 2_000_000_000}}, False),
        ({}, {}, {"maps": ["{model}/model.safetensors"]}, False),
    ],
)
def test_evidence_is_the_daemon_s_memory_and_nothing_read(tmp_path, load, held, proc, good):
    (tmp_path / "model.safetensors").write_bytes(b"")
    seen = Observation(
        plan=plan(tmp_path, scenario="hot-node"),
        spans=(Span("load", 1.0, 1.1, "server", GOOD | load),),
        facts={"start": {"resident": HELD | held}},
        proc={"io": {"rchar": 40_000_000}, "maps": []}
        | {
            k: [m.replace("{model}", str(tmp_path)) for m in v] if k == "maps" else v
            for k, v in proc.items()
        },
    )
    found = technique("device-resident").verify(seen)
    assert found.engaged is good, found.how
    assert not technique("device-resident").verify(replace(seen, facts={})).engaged
