"""The emulated link: what it promises is arithmetic, so it is tested on a clock of its own."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import BadInput
from labkit.net import faults, link


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(link.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(link.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


@pytest.mark.parametrize("preset", link.PRESETS.values(), ids=str)
def test_every_preset_says_where_its_figures_come_from_and_survives_its_own_text(preset):
    assert preset.source
    assert link.parse(preset.spec) == preset


def test_the_spec_of_any_link_reads_back_as_the_same_limits():
    made = link.parse("rate=1gbit,connection=50MB/s,first_byte=30ms")
    again = link.parse(made.spec)
    assert (again.rate_bytes_per_s, again.connection_bytes_per_s, again.first_byte_s) == (
        125e6,
        50e6,
        0.03,
    )
    assert "emulated" in made.label and "30 ms" in made.label


def test_a_preset_can_be_changed_in_one_field():
    made = link.parse("1gbit,first_byte=5ms")
    assert (made.rate_bytes_per_s, made.first_byte_s) == (125e6, 0.005)


@pytest.mark.parametrize(
    "text",
    ["1gbot", "rate=fast", "rate=0bit", "rate=1gbit,colour=red", "first_byte=30", "=", "rate"],
)
def test_nonsense_is_refused_with_a_fix(text):
    with pytest.raises(BadInput):
        link.parse(text)


@given(st.text(max_size=40))
def test_any_text_is_a_link_or_bad_input(text):
    with contextlib.suppress(BadInput):
        assert link.parse(text).label


def test_one_connection_arrives_when_the_link_has_carried_it(clock):
    pacer = link.Pacer(link.parse("rate=100MB/s,connection=10MB/s"))
    with pacer.lane() as lane:
        for _ in range(10):
            lane.wait(1_000_000)
    assert clock[0] == pytest.approx(101.0)


def test_connections_share_the_total(clock):
    pacer = link.Pacer(link.parse("rate=10MB/s"))
    with pacer.lane() as one, pacer.lane() as other:
        for _ in range(5):
            one.wait(1_000_000)
            other.wait(1_000_000)
    assert clock[0] == pytest.approx(101.0)


def test_idle_time_is_not_saved_up(clock):
    pacer = link.Pacer(link.parse("10MB/s"))
    with pacer.lane() as lane:
        lane.wait(1_000_000)
    clock[0] += 50
    with pacer.lane() as lane:
        lane.wait(10_000_000)
    assert clock[0] == pytest.approx(100.1 + 50 + 1.0)


@given(st.lists(st.tuples(st.integers(1, 1 << 20), st.floats(0, 0.1)), min_size=1, max_size=60))
def test_the_link_never_carries_more_than_its_rate_since_it_became_busy(slices):
    now = [0.0]
    saved = link.time.monotonic, link.time.sleep
    link.time.monotonic, link.time.sleep = (
        (lambda: now[0]),
        (lambda s: now.__setitem__(0, now[0] + s)),
    )
    try:
        sent = 0
        with link.Pacer(link.parse("5MB/s")).lane() as lane:
            for size, lag_s in slices:
                lane.wait(size)
                sent += size
                assert sent <= 5e6 * now[0] + 1
                now[0] += lag_s
    finally:
        link.time.monotonic, link.time.sleep = saved


def test_the_floor_is_one_first_byte_and_the_bytes_at_the_joint_rate():
    bucket = link.PRESETS["1gbit-bucket"]
    assert bucket.floor_s(125e6, 1) == pytest.approx(0.03 + 2.5)
    assert bucket.floor_s(125e6, 16) == pytest.approx(0.03 + 1.0)
    assert link.PRESETS["loopback"].floor_s(1e9) == 0


def test_the_same_seed_hits_the_same_requests_in_any_order():
    names = [f"/blob/{i}" for i in range(400)]

    def hit(order, seed):
        drawn = faults.parse(["503:rate=0.1"], seed)
        return {n for n in order if drawn.draw("GET", n)}

    assert hit(names, 1) == hit(reversed(names), 1) != hit(names, 2)
    assert 15 <= len(hit(names, 1)) <= 80


def test_nth_hits_exactly_one_matching_request():
    drawn = faults.parse(["reset:nth=2,path=/blobs/"])
    hits = [
        bool(drawn.draw("GET", p, size_bytes=9))
        for p in ("/blobs/a", "/tags", "/blobs/b", "/blobs/c")
    ]
    assert hits == [False, False, True, False]
    assert drawn.hits == {"reset": 1}


@pytest.mark.parametrize(
    "text",
    ["teapot:rate=1", "503", "503:rate=2", "reset:nth=x", "reset:nth=1,colour=red", "503:rate"],
)
def test_a_fault_that_says_nothing_is_refused(text):
    with pytest.raises(BadInput):
        faults.parse([text])
