from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.core import floor, rates
from labkit.net.link import Link, parse

UNHURRIED = Link("1gbit", 125e6)
RATES = {
    "disk_read_bytes_per_s": 1e9,
    "loopback_bytes_per_s": 2e9,
    "decompress_gzip_bytes_per_s": 3e8,
    "decompress_isal_bytes_per_s": 6e8,
    "memcpy_bytes_per_s": 1e10,
    "h2d_pinned_bytes_per_s": 2.5e10,
    "h2d_pageable_bytes_per_s": 1e10,
    "cpus": 2,
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return rates.measure(tmp_path_factory.mktemp("lab"))


def test_every_rate_is_measured_positive_and_json(measured):
    json.dumps(measured, allow_nan=False)
    for key in ("disk_read", "disk_write", "loopback", "decompress_gzip", "digest", "memcpy"):
        assert measured[f"{key}_bytes_per_s"] > 0
    assert measured["disk_read_method"] in ("O_DIRECT", "buffered")


def test_nothing_of_the_measurement_is_left(workspace):
    rates.disk(workspace, size_bytes=2 << 20)
    assert list(workspace.root.iterdir()) == []


def test_a_direct_read_reads_every_byte_once(tmp_path):
    sizes = [3_000_001, 4096, 1, 0]
    for i, size in enumerate(sizes):
        (tmp_path / f"f{i}").write_bytes(os.urandom(size))
    for depth, fresh in ((1, False), (7, False), (1, True), (7, True)):
        got, seconds, _ = rates.direct_read([tmp_path], depth, fresh=fresh, huge=depth == 7)
        assert got == sum(sizes) and seconds > 0


def test_a_direct_read_of_more_than_memory_holds_reads_every_byte_too(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(os.urandom(3_000_001))
    monkeypatch.setattr(rates, "_available_bytes", lambda: 3 << 20)
    assert rates.direct_read([tmp_path], 3, fresh=True)[0] == 3_000_001


def test_a_mapped_read_counts_every_byte(tmp_path):
    for i, size in enumerate((3_000_001, 4096, 0)):
        (tmp_path / f"f{i}").write_bytes(os.urandom(size))
    got, seconds = rates.mapped_read([tmp_path])
    assert got == 3_004_097 and seconds > 0


def test_a_gpus_bus_is_measured_both_ways_pinned_and_pageable(monkeypatch):
    torch = pytest.importorskip("torch")
    real = {name: getattr(torch, name) for name in ("empty", "ones")}
    for name in real:
        monkeypatch.setattr(
            torch,
            name,
            lambda *a, name=name, device=None, pin_memory=False, **k: real[name](*a, **k),
        )
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    found = rates._measure_device(1 << 20)
    assert (
        set(found)
        == {
            f"{way}_{kind}_bytes_per_s" for way in ("h2d", "d2h") for kind in ("pinned", "pageable")
        }
        and min(found.values()) > 0
    )
    assert (
        floor.rate_of(
            {
                "h2d_pinned_bytes_per_s": 5e10,
                "d2h_pinned_bytes_per_s": 9e10,
                "h2d_pageable_bytes_per_s": 1e10,
            },
            "h2d",
        )
        == 5e10
    )


def test_a_floor_is_bytes_over_the_slowest_resource_on_the_way():
    assert floor.phase_floors({"pull": 125_000_000, "load": 10**9}, RATES, UNHURRIED) == {
        "pull": 1.0,
        "load": 1.0,
    }
    assert floor.phase_floors({"pull": 2 * 10**9}, RATES) == {"pull": 1.0}


def test_the_fastest_decompressor_on_all_cpus_bounds_unpacking():
    assert floor.phase_floors({"unpack": 12 * 10**8}, RATES) == {"unpack": 1.0}


def test_a_technique_can_name_its_resource_and_the_slowest_counts():
    found = floor.phase_floors(
        {"load@link": 250_000_000, "load@h2d": 25 * 10**9, "load": 10**9},
        RATES,
        SimpleNamespace(rate_bytes_per_s=125e6, first_byte_s=0.03),
    )
    assert found == {"load": 2.03}


def test_weights_of_a_fresh_node_cross_the_link():
    assert floor.phase_floors({"load": 10**9}, RATES, UNHURRIED, "fresh-node") == {"load": 8.0}


def test_what_moves_from_t0_on_bounds_only_what_was_left_when_its_phase_began():
    late = {"load@link@t0": 10**9}
    assert floor.phase_floors(late, RATES, UNHURRIED, begins={"load": 3.0}) == {"load": 5.0}
    assert floor.phase_floors(late, RATES, UNHURRIED, begins={"load": 9.0}) == {"load": 0.0}
    assert floor.phase_floors(late, RATES, UNHURRIED) == {}
    assert floor.phase_floors({"load": 10**9}, RATES, UNHURRIED, "warm-node") == {"load": 1.0}


def test_a_hot_node_reads_memory_not_disk():
    assert floor.phase_floors({"load": 10**10}, RATES, scenario="hot-node") == {"load": 1.0}


def test_what_was_not_measured_is_left_out_rather_than_guessed():
    assert floor.phase_floors({"load@h2d": 10**9, "warmup": 5, "pull": 5}, {}) == {}


@pytest.mark.parametrize(
    ("link", "seconds"),
    [
        ("rate=1gbit", 8.0),
        ("rate=1gbit,first_byte=30ms", 8.03),
        ("50MB/s", 20.0),
        ("name=x,rate=125000000B/s,first_byte=30ms", 8.03),
    ],
)
def test_a_link_bounds_what_crosses_it_by_its_rate_and_its_first_byte(link, seconds):
    assert floor.phase_floors({"pull": 10**9}, RATES, parse(link)) == {"pull": seconds}


@given(st.none() | st.floats(1, 1e15), st.floats(0, 10))
def test_any_link_gives_a_bound_no_lower_than_loopback(rate, first_byte_s):
    link = Link("any", rate, first_byte_s=first_byte_s)
    assert floor.phase_floors({"pull": 2 * 10**9}, RATES, link)["pull"] >= 1.0


def test_the_sample_is_as_large_as_asked_and_compresses_like_software():
    import zlib

    sample = rates.real_bytes(1 << 20)
    assert len(sample) == 1 << 20 and 0.1 < len(zlib.compress(sample, 6)) / len(sample) < 0.9
