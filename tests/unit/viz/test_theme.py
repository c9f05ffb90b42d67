"""Colours and figures: readable on both pages, apart for colour-blind readers, never without a twin
in captions."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from labkit.core import records
from labkit.core.timeline import PHASES
from labkit.errors import BadInput, IncomparableRecords
from labkit.viz import arm_rows, captions, compare, theme
from labkit.viz.waterfall import waterfall

FIXTURES = Path(__file__).parents[3] / "data" / "fixtures"


@pytest.fixture(scope="module")
def naive():
    return records.read(FIXTURES / "fixture_naive.json")


@pytest.fixture(scope="module")
def arms():
    return records.read(FIXTURES / "fixture_arms.json")


def _linear(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]


def _luminance(colour: str) -> float:
    r, g, b = _linear(colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _contrast(a: str, b: str) -> float:
    light, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# Machado et al. 2009, severity 1, in linear RGB.
BLINDNESS = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}


def _lab(rgb: list[float]) -> tuple[float, float, float]:
    r, g, b = (min(max(c, 0.0), 1.0) for c in rgb)
    x, y, z = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,
    )
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def _seen(colour: str, kind: str) -> tuple[float, float, float]:
    rgb = _linear(colour)
    return _lab([sum(m * c for m, c in zip(row, rgb, strict=True)) for row in BLINDNESS[kind]])


def test_every_phase_has_one_colour_of_its_own():
    assert set(theme.PHASE_COLOURS) == set(PHASES) == set(theme.PHASE_HATCHES)
    assert len(set(theme.PHASE_COLOURS.values())) == len(PHASES)


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_is_seen_on_white_and_on_the_dark_page(phase):
    for paper in (theme.LIGHT.paper, theme.DARK.paper):
        assert _contrast(theme.PHASE_COLOURS[phase], paper) >= 3


@pytest.mark.parametrize("look", [theme.LIGHT, theme.DARK], ids=lambda t: t.name)
def test_text_has_contrast(look):
    assert _contrast(look.ink, look.paper) >= 7 and _contrast(look.faint, look.paper) >= 4.5


@pytest.mark.parametrize("kind", BLINDNESS)
def test_phases_that_follow_each_other_differ_for_colour_blind_readers_by_colour_or_hatch(kind):
    order = [p for p in PHASES if p not in ("mount", "restore")]
    orders = [order, ["mount", *order[2:]], ["restore", "ready", "first_token"]]
    for one, other in {pair for o in orders for pair in itertools.pairwise(o)}:
        a, b = _seen(theme.PHASE_COLOURS[one], kind), _seen(theme.PHASE_COLOURS[other], kind)
        apart = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5
        assert apart >= 12 or theme.PHASE_HATCHES[one] != theme.PHASE_HATCHES[other], (
            one,
            other,
            apart,
        )


@pytest.mark.parametrize("kind", BLINDNESS)
def test_arms_next_to_each_other_differ_for_colour_blind_readers(kind):
    for one, other in itertools.pairwise(theme.ARM_COLOURS):
        a, b = _seen(one, kind), _seen(other, kind)
        assert sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 >= 12, (one, other)


def _overlaps(figure) -> list[tuple[str, str]]:
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    from matplotlib.text import Text

    texts = [t for t in figure.findobj(match=Text) if t.get_text().strip() and t.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts]
    page = figure.bbox
    found = [(a[0], b[0]) for a, b in itertools.combinations(boxes, 2) if a[1].overlaps(b[1])]
    return found + [
        (text, "outside the figure")
        for text, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1
    ]


@pytest.mark.parametrize("name", ["waterfall", "waterfall-replayed", "strip", "compare", "phases"])
@pytest.mark.parametrize("look", ["light", "dark"])
def test_no_label_overlaps_another_or_leaves_the_figure(naive, arms, name, look):
    from labkit.stack.replay import marked

    picture = {
        "waterfall": lambda: waterfall(naive),
        "waterfall-replayed": lambda: waterfall(marked(naive)),
        "strip": lambda: compare.strip(arms),
        "compare": lambda: compare.compare(arms),
        "phases": lambda: compare.phases(arms),
    }[name]()
    assert _overlaps(picture.figure(look)) == []


def test_a_figure_in_a_page_takes_its_ink_from_the_page(naive):
    svg = waterfall(naive).svg()
    ElementTree.fromstring(svg)
    assert "currentColor" in svg and theme.PAGE.ink not in svg and theme.PAGE.faint not in svg
    assert 'role="img"' in svg and "aria-label" in svg


def test_a_figure_says_in_words_what_it_draws(naive):
    picture = waterfall(naive)
    shown = captions.choose(naive)
    for phase in shown.trial.phases:
        assert phase in picture.text
    assert (
        "unaccounted" in picture.text
        and "cache cold" in picture.text
        and "n = 5" in picture.text
        and "fixture host" in picture.text
    )
    assert "naive" in picture.alt


def test_the_same_record_gives_the_same_bytes(naive, tmp_path):
    one, two = (waterfall(naive).save(tmp_path / n).read_bytes() for n in ("a.svg", "b.svg"))
    assert one == two
    with pytest.raises(BadInput):
        waterfall(naive).save(tmp_path / "a.pdf")


def test_a_notebook_gets_html_png_and_text(naive):
    bundle = waterfall(naive)._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert "<details>" in bundle["text/html"] and "http://" not in re.sub(
        r"http://www\.w3\.org\S*|http://creativecommons\S*|http://purl\S*", "", bundle["text/html"]
    )


def test_a_replayed_run_is_stamped_wherever_it_is_shown(naive):
    from labkit.stack.replay import marked

    run = marked(json_copy(naive, simulated=""))
    for picture in (waterfall(run), compare.strip(run), compare.compare(run), compare.phases(run)):
        texts = [
            t.get_text() for t in picture.figure().findobj(match=lambda a: hasattr(a, "get_text"))
        ]
        assert any("replayed from fixture host" in t for t in texts)
    assert "replayed from" in waterfall(run).text


def test_a_simulated_record_says_so(naive):
    assert "simulated: fixture" in waterfall(naive).text


def json_copy(run, **experiment):
    from dataclasses import replace

    return replace(run, experiment={**json.loads(json.dumps(run.experiment)), **experiment})


def test_the_waterfall_shows_one_real_trial_whose_total_is_the_median(naive):
    totals = sorted(t.total_s for t in naive.trials)
    assert captions.choose(naive).trial.total_s == totals[2]
    assert captions.choose(naive).trial in naive.trials


def test_unaccounted_time_is_a_row_and_pieces_never_leave_the_trial(naive):
    for t in naive.trials:
        rows = captions.rows(t)
        assert rows[-1].phase == captions.UNACCOUNTED and rows[-1].took_s == t.unaccounted_s
        assert all(0 <= s <= e <= t.total_s + 1e-9 for r in rows for s, e in r.pieces)


def test_failed_trials_are_shown_not_left_out(arms):
    assert "failed: timeout" in compare.strip(arms).text
    texts = [
        t.get_text()
        for t in compare.strip(arms).figure().findobj(match=lambda a: hasattr(a, "get_text"))
    ]
    assert any("timeout" in t for t in texts)


def test_a_difference_inside_the_noise_is_called_not_significant():
    from dataclasses import replace

    run = records.read(FIXTURES / "fixture_arms.json")
    few = replace(run, trials=tuple(t for t in run.trials if t.block < 3))
    assert "not significant (n = 3 < 5)" in compare.compare(few).text


def test_arms_of_different_scenarios_are_refused(arms):
    from dataclasses import replace

    facts = json.loads(json.dumps(arms.experiment))
    facts["arms"][1]["scenario"] = "warm-node"
    with pytest.raises(IncomparableRecords):
        compare.compare(replace(arms, experiment=facts))


def test_an_arm_without_a_good_trial_is_refused_with_its_outcomes(arms):
    from dataclasses import replace

    only_failed = replace(arms, trials=tuple(t for t in arms.trials if not t.ok))
    with pytest.raises(BadInput, match="timeout"):
        waterfall(only_failed)
    assert "no good trial" in compare.strip(only_failed).text


def test_the_learners_own_matplotlib_settings_are_left_alone(naive):
    import matplotlib

    before = dict(matplotlib.rcParams)
    waterfall(naive).png()
    assert dict(matplotlib.rcParams) == before


def test_a_replayed_run_says_so_in_every_figure_table_and_text_twin(arms):
    from labkit.stack.replay import marked
    from labkit.viz.stacking import effects_table

    live = json_copy(arms, simulated="")
    shown = marked(live)
    stamp = arm_rows.stamp(shown)
    assert stamp.startswith("replayed from ") and not arm_rows.stamp(live)
    for picture in (compare.strip(shown), compare.compare(shown), compare.phases(shown)):
        assert stamp in picture.text, picture.name
        assert (
            stamp in picture.alt
            or stamp.capitalize() in picture.alt
            or stamp in picture.text.splitlines()[0]
        ), picture.name
    assert stamp in effects_table(shown).text and stamp in effects_table(shown).html()
