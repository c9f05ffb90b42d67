"""A compile cache is filled on the device that will use it, and each device has its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.core.plan import told_device
from labkit.core.workspace import Workspace
from labkit.technique import Subject, technique


@pytest.mark.parametrize(("args", "device"), [((), "cpu"), (("--device", "cuda"), "cuda"), (("--device", "cuda", "--port", "1", "--device", "cpu"), "cpu"),
                                              (("--model", "--device"), "cpu")])
def test_the_last_device_told_counts(args, device):
    assert told_device(args) == device


def test_the_cache_is_filled_on_the_servers_own_device(tmp_path, monkeypatch):
    told: list[tuple[str, ...]] = []

    def one_token(model_dir: Path, *, extra: tuple[str, ...], environment: dict[str, str]) -> None:
        told.append(extra)

    monkeypatch.setattr("labkit.device.standalone.one_token", one_token)
    model = tmp_path / "model"
    model.mkdir()
    space = Workspace.at(tmp_path / "lab")
    made = {device: technique("compile-cache").prepare(Subject(model_dir=model, device=device), space) for device in ("cpu", "cuda", "cpu")}
    assert [told_device(extra) for extra in told] == ["cpu", "cuda"]  # the third found its cache
    assert made["cpu"].digest != made["cuda"].digest and made["cpu"].paths["cache"] != made["cuda"].paths["cache"]
