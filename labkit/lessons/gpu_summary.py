"""GPU trials as a whole: the host, every trial with its outcome – and all tables and figures as a
page, text or Markdown.

    html(records, "GPU trials")       # the gallery's page;  text(records): labkit show;
        markdown(records): docs/h100.md

Lesson: notebooks/06_gpu_init, notebooks/09_decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from labkit.core.records import Run
from labkit.core.units import show_bytes, show_rate
from labkit.lessons import gpu_figures, gpu_record, pages
from labkit.lessons.gpu_cells import NONE, Records, middle, optional, table
from labkit.lessons.gpu_checkpoints import bus, parked, restored, woken
from labkit.lessons.gpu_goals import goals
from labkit.lessons.gpu_loads import decoded, loaded
from labkit.lessons.gpu_record import Record, at, each, number_at, numbers, reason, stamp, words
from labkit.lessons.gpu_stacks import stacked
from labkit.lessons.gpu_starts import context, started
from labkit.lessons.gpu_ways import kept
from labkit.viz.table import Table


def tried(records: Records) -> Table:
    """Every trial of every record: outcome, seconds, reason."""
    rows = []
    for record in records:
        for t in record.trials:
            took_s = number_at(t, "seconds")
            why = "" if t["outcome"] == "ok" else words(reason(t).partition(": ")[2])
            took = "" if took_s is None else optional(took_s)
            rows.append((record.preset, t["name"], t["outcome"], took, why))
    return table(
        ["model", "trial", "outcome", "took", "reason"],
        rows,
        records,
        "each a process of its own, under its own time limit",
    )


def facts(records: Records) -> Table:
    """The host that it was made on."""
    rows = _facts(records, records[-1]) if records else {}
    return table(["what", "here"], list(rows.items()), records, "")


def _facts(records: Records, newest: Record) -> dict[str, str]:
    card = newest.host
    found = next((doc for _, doc in each(tuple(reversed(records)), "facts")), {})
    gpu = at(card, "gpus", 0) or {}
    disk, rates = at(found, "disk") or {}, bus(records)
    return {
        "GPU": (
            f"{at(gpu, 'name') or NONE}, {show_bytes(number_at(gpu, 'memory_bytes') or 0)}, driver"
            f" {at(gpu, 'driver') or '?'}, persistence {'on' if at(gpu, 'persistence') else 'off'}"
        ),
        "CPU, memory": (
            f"{at(card, 'cpu', 'count')} × {at(card, 'cpu', 'model')},"
            f" {show_bytes(number_at(card, 'memory_bytes') or 0)},"
            f" {at(card, 'virtualisation') or 'bare metal'}"
        ),
        "software": (
            f"{at(card, 'distribution')}, Linux {at(card, 'kernel')}, Python {at(card, 'python')},"
            f" torch {at(found, 'torch', 'version') or at(card, 'torch')}"
        ),
        "bus, to the device": (
            f"pinned {_rate(rates, 'h2d_pinned')}, pageable {_rate(rates, 'h2d_pageable')}"
        ),
        "bus, from the device": (
            f"pinned {_rate(rates, 'd2h_pinned')}, pageable {_rate(rates, 'd2h_pageable')}"
        ),
        "disk": (
            f"reads {_rate(disk, 'disk_read')} past the cache, writes {_rate(disk, 'disk_write')}"
        ),
        "import of torch, first time": middle(numbers([found], "torch", "import_s")),
        "CRIU": words(
            at(found, "tools", "criu", "said") or at(found, "tools", "criu", "missing") or NONE
        ),
    }


def _rate(rates: object, key: str) -> str:
    value = number_at(rates, key) or number_at(rates, f"{key}_bytes_per_s")
    return show_rate(value) if value else "not measured"


TABLES: dict[str, tuple[str, Callable[[Records], Table]]] = {
    "facts": ("The host", facts),
    "tried": ("Every trial", tried),
    "goals": ("Goals", goals),
    "stacked": ("Whole starts", stacked),
    "started": ("A start by phases", started),
    "context": ("The context taken apart", context),
    "loaded": ("Weights to the device", loaded),
    "parked": ("Parked and woken by the driver", parked),
    "woken": ("Woken from pinned memory", woken),
    "restored": ("CUDA checkpoint and CRIU", restored),
    "decoded": ("Graphs against eager", decoded),
    "kept": (
        "Ways to a first token, and what they keep",
        lambda records: kept(records, runs_of(records)),
    ),
}


def runs_of(records: Records) -> list[Run]:
    """The recorded runs beside these records."""
    return gpu_record.runs(host=records[-1].name.partition("/")[0]) if records else []


def markdown(records: Records, only: Sequence[str] = ()) -> str:
    """Tables as Markdown, a heading each."""
    parts = []
    for name in only or TABLES:
        title, make = TABLES[name]
        shown = make(records)
        head, *rows = (
            "| " + " | ".join(_cell(c) for c in row) + " |" for row in (shown.head, *shown.rows)
        )
        lines = [f"### {title}", "", head, "|" + "---|" * len(shown.head), *rows, ""]
        lines += [f"*{shown.caption}*", *(f"- {note}" for note in shown.notes)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|") or " "


def html(records: Records, title: str, level: int = 1) -> str:
    """A page's worth: the host, every trial with its outcome and reason, the figures, then the
    tables behind them."""
    return pages.render(
        "gpu_trials.html.j2",
        title=title,
        level=level,
        stamp=stamp(records),
        tables=[(heading, make(records)) for heading, make in TABLES.values()],
        figures=gpu_figures.every(records),
    )


def text(records: Records) -> str:
    """The same in words."""
    return "\n\n".join(f"{title}\n{make(records).text}" for title, make in TABLES.values())
