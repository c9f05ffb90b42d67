"""Progress: suits where it runs, floods nothing, never breaks a measurement."""

from __future__ import annotations

import io
import sys

import pytest

from labkit.core.records import Trial
from labkit.viz import live

GOOD = Trial(
    "naive",
    0,
    0,
    total_s=8.31,
    phases={"load": 3.1, "import": 2.2, "unpack": 1.9, "pull": 0.1},
    cache={"state": "cold"},
)
BAD = Trial("naive", 1, 0, outcome="timeout", error={"what": "no token within 300 s"})


def _told(kind: str) -> str:
    out = io.StringIO()
    with live.Progress(2, show=kind, stream=out) as progress:
        progress.note("building the image")
        for trial in (GOOD, BAD):
            progress.trial_started("naive", trial.block, 2)
            for i in range(500):
                progress.phase("pull", i / 100)
            progress.trial_done(trial)
    return out.getvalue()


def test_plain_progress_is_one_line_a_trial_without_control_characters():
    text = _told("plain")
    assert text.count("\n") == 3 and "\r" not in text and "\x1b" not in text
    assert "block 1/2  naive  8.31 s  cold  (load 3.10 s, import 2.20 s, unpack 1.90 s)" in text
    assert "FAILED timeout: no token within 300 s" in text


def test_the_terminal_is_redrawn_rarely_and_keeps_every_result():
    text = _told("terminal")
    assert text.count("\r") < 30 and "8.31 s" in text and "FAILED timeout" in text


def test_silent_says_nothing():
    assert _told("silent") == ""


def test_the_place_decides_unless_told(monkeypatch):
    monkeypatch.delenv(live.ENV, raising=False)
    monkeypatch.delenv("CI", raising=False)
    assert live.where(io.StringIO()) == "plain"

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    assert live.where(Terminal()) == "terminal"
    monkeypatch.setenv("TERM", "dumb")
    assert live.where(Terminal()) == "plain"
    monkeypatch.setenv("CI", "1")
    assert live.where(Terminal()) == "plain"
    monkeypatch.setenv(live.ENV, "silent")
    assert live.where(Terminal()) == "silent"


def test_a_display_that_breaks_does_not_end_the_measurement():
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    progress = live.Progress(1, show="plain", stream=Broken())
    progress.trial_started("naive", 0, 1)
    progress.trial_done(GOOD)
    assert progress.done == 1


def test_the_widget_leaves_its_lines_as_html_that_an_exported_page_keeps(monkeypatch):
    pytest.importorskip("ipywidgets")
    shown = []

    class Handle:
        def update(self, html) -> None:
            shown.append(html.data)

    import IPython.display

    monkeypatch.setattr(
        IPython.display, "display", lambda *_a, **k: Handle() if k.get("display_id") else None
    )
    _told("widget")
    assert "8.31 s" in shown[-1] and "FAILED timeout" in shown[-1]


def test_progress_needs_no_matplotlib():
    import subprocess

    code = (
        "import sys, labkit.viz.live as l; l.Progress(1, show='plain'); assert not {'matplotlib',"
        " 'ipywidgets', 'IPython', 'torch'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_display_sends_an_escape_sequence():
    assert "\x1b" not in _told("terminal")


def test_the_elapsed_and_the_remaining_time_are_shown(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with live.Progress(show="plain", stream=out) as progress:
        progress.plan(["naive"], blocks=3)
        progress.note("building the image")
        now[0] = 200.0  # off the clock
        for block in range(2):
            progress.trial_started("naive", block, 3)
            now[0] += 60.0
            progress.trial_done(GOOD)
    first, second = out.getvalue().splitlines()[1:]
    assert first.endswith("1 of 3 in 4:20, about 2 min left")
    assert second.endswith("2 of 3 in 5:20, about 1 min left")


def test_a_wait_off_the_clock_ticks_in_a_terminal(monkeypatch):
    import threading

    monkeypatch.setattr(live, "_TICK_S", 0.0)
    monkeypatch.setattr("labkit.viz.displays._REDRAW_S", 0.0)
    ticked = threading.Event()

    class Counting(io.StringIO):
        def write(self, text: str) -> int:
            if self.getvalue().count("0:00") > 3:
                ticked.set()
            return super().write(text)

    with live.Progress(show="terminal", stream=Counting()) as progress:
        progress.note("measuring this host's floors")
        assert ticked.wait(30)


def test_nothing_is_drawn_for_a_progress_that_nobody_holds():
    import gc
    import threading

    before = threading.active_count()
    live.Progress(show="terminal", stream=io.StringIO())
    gc.collect()
    live_threads = [t for t in threading.enumerate() if t.name.startswith("labkit-progress")]
    for thread in live_threads:
        thread.join(30)
    assert threading.active_count() <= before


@pytest.mark.parametrize("width", [30, 60, 200])
def test_a_line_is_cut_by_columns_and_keeps_its_newest_step_and_its_times(width):
    from labkit.core.fit import display_width
    from labkit.viz.displays import Line

    steps = tuple(f"step{n} {n}.00 s" for n in range(12))
    shown = Line("block 2/5  漢字", steps, "1:20").text(width)
    assert display_width(shown) <= width and "1:20" in shown
    assert width < 60 or "step11" in shown
