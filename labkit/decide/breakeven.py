"""Break-evens: the size, rate or traffic at which one choice stops paying and the other begins.
Closed forms, no simulation.

    snapshot(skipped_s=40, snapshot_bytes=16e9, read_bytes_per_s=2e9, fixed_s=1.5)     # wins: 9.5 s
        against 40 s
    scaling(rate_per_s=0.002, cold_s=60, keep_alive_s=300).on_share                     # share of
        time that a GPU is paid for
    payback(cost_s=217, saved_s_per_start=12).starts                                    # a
        conversion pays after 19 starts

Each result says at which value of the reader's own variable it turns over. Lesson:
notebooks/09_decide (and 07_checkpoints)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput


@dataclass(frozen=True)
class SnapshotVerdict:
    """A snapshot wins only if the start that it skips exceeds snapshot bytes ÷ read bandwidth + the
    fixed cost of a restore."""

    restore_s: float
    saved_s: float  # negative: starting is faster
    wins: bool
    # below this read rate starting is faster; None: no rate is enough
    least_rate_bytes_per_s: float | None
    most_bytes: float  # above this size starting is faster, at the given rate

    def as_json(self) -> JsonObject:
        return asdict(self)


def snapshot(
    skipped_s: float, snapshot_bytes: float, read_bytes_per_s: float, fixed_s: float = 0.0
) -> SnapshotVerdict:
    """`skipped_s`: start-up time that a restore leaves out; `fixed_s`: cost of a restore that does
    not depend on bytes."""
    _positive(read_bytes_per_s=read_bytes_per_s)
    _not_negative(skipped_s=skipped_s, snapshot_bytes=snapshot_bytes, fixed_s=fixed_s)
    restore_s = fixed_s + snapshot_bytes / read_bytes_per_s
    left_s = skipped_s - fixed_s
    return SnapshotVerdict(
        restore_s,
        skipped_s - restore_s,
        restore_s < skipped_s,
        snapshot_bytes / left_s if left_s > 0 else None,
        max(left_s, 0.0) * read_bytes_per_s,
    )


@dataclass(frozen=True)
class LazyVerdict:
    """Lazy: only what is touched crosses the link, more slowly a byte. `break_even_share`: above it
    the full pull wins."""

    full_s: float
    lazy_s: float
    wins: bool
    break_even_share: float


def lazy(
    image_bytes: float,
    touched_share: float,
    full_bytes_per_s: float,
    lazy_bytes_per_s: float,
    mount_s: float = 0.0,
) -> LazyVerdict:
    """`full_bytes_per_s`: image bytes pulled and unpacked per second; `lazy_bytes_per_s`: bytes
    fetched on demand, each waited for."""
    _positive(
        full_bytes_per_s=full_bytes_per_s,
        lazy_bytes_per_s=lazy_bytes_per_s,
        image_bytes=image_bytes,
    )
    _not_negative(mount_s=mount_s, touched_share=touched_share)
    full_s = image_bytes / full_bytes_per_s
    lazy_s = mount_s + touched_share * image_bytes / lazy_bytes_per_s
    share = (full_s - mount_s) * lazy_bytes_per_s / image_bytes
    return LazyVerdict(full_s, lazy_s, lazy_s < full_s, min(max(share, 0.0), 1.0))


@dataclass(frozen=True)
class Scaling:
    """One replica that ends after `keep_alive_s` without a request, at Poisson traffic.

    `on_share`: share of time it is paid for · `cold_share`: share of requests that find nothing ·
    `starts_per_day`."""

    on_share: float
    cold_share: float
    starts_per_day: float
    mean_wait_s: float  # over all requests, from cold starts alone


def scaling(
    rate_per_s: float, cold_s: float, keep_alive_s: float, service_s: float = 0.0
) -> Scaling:
    """Renewal argument: off until a request (1/λ), then a cold start, then up until a gap longer
    than the keep-alive.

    Up after the start: (e^{λK} − 1)/λ on average, the last K of it idle; requests in it arrive at
    λ. Services are taken as short against the keep-alive; where they overlap or queue,
    `queueing.replay` is the tool."""
    _not_negative(cold_s=cold_s, keep_alive_s=keep_alive_s, service_s=service_s)
    _positive(rate_per_s=rate_per_s)
    exponent = rate_per_s * keep_alive_s
    up_s = math.inf if exponent > 500 else math.expm1(exponent) / rate_per_s
    busy_s = service_s if math.isfinite(up_s) else 0.0
    cycle_s = 1 / rate_per_s + cold_s + busy_s + up_s
    if not math.isfinite(cycle_s):
        return Scaling(1.0, 0.0, 0.0, 0.0)
    requests = rate_per_s * cycle_s
    waiting = 1 + rate_per_s * cold_s  # the first, and those who come while it starts
    mean_wait_s = (cold_s + rate_per_s * cold_s * cold_s / 2) / requests
    return Scaling(
        1 - (1 / rate_per_s) / cycle_s, min(1.0, waiting / requests), 86_400 / cycle_s, mean_wait_s
    )


@dataclass(frozen=True)
class CostVerdict:
    """Cost per day of keeping one replica up against letting it end. `break_even_rate_per_s`: above
    it always-on is no dearer than `tolerance` more."""

    always_on_per_day: float
    scale_to_zero_per_day: float
    saved_per_day: float
    # what is saved per second of waiting caused; None: nobody waits
    price_of_a_waited_second: float | None
    scaling: Scaling


def cost(
    rate_per_s: float,
    cold_s: float,
    keep_alive_s: float,
    price_per_gpu_hour: float,
    service_s: float = 0.0,
) -> CostVerdict:
    """Scale-to-zero pays where a second of a user's waiting is worth less than
    `price_of_a_waited_second`."""
    _not_negative(price_per_gpu_hour=price_per_gpu_hour)
    found = scaling(rate_per_s, cold_s, keep_alive_s, service_s)
    always = 24 * price_per_gpu_hour
    zero = always * found.on_share
    waited_s = found.mean_wait_s * rate_per_s * 86_400
    return CostVerdict(
        always, zero, always - zero, (always - zero) / waited_s if waited_s > 0 else None, found
    )


def keep_alive(cold_s: float, price_per_gpu_hour: float, value_of_a_waited_second: float) -> float:
    """Idle seconds after which holding a GPU has cost as much as the wait it avoids (the ski-rental
    rule: at worst twice the best)."""
    _positive(price_per_gpu_hour=price_per_gpu_hour)
    _not_negative(cold_s=cold_s, value_of_a_waited_second=value_of_a_waited_second)
    return cold_s * value_of_a_waited_second / (price_per_gpu_hour / 3600)


def rate_for_share(on_share: float, cold_s: float, keep_alive_s: float) -> float:
    """Requests per second at which the replica is up this share of the time (bisection; `scaling`
    grows with the rate)."""
    if not 0 < on_share < 1:
        raise BadInput(f"a share of time lies between 0 and 1, not {on_share}", fix="0.9")
    low, high = 1e-9, 1.0
    while scaling(high, cold_s, keep_alive_s).on_share < on_share and high < 1e9:
        high *= 2
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (
            (middle, high)
            if scaling(middle, cold_s, keep_alive_s).on_share < on_share
            else (low, middle)
        )
    return high


@dataclass(frozen=True)
class Payback:
    """`starts`: cold starts after which a one-time cost is earned back; None: never."""

    starts: int | None


def payback(cost_s: float, saved_s_per_start: float) -> Payback:
    """A conversion (eStargz, safetensors, a snapshot) costs machine time once and saves some at
    each start."""
    _not_negative(cost_s=cost_s)
    return Payback(math.ceil(cost_s / saved_s_per_start) if saved_s_per_start > 0 else None)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise BadInput(f"{name} must be above 0, not {value}", fix=f"give {name}")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not (value >= 0 and math.isfinite(value)):
            raise BadInput(f"{name} must be 0 or more, not {value}", fix=f"give {name}")
