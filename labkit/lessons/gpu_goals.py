"""What was promised for a GPU, against what its recorded trials did: the goals of such a host, and
the article's claims that only GPU trials measure.

    goals(records)       # a table: goal, bound, measured, met
    claimed(records)     # rows for the article's table

Lesson: notebooks/08_stacking, notebooks/09_decide."""

from __future__ import annotations

from labkit.core import stats
from labkit.core.json_types import JsonMapping
from labkit.core.units import show_rate, show_s
from labkit.lessons.gpu_cells import Records, middle, table, yes
from labkit.lessons.gpu_checkpoints import restore_seconds
from labkit.lessons.gpu_record import Record, each, items, number_at, numbers, stamp
from labkit.lessons.gpu_stacks import NAIVE, against_naive, keeps_on_device, stack_rows
from labkit.stack import claims
from labkit.viz.table import Table

Row = tuple[str, ...]


def goals(records: Records, preset: str = "8b") -> Table:
    """What such a host should reach with the 8b shape, against what it did."""
    of_preset = [r for r in records if r.preset == preset]
    from_nothing = []
    for record, found, arm in stack_rows(of_preset):
        name, took = str(arm.get("arm", "")), number_at(arm, "median_s")
        starts_from_nothing = name != NAIVE and not keeps_on_device(name)
        if arm.get("scenario") == "warm-node" and took is not None and starts_from_nothing:
            from_nothing.append((took, record, found, arm))
    rows: list[Row] = []
    if from_nothing:
        rows += _start_goals(*min(from_nothing, key=lambda start: start[0]))
    for _, found in each(of_preset, "wake"):
        if parts := numbers(items(found, "times"), "share_of_bus"):
            shown, reached = middle(parts, "{:.0%}".format), stats.median(parts) >= 0.9
            rows.append(
                ("pinned wake-up ≥ 90 % of the pinned bus rate", "90%", shown, _met(reached))
            )
    for _, found in each(of_preset, "cuda-checkpoint"):
        if same := [t.get("equal_tokens") for t in items(found, "times")]:
            rows.append(
                ("equal tokens after every park and wake", "all", yes(same), _met(all(same)))
            )
    return table(
        ["goal", "bound", f"measured, {preset}", "met"],
        rows or [(f"{preset}: nothing of it was measured",)],
        records,
        "medians",
    )


def _start_goals(took: float, record: Record, found: JsonMapping, arm: JsonMapping) -> list[Row]:
    """Of the fastest start from nothing: against the floor of its bytes, and the naive start."""
    name = arm.get("arm", "")
    rows: list[Row] = []
    context = number_at(arm, "phases", "context")
    size = number_at(record.result("model"), "safetensors", "bytes")
    floors = [
        number_at(found, "floors", n) for n in ("disk_read_bytes_per_s", "h2d_pinned_bytes_per_s")
    ]
    slower = min(filter(None, floors), default=None)
    if size and slower and context is not None:
        bound = 1.25 * size / slower + context + 1
        goal = (
            f"{name}: cold disk to the first token ≤ 1.25 × (bytes ÷ the slower of disk and bus,"
            f" {show_rate(slower)}) + context + 1 s"
        )
        rows.append((goal, show_s(bound), show_s(took), _met(took <= bound)))
    ratio = against_naive(found, arm)
    if ratio is not None:
        goal = f"{name}: stacked ÷ naive ≤ 0.35 on a warm node"
        rows.append((goal, "0.35", f"{ratio:.2f}", _met(ratio <= 0.35)))
    return rows


def _met(reached: bool) -> str:
    return "yes" if reached else "no"


def claimed(records: Records) -> list[claims.Row]:
    """Rows of the article's table that only GPU trials measured: the GPU's state restored by CRIU
    and the driver against a start, image cold and warm.

    Of few restores the interval is their range, and n < 5 is never significant."""
    article = next(r for r in claims.ROWS if r.label == "CUDA checkpoint + CRIU")
    rows = []
    for record, found in each(records, "cuda-checkpoint-criu"):
        start = number_at(found, "start_s")
        for state in ("cold", "warm"):
            took = restore_seconds(found, state)
            if not start or not took:
                continue
            parts = sorted(t / start for t in took)
            ratio = {
                "median": stats.median(parts),
                "low": parts[0],
                "high": parts[-1],
                "n": len(parts),
                "significant": len(parts) >= 5 and not parts[0] <= 1 <= parts[-1],
            }
            setup = (
                f"image {state}, start with an unverified cache, no image of a container,"
                f" {record.preset}, on {claims.gpu_of(record.host)}, n = {len(parts)},"
                f" {stamp([record])}"
            )
            rows.append(
                claims.Row(
                    article.claim,
                    article.layer,
                    article.label,
                    "cuda-checkpoint + criu",
                    ratio,
                    ratio,
                    claims.verdict(ratio, article.claim),
                    setup,
                    recorded_on=record.title,
                )
            )
    return rows
