"""A compile cache is filled on the device that will use it, and each device has its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.core.node_state import PlanState
from labkit.core.workspace import Workspace
from labkit.technique import Subject, technique


def test_the_cache_is_filled_on_the_servers_own_device(tmp_path, monkeypatch):
    told: list[tuple[str, ...]] = []

    def one_token(model_dir: Path, *, extra: tuple[str, ...], environment: dict[str, str]) -> None:
        told.append(extra)

    monkeypatch.setattr("labkit.device.standalone.one_token", one_token)
    model = tmp_path / "model"
    model.mkdir()
    space = Workspace.at(tmp_path / "lab")
    made = {
        device: technique("compile-cache").prepare(Subject(model_dir=model, device=device), space)
        for device in ("cpu", "cuda", "cpu")
    }
    assert [extra[-1] for extra in told] == [
        "cpu",
        "cuda",
    ]  # the third found its cache
    assert (
        made["cpu"].digest != made["cuda"].digest
        and made["cpu"].paths["cache"] != made["cuda"].paths["cache"]
    )


def on_gpu(counted, files, *, before=None, tmp_path):
    """What a trial on a GPU shows: the compiler's count in the warm-up's span, and files in the
    cache."""
    from dataclasses import replace

    from labkit.core.plan import LaunchPlan
    from labkit.core.timeline import Span
    from labkit.device.compile_cache import compiled_files
    from labkit.technique import Observation

    cache = tmp_path / "cache"
    for name in files:
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(b"x")
    plan = LaunchPlan(stack={}, server_args=("--compile",), device="cuda")
    plan = replace(
        plan,
        state=PlanState(
            compile_cache=str(cache),
            compile_cache_files=compiled_files(cache) if before is None else before,
            compile_cache_bytes=5,
        ),
    )
    span = Span("warmup", 1.0, 2.0, "server", {"tokens": 5, **counted})
    return Observation(
        plan=plan,
        spans=[span],
        proc={"maps": ["/usr/lib/libcuda.so.1"]},
        facts={"start": {"empty_cache": str(cache)}},
        stores={},
    )


@pytest.mark.parametrize(
    ("technique_name", "counted", "files", "before", "good"),
    [
        (
            "compile-cache",
            {"graphs_from_cache": 2, "graphs_made_anew": 0},
            ["triton/A/k.cubin"],
            None,
            True,
        ),
        (
            "compile-cache",
            {"graphs_from_cache": 1, "graphs_made_anew": 1},
            ["triton/A/k.cubin"],
            None,
            False,
        ),
        # torch.compile fell back to eager: nothing anew, and nothing from the cache
        ("compile-cache", {}, ["triton/A/k.cubin"], None, False),
        (
            "compile-cache",
            {"graphs_from_cache": 2, "graphs_made_anew": 0},
            ["triton/A/k.cubin"],
            {},
            False,
        ),
        (
            "compile-cold",
            {"graphs_from_cache": 0, "graphs_made_anew": 2},
            ["triton/A/k.cubin", "triton/B/cuda_utils.so"],
            None,
            True,
        ),
        # a launcher is no kernel
        (
            "compile-cold",
            {"graphs_from_cache": 0, "graphs_made_anew": 2},
            ["triton/B/cuda_utils.so"],
            None,
            False,
        ),
        (
            "compile-cold",
            {"graphs_from_cache": 2, "graphs_made_anew": 0},
            ["triton/A/k.cubin"],
            None,
            False,
        ),
    ],
)
def test_on_a_gpu_the_compiler_s_own_count_and_its_kernels_are_the_evidence(
    tmp_path, technique_name, counted, files, before, good
):
    found = technique(technique_name).verify(
        on_gpu(counted, files, before=before, tmp_path=tmp_path)
    )
    assert found.engaged is good, found.how
