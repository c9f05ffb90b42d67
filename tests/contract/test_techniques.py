"""One set of assertions over every registered technique: the four questions are answered the same
way everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.core import host
from labkit.core.plan import LaunchPlan
from labkit.decide.advise import SLIM, options
from labkit.stack.ablate import ladder
from labkit.stack.claims import ROWS
from labkit.technique import LAYERS, Availability, Evidence, Observation, Technique, techniques

ROOT = Path(__file__).resolve().parents[2]
ALL = techniques()


@pytest.fixture(scope="module")
def card():
    return host.card()


def test_every_layer_of_the_article_has_techniques():
    assert {t.layer for t in ALL} == set(LAYERS)


def test_what_the_lab_says_of_techniques_is_said_of_registered_ones():
    rows = {r.label: r for r in ROWS}
    for t in ALL:
        assert not t.claims_row or rows[t.claims_row].layer == t.layer, t.name
    names = {t.name for t in ALL}
    assert all(r.techniques and set(r.techniques) <= names for r in ROWS)
    assert [option for option, ways in options().items() if not ways] == [SLIM]
    assert all(len({t.layer for t in ways}) <= 1 for ways in options().values())
    assert len({option.key for option in options()}) == len(options())
    rungs = [t.rung for t in ALL if t.rung]
    assert len(rungs) == len(set(rungs))


def test_the_ladder_is_the_articles_order():
    assert ladder() == [
        "object-pull",
        "estargz-lazy",
        "safetensors",
        "labkit-streamer",
        "overlap",
        "compile-cache",
        "criu-process",
        "criu-container",
    ]


def test_names_are_unique():
    names = [t.name for t in ALL]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("t", ALL, ids=lambda t: t.name)
class TestTechnique:
    def test_it_keeps_the_protocol(self, t):
        assert isinstance(t, Technique)
        assert t.layer in LAYERS
        assert t.title and t.name == t.name.lower()

    def test_a_notebook_teaches_it(self, t):
        assert (
            ROOT
            / "notebooks"
            / (t.lesson.removeprefix("notebooks/").removesuffix(".ipynb") + ".ipynb")
        ).exists()

    def test_it_is_available_or_says_what_is_missing_and_the_fix(self, t, card):
        found = t.available(card)
        assert isinstance(found, Availability)
        if not found.ok:
            assert found.missing and found.fix, f"{t.name}: {found}"

    def test_nothing_seen_is_no_evidence(self, t):
        evidence = t.verify(Observation(plan=LaunchPlan(stack={t.layer: t.name})))
        assert isinstance(evidence, Evidence)
        assert evidence.engaged is False, (
            f"{t.name} claims to have engaged in a trial that never ran: {evidence.how}"
        )
        assert evidence.how

    def test_a_claim_names_its_source(self, t):
        assert all(c.text and c.source for c in t.claims)
