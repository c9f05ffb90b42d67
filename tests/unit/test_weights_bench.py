"""The loader bench and its figures: the rival is chosen once, wrong bytes end it, figures say in words what they draw."""

from __future__ import annotations

import importlib
import math

import pytest

from labkit.bench import roads
from labkit.bench.engine import Measured, document
from labkit.bench.load import _agree, best_other
from labkit.core.plan import LaunchPlan
from labkit.errors import LabError
from labkit.face.loading import loads, sweep, trade
from labkit.technique import Seen
from labkit.weights.catalog import LOADERS
from labkit.weights.techniques import engaged


def of(*seconds: float, bits: int = 1) -> list[Measured]:
    extra = {"load_s": 0.1, "touch_s": 0.1, "first_token_s": 3.0, "sum": bits, "share_of_floor": 0.5}
    return [Measured(s, "cold", floor_s=1.0, evidence="2.2 GB from storage", extra=extra) for s in seconds]


def test_the_best_rival_is_the_one_with_the_lowest_median_of_the_same_cache_state():
    results = {"labkit-streamer.cold": of(1, 1, 1), "safetensors.cold": of(2, 2, 2), "pickle.cold": of(0.5, 3, 3), "gguf.warm": of(0.1, 0.1, 0.1), "tensorizer.cold": "not here"}
    assert best_other(results, "cold") == "safetensors.cold"


def test_two_loaders_with_different_bits_end_the_bench():
    _agree({"safetensors.cold": of(1), "pickle.cold": of(1), "gguf.cold": of(1, bits=9)})
    with pytest.raises(LabError, match="different parameters"):
        _agree({"safetensors.cold": of(1), "pickle.cold": of(1, bits=2)})


def test_every_loader_of_the_catalog_names_a_function_that_exists():
    for loader in LOADERS.values():
        module, _, function = loader.call.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("loader", LOADERS.values(), ids=lambda loader: loader.name)
def test_nothing_seen_is_no_evidence(loader):
    assert not engaged(loader, Seen(plan=LaunchPlan(stack={}))).engaged


def test_a_mapped_file_is_no_evidence_for_a_loader_that_reads():
    about = {"weights": {"bytes": 1000, "directory": "/m"}}
    seen = Seen(plan=LaunchPlan(stack={}, state=about), proc={"io": {"rchar": 5000}, "maps": ["/m/model.safetensors"]})
    assert not engaged(LOADERS["safetensors-pread"], seen).engaged
    assert engaged(LOADERS["safetensors"], seen).engaged


def test_a_bucket_that_sent_less_than_the_weights_is_no_evidence():
    about = {"weights": {"bytes": 1000, "remote": True, "key": "models/x"}}
    for sent, wanted in ((999, False), (1000, True)):
        seen = Seen(plan=LaunchPlan(stack={}, state=about), stores={"bucket": {"by_path": {"/lab/models/x/model.safetensors": {"bytes_sent": sent, "requests": 3}}}})
        assert engaged(LOADERS["labkit-streamer"], seen).engaged is wanted


def test_figures_say_in_words_what_they_draw():
    doc = document("load", {"safetensors.cold": of(2, 2.2, 2.1), "instanttensor.cold": "a CUDA GPU"}, {}, host={}, preset="1b")
    pictures = [loads(doc), sweep([{"readers": 1, "seconds": [2.0, 2.2]}, {"readers": 8, "seconds": [1.0]}], "readers", 0.9, "cache bypassed"),
                trade([{"format": "BF16", "size_bytes": 2e9, "load_s": 1.0, "distance": 0.0, "agree": 1.0}, {"format": "Q4_0", "size_bytes": 6e8, "load_s": 2.0, "distance": 0.3, "agree": 0.5}])]
    for picture, words in zip(pictures, (["safetensors.cold", "a CUDA GPU", "cache cold"], ["1 readers", "floor: 900 ms"], ["Q4_0", "0.3"]), strict=True):
        assert all(w in picture.text and w in picture.alt for w in words)
        assert picture.png().startswith(b"\x89PNG") and not math.isnan(len(picture.svg()))


def test_roads_race_in_rounds_and_the_floor_of_a_disk_is_the_best_of_them(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 3_000_001)
    rows = roads.race([tmp_path / "model.safetensors"], repeats=2)
    assert [row["road"] for row in rows] == list(roads.ROADS) and all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows)
    asked = []

    def looked(call, paths, road, ledger):
        asked.append(road)
        return {"direct 1": 3.0, "direct 8": 1.0, "mapped": 2.0}[road] / (1 + asked.count(road))

    monkeypatch.setattr(roads, "apart", looked)
    disk = roads.DiskFloor(tmp_path, None)
    disk.look()
    before = disk.rate
    disk.look(again=True)
    assert disk.road == "direct 8" and asked == [*roads.ROADS, "direct 8", "direct 8"]
    assert before < disk.rate == (before + 3_000_001 / (1.0 / 4)) / 2


def test_a_mapped_read_of_files_that_stay_in_memory_is_no_cold_read(tmp_path, monkeypatch):
    import mmap

    (tmp_path / "model.safetensors").write_bytes(b"x" * 3_000_001)
    with open(tmp_path / "model.safetensors", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        held[:]
        assert roads.seconds([tmp_path / "model.safetensors"], "direct 1") > 0
        with pytest.raises(LabError, match="not be cold"):
            roads.seconds([tmp_path / "model.safetensors"], "mapped")
        monkeypatch.setattr(roads, "apart", lambda call, paths, road, ledger: roads.seconds(paths, road))
        disk = roads.DiskFloor(tmp_path, None)
        disk.look()
        assert disk.road.startswith("direct") and disk.rate > 0
