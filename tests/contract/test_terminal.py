"""A person at a terminal reads text, a program reads JSON: every command, on a real
pseudo-terminal, wide and narrow, without colours, without UTF-8."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labkit import cli
from labkit.core import records
from labkit.core.fit import display_width
from tests.contract.test_commands import leaves

ROOT = Path(__file__).resolve().parents[2]
RECORD = str(ROOT / "data/recorded/epyc-2/naive-small.json")
STACKED = str(ROOT / "data/recorded/epyc-2/stacked-warm-small.json")
#: Fast ones of every kind: a table, a record in words, a plan, a check.
COMMANDS = {
    "doctor": ["doctor", "--no-disk"],
    "show": ["show", STACKED, "--trials"],
    "compare": ["compare", STACKED],
    "check": ["notebooks", "check", str(ROOT / "notebooks/01_anatomy.ipynb")],
    "run": ["run", "naive"],
    "make": ["model", "make", "--bytes", "1MB", "{dir}/model"],
}
#: Whose output is no measurement, or what a server is asked for.
WITHOUT_JSON = {
    ("notebooks", "check"),
    ("workshop", "check"),
    ("snapshot", "explain"),
    ("cuda-checkpoint",),
}


def open_terminal(columns: int) -> tuple[int, int]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    return ours, theirs


def read_all(ours: int) -> bytes:
    read = b""
    with contextlib.suppress(OSError):  # the other side is closed
        while some := os.read(ours, 65536):
            read += some
    return read


Call = Callable[..., tuple[int, str]]


@pytest.fixture
def at_terminal(monkeypatch, tmp_path) -> Iterator[Call]:
    """Call a command with its stdout, and its stderr, on a pseudo-terminal of so many columns."""
    for name in ("COLUMNS", "CI", "LABKIT_DISPLAY", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    _replay_runs(monkeypatch)

    def call(argv: list[str], columns: int = 80, stderr: bool = True) -> tuple[int, str]:
        ours, theirs = open_terminal(columns)
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(read_all(ours)))
        reader.start()
        with (
            os.fdopen(theirs, "w", encoding="utf-8") as stream,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream if stderr else io.StringIO())
            code = cli.main([a.format(dir=tmp_path) for a in argv])
        reader.join()
        os.close(ours)
        return code, read[0].decode().replace("\r\n", "\n")

    yield call


def _replay_runs(monkeypatch) -> None:
    """`labkit run` passes a recorded run on, trial by trial, in place of measuring."""

    def replay(_stacks: object, **options: object) -> records.Run:
        run, watching = records.read(RECORD), options["progress"]
        watching.plan(run.arm_names, blocks=len(run.trials))
        watching.note("preparing – nothing is measured")
        for trial in run.trials:
            watching.trial_started(trial.arm, trial.block, len(run.trials))
            watching.phase("unpack", 23.7)
            watching.trial_done(trial)
        return run

    monkeypatch.setattr("labkit.stack.experiment", replay)


def _lines(text: str) -> list[str]:
    """As a terminal shows them: a carriage return goes back to the beginning of the line."""
    return [part for line in text.split("\n") for part in line.split("\r")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_terminal_of_60_columns_shows_text_no_wider_and_no_json(at_terminal, command):
    code, text = at_terminal(COMMANDS[command], columns=60)
    assert code == 0 and text.strip()
    assert '{"' not in text and "\x1b" not in text
    wider = [line for line in _lines(text) if display_width(line) > 60]
    assert not [line for line in wider if " " in line.strip()], wider


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "check"])
def test_with_json_nothing_else_is_on_stdout_in_a_terminal_too(at_terminal, command):
    code, text = at_terminal([*COMMANDS[command], "--json"], stderr=False)
    assert code == 0 and isinstance(json.loads(text), dict) and text.count("\n") == 1


@pytest.mark.parametrize("command", ["doctor", "compare", "run", "make"])
def test_in_a_pipe_the_last_line_is_json_below_the_text(monkeypatch, capsys, tmp_path, command):
    _replay_runs(monkeypatch)
    assert cli.main([a.format(dir=tmp_path) for a in COMMANDS[command]]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    assert text and isinstance(json.loads(last), dict)


def test_every_command_that_ends_with_json_has_the_option():
    for path in leaves(cli.parser()):
        sub = cli.parser()
        for name in path:
            (below,) = (a for a in sub.filled()._actions if hasattr(a, "choices") and a.choices)
            sub = below.choices[name]
        has = "--json" in sub.filled()._option_string_actions
        assert has == (path not in WITHOUT_JSON), path


@pytest.mark.parametrize("columns", [60, 100])
def test_every_help_is_as_wide_as_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for path in [(), *leaves(cli.parser())]:
        sub = cli.parser()
        for name in path:
            (below,) = (a for a in sub.filled()._actions if hasattr(a, "choices") and a.choices)
            sub = below.choices[name]
        for line in sub.filled().format_help().splitlines():
            assert len(line) <= columns or " " not in line.strip(), (path, line)


@pytest.mark.parametrize("variable", ["TERM", "NO_COLOR"])
def test_a_plain_terminal_is_sent_no_control_character(at_terminal, monkeypatch, variable):
    monkeypatch.setenv(variable, "dumb")
    code, text = at_terminal(COMMANDS["run"])
    assert code == 0 and "\x1b" not in text and re.search(r"[\d.]+ s from request", text)
    assert variable == "NO_COLOR" or "\r" not in text


def test_a_terminal_of_no_columns_is_taken_to_have_80(at_terminal):
    code, text = at_terminal(COMMANDS["show"], columns=0)
    assert code == 0 and 60 < max(map(display_width, text.split("\n"))) <= 80


def test_a_terminal_that_is_resized_is_fitted_from_the_next_line_on(monkeypatch):
    from labkit.viz.displays import Line, Terminal

    monkeypatch.delenv("COLUMNS", raising=False)
    ours, theirs = open_terminal(200)
    line = Line("block 1/5  naive", tuple(f"phase{n} {n}.00 s" for n in range(10)), "1:20")
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        display = Terminal(stream)
        display.live(line)
        wide = os.read(ours, 65536).decode().strip("\r")
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 40, 0, 0))
        display._drawn_s = 0.0
        display.live(line)
        narrow = os.read(ours, 65536).decode().strip("\r")
    os.close(ours)
    assert 100 < len(wide) < 200 and len(narrow) < 40


@pytest.mark.parametrize(
    ("environment", "encoding"),
    [
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, "ascii"),
        ({"PYTHONIOENCODING": "iso-8859-1"}, "iso-8859-1"),
    ],
)
def test_another_encoding_reads_on(environment, encoding, tmp_path):
    ours, theirs = open_terminal(60)
    kept = {k: v for k, v in os.environ.items() if k != "COLUMNS" and not k.startswith("LC_")}
    started = subprocess.Popen(
        [sys.executable, "-m", "labkit", "show", STACKED, "--trials"],
        env={**kept, **environment, "PYTHONPATH": str(ROOT), "LABKIT_HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = read_all(ours).decode(encoding).replace("\r\n", "\n")
    os.close(ours)
    assert started.wait() == 0, text
    assert "\\u" not in text and "\\x" not in text and "?" not in text
    assert max(map(len, text.split("\n"))) <= 60
