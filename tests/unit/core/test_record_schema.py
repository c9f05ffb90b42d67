"""A record is sound where it is read, or it is refused with the place of what is not; nobody who
reads one meets anything else."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labkit.cli import main
from labkit.core import question, record_schema, records
from labkit.errors import BadInput, LabError
from labkit.stack.replay import of_gpu_trials
from tests.support.record_mutations import EVIL, ROOT, VALID, damaged

CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]"
)
NAIVE = VALID[2]
QUIET = settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=40)


def changed(*path, to=None):
    """The naive record with one value in another's place; without `to`, with one less."""
    doc = json.loads(NAIVE.read_text(encoding="utf-8"))
    parent = doc
    for step in path[:-1]:
        parent = parent[step]
    if to is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = to
    return doc


@pytest.mark.parametrize(
    "path",
    [
        *VALID,
        *sorted(p for p in (ROOT / "data" / "recorded").glob("*/*.json") if not of_gpu_trials(p)),
    ],
    ids=lambda p: p.stem,
)
def test_every_record_of_the_repository_is_sound(path):
    assert records.read(path).trials


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("trials", 3, "phases", "load"), -1.2, "trials[3].phases.load: -1.2 is not a time"),
        (
            ("trials", 0, "total_s"),
            None,
            "trials[0].total_s: None is not the time of a trial that passed",
        ),
        (("trials", 0, "total_s"), float("nan"), "trials[0].total_s: nan is not a finite number"),
        (("trials", 0, "total_s"), 1e12, "trials[0].total_s: 1000000000000.0 is not a time"),
        (("trials", 1, "outcome"), "fine", "trials[1].outcome: 'fine' is none of ok, timeout"),
        (("trials", 1, "arm"), ..., "trials[1]: arm is missing"),
        (
            ("trials", 0, "spans", 2, "end_s"),
            0.0,
            "trials[0].spans[2]: ends at 0.0, before it starts",
        ),
        (
            ("trials", 0, "evidence", 0, "engaged"),
            "yes",
            "trials[0].evidence[0].engaged: 'yes' is not true or false",
        ),
        (
            ("trials", 0, "cache", "state"),
            "lukewarm",
            "trials[0].cache.state: 'lukewarm' is none of cold, warm, unverified",
        ),
        (("trials", 0, "block"), True, "trials[0].block: True is not a count"),
        (
            ("trials", 0, "facts", "steps", "pull"),
            [],
            "trials[0].facts.steps.pull: [] is not an object",
        ),
        (
            ("floors", "loopback_bytes_per_s"),
            float("inf"),
            "floors.loopback_bytes_per_s: inf is not a finite number",
        ),
        (
            ("floors", "disk_read_bytes_per_s"),
            "fast",
            "floors.disk_read_bytes_per_s: 'fast' is not a rate",
        ),
        (("experiment", "arms", 0, "name"), "", "experiment.arms[0].name: '' names no arm"),
        (
            ("experiment", "blocks"),
            10**400,
            "experiment.blocks: an integer of some hundred digits is not a finite number",
        ),
        (("host",), ["one"], "host: ['one'] is not an object"),
        (("created",), ..., "the document: created is missing"),
        (
            ("later",),
            [
                [
                    [
                        [
                            [
                                [
                                    [
                                        [
                                            [
                                                [
                                                    [
                                                        [
                                                            [
                                                                [
                                                                    [
                                                                        [
                                                                            [
                                                                                [
                                                                                    [
                                                                                        [
                                                                                            [
                                                                                                [
                                                                                                    [
                                                                                                        [
                                                                                                            [
                                                                                                                [
                                                                                                                    [
                                                                                                                        [
                                                                                                                            [
                                                                                                                                [
                                                                                                                                    [
                                                                                                                                        [
                                                                                                                                            [
                                                                                                                                                [
                                                                                                                                                    [
                                                                                                                                                        [
                                                                                                                                                            [
                                                                                                                                                                [
                                                                                                                                                                    [
                                                                                                                                                                        [
                                                                                                                                                                            [
                                                                                                                                                                                [
                                                                                                                                                                                    [
                                                                                                                                                                                        [
                                                                                                                                                                                            [
                                                                                                                                                                                                [
                                                                                                                                                                                                    [
                                                                                                                                                                                                        [
                                                                                                                                                                                                            [
                                                                                                                                                                                                                [
                                                                                                                                                                                                                    1
                                                                                                                                                                                                                ]
                                                                                                                                                                                                            ]
                                                                                                                                                                                                        ]
                                                                                                                                                                                                    ]
                                                                                                                                                                                                ]
                                                                                                                                                                                            ]
                                                                                                                                                                                        ]
                                                                                                                                                                                    ]
                                                                                                                                                                                ]
                                                                                                                                                                            ]
                                                                                                                                                                        ]
                                                                                                                                                                    ]
                                                                                                                                                                ]
                                                                                                                                                            ]
                                                                                                                                                        ]
                                                                                                                                                    ]
                                                                                                                                                ]
                                                                                                                                            ]
                                                                                                                                        ]
                                                                                                                                    ]
                                                                                                                                ]
                                                                                                                            ]
                                                                                                                        ]
                                                                                                                    ]
                                                                                                                ]
                                                                                                            ]
                                                                                                        ]
                                                                                                    ]
                                                                                                ]
                                                                                            ]
                                                                                        ]
                                                                                    ]
                                                                                ]
                                                                            ]
                                                                        ]
                                                                    ]
                                                                ]
                                                            ]
                                                        ]
                                                    ]
                                                ]
                                            ]
                                        ]
                                    ]
                                ]
                            ]
                        ]
                    ]
                ]
            ],
            "nested deeper",
        ),
    ],
)
def test_what_is_not_sound_is_named_by_its_place(tmp_path, place, value, said):
    (tmp_path / "x.json").write_text(json.dumps(changed(*place, to=value)))
    with pytest.raises(BadInput) as caught:
        records.read(tmp_path / "x.json")
    assert said in caught.value.what and caught.value.fix


