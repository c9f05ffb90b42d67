"""Valid records of the repository, damaged anywhere: what a hypothesis test feeds to everything
that reads one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from labkit.core import question

ROOT = Path(__file__).resolve().parents[2]
VALID = [
    ROOT / "data" / "fixtures" / "fixture_naive.json",
    ROOT / "data" / "fixtures" / "fixture_arms.json",
    ROOT / "data" / "recorded" / "epyc-2" / "naive-small.json",
    ROOT / "data" / "recorded" / "epyc-2" / "stacked-fresh-small.json",
]
EVIL = "\x1b[2J\x1b]0;owned\x07\u202egnp\u0085\r\nFAKE"
VALUES: list[Any] = [
    None,
    True,
    -1,
    -1.5,
    0,
    1e308,
    1e-320,
    10**400,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "x",
    EVIL,
    "$\\frac{$",
    "\ud800",
    [],
    [1],
    [None],
    {},
    {"x": 1},
    {"name": 3},
    [[]],
    [{}],
    3.7,
    2**70,
]


def places(doc: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document; of a list its first members, of samples none: nobody reads those,
    nor what lies deeper than anything that is read."""
    inside = (
        doc.items()
        if isinstance(doc, dict)
        else list(enumerate(doc))[:4]
        if isinstance(doc, list)
        else ()
    )
    return ([path] if path else []) + [
        p for k, v in inside if k != "series" and len(path) < 8 for p in places(v, (*path, k))
    ]


def _deep(levels: int) -> Any:
    made: Any = 1
    for _ in range(levels):
        made = [made]
    return made


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    """A record with one to three things changed."""
    doc = json.loads(draw(st.sampled_from(VALID)).read_text(encoding="utf-8"))
    if draw(st.booleans()):  # as records are written now
        doc["experiment"]["conditions"] = {
            **question.chosen(preset="small", environment={"OMP_NUM_THREADS": "2"}),
            "image_digest": "sha256:0",
        }
    doc["trials"] = doc["trials"][: draw(st.integers(2, 8))]
    for _ in range(draw(st.integers(1, 3))):
        every = places(doc)
        depth = draw(st.integers(1, 6))  # most places lie deep: each depth is as likely as another
        path = draw(st.sampled_from([p for p in every if len(p) == depth] or every))
        parent = doc
        for step in path[:-1]:
            parent = parent[step]
        how = draw(st.sampled_from(["set", "set", "set", "remove", "wrap", "rename", "deepen"]))
        if how == "set":
            parent[path[-1]] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif how == "remove":
            del parent[path[-1]]
        elif how == "wrap":
            parent[path[-1]] = [parent[path[-1]]]
        elif how == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from([EVIL, "x", "load", "\ud800"]))] = parent.pop(path[-1])
        else:
            parent[path[-1]] = _deep(draw(st.sampled_from([50, 900])))
    return doc
