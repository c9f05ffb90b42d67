"""What a plan starts from: sizes, rates, traffic and price, each with where it came from.

`given` by the reader, `measured` in the records, or `assumed`: what is given counts, then what was
measured; what neither tells is assumed with a reason (ASSUMPTIONS), or left out.

    inputs = collect(runs, "naive", {"model_bytes": 16e9}, model)
    inputs["model_bytes"].source, inputs["keep_alive_s"].why  # "given"; its reason

Lesson: notebooks/09_decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labkit.core import stats
from labkit.core.records import Run
from labkit.decide.points import sizes_of
from labkit.decide.predict import Model
from labkit.errors import BadInput

GIVEN, MEASURED, ASSUMED = "given", "measured", "assumed"
#: Used where the reader gave nothing and records cannot know it. Each is shown as assumed, with its
#: reason.
ASSUMPTIONS: dict[str, tuple[float, str]] = {
    "service_s": (5.0, "seconds a request keeps its slot"),
    "concurrency": (8, "requests one replica serves at once"),
    "keep_alive_s": (300.0, "idle time before scale to zero"),
    "max_replicas": (8, "the most replicas"),
    "duration_s": (86_400.0, "one day of traffic"),
    "restore_fixed_s": (1.0, "cost of a restore apart from its bytes"),
    "unpacked_per_image": (2.5, "unpacked bytes per compressed byte"),
}
SIZES = ("image_bytes", "unpacked_bytes", "model_bytes", "snapshot_bytes")
KNOWN = {
    *SIZES,
    *ASSUMPTIONS,
    "link_bytes_per_s",
    "disk_bytes_per_s",
    "rate_per_s",
    "price_per_gpu_hour",
}


@dataclass(frozen=True)
class Input:
    value: float
    source: str  # given | measured | assumed
    why: str = ""


def refuse_unknown(given: Mapping[str, float | None]) -> None:
    """Raises BadInput for a name or value that makes no sense."""
    for name, value in given.items():
        if name not in KNOWN:
            raise BadInput(f"no input called {name!r}", fix="one of: " + ", ".join(sorted(KNOWN)))
        if value is not None and not 0 <= value < float("inf"):
            raise BadInput(f"{name} must be 0 or more, not {value}", fix=f"give {name}")


def collect(
    runs: Sequence[Run], arm: str, given: Mapping[str, float], model: Model
) -> dict[str, Input]:
    """Every input that is given, measured in `runs` of the arm, or assumed; by name."""
    disk_rates = [
        r.floors["disk_read_bytes_per_s"] for r in runs if r.floors.get("disk_read_bytes_per_s")
    ]
    known = {
        **{name: Input(assumed, ASSUMED, why) for name, (assumed, why) in ASSUMPTIONS.items()},
        **_sizes(runs, arm, given),
        **_rate("link", model, [], " (an emulated link or loopback)"),
        **_rate("disk", model, disk_rates, ""),
        **{name: Input(value, GIVEN) for name, value in given.items()},
    }
    if "snapshot_bytes" not in known and "model_bytes" in known:
        known["snapshot_bytes"] = Input(
            known["model_bytes"].value,
            ASSUMED,
            "the model's bytes alone: the server's other memory comes on top",
        )
    return {name: known[name] for name in _ORDER if name in known}


_ORDER = (
    *SIZES,
    "link_bytes_per_s",
    "disk_bytes_per_s",
    "rate_per_s",
    "price_per_gpu_hour",
    *(name for name in ASSUMPTIONS if name != "unpacked_per_image"),
)


def _sizes(runs: Sequence[Run], arm: str, given: Mapping[str, float]) -> dict[str, Input]:
    """Those of the largest trial; what a given image unpacks to, by the measured ratio."""
    trials = [sizes_of(t) for r in runs for t in r.of_arm(arm)]
    largest = {name: max((s[name] for s in trials if name in s), default=None) for name in SIZES}
    found = {
        name: Input(size, MEASURED, "as in the largest record")
        for name, size in largest.items()
        if size is not None
    }
    if "image_bytes" in given:
        ratios = [
            s["unpacked_bytes"] / s["image_bytes"]
            for s in trials
            if "unpacked_bytes" in s and "image_bytes" in s
        ]
        ratio, source, why = ASSUMPTIONS["unpacked_per_image"][0], ASSUMED, "2.5 × the image"
        if ratios:
            ratio, source = stats.median(ratios), MEASURED
            why = f"× {ratio:.2f}, as the image measured"
        found["unpacked_bytes"] = Input(given["image_bytes"] * ratio, source, why)
    return found


def _rate(resource: str, model: Model, otherwise: Sequence[float], remark: str) -> dict[str, Input]:
    """The rate of `link` or `disk` in bytes/s: what the fits had, else the hosts' own floors."""
    fitted = [
        f.resource_bytes_per_s
        for f in model.fits.values()
        if f.resource == resource and f.resource_bytes_per_s
    ]
    rates = fitted or otherwise
    if not rates:
        return {}
    return {
        f"{resource}_bytes_per_s": Input(
            stats.median(rates), MEASURED, "as in the records" + remark
        )
    }
