"""How far a line may be drawn beyond what was measured, and how its range widens on the way.

    reach((5e6, 250e6, 1e9))          # 20.0: up to twenty times the largest size
    widened(0.04, 4.0, 3)             # 0.15: an error of 5 % at least, once more for each doubling

A line's own error hardly grows with distance, as the bytes' part outweighs the fixed one soon; what
grows is the chance that another law holds there: caches that fill, memory that runs out, files too
large for one read. Nothing measured nearer can show that. Sizes left out of fits came out within
10 % at up to 1.6 times the largest (docs/LOG.md, decide), and each doubling beyond is one more such
step. Twenty times is a little over four of them; a host whose memory holds the largest size
measured twenty times over is rare, and past that the law itself is the guess. Lesson:
notebooks/09_decide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from labkit.core.units import show_bytes

#: Sizes closer than this are one size: a line through them would follow their noise.
SAME_SIZE = 1.2
#: Factors beyond the largest size measured: three sizes or more show that a line fits; two make one
#: that nothing tests; one is taken as proportional, which no measurement supports.
REACH, SHORT_REACH, ONE_SIZE_REACH = 20.0, 4.0, 2.0
#: Below it the fixed part outweighs the bytes' at any rate of today, so that a slope is mostly
#: noise: only SHORT_REACH.
LARGE_BYTES = 100e6
#: What each doubling beyond the largest size adds to the range at least; where fewer than three
#: sizes leave the error unknown, the second.
LEAST_STEP, UNKNOWN_STEP = 0.05, 0.3


def distinct(sizes: Sequence[float]) -> int:
    """How many sizes these are, those within SAME_SIZE of each other counted once."""
    count, last = 0, 0.0
    for size in sorted(sizes):
        if size > 0 and size >= SAME_SIZE * last:
            count, last = count + 1, size
    return count


def reach(sizes: Sequence[float]) -> float:
    """Up to how many times the largest of these sizes a line through them is drawn."""
    if distinct(sizes) < 2:
        return ONE_SIZE_REACH
    return REACH if distinct(sizes) > 2 and max(sizes) >= LARGE_BYTES else SHORT_REACH


def widened(error_share: float, factor: float, sizes: int) -> float:
    """An error as it is quoted `factor` times the largest of so many sizes: itself within them,
    beyond them once more for each doubling."""
    if factor <= 1:
        return error_share
    step = max(error_share, LEAST_STEP if sizes > 2 else UNKNOWN_STEP)
    return step * (1 + math.log2(factor))


def too_far(size: float, sizes: Sequence[float]) -> str:
    """Why a line through these sizes gives no figure for this one; "" where it does."""
    largest, least, far = max(sizes), min(sizes), reach(sizes)
    one = distinct(sizes) < 2
    if size <= largest * far and not (one and size * far < least):
        return ""
    if size > largest:
        how = f"{size / largest:.0f} times the largest size measured"
    else:
        how = f"{size / largest:.2g} of the one size measured"
    known = "one size" if one else f"{distinct(sizes)} sizes up to that"
    allowed = f"a factor of {far:.0f}" + ("" if one else " beyond it")
    return f"{show_bytes(size)} is {how} ({show_bytes(largest)}); {known} support {allowed} at most"


def nearer(missing: Mapping[str, tuple[float, float]]) -> str:
    """The command that measures near enough; by driver: the size wanted, and the largest there is
    by now."""
    wanted_b = missing.get("model_bytes", (0.0, 0.0))[0] / REACH
    model = _whole(wanted_b) if wanted_b > LARGE_BYTES else "small" if wanted_b else "tiny"
    unpacked_b, measured_b = missing.get("unpacked_bytes", (0.0, 0.0))
    extra_b = max(unpacked_b / REACH - measured_b, 400e6 if unpacked_b else 0.0)
    largest = model + (f"+{_whole(extra_b)}" if extra_b else "")
    return f"labkit study --sizes tiny+200MB,{largest}"


def _whole(size_bytes: float) -> str:
    """Rounded up to what is easy to read and no less."""
    return f"{math.ceil(size_bytes / 1e8) * 100}MB"
