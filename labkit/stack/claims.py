"""The article's table, claimed against measured. Our column is generated from records, never typed.

    rows = claims([run])
    for r in rows: print(r.claim.text, r.measured, r.verdict)

A verdict compares the measured ratio's interval with the claimed range: `holds` (they overlap),
`larger` (more gain than claimed), `smaller` (less), `not significant` (the interval contains 1),
`not on this host` (no arm could run). Rows that speak of a GPU are judged of runs whose servers
were on one; a run on the CPU keeps its ratio and says `other hardware`. The base is the naive arm,
or in runs without an image the same stack without it. `more`: rows of what is no run (GPU trials),
in their place. Published figures stand beside, each with its setup; they are never combined with
ours. Lesson: notebooks/08_stacking."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

from labkit.core import question, stats
from labkit.core.json_types import JsonMapping
from labkit.core.records import Run, Trial
from labkit.core.units import show_s
from labkit.technique import Claim, techniques

ARTICLE = "the article (no hardware or method given)"


@dataclass(frozen=True)
class ArticleRow:
    """One row of the article's table. `phases`: what the claim speaks of; `layers`: which exchange
    measures it here."""

    layer: str
    label: str
    phases: tuple[str, ...]  # () = the whole time to first token
    claim: Claim
    on: str = ""  # the device that the claim speaks of, "" for none
    hardware: str = ""  # the GPU that it names

    @property
    def techniques(self) -> tuple[str, ...]:
        """Any of them, on an otherwise naive stack, measures the row; none where none is
        registered."""
        return tuple(t.name for t in techniques() if t.claims_row == self.label)


ROWS = (
    ArticleRow(
        "image",
        "stargz lazy pulling",
        ("pull", "unpack", "mount"),
        Claim("60–80 % reduction in pull time", ARTICLE, 0.2, 0.4, "pull"),
    ),
    ArticleRow(
        "image",
        "object storage in place of a registry",
        ("pull", "unpack"),
        Claim("2–4 × faster pull throughput", ARTICLE, 0.25, 0.5, "pull"),
    ),
    ArticleRow(
        "weights",
        "safetensors + direct GPU stream",
        ("build", "load"),
        Claim("40–60 % faster load (13B, A100)", ARTICLE, 0.4, 0.6, "load"),
        on="cuda",
        hardware="A100",
    ),
    ArticleRow(
        "snapshot",
        "CUDA checkpoint + CRIU",  # with a GPU's state: no technique yet, trials of their own
        (),
        Claim("near-instant restore", ARTICLE, 0.0, 0.1, "total"),
        on="cuda",
    ),
)
OTHER = "other hardware"
BASES = ("naive", "no-image")


@dataclass(frozen=True)
class Row:
    claim: Claim
    layer: str
    label: str
    technique: str  # what was measured, "" where nothing could be
    # median, low, high of technique / naive over the claim's phases
    ratio: JsonMapping = field(default_factory=dict)
    # the same over the whole time to first token
    total: JsonMapping = field(default_factory=dict)
    verdict: str = "not on this host"
    setup: str = ""  # scenario, link, preset, host of the record
    published: tuple[dict[str, str], ...] = ()


def claims(runs: Iterable[Run], more: Iterable[Row] = ()) -> list[Row]:
    """One row per article row and measured technique, in the article's order; rows nothing measured
    are kept."""
    runs, others, published = list(runs), list(more), figures()
    rows: list[Row] = []
    for row in ROWS:
        beside = tuple(f for f in published if f["row"] == row.label)
        measured = [r for run in runs for r in _measure(row, run, beside)]
        measured += [replace(r, published=beside) for r in others if r.label == row.label]
        rows += measured or [Row(row.claim, row.layer, row.label, "", published=beside)]
    return rows


def _measure(row: ArticleRow, run: Run, beside: tuple[dict[str, str], ...]) -> list[Row]:
    found: list[Row] = []
    naive = next(
        (a for a in sorted(run.arms, key=lambda a: a["name"] != BASES[0]) if a["name"] in BASES),
        None,
    )
    if naive is None:
        return found
    for arm in (a for a in run.arms if a["name"] != naive["name"]):
        changed = {layer: t for layer, t in arm["stack"].items() if t != naive["stack"].get(layer)}
        technique = changed.get(row.layer)
        if technique not in row.techniques or set(changed) - {row.layer, "process"}:
            continue
        if question.not_from_one_start(run, arm["name"], naive["name"]):
            continue  # what differs besides the stack would be counted as the technique's
        base = {t.block: t for t in run.of_arm(naive["name"])}
        trials = [t for t in run.of_arm(arm["name"]) if t.block in base]
        part = [(_over(t, row.phases), _over(base[t.block], row.phases)) for t in trials]
        part = [(a, b) for a, b in part if b > 0]
        if not part:
            continue
        ratio = stats.paired_ratio(part)
        total = stats.paired_ratio([(t.first_token_s, base[t.block].first_token_s) for t in trials])
        device, gpu = str(question.conditions_of(run).get("device", "")), gpu_of(run.host)
        where = gpu if device.startswith("cuda") and gpu else device
        setup = [
            arm["scenario"],
            arm["link"],
            *_subject(run),
            "no image" if naive["name"] == "no-image" else "",
            f"on {where}" if where else "",
            f"claimed for {row.hardware}" if row.hardware and row.hardware not in gpu else "",
            f"n = {len(part)}",
            f"host {run.host.get('id', '')}",
        ]
        judged = verdict(ratio, row.claim) if not row.on or device.startswith(row.on) else OTHER
        found.append(
            Row(
                row.claim,
                row.layer,
                row.label,
                technique,
                ratio,
                total,
                judged,
                ", ".join(filter(None, setup)),
                beside,
            )
        )
    return found


def gpu_of(card: JsonMapping) -> str:
    """The name of the first GPU of a host card, or ""."""
    gpus = card.get("gpus")
    return (
        str(gpus[0].get("name", ""))
        if isinstance(gpus, list) and gpus and isinstance(gpus[0], dict)
        else ""
    )


def _subject(run: Run) -> list[str]:
    """What was started: the preset, or the model in its place; and where its weights came from, if
    not from the lab."""
    chosen = question.conditions_of(run)
    model = f"model {Path(chosen['model_dir']).name}" if chosen.get("model_dir") else ""
    return [str(chosen.get("preset", "")), *filter(None, (model, chosen.get("store")))]


def _over(trial: Trial, phases: Sequence[str]) -> float:
    return sum(trial.phases.get(p, 0.0) for p in phases) if phases else float(trial.total_s or 0.0)


def verdict(ratio: JsonMapping, claim: Claim) -> str:
    """Interval of the measured ratio against the claimed range."""
    if not ratio.get("significant", True):
        return "not significant"
    low = 0.0 if claim.low is None else claim.low
    high = 1.0 if claim.high is None else claim.high
    if ratio["median"] >= 1:
        return "slower here"
    if ratio["high"] < low:
        return "larger"
    if ratio["low"] > high:
        return "smaller"
    return "holds"


def figures() -> list[dict[str, str]]:
    """Published figures with their setup and source (labkit/stack/published.json)."""
    return json.loads(
        resources.files("labkit.stack").joinpath("published.json").read_text(encoding="utf-8")
    )


def as_rows(rows: Sequence[Row]) -> list[list[str]]:
    """For a table: layer, what, claimed, here (share of the naive phase), total, verdict, setup."""

    def share(r: JsonMapping) -> str:
        return f"{r['median']:.2f} ({r['low']:.2f} – {r['high']:.2f})" if r else "–"

    return [
        [
            r.layer,
            r.label + (f" [{r.technique}]" if r.technique else ""),
            r.claim.text,
            share(r.ratio),
            share(r.total),
            r.verdict,
            r.setup,
        ]
        for r in rows
    ]


HEAD = (
    "layer",
    "row of the article",
    "claimed",
    "here: ratio to naive",
    "time to first token",
    "verdict",
    "setup",
)


def seconds_saved(row: Row, run: Run) -> str:
    """The row's gain on the whole start in seconds, for a sentence beside the table."""
    base = [
        t.total_s
        for t in run.of_arm(next((n for n in BASES if n in run.arm_names), "naive"))
        if t.total_s
    ]
    return show_s(stats.median(base) * (1 - row.total["median"])) if base and row.total else "–"
