"""A record in words: the waterfall of each arm, its cache proof, evidence, failures. What `labkit
show` and the report print.

    print(text(read_run("run.json")))

Every number carries its cache state and floor, as the figures do. Lesson: notebooks/01_anatomy.
"""

from __future__ import annotations

from labkit.core.json_types import JsonObject
from labkit.core.records import Run
from labkit.core.trend import trend
from labkit.core.units import show_bytes, show_s
from labkit.viz import captions


def text(run: Run, arm: str = "", trials: bool = False) -> str:
    """What a person reads of a run. Says of every failed trial why it failed."""
    parts = [f"run {run.id} of {run.created}, {captions.host_name(run.host)}", _placed(run)]
    for name in [arm] if arm else run.arm_names:
        good = run.of_arm(name)
        if good:
            shown = captions.choose(run, name)
            parts += [
                captions.waterfall_text(shown),
                _cache(shown.trial.cache),
                *_evidence(shown.trial.evidence),
            ]
        else:
            parts.append(f"{name}: no good trial")
    if trials:
        parts.append(_every(run, arm))
    for t in run.failed:
        if not arm or t.arm == arm:
            parts.append(f"FAILED {t.failure}")
    again = [id(t) for name in run.arm_names for t in run.repeated(name)]
    for t in run.disturbed:
        if not arm or t.arm == arm:
            parts.append(
                f"DISTURBED {t.place}: {t.disturbed}"
                + ("; measured again, which is what counts" if id(t) in again else "")
            )
    if found := trend(run):
        parts.append(f"CAUTION {found.words}")
    if len(run.arm_names) > 1 and not arm:
        parts.append(captions.strip_text(run, run.arm_names))
    return "\n".join(p for p in parts if p)


def _placed(run: Run) -> str:
    """Which device the servers were on, and who chose it; "" where the record does not tell."""
    device, placement = captions.device(run), run.experiment.get("placement")
    reported = placement if isinstance(placement, dict) else {}
    name = f" ({reported['name']})" if reported.get("name") else ""
    if not device:
        return ""
    why = f": {reported['why']}" if reported.get("why") else ""
    if reported.get("chosen") and device.startswith("cuda"):
        why += "; --device cpu measures without it"
    return f"device {device}{name}{why}"


def _cache(cache: JsonObject) -> str:
    if not cache:
        return ""
    proof = f"cache {cache.get('state', 'unverified')}"
    if cache.get("files") is not None:
        proof += (
            f": {show_bytes(cache.get('resident_bytes', 0))} of"
            f" {show_bytes(cache.get('total_bytes', 0))} in {cache['files']} files resident at t0"
        )
    return proof + (f", by {cache['method']}" if cache.get("method") else "")


def _evidence(found: list[JsonObject]) -> list[str]:
    return [
        f"  {'engaged' if e.get('engaged') else 'NOT ENGAGED'}: {e.get('technique', '')} –"
        f" {e.get('how', '')}"
        for e in found
    ]


def _every(run: Run, arm: str) -> str:
    from labkit.core.stdout import table

    rows = [
        [
            number,
            t.block + 1,
            t.arm,
            t.outcome + (", disturbed" if t.disturbed else ""),
            show_s(t.total_s) if t.total_s is not None else "",
            t.cache.get("state", ""),
            ", ".join(f"{p} {show_s(s)}" for p, s in t.phases.items()),
        ]
        for number, t in enumerate(run.trials, 1)
        if not arm or t.arm == arm
    ]
    return table(rows, ["trial", "block", "arm", "outcome", "total", "cache", "phases"])
