"""What the system refuses in the lab's words, arguments judged by their text, and streams that take
any sign."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.cli import streams
from labkit.core import arguments, shipped
from labkit.core.interpreter import safe
from labkit.core.refusals import refusal
from labkit.errors import BadInput, LabError, MissingCapability


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_refusal_of_the_system_has_a_reason_and_a_fix(number):
    said = refusal(OSError(number, os.strerror(number), "/data/file"))
    assert (
        isinstance(said, BadInput)
        and said.what == f"/data/file: {os.strerror(number)}"
        and said.why
        and said.fix
    )


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (MemoryError(), BadInput, "memory"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), MissingCapability, "torch"),
        (
            ModuleNotFoundError("No module named 'torch.x'", name="torch.x"),
            MissingCapability,
            "torch",
        ),
        (RuntimeError("can't start new thread"), BadInput, "ulimit -u"),
        (RuntimeError("Could not determine home directory."), BadInput, "LABKIT_HOME"),
        (
            ImportError("libtorch.so: failed to map segment from shared object"),
            BadInput,
            "ulimit -v",
        ),
        (FileNotFoundError(2, "No usable temporary directory found in ['/x']"), BadInput, "TMPDIR"),
        (OSError("no number at all"), BadInput, "no number at all"),
        (OSError(errno.ENOSPC, "No space left on device"), BadInput, "being written"),
        (BadInput("mine", "why", "fix"), BadInput, "mine"),
    ],
)
def test_limits_are_known_by_whatever_exception_they_come_in(error, kind, words):
    said = refusal(error)
    assert type(said) is kind and words in str(said)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        ValueError("x"),
        RuntimeError("x"),
        AssertionError(),
        ModuleNotFoundError("x", name="labkit.gone"),
        ImportError("cannot import name 'x'"),
    ],
)
def test_a_mistake_of_the_lab_is_not_put_down_to_the_system(error):
    assert refusal(error) is None


@given(st.text(max_size=12))
def test_no_text_passes_as_a_number_out_of_range(text):
    for read, low, high in (
        (arguments.count("--n", 1, 9), 1, 9),
        (arguments.port(), 1, 65_535),
        (arguments.seconds("--s"), 0, arguments.MOST_SECONDS),
        (arguments.number("--x", most=10), 0, 10),
    ):
        try:
            assert low <= read(text) <= high
        except LabError as error:
            assert error.why and error.fix


@given(st.integers())
def test_a_whole_number_is_taken_where_it_is_in_range_and_nowhere_else(value):
    read = arguments.count("--blocks", 1, 100)
    if 1 <= value <= 100:
        assert read(str(value)) == value
    else:
        with pytest.raises(BadInput, match="--blocks"):
            read(str(value))


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-1", "0", "1e999", "604801", "", "ten"])
def test_a_time_that_no_clock_can_wait_is_refused(text):
    with pytest.raises(BadInput):
        arguments.seconds("--timeout")(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "ftp://h/x",
        "http://",
        "http://:80/x",
        "http://h:99999/x",
        "http://h:x/x",
        "http://h:0/x",
        "http://[::1/x",
    ],
)
def test_an_address_that_leads_nowhere_is_refused(text):
    with pytest.raises(BadInput):
        arguments.web_url(text)


@given(st.text())
def test_any_text_is_an_address_or_a_refusal(text):
    for read in (arguments.web_url, arguments.bucket_url):
        try:
            assert read(text) == text
        except BadInput as error:
            assert error.fix


def test_places_are_asked_whether_they_can_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    assert arguments.new_file(tmp_path / "a/b/c.json", "--out") == tmp_path / "a/b/c.json"
    assert arguments.output_directory(tmp_path / "new", "--out") == tmp_path / "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"], "asking leaves nothing behind"
    for refused in (
        lambda: arguments.new_file(tmp_path, "--out"),
        lambda: arguments.new_file(tmp_path / "file/x", "--out"),
        lambda: arguments.new_file("/proc/x", "--out"),
        lambda: arguments.output_directory(tmp_path / "file", "--out"),
        lambda: arguments.output_directory(tmp_path / "file/x", "--out"),
        lambda: arguments.directory(tmp_path / "file", "--in"),
        lambda: arguments.directory(tmp_path / "none", "--in"),
        lambda: arguments.readable_file(tmp_path, "--in"),
        lambda: arguments.readable_file(tmp_path / "none", "--in"),
    ):
        with pytest.raises(BadInput) as caught:
            refused()
        assert caught.value.why and caught.value.fix


def test_a_port_that_is_taken_is_said_before_anything_is_prepared(monkeypatch, tmp_path, capsys):
    import socket

    from labkit import cli

    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        for line in (
            f"run naive --port {number}",
            f"snapshot restore x --port {number}",
            f"registry serve --root {tmp_path / 'root'} --port {number}",
        ):
            assert cli.main(line.split()) == 2
            assert str(number) in capsys.readouterr().err
    arguments.free_port(number)


def test_what_is_printed_unbuffered_comes_at_once():
    code = (
        "from labkit.cli import streams; streams.settle(); import os; print('first', end='');"
        " os._exit(0)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-u", "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "first"
    )


def test_a_list_that_names_nothing_or_something_unknown_is_refused():
    read = arguments.names("--arms", ("a", "b"))
    assert read(" a ,b,") == "a,b"
    for text in ("", ",", " , ", "c", "a,c"):
        with pytest.raises(BadInput, match="--arms"):
            read(text)


@given(st.text(), st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8"]))
def test_any_text_can_be_written_in_any_encoding(text, encoding):
    codecs.register_error("plain", streams.plain)
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding, errors="plain", newline="")
    out.write(text)
    out.flush()
    raw.getvalue().decode(encoding)


def test_the_labs_own_signs_have_a_plain_form():
    codecs.register_error("plain", streams.plain)
    assert "1 × 2 – 3 → 4…".encode("ascii", "plain") == b"1 x 2 - 3 -> 4..."


def test_a_file_that_is_opened_never_takes_the_number_of_a_closed_stream(tmp_path):
    code = (
        f"from labkit.cli import streams; streams.settle(); f = open({str(tmp_path / 'data')!r},"
        " 'w'); f.write('data'); f.flush(); print('words'); import sys; print('more',"
        " file=sys.stderr)"
    )
    subprocess.run(
        ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "x", sys.executable, "-c", code], check=True
    )
    assert (tmp_path / "data").read_text() == "data"


def test_the_locale_of_the_terminal_is_kept_where_files_are_utf8():
    code = (
        "from labkit.cli import streams; streams.settle(); import sys, os;"
        " print(sys.stdout.encoding, sys.flags.utf8_mode, os.environ['PYTHONUTF8'],"
        " 'LABKIT_STDIO_ENCODING' in os.environ)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONIOENCODING": "latin-1",
        },
    )
    encoding, utf8_mode, handed_on, left = done.stdout.split()
    assert codecs.lookup(encoding).name == "iso8859-1" and (utf8_mode, handed_on, left) == (
        "1",
        "1",
        "False",
    )


def test_processes_of_the_lab_leave_the_working_directory_alone_but_for_a_checkout(
    monkeypatch, tmp_path
):

    monkeypatch.chdir(tmp_path)
    assert safe() == (["-P"] if sys.version_info >= (3, 11) else [])
    monkeypatch.chdir(shipped.IMPORTED_FROM)
    assert safe() == []


def test_the_doctor_shows_its_table_although_the_workspace_cannot_be(monkeypatch, capsys, tmp_path):
    from labkit import cli

    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "file"))
    assert cli.main(["doctor"]) == 2
    captured = capsys.readouterr()
    assert (
        json.loads(captured.out.splitlines()[-1])["floors"] == {}
        and "capability" in captured.out
        and str(tmp_path / "file") in captured.err
    )


def test_modules_of_the_lab_are_started_in_one_way():
    """`python -m` with the working directory on its path imports what lies there; servers that
    start in / have no such directory."""
    from pathlib import Path

    import labkit

    root = Path(labkit.__file__).parent
    started = [
        p.relative_to(root).as_posix()
        for p in root.rglob("*.py")
        if re.search(r'sys\.executable,\s*"-m",\s*"labkit', p.read_text(encoding="utf-8"))
    ]
    # the first only shows it
    assert sorted(started) == [
        "core/interpreter.py",
        "device/standalone.py",
        "snapshot/subject_server.py",
    ]
