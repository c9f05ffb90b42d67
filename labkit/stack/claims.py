"""The article's table, claimed against measured. Our column is generated from records, never typed.

    rows = claims([run])
    for r in rows: print(r.claim.text, r.measured, r.verdict)

A verdict compares the measured ratio's interval with the claimed range: `holds` (they overlap),
`larger` (more gain than claimed), `smaller` (less), `not significant` (the interval contains 1),
`too few pairs` (fewer than five), `not on this host` (no arm could run). What keeps a verdict from
being one is said beside it: how many blocks are missing, or would likely decide it (`Row.wanting`).
Rows that speak of a GPU are judged of runs whose servers were on one; a run on the CPU keeps its
ratio and says `other hardware`.

A row is measured by two arms of one run that differ in its layer alone: the technique on the naive
stack (or on the same without an image); where that was not measured, a rung of a ladder against the
rung below it. `Row.against` says which. `more`: rows of what is no run (GPU trials), in their
place. Published figures stand beside, each with its setup; they are never combined with ours.
Lesson: notebooks/08_stacking."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

from labkit.core import question, stats
from labkit.core.json_types import JsonMapping
from labkit.core.records import Run, Trial
from labkit.stack.compose import NAMED
from labkit.technique import Claim, replaced_layers, techniques

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
NOT_SIGNIFICANT = "not significant"
TOO_FEW = "too few pairs"
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
    arm: str = ""
    against: str = ""  # the arm that it is measured against
    wanting: str = ""  # what would make a verdict of it, "" where there is one
    recorded_on: str = ""  # of a replayed run: the host that it was made on
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
    """One row a technique: of the pairs of arms that differ in it alone, the one nearest to
    naive."""
    arms = [a for a in run.arms if run.of_arm(a["name"])]
    arms.sort(key=lambda a: BASES.index(a["name"]) if a["name"] in BASES else len(BASES))
    found: dict[str, Row] = {}
    for base in arms:
        for arm in arms:
            name = _exchanged(row, arm["stack"], base["stack"])
            # what differs besides the stack would be counted as the technique's
            if not name or name in found or question.not_from_one_start(run, *_names(arm, base)):
                continue
            if measured := _row(row, run, name, arm, base):
                found[name] = replace(measured, published=beside)
    return list(found.values())


def _names(arm: JsonMapping, base: JsonMapping) -> tuple[str, str]:
    return str(arm["name"]), str(base["name"])


def _exchanged(row: ArticleRow, stack: JsonMapping, base: JsonMapping) -> str:
    """The row's technique where `stack` is `base` with it in place of the naive stack's, and
    nothing else; "" where it is not."""
    changed = {
        layer
        for layer in {*stack, *base} - {"process"}
        if (stack.get(layer) or "") != (base.get(layer) or "")
    }
    name = str(stack.get(row.layer) or "")
    stock = {"", *(str(named.get(row.layer, "")) for named in NAMED.values())} - set(row.techniques)
    if changed != {row.layer} or name not in row.techniques or base.get(row.layer, "") not in stock:
        return ""
    moot = replaced_layers(stack.get("snapshot"))
    return "" if row.layer != "snapshot" and row.layer in moot else name


def _row(
    row: ArticleRow, run: Run, name: str, arm: JsonMapping, against: JsonMapping
) -> Row | None:
    """The pair's row; None where no block holds a good trial of both."""
    base = {t.block: t for t in run.of_arm(against["name"])}
    trials = [t for t in run.of_arm(arm["name"]) if t.block in base]
    part = [(_over(t, row.phases), _over(base[t.block], row.phases)) for t in trials]
    part = [(a, b) for a, b in part if b > 0]
    if not part:
        return None
    ratio = stats.paired_ratio(part)
    total = stats.paired_ratio([(t.first_token_s, base[t.block].first_token_s) for t in trials])
    device, gpu = str(question.conditions_of(run).get("device", "")), gpu_of(run.host)
    where = gpu if device.startswith("cuda") and gpu else device
    setup = [
        arm["scenario"],
        arm["link"],
        *_subject(run),
        "no image" if against["name"] == "no-image" else "",
        f"on {where}" if where else "",
        f"claimed for {row.hardware}" if row.hardware and row.hardware not in gpu else "",
        f"{arm['name']} against {against['name']}" if against["name"] not in BASES else "",
        f"n = {len(part)}",
        f"host {run.host.get('id', '')}",
    ]
    judged = verdict(ratio, row.claim) if not row.on or device.startswith(row.on) else OTHER
    return Row(
        row.claim,
        row.layer,
        row.label,
        name,
        ratio,
        total,
        judged,
        ", ".join(filter(None, setup)),
        arm=arm["name"],
        against=against["name"],
        wanting=wanting(part) if judged in (NOT_SIGNIFICANT, TOO_FEW, OTHER) else "",
        recorded_on=str(run.experiment.get("replayed_from") or ""),
    )


def wanting(pairs: Sequence[Sequence[float]]) -> str:
    """What would make a significant ratio of these pairs: the blocks that are missing, or that
    would likely decide it; "" where it is one."""
    n = len(pairs)
    if n < stats.MIN_PAIRS:
        more = stats.MIN_PAIRS - n
        blocks = "1 more block makes" if more == 1 else f"{more} more blocks make"
        return f"{n} of {stats.MIN_PAIRS} pairs: {blocks} a verdict"
    if stats.paired_ratio(pairs)["significant"]:
        return ""
    needed = stats.blocks_to_decide(pairs)
    if needed is None:
        return f"no difference that {stats.MOST_BLOCKS} blocks would show"
    return f"about {needed} blocks would likely decide it"


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
    if ratio.get("n", stats.MIN_PAIRS) < stats.MIN_PAIRS:
        return TOO_FEW
    if not ratio.get("significant", True):
        return NOT_SIGNIFICANT
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
