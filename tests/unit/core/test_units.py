from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.core import units
from labkit.errors import BadInput


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("250MB", 250_000_000),
        ("2GiB", 2**31),
        ("4096", 4096),
        ("1.5kb", 1500),
        (" 3 m ", 3_000_000),
        (7, 7),
    ],
)
def test_sizes_are_decimal_unless_the_text_says_binary(text, size_bytes):
    assert units.parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1gbit", 125e6),
        ("1Gbps", None),
        ("50MB/s", 50e6),
        ("200mbit", 25e6),
        ("8bit", 1.0),
        (5, 5.0),
    ],
)
def test_links_are_in_bits_and_disks_in_bytes(text, rate):
    if rate is None:
        with pytest.raises(BadInput):
            units.parse_rate(text)
    else:
        assert units.parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1e9", "5 parsecs", "10MB/s", "1.2.3MB", "∞"])
def test_a_size_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(BadInput) as caught:
        units.parse_bytes(text)
    assert "250MB" in caught.value.fix


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_a_bad_input(text):
    with contextlib.suppress(BadInput):
        assert units.parse_bytes(text) >= 0


@given(st.text(max_size=20))
def test_any_text_is_a_rate_or_a_bad_input(text):
    with contextlib.suppress(BadInput):
        assert units.parse_rate(text) >= 0


@given(st.integers(1000, 10**15))
def test_a_shown_size_reads_back_within_one_per_cent(size_bytes):
    assert units.parse_bytes(units.show_bytes(size_bytes).replace(" ", "")) == pytest.approx(
        size_bytes, rel=0.01
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.3e-5, "43 µs"),
        (0.0431, "43.1 ms"),
        (3.217, "3.22 s"),
        (75, "75.0 s"),
        (400, "6 min 40 s"),
        (86_400, "24 h 0 min"),
        (-0.5, "-500 ms"),
        (0, "0 µs"),
    ],
)
def test_seconds_are_shown_in_the_unit_people_use(seconds, text):
    assert units.show_s(seconds) == text


@given(st.floats(0, 1e5))
def test_seconds_are_never_shown_with_an_exponent(seconds):
    assert "e" not in units.show_s(seconds)
