"""Hosts ranked by the records they made: one ranking for each question that was asked of them.

    print(show_rankings(rank([records.read(path) for path in paths])))

What a ranking can show ends where a difference is inside the noise: such hosts are tied. Lesson:
none."""

from __future__ import annotations

from labkit.core.json_types import JsonObject
from labkit.core.records import Run

#: Of a question: an arm, and what was chosen for it.
Key = tuple[str, tuple[tuple[str, str], ...]]


def times(run: Run, arm: str, phase: str = "") -> list[float]:
    """Seconds of the good trials of one arm, in total or in one phase."""
    found = [t.phases.get(phase) if phase else t.total_s for t in run.of_arm(arm)]
    return [t for t in found if t is not None]


def rank(runs: list[Run], phase: str = "") -> list[JsonObject]:
    """One ranking for each question – all that was chosen but the host: hosts by median, with ties
    where the next is not significantly slower.

    Records of one host are pooled where they ask the same. It ranks hosts, not techniques. `apart`:
    by what rankings differ that look alike."""
    from labkit.core import question, stats

    questions: dict[Key, JsonObject] = {}
    groups: dict[Key, dict[str, JsonObject]] = {}
    # records: one alone is taken to be the same as no other
    counted: dict[Key, int] = {}
    for i, one in enumerate(runs):
        # two records that do not tell their host are not of one host
        here = one.host.get("id") or f"unknown {i}"
        for name in one.arm_names:
            values = times(one, name, phase)
            if not values:
                continue
            chosen = question.conditions_of(one, name)
            key = (name, question.key(chosen, but=("host",)))
            questions.setdefault(key, chosen)
            host = groups.setdefault(key, {}).setdefault(
                here,
                {
                    "host": one.host.get("id", "?"),
                    "title": one.host.get("title", "?"),
                    "values": [],
                },
            )
            host["values"] += values
            counted[key] = counted.get(key, 0) + 1
    rankings: list[JsonObject] = []
    for key, hosts in groups.items():
        chosen = questions[key]
        ordered = sorted(hosts.values(), key=lambda h: stats.median(h["values"]))
        rows: list[JsonObject] = []
        for place, host in enumerate(ordered, 1):
            low, high = stats.interval(host["values"])
            tie = bool(rows) and _tied(host["values"], ordered[place - 2]["values"])
            rows.append(
                {
                    "place": rows[-1]["place"] if tie else place,
                    "tie": tie,
                    "host": host["host"],
                    "title": host["title"],
                    "n": len(host["values"]),
                    "median_s": stats.median(host["values"]),
                    "low_s": low,
                    "high_s": high,
                }
            )
        head = {
            "arm": key[0],
            "scenario": chosen.get("scenario", ""),
            "link": chosen.get("link", ""),
            "preset": str(chosen.get("preset", "")),
            "cache": chosen.get(question.CACHE, "").replace(", ", "+"),
        }
        alike = [questions[k] for k in groups if k[0] == key[0] and k != key]
        apart = dict.fromkeys(name for other in alike for name in _apart(chosen, other))
        rankings.append(
            head
            | {
                "phase": phase or "total",
                "hosts": rows,
                "apart": {name: chosen.get(name, "unknown") for name in apart},
                "unknown": (
                    list(question.differences(chosen, chosen, but=("host",)).unknown)
                    if counted[key] > 1
                    else []
                ),
            }
        )
    return rankings


def _tied(slower: list[float], faster: list[float]) -> bool:
    """Whether nothing tells two hosts apart. Phases of no length have no ratio."""
    from labkit.core import stats
    from labkit.errors import BadInput

    try:
        return not stats.unpaired_ratio(slower, faster)["significant"]
    except BadInput:
        return stats.median(slower) == stats.median(faster)


def _apart(one: JsonObject, other: JsonObject) -> list[str]:
    """Fields in which two questions of one heading differ."""
    from labkit.core import question

    if any(one.get(n) != other.get(n) for n in ("scenario", "link", "preset", question.CACHE)):
        return []
    return [n for n in dict.fromkeys((*one, *other)) if n != "host" and one.get(n) != other.get(n)]


def show_rankings(rankings: list[JsonObject]) -> str:
    from labkit.core import printable, question
    from labkit.core.stdout import table
    from labkit.core.units import show_s

    blocks = []
    for r in rankings:
        rows = [
            [
                f"={h['place']}" if h["tie"] else h["place"],
                h["title"],
                h["host"],
                h["n"],
                show_s(h["median_s"]),
                f"{show_s(h['low_s'])} – {show_s(h['high_s'])}",
            ]
            for h in r["hosts"]
        ]
        apart = "".join(f", {name} {question.shown(value)}" for name, value in r["apart"].items())
        blocks.append(
            printable.line(
                f"{r['arm']}, {r['scenario']}, {r['link']}, preset {r['preset']}, cache"
                f" {r['cache']} ({r['phase']}){apart}"
            )
            + "\n"
            + table(rows, ["place", "host", "kind", "n", "median", "95 % interval"])
        )
    return "\n\n".join(
        [
            *blocks,
            "Hosts are ranked, not techniques; = is a tie: not significantly slower than the one"
            " above.",
        ]
    )