def test_a_name_in_a_message_cannot_command_the_terminal(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(changed("trials", 0, "phases", to={EVIL: "late"})))
    with pytest.raises(BadInput) as caught:
        records.read(tmp_path / "x.json")
    assert not CONTROL.search(caught.value.what) and "\\x1b[2J" in caught.value.what


@pytest.mark.parametrize(
    "make",
    [
        lambda p: p.mkdir(),
        lambda p: os.mkfifo(p),
        lambda p: p.symlink_to("/dev/zero"),
        lambda p: p.symlink_to(p),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(bytes(range(256))),
        lambda p: p.write_bytes(b"[" * 200_000),
        lambda p: p.write_bytes(b'{"schema": ' + b"9" * 6000 + b', "trials": []}'),
        lambda p: p.write_text(NAIVE.read_text(), encoding="utf-16"),
        lambda p: p.write_text(NAIVE.read_text()[:9000]),
        lambda p: p.write_text('{"schema": "1", "trials": []}'),
        lambda p: p.write_text('{"schema": null, "trials": []}'),
    ],
    ids=[
        "directory",
        "pipe",
        "device",
        "loop",
        "empty",
        "binary",
        "deep",
        "digits",
        "utf-16",
        "torn",
        "schema text",
        "schema null",
    ],
)
def test_what_is_no_record_at_all_is_refused_and_never_waited_for(tmp_path, make):
    make(tmp_path / "x.json")
    with pytest.raises(BadInput):
        records.read(tmp_path / "x.json")


