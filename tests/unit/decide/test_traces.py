"""Traces as the world writes them: the same arrivals, or a refusal that names the line."""

from __future__ import annotations

import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.decide.traces import read_trace
from labkit.errors import BadInput

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319569,3180,8
"""


def read(tmp_path, text: str | bytes) -> list[float]:
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_trace(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "arrivals"),
    [
        ("0\n1.5\n4\n", [0, 1.5, 4]),
        ("4\n0\n1.5", [0, 1.5, 4]),
        ("0,17,3\n2,18,4\n", [0, 2]),
        ("arrival_s\n10\n12\n", [0, 2]),
        ("id,timestamp\na,2026-01-01T00:00:05Z\nb,2026-01-01T00:00:00Z\n", [0, 5]),
        ("1767225600\n\n1767225660\n", [0, 60]),
        (AZURE, [0, 0.0519969]),
        ("1767225600000\n1767225600250\n", [0, 0.25]),
        ("1767225600000.5\n1767225600001\n", [0, 0.0005]),
        ("1767225600000000\n1767225600000001\n", [0, 1e-6]),
        ("ts\n1767225600000000000\n1767225600000000001\n", [0, 1e-9]),
        ("timestamp_ms,tokens\n0,17\n27482,5\n", [0, 27.482]),
        ("Arrival Time (ms),Tokens\n0,7\n500,7\n", [0, 0.5]),
        ("2026-01-01T01:00:00+01:00\n2026-01-01T00:00:01Z\n", [0, 1]),
        ("2026-01-01 01:00:00 +0100\n2025-12-31T19:00:01-05\n", [0, 1]),
        ("2026-01-01T00:00:00.5Z\n2026-01-01T00:00:00.123456789Z\n", [0, 0.376543211]),
        ("2026-01-01\n2026/01/02 00:01\n", [0, 86_460]),
        ("20260101T000000Z\n20260101T000001Z\n", [0, 1]),
        ("2026-01-01 00:00:00,250\n2026-01-01 00:00:00,750\n", [0, 0.5]),
        ('"id","time"\r\n"a, b","3"\r\n"c ""d""","1"\r\n', [0, 2]),
        ("id;time\na;3\nb;1\n", [0, 2]),
        ("id\ttime\na\t3\nb\t1\n", [0, 2]),
        ("time, id\n 3, a\n 1, b\n", [0, 2]),
        (b"\xef\xbb\xbftime\r\n3\r\n1\r\n", [0, 2]),
    ],
)
def test_a_trace_is_read_in_the_units_and_columns_it_comes_with(tmp_path, text, arrivals):
    assert read(tmp_path, text) == pytest.approx(arrivals, rel=1e-12)


def test_a_trace_may_come_out_of_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("\ntime\n3\n1\n",))
    writer.start()
    assert read_trace(pipe) == [0, 2]
    writer.join()


def test_clocks_change_no_trace_without_an_offset(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert read(tmp_path, "2026-03-29 01:30\n2026-03-29 03:30\n") == [0, 7200]
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no arrival"),
        ("time\n", "no arrival"),
        ("0\nlater\n", "line 2"),
        ("id,timestamp\na\n", "line 2"),
        ("0\ninf\n", "line 2"),
        ('time,text\n1,"two\nlines"\n,x\n', "line 4"),
        (",arrived\n0,2026-01-01\n1,2026-01-02\n", "'', 'arrived'"),
        ("app,func,end_timestamp,duration\na,f,12,3\n", "end_timestamp"),
        ("nan\n", "'nan'"),
        ("0\n1767225600000\n", "milliseconds, the first arrival in seconds"),
        ("2026-01-01T00:00:00Z\n2026-01-01T00:00:00\n", "dates without an offset, the first"),
        ("2026-02-30\n", "2026-02-30"),
        ('{"timestamp": 0}\n{"timestamp": 5}\n', "JSON"),
        ("time\n1\n".encode("utf-16"), "cannot read"),
    ],
)
def test_a_bad_trace_is_refused_with_what_it_holds(tmp_path, text, said):
    with pytest.raises(BadInput) as caught:
        read(tmp_path, text)
    assert said in caught.value.what and caught.value.fix


@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([*"0123456789", "e", "-", ":", ".", ",", ";", "T", "Z", "\n"])).map(
        lambda parts: "".join(parts).encode()
    )
)
def test_any_bytes_are_a_trace_or_a_bad_input(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_bytes(data)
    try:
        trace = read_trace(path)
    except BadInput:
        return
    assert trace and trace[0] == 0 and trace == sorted(trace)
