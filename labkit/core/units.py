"""Bytes, rates and seconds, in and out of text. Decimal units (1 MB = 1e6 B) unless the text says
KiB/MiB/GiB; links in bit/s.

parse_bytes("250MB") == 250_000_000 ; parse_rate("1gbit") == 125e6 ; show_bytes(2.2e9) == "2.20 GB"
"""

from __future__ import annotations

import re

from labkit.errors import BadInput

_BYTES = {
    "": 1,
    "b": 1,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "tb": 1e12,
    "k": 1e3,
    "m": 1e6,
    "g": 1e9,
    "t": 1e12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_BITS = {"bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_NUMBER = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)(/s|ps)?\s*$")


def parse_bytes(text: str | int) -> int:
    """`"5MB"`, `"2GiB"`, `4096` → bytes. Raises BadInput."""
    if isinstance(text, int):
        return text
    match = _NUMBER.match(text)
    if not match or match[2].lower() not in _BYTES or match[3]:
        raise BadInput(f"not a size: {text!r}", fix="write it like 250MB, 2GiB or 4096")
    return int(float(match[1]) * _BYTES[match[2].lower()])


def parse_rate(text: str | float) -> float:
    """`"1gbit"`, `"50MB/s"` → bytes per second. Raises BadInput."""
    if isinstance(text, (int, float)):
        return float(text)
    match = _NUMBER.match(text)
    unit = match[2].lower() if match else ""
    if match and unit in _BITS:
        return float(match[1]) * _BITS[unit] / 8
    if match and unit in _BYTES:
        return float(match[1]) * _BYTES[unit]
    raise BadInput(f"not a rate: {text!r}", fix="write it like 1gbit, 200mbit or 50MB/s")


def show_bytes(size_bytes: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size_bytes) >= scale:
            return (
                f"{size_bytes / scale:.0f} {unit}"
                if abs(size_bytes) / scale >= 100
                else f"{size_bytes / scale:.2f} {unit}"
            )
    return f"{int(size_bytes)} B"


def show_rate(rate_bytes_per_s: float) -> str:
    return show_bytes(rate_bytes_per_s) + "/s"


def show_s(seconds: float) -> str:
    """Three significant figures: 0.043 s → `43 ms`, 3.217 → `3.22 s`, 75 → `75.0 s`, 400 → `6 min
    40 s`."""
    if seconds < 0:
        return "-" + show_s(-seconds)
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        milliseconds = seconds * 1e3
        return f"{milliseconds:.0f} ms" if milliseconds >= 99.95 else f"{milliseconds:.3g} ms"
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 180:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