def test_a_file_that_may_not_be_read_is_a_mistake_and_no_traceback(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(record_schema.os, "open", refused)
    with pytest.raises(BadInput, match="cannot be read: Permission denied"):
        records.read(tmp_path / "x.json")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_any_document_is_a_run_or_a_bad_input(doc):
    for one in (
        doc,
        {"schema": 1, "trials": doc, "id": "x", "created": ""},
        {"schema": 1, "trials": [doc], "id": "x", "created": "", "experiment": doc},
    ):
        with contextlib.suppress(BadInput):
            records.of_document(one, "x")


def commands(path: str) -> list[list[str]]:
    return [
        ["show", "--trials", path],
        ["show", "--json", path],
        ["trace", path, "--out", f"{path}.trace"],
        ["compare", path],
        ["compare", "--phase", "load", path],
        ["compare", path, str(NAIVE)],
        ["compare", str(NAIVE), path],
        ["compare", "--rank", path, str(NAIVE)],
        ["plan", "--records", path],
        ["plan", "--records", path, str(NAIVE)],
    ]


def said(call) -> str:
    """What it printed, on both streams. Raises whatever is not a LabError or a usage error."""
    out = io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
        contextlib.suppress(LabError),
    ):
        call()
    return out.getvalue()


@QUIET
@given(damaged())
def test_every_command_that_reads_a_damaged_record_works_or_refuses_it_and_prints_nothing_raw(
    tmp_path_factory, doc
):
    path = tmp_path_factory.mktemp("damaged") / "x.json"
    path.write_text(json.dumps(doc))
    for argv in commands(str(path)):
        printed = said(lambda argv=argv: main(argv))
        assert not CONTROL.search(printed), (argv, printed[:300])


@QUIET
@given(damaged())
def test_notebooks_baselines_and_claims_read_a_damaged_record_or_refuse_it(tmp_path_factory, doc):
    from labkit.cli.ablate import _report
    from labkit.lessons import baseline
    from labkit.stack import replay
    from labkit.viz.captions import choose, waterfall_text
    from labkit.viz.compare import compare, phases, strip

    folder = tmp_path_factory.mktemp("recorded")
    path = folder / "host" / "x.json"
    path.parent.mkdir()
    path.write_text(json.dumps(doc))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(replay.ENV, str(folder))
        for call in (
            lambda: print(waterfall_text(choose(replay.replay("x")))),
            lambda: print(strip(replay.replay("x")).text),
            lambda: print(compare(replay.replay("x")).text),
            lambda: print(phases(replay.replay("x")).text),
            lambda: print(
                "\n".join(baseline.judge(baseline.read(path), [records.read(NAIVE)]).visible)
            ),
            lambda: _report(records.read(path), False),
        ):
            printed = said(call)
            assert not CONTROL.search(printed), printed[:300]


@QUIET
@given(damaged())
def test_a_damaged_record_is_resumed_or_refused(tmp_path_factory, doc):
    path = tmp_path_factory.mktemp("damaged") / "x.json"
    path.write_text(json.dumps(doc))
    now = records.read(NAIVE)
    with contextlib.suppress(BadInput):
        records.refuse_overwriting(path, resume=True)
        question.refuse_mixing(records.read(path), now, path)


def test_a_figure_of_a_record_with_a_formula_and_an_escape_in_its_names_is_drawn_literally(
    tmp_path,
):
    doc = changed("host", "title", to=f"$\\frac{{$ {EVIL}")
    name = f"a $\\nonsense{{$ {EVIL}"
    doc["experiment"]["arms"][0]["name"] = name
    for t in doc["trials"]:
        t["arm"] = name
    (tmp_path / "x.json").write_text(json.dumps(doc))
    assert main(["show", str(tmp_path / "x.json"), "--figure", str(tmp_path / "x.svg")]) == 0
    assert not CONTROL.search(
        (tmp_path / "x.svg").read_text(encoding="utf-8")
    ) and "\\nonsense{$" in (tmp_path / "x.svg").read_text(encoding="utf-8")


def test_a_page_escapes_what_a_record_says(tmp_path):
    from labkit.lessons.report_parts import record_html

    doc = changed("trials", 0, "evidence", 0, "how", to=f"<script>alert(1)</script>{EVIL}")
    doc["host"]["title"] = f"<img src=x onerror=alert(1)>{EVIL}"
    path = Path(tmp_path / "x.json")
    path.write_text(json.dumps(doc))
    html = record_html(path)
    assert "<script>" not in html and "<img src=x" not in html and not CONTROL.search(html)
