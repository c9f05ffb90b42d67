"""Numbers as protocols write them: ASCII digits and nothing else.

`int()` takes "+5", "1_0", " 5", "0x5" (base 16) and the digits of every script; two parties who
read such a number differently disagree about where a message ends, which is how requests are
smuggled.

    decimal("42") == 42; hexadecimal(b"1f") == 31          # anything else: ValueError

Limit: 18 digits (16 hexadecimal ones), more than any size of bytes here. Lesson:
notebooks/02_image_pull."""

from __future__ import annotations

import re

_DECIMAL = re.compile(r"[0-9]{1,18}")
_HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{1,16}")
_FRACTION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


def _text(text: str | bytes) -> str:
    return text.decode("latin-1") if isinstance(text, (bytes, bytearray)) else text


def decimal(text: str | bytes, most: int | None = None) -> int:
    """A whole number from 0 to `most`. Raises ValueError."""
    text = _text(text)
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"not a number: {text[:40]!r}")
    number = int(text)
    if most is not None and number > most:
        raise ValueError(f"{number} is above {most}")
    return number


def hexadecimal(text: str | bytes) -> int:
    """Raises ValueError."""
    text = _text(text)
    if not _HEXADECIMAL.fullmatch(text):
        raise ValueError(f"not a hexadecimal number: {text[:40]!r}")
    return int(text, 16)


def fraction(text: str | bytes) -> float:
    """A number of seconds or a rate: digits, perhaps a point and digits; no sign, no exponent, no
    infinity. Raises ValueError."""
    text = _text(text)
    if not _FRACTION.fullmatch(text):
        raise ValueError(f"not a number: {text[:40]!r}")
    return float(text)
