"""The loader bench and its figures: the rival is chosen once, wrong bytes end it, figures say in
words what they draw."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys

import pytest

from labkit import technique as techniques
from labkit.bench import load, load_child, load_disk, read_paths
from labkit.bench.engine import Measured, document, interleave
from labkit.bench.load_results import agreed, best_other
from labkit.core.node_state import PlanState, WeightsState
from labkit.core.plan import LaunchPlan
from labkit.core.timeline import Span
from labkit.errors import LabError
from labkit.technique import Artifact, Observation, Subject
from labkit.viz.loading import loads, sweep, trade
from labkit.weights.catalog import LOADERS
from labkit.weights.techniques import verify_loader


def of(*seconds: float, bits: int = 1) -> list[Measured]:
    extra = {
        "load_s": 0.1,
        "touch_s": 0.1,
        "first_token_s": 3.0,
        "sum": bits,
        "share_of_floor": 0.5,
    }
    return [
        Measured(s, "cold", floor_s=1.0, evidence="2.2 GB from storage", extra=extra)
        for s in seconds
    ]


def test_the_best_rival_is_the_one_with_the_lowest_median_of_the_same_cache_state():
    results = {
        "labkit-streamer.cold": of(1, 1, 1),
        "safetensors.cold": of(2, 2, 2),
        "pickle.cold": of(0.5, 3, 3),
        "gguf.warm": of(0.1, 0.1, 0.1),
        "tensorizer.cold": "not here",
    }
    assert best_other(results, "cold") == "safetensors.cold"


def failed(results):
    return {arm for arm, runs in agreed(results).items() for m in runs if m.failed}


def test_a_loader_with_other_bytes_than_the_plain_one_fails_and_the_others_stay():
    assert (
        failed({"safetensors.cold": of(1), "pickle.cold": of(1), "gguf.cold": of(1, bits=9)})
        == set()
    )
    assert failed(
        {
            "safetensors.cold": of(1),
            "pickle.cold": of(1, bits=2),
            "fastsafetensors.cold": of(1, bits=2),
            "gguf.cold": of(1, bits=9),
        }
    ) == {"pickle.cold", "fastsafetensors.cold"}
    doc = document(
        "load",
        agreed(
            {"safetensors.cold": of(1), "pickle.cold": of(1, bits=2), "tensorizer.cold": "not here"}
        ),
        {},
        host={},
    )
    wrong = next(row for row in doc["results"] if row["arm"] == "pickle.cold")
    assert (
        wrong["failed"] == 1
        and "wrong bytes" in wrong["missing"]
        and "wrong bytes" in wrong["failures"][0]["why"]
    )


def test_without_the_plain_loader_most_decide_and_two_against_each_other_both_fail():
    assert failed(
        {
            "pickle.cold": of(1),
            "labkit-streamer.cold": of(1),
            "labkit-streamer.warm": of(1),
            "fastsafetensors.cold": of(1, bits=2),
        }
    ) == {"fastsafetensors.cold"}
    assert failed({"pickle.cold": of(1), "fastsafetensors.cold": of(1, bits=2)}) == {
        "pickle.cold",
        "fastsafetensors.cold",
    }
    assert failed(
        {
            "pickle.cold": [Measured(float("nan"), failed="it did not load")],
            "fastsafetensors.cold": of(1, bits=2),
        }
    ) == {"pickle.cold"}


def test_whatever_an_arm_raises_is_its_own_failure_and_all_that_was_measured_is_told_after_each():
    def broken():
        raise ValueError("no such thing")

    told = []
    results = interleave(
        {"good": lambda: of(1)[0], "bad": broken},
        blocks=2,
        progress=lambda line: None,
        so_far=lambda r: told.append({k: len(v) for k, v in r.items()}),
    )
    assert [m.failed for m in results["bad"]] == ["ValueError: no such thing"] * 2 and not any(
        m.failed for m in results["good"]
    )
    assert len(told) == 4 and told[-1] == {"good": 2, "bad": 2}
    assert document("x", results, {}, host={})["results"][1]["failures"][1] == {
        "block": 1,
        "why": "ValueError: no such thing",
    }


def test_a_child_that_says_nothing_useful_ends_in_its_own_last_words(monkeypatch):
    monkeypatch.setattr(
        load_child,
        "module",
        lambda name: [
            sys.executable,
            "-c",
            (
                "import sys; print('RuntimeError: no driver', file=sys.stderr); print('  see the"
                " docs', file=sys.stderr)"
            ),
            name,
        ],
    )
    with pytest.raises(LabError, match="no driver"):
        load_child.measure(
            load_child.LoadSpec(
                loader=LOADERS["safetensors"], model="/m", weights_bytes=1000, device="cuda"
            )
        )


def test_a_child_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(load_child, "PATIENCE_S", 0.2)
    monkeypatch.setattr(
        load_child,
        "module",
        lambda name: [sys.executable, "-c", "import time; time.sleep(600)", name],
    )
    with pytest.raises(LabError, match="did not load"):
        load_child.measure(
            load_child.LoadSpec(
                loader=LOADERS["safetensors"], model="/m", weights_bytes=1000, device="cpu"
            )
        )


def test_every_loader_of_the_catalog_names_a_function_that_exists():
    for loader in LOADERS.values():
        module, _, function = loader.call.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("loader", LOADERS.values(), ids=lambda loader: loader.name)
def test_nothing_seen_is_no_evidence(loader):
    assert not verify_loader(loader, Observation(plan=LaunchPlan(stack={}))).engaged


def test_a_mapped_file_is_no_evidence_for_a_loader_that_reads():
    about = {"weights": {"bytes": 1000, "files": ["/m/model.safetensors"]}}
    seen = Observation(
        plan=LaunchPlan(stack={}, state=PlanState.from_json(about)),
        proc={"io": {"rchar": 5000}, "maps": ["/m/other.safetensors", "/m/model.safetensors"]},
    )
    assert not verify_loader(LOADERS["safetensors-pread"], seen).engaged
    assert verify_loader(LOADERS["safetensors"], seen).engaged


PLACED = {"parameters": 9, "device_parameters": 9, "device_bytes": 990, "allocated_bytes": 1024}


def on_a_gpu(directory, io, placed=PLACED, maps=("/usr/lib/libcuda.so.1",)):
    plan = LaunchPlan(
        stack={},
        device="cuda",
        state=PlanState(
            weights=WeightsState(bytes=1000, files=tuple(map(str, directory.glob("*.safetensors"))))
        ),
    )
    return Observation(
        plan=plan,
        spans=(Span("load", 0, 1, "server", placed),),
        proc={
            "io": io,
            "maps": [
                *maps,
                "/x/libstreamer.so",
                "/x/fastsafetensors/cpp.so",
                "/x/instanttensor/_C.so",
            ],
        },
    )


@pytest.mark.parametrize(
    "loader",
    [loader for loader in LOADERS.values() if loader.name != "sdk-download"],
    ids=lambda loader: loader.name,
)
def test_on_a_gpu_the_evidence_is_parameters_there_and_bytes_that_came(loader, tmp_path):
    for io in ({"rchar": 1000}, {"read_bytes": 1000}):  # nothing is mapped any more
        assert verify_loader(loader, on_a_gpu(tmp_path, io)).engaged
    assert not verify_loader(loader, on_a_gpu(tmp_path, {"rchar": 100})).engaged, (
        "nothing was read and no file is in memory"
    )
    for placed in ({}, {**PLACED, "device_parameters": 8}, {**PLACED, "device_bytes": 0}):
        assert not verify_loader(loader, on_a_gpu(tmp_path, {"rchar": 1000}, placed)).engaged
    assert not verify_loader(loader, on_a_gpu(tmp_path, {"rchar": 1000}, maps=())).engaged, (
        "a server without a CUDA driver has nothing on a device"
    )


def test_on_a_gpu_files_in_memory_are_read_without_a_counter_moving(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))  # just written: in the page cache
    assert verify_loader(LOADERS["safetensors"], on_a_gpu(tmp_path, {"rchar": 5})).engaged
    assert not verify_loader(LOADERS["safetensors"], on_a_gpu(tmp_path, {"rchar": 5}, {})).engaged


def test_a_bucket_that_sent_less_than_the_weights_is_no_evidence():
    about = {"weights": {"bytes": 1000, "remote": True, "key": "models/x"}}
    for sent, wanted in ((999, False), (1000, True)):
        seen = Observation(
            plan=LaunchPlan(stack={}, state=PlanState.from_json(about)),
            stores={
                "bucket": {
                    "by_path": {
                        "/lab/models/x/model.safetensors": {"bytes_sent": sent, "requests": 3}
                    }
                }
            },
        )
        assert verify_loader(LOADERS["labkit-streamer"], seen).engaged is wanted


@pytest.mark.parametrize("proxy", ["", "http://proxy.example:3128"])
def test_a_load_says_in_its_evidence_which_proxy_it_went_through(monkeypatch, proxy):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example")
    monkeypatch.setenv("https_proxy", proxy.replace("//", "//me:secret-word@"))
    about = {"weights": {"bytes": 10, "remote": True, "store": "s3://team/lab"}}
    seen = Observation(plan=LaunchPlan(stack={}, state=PlanState.from_json(about)))
    evidence = verify_loader(LOADERS["labkit-streamer"], seen)
    assert evidence.facts.get("proxy", "") == proxy and "secret-word" not in evidence.how
    assert ("through the proxy" in evidence.how) is bool(proxy)


def test_on_a_gpu_the_floor_of_a_load_is_the_slower_of_disk_and_bus():
    technique = techniques.technique("labkit-streamer")
    artifact = Artifact(
        "labkit-streamer",
        paths={"model_dir": "/m"},
        facts={"weights_bytes": 1000, "model_key": "k", "files": [], "weight_files": []},
    )
    for device, scenario, wanted in (
        ("cpu", "warm-node", {"load": 1000}),
        ("cuda", "warm-node", {"load": 1000, "load@h2d": 1000}),
        ("cuda:0", "hot-node", {"load@h2d": 1000}),
    ):
        plan = LaunchPlan(stack={}, scenario=scenario, device=device)
        assert technique.apply(plan, artifact).floors_bytes == wanted


def test_the_benchs_floors_on_a_gpu_name_what_bounds_them(tmp_path, monkeypatch):
    monkeypatch.setattr(load_disk.rates, "device", lambda: {"h2d_pinned_bytes_per_s": 50e9})
    floors = load_disk.LoadFloors("cuda", [], None)
    floors.disk.rate, floors.disk.read_path = 2e9, "direct 8"
    assert (floors.rate("cold"), floors.rate("warm")) == (2e9, 50e9) and floors.by(
        ["cold", "warm"]
    ) == "cold: the disk (direct 8); warm: the bus from pinned memory"
    floors.disk.rate = 90e9
    assert floors.rate("cold") == 50e9 and "cold: the bus" in floors.by(["cold"])
    monkeypatch.setattr(load_disk.rates, "device", lambda: {"h2d_failed": "no driver"})
    assert load_disk.LoadFloors("cuda", [], None).rate(
        "warm"
    ) == 0 and "no driver" in load_disk.LoadFloors("cuda", [], None).by(["warm"])


def test_of_a_large_checkpoint_the_first_shards_tell_the_disks_rate(tmp_path, monkeypatch):
    paths = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for path in paths:
        path.write_bytes(os.urandom(100_000))
    monkeypatch.setattr(read_paths, "SAMPLE_BYTES", 150_000)
    assert [p.name for p in read_paths.BufferFloor(paths, None).paths] == [
        "0.safetensors",
        "1.safetensors",
    ]
    monkeypatch.setattr(
        read_paths, "run_in_subprocess", lambda call, *args, ledger: {8: 2.0, 16: 1.0}[args[-1]]
    )
    disk = read_paths.BufferFloor(paths, None)
    disk.look()
    assert disk.rate == 200_000 and disk.read_path == "direct 16 into buffers used again"
    assert read_paths.seconds_into_buffers([tmp_path / "0.safetensors"], 2) > 0


@pytest.mark.parametrize("error", [LabError, RuntimeError])
def test_a_format_that_cannot_be_made_here_is_missing_and_the_others_are_measured(
    workspace, monkeypatch, capsys, error
):
    monkeypatch.setenv("LABKIT_HOME", str(workspace.root))
    monkeypatch.setenv("LABKIT_CUMULATIVE", "1")
    real = load_disk.checkpoint_in
    monkeypatch.setattr(
        load_disk,
        "checkpoint_in",
        lambda format, *rest: (
            real(format, *rest)
            if format == "safetensors"
            else (_ for _ in ()).throw(error("a full disk"))
        ),
    )
    monkeypatch.setattr(load_disk, "_load", lambda *rest: of(0.5)[0])
    doc = load.compare_loaders("safetensors", "pickle", preset="tiny", states=("warm",), blocks=2)
    rows = {row["arm"]: row for row in doc["results"]}
    assert rows["safetensors.warm"]["n"] == 2 and "a full disk" in rows["pickle.warm"]["missing"]
    so_far = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["results"][0]["n"] for line in so_far] == [1, 2] and all(
        line["partial"] for line in so_far
    ), "a bench that is ended keeps what it had"


def test_figures_say_in_words_what_they_draw():
    doc = document(
        "load",
        {"safetensors.cold": of(2, 2.2, 2.1), "instanttensor.cold": "a CUDA GPU"},
        {},
        host={},
        preset="1b",
    )
    pictures = [
        loads(doc),
        sweep(
            [{"readers": 1, "seconds": [2.0, 2.2]}, {"readers": 8, "seconds": [1.0]}],
            "readers",
            0.9,
            "cache bypassed",
        ),
        trade(
            [
                {"format": "BF16", "size_bytes": 2e9, "load_s": 1.0, "distance": 0.0, "agree": 1.0},
                {"format": "Q4_0", "size_bytes": 6e8, "load_s": 2.0, "distance": 0.3, "agree": 0.5},
            ]
        ),
    ]
    for picture, words in zip(
        pictures,
        (
            ["safetensors.cold", "a CUDA GPU", "cache cold"],
            ["1 readers", "floor: 900 ms"],
            ["Q4_0", "0.3"],
        ),
        strict=True,
    ):
        assert all(w in picture.text and w in picture.alt for w in words)
        assert picture.png().startswith(b"\x89PNG") and not math.isnan(len(picture.svg()))


def test_read_paths_are_compared_in_rounds_and_the_floor_of_a_disk_is_the_best_of_them(
    tmp_path, monkeypatch
):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 3_000_001)
    rows = read_paths.compare_read_paths([tmp_path / "model.safetensors"], repeats=2)
    assert [row["read_path"] for row in rows] == list(read_paths.READ_PATHS) and all(
        len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows
    )
    asked = []

    def looked(call, paths, read_path, ledger):
        asked.append(read_path)
        return {"direct 1": 3.0, "direct 8": 1.0, "mapped": 2.0}[read_path] / (
            1 + asked.count(read_path)
        )

    monkeypatch.setattr(read_paths, "run_in_subprocess", looked)
    disk = read_paths.DiskFloor([tmp_path / "model.safetensors"], None)
    disk.look()
    before = disk.rate
    disk.look(again=True)
    assert disk.read_path == "direct 8" and asked == [
        *read_paths.READ_PATHS,
        "direct 8",
        "direct 8",
    ]
    assert before < disk.rate == (before + 3_000_001 / (1.0 / 4)) / 2


def test_a_mapped_read_of_files_that_stay_in_memory_is_no_cold_read(tmp_path, monkeypatch):
    import mmap

    (tmp_path / "model.safetensors").write_bytes(b"x" * 3_000_001)
    with (
        open(tmp_path / "model.safetensors", "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held,
    ):
        held[:]
        assert read_paths.seconds([tmp_path / "model.safetensors"], "direct 1") > 0
        with pytest.raises(LabError, match="not be cold"):
            read_paths.seconds([tmp_path / "model.safetensors"], "mapped")
        monkeypatch.setattr(
            read_paths,
            "run_in_subprocess",
            lambda call, paths, read_path, ledger: read_paths.seconds(paths, read_path),
        )
        disk = read_paths.DiskFloor([tmp_path / "model.safetensors"], None)
        disk.look()
        assert disk.read_path.startswith("direct") and disk.rate > 0


@pytest.mark.parametrize("absolute", [False, True])
def test_of_a_directory_what_is_loaded_is_counted_made_cold_and_matched_through_its_links(
    tmp_path, workspace, absolute
):
    """The layout of the Hugging Face cache, beside the same weights in another format."""
    from labkit.subject.checkpoint import make_checkpoint

    make_checkpoint(tmp_path / "blobs", "tiny")
    (tmp_path / "blobs" / "more.bin").write_bytes(bytes(9_000_000))
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in (tmp_path / "blobs").iterdir():
        name = "pytorch_model.bin" if file.name == "more.bin" else file.name
        (snapshot / name).symlink_to(file if absolute else f"../../blobs/{file.name}")
    weights = tmp_path / "blobs" / "model.safetensors"
    technique = techniques.technique("safetensors")
    (tmp_path / "link").symlink_to(snapshot)
    subject = Subject(model_dir=tmp_path / "link", preset="own")
    artifact = technique.prepare(subject, workspace)
    plan = technique.apply(LaunchPlan(stack={}, scenario="warm-node"), artifact)
    assert plan.state.weights.bytes == weights.stat().st_size == plan.floors_bytes["load"]
    assert plan.state.weights.files == (str(weights),)
    assert set(plan.cold_paths) == {
        str(f) for f in (tmp_path / "blobs").iterdir() if f.name != "more.bin"
    }
    assert plan.server_binds == tuple((p, p) for p in (str(snapshot), str(tmp_path / "blobs")))
    seen = Observation(plan=plan, proc={"io": {}, "maps": [str(weights)]})
    assert technique.verify(seen).engaged
