"""Sleep and wake against the simulated device memory; CUDA graphs against the stand-in that records
nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core import host, probes
from labkit.core.node_state import PlanState, WeightsState
from labkit.core.plan import LaunchPlan
from labkit.device import standby
from labkit.device.arena import ALIGNED_BYTES
from labkit.device.driver_states import DriverRefused
from labkit.device.fake_driver import FakeMemory
from labkit.device.graph_techniques import BATCHES
from labkit.errors import BadInput, MissingCapability
from labkit.subject import graphs
from labkit.subject.config import LlamaConfig
from labkit.subject.decode import generate
from labkit.subject.llama import Llama
from labkit.technique import Artifact, technique

PROMPT = [3, 1, 4, 1, 5]
GPU_TECHNIQUES = ("all-graphs", "fewer-graphs", "warm-standby")


def small_model(tied: bool = False) -> Llama:
    torch.manual_seed(7)
    config = LlamaConfig.from_json(
        {
            "model_type": "llama",
            "vocab_size": 97,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": tied,
            "torch_dtype": "float32",
        }
    )
    return Llama(config, torch.float32).finish(64)


def tokens(model: Llama, cache=None, step=None) -> list[int]:
    return [
        t for t, _ in generate(model, PROMPT, 12, cache=cache or model.new_cache(64), step=step)
    ]


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_that_slept_answers_as_before_and_held_nothing_meanwhile(tied):
    model, memory = small_model(tied), FakeMemory()
    before, size_bytes = (
        tokens(model),
        sum(p.numel() * p.element_size() for p in model.parameters()),
    )
    sleeping = standby.sleep(model, memory)
    assert sleeping.size_bytes == size_bytes and all(p.numel() == 0 for p in model.parameters())
    standby.wake(sleeping, memory)
    assert (
        memory.used_bytes() == sleeping.arena_bytes
        and 0 <= sleeping.arena_bytes - size_bytes < ALIGNED_BYTES * len(sleeping.parameters)
    )
    assert tokens(model) == before


@given(share=st.floats(0.0, 0.999))
@settings(deadline=None, max_examples=15)
def test_a_wake_that_does_not_fit_leaves_all_of_it_asleep_and_can_be_tried_again(share):
    model = small_model()
    before = tokens(model)
    memory = FakeMemory()
    sleeping = standby.sleep(model, memory)
    memory.capacity_bytes = int(share * sleeping.size_bytes)
    with pytest.raises(DriverRefused, match="OUT_OF_MEMORY"):
        standby.wake(sleeping, memory)
    assert (
        not sleeping.awake
        and all(p.numel() == 0 for p in model.parameters())
        and memory.used_bytes() == 0
    )
    memory.capacity_bytes = None
    standby.wake(sleeping, memory)
    assert tokens(model) == before


def test_waking_twice_copies_once():
    model, memory = small_model(), FakeMemory()
    sleeping = standby.sleep(model, memory)
    standby.wake(sleeping, memory)
    memory.capacity_bytes = 0
    standby.wake(sleeping, memory)


@given(sizes=st.lists(st.sampled_from(BATCHES), min_size=1, max_size=4, unique=True))
@settings(deadline=None, max_examples=10)
def test_a_step_over_recorded_graphs_gives_the_eager_tokens(sizes):
    model = small_model()
    cache = model.new_cache(64)
    step = graphs.Graphs(model, cache, sizes, graphs.Simulated())
    assert tokens(model, cache, step) == tokens(model)
    assert (step.replayed > 0) == (1 in sizes)


@torch.inference_mode()
def test_a_recorded_batch_gives_each_request_its_own_logits():
    model = small_model()
    cache, position, ids = model.new_cache(64), torch.tensor([0]), torch.tensor([[5], [9]])
    step = graphs.Graphs(model, cache, (1, 2, 4), graphs.Simulated())
    together = step(ids, position, cache, None)
    assert step.replayed == 1
    for row, alone in zip(
        together,
        (model(one[None], position, model.new_cache(64), None) for one in ids),
        strict=True,
    ):
        assert torch.allclose(row, alone[0], atol=1e-5)
    assert step.slots[2].cache.keys[0].data_ptr() == step.slots[4].cache.keys[0].data_ptr()


def test_a_cache_that_was_given_back_is_never_replayed_into():
    model = small_model()
    step = graphs.Graphs(model, model.new_cache(64), (1,), graphs.Simulated())
    assert tokens(model, model.new_cache(64), step) == tokens(model)
    assert step.replayed == 0


def test_graphs_without_a_gpu_are_refused_with_the_reason(monkeypatch):
    monkeypatch.delenv("LABKIT_FAKE_CUDA", raising=False)
    with pytest.raises(MissingCapability, match="need a GPU"):
        graphs.recorder("cpu")


@pytest.mark.parametrize("text", ["", "0", "1,x", "-2", ","])
def test_batch_sizes_that_are_none_are_refused(text):
    with pytest.raises(BadInput):
        graphs.parse_sizes(text)


@pytest.mark.parametrize("name", GPU_TECHNIQUES)
def test_on_a_host_without_a_gpu_the_technique_says_that_it_needs_one(name, monkeypatch):
    monkeypatch.setattr(
        "labkit.device.graph_techniques.capability",
        lambda what: probes.Capability(what, False, "no NVIDIA driver", "", "a GPU host"),
    )
    found = technique(name).available(host.card())
    assert (
        not found.ok and found.missing.startswith("gpu:") and "GPU host" in found.fix and found.why
    )


def test_fewer_graphs_asks_for_fewer_and_both_run_on_the_gpu(monkeypatch):
    monkeypatch.delenv("LABKIT_FAKE_CUDA", raising=False)
    plans = {
        name: technique(name).apply(LaunchPlan(stack={"device": name}), Artifact(name))
        for name in ("all-graphs", "fewer-graphs")
    }
    asked = {
        name: plan.server_args[plan.server_args.index("--graphs") + 1]
        for name, plan in plans.items()
    }
    assert asked["fewer-graphs"] == "1" and len(graphs.parse_sizes(asked["all-graphs"])) == len(
        BATCHES
    )
    assert all(plan.on_gpu for plan in plans.values())


def test_a_standby_on_a_fresh_node_or_with_an_image_is_refused():
    standing = technique("warm-standby")
    with pytest.raises(BadInput, match="resident before t0"):
        standing.apply(
            LaunchPlan(stack={"image": "host-env"}, scenario="fresh-node"), Artifact(standing.name)
        )
    with pytest.raises(BadInput, match="has an OCI image"):
        standing.apply(
            LaunchPlan(stack={"image": "full-pull"}, scenario="warm-node"), Artifact(standing.name)
        )


def test_a_standby_s_floor_is_the_bus_and_its_process_layer_starts_nothing():
    plan = LaunchPlan(
        stack={"image": "host-env"},
        scenario="warm-node",
        floors_bytes={"load": 5},
        state=PlanState(weights=WeightsState(bytes=5)),
        cold_paths=("/x/site-packages/torch", "/models/m"),
    )
    made = technique("warm-standby").apply(plan, Artifact("warm-standby"))
    assert made.floors_bytes == {"load@h2d": 5} and {"process", "weights"} <= set(made.replaces)
    assert made.cold_paths == ("/models/m",) and made.state.resident_before_t0 == (
        "/x/site-packages/torch",
    )
