"""What a server on the lab's own interpreter keeps of the environment that the lab was called
in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from labkit.core import interpreter

ROOT = str(Path(__file__).resolve().parents[3])


def test_packages_that_the_caller_carried_stand_behind_the_lab_and_are_found_from_elsewhere(
    tmp_path, monkeypatch
):
    (tmp_path / "carried_wheel.py").write_text("x = 1\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), "", ROOT]))
    made = interpreter.environment()
    assert made["PYTHONPATH"].split(os.pathsep) == [ROOT, str(tmp_path)]
    code = "import carried_wheel, labkit; print(labkit.__file__)"
    assert subprocess.check_output(
        [sys.executable, "-c", code], env=made, cwd="/", text=True
    ).startswith(ROOT)


def test_how_cuda_and_torch_were_told_to_behave_is_kept_and_the_rest_is_not(monkeypatch):
    for name in (
        "CUDA_MODULE_LOADING",
        "CUDA_VISIBLE_DEVICES",
        "TORCH_CUDNN_SDPA_DEPRIORITIZED",
        "AWS_SECRET_ACCESS_KEY",
        "LABKIT_FAKE_CUDA",
    ):
        monkeypatch.setenv(name, "1")
    made = interpreter.environment("LABKIT_FAKE_CUDA")
    assert {
        "CUDA_MODULE_LOADING",
        "CUDA_VISIBLE_DEVICES",
        "TORCH_CUDNN_SDPA_DEPRIORITIZED",
        "LABKIT_FAKE_CUDA",
    } <= set(made)
    assert "AWS_SECRET_ACCESS_KEY" not in made and "TMPDIR" not in made


def test_a_server_of_a_trial_has_it_and_the_plan_s_own_wins(tmp_path, monkeypatch):
    from labkit.image.runtimes.process import host_command

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
    ctx = SimpleNamespace(
        server_args=[], server_env={"TORCH_CUDNN_SDPA_DEPRIORITIZED": "0"}, temporary=lambda: "/t"
    )
    _, made = host_command(ctx)
    assert (
        made["PYTHONPATH"].split(os.pathsep) == [ROOT, str(tmp_path)]
        and made["TORCH_CUDNN_SDPA_DEPRIORITIZED"] == "0"
        and made["TMPDIR"] == "/t"
    )


def test_packages_of_a_server_are_found_in_every_folder_they_are_spread_over(tmp_path, monkeypatch):
    for where in ("a/nvidia/cu13", "b/nvidia/cudnn", "b/torch", "b/numpy"):
        (tmp_path / where).mkdir(parents=True)
    (tmp_path / "c").symlink_to(tmp_path / "b")
    monkeypatch.setattr(
        sys,
        "path",
        [str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "c"), str(tmp_path / "none.zip")],
    )
    assert interpreter.packages() == [
        str(tmp_path / "a/nvidia"),
        str(tmp_path / "b/torch"),
        str(tmp_path / "b/nvidia"),
    ]


def test_without_an_image_all_of_the_server_s_environment_is_made_cold(tmp_path, monkeypatch):
    from labkit.core.plan import LaunchPlan
    from labkit.technique import technique

    for name in ("nvidia", "torch", "triton"):
        (tmp_path / name).mkdir()
    host_env, standing = technique("host-env"), technique("warm-standby")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert set(host_env.apply(LaunchPlan(stack={}), host_env.prepare(None, None)).cold_paths) == {
        str(tmp_path / name) for name in ("nvidia", "torch", "triton")
    }
    standby = standing.apply(
        LaunchPlan(
            stack={"image": "host-env"},
            scenario="warm-node",
            cold_paths=(str(tmp_path / "nvidia"), "/models/m"),
        ),
        host_env.prepare(None, None),
    )
    assert standby.cold_paths == ("/models/m",) and standby.state.resident_before_t0 == (
        str(tmp_path / "nvidia"),
    )
