"""Every server of the lab against bytes from strangers: each gets a valid answer or a closed
connection, and the server lives on."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.servers import NAMES, read_answer, serving

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

NASTY = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b"%",
    b"%0d%0aX-Injected:%201",
    b"%00",
    b"..",
    b"/../",
    b"//",
    b"%2e%2e%2f",
    b"\\",
    b"%ff",
    b"?",
    b"&",
    b"+5",
    b"1_0",
    b"0x5",
    b"-1",
    b"\xb2",
    b"%C2%B2",
    b"%D9%A3",
    b"9" * 40,
    b"99999999999999999999",
    b"bytes=",
    b",0-" * 50,
    b"HTTP/1.0",
    b"HTTP/2.0",
    b"\r\nTransfer-Encoding: chunked",
    b"\r\nContent-Length: 5",
    b"\r\nContent-Length: 0",
    b"\r\n folded",
    b"\r\nHost: evil.example",
    b"\r\nExpect: 100-continue",
    b"\r\nX-Injected: 1",
    b"\r\nOrigin: null",
    b"\r\nConnection: close",
    b"\r\nContent-MD5: \xe9",
    b"\r\nX-Amz-Content-Sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    b"\r\nIf-None-Match: *",
    b"\r\nRange: bytes=-0",
    b"\r\nx-amz-copy-source: %00",
    b"\r\nAuthorization: AWS4-HMAC-SHA256 \xff",
    b"null",
    b"[]",
    b"{}",
    b'"digest":5',
    b"<!DOCTYPE a>",
    b"&#0;",
    b"a" * 300,
    b"x/" * 200,
    b"/tags",
    b"/manifests/",
    b"\xd8\x00",
    b"?uploadId=0",
    b"&n=\xc2\xb2",
    b"&n=%C2%B2",
    b"&maxResults=%C2%B2",
]
edit = st.one_of(
    st.tuples(
        st.just("insert"),
        st.floats(0, 1),
        st.one_of(st.sampled_from(NASTY), st.binary(max_size=12)),
    ),
    st.tuples(
        st.just("replace"),
        st.floats(0, 1),
        st.one_of(st.sampled_from(NASTY), st.binary(min_size=1, max_size=6)),
    ),
    st.tuples(st.just("cut"), st.floats(0, 1), st.integers(1, 40)),
    st.tuples(st.just("again"), st.floats(0, 1), st.integers(1, 60)),
    st.tuples(st.just("end"), st.floats(0, 1), st.none()),
)


def mutated(raw: bytes, edits) -> bytes:
    for kind, where, what in edits:
        at = int(where * len(raw))
        if kind == "insert":
            raw = raw[:at] + what + raw[at:]
        elif kind == "replace":
            raw = raw[:at] + what + raw[at + len(what) :]
        elif kind == "cut":
            raw = raw[:at] + raw[at + what :]
        elif kind == "again":
            raw = raw[:at] + raw[at : at + what] + raw[at:]
        else:
            raw = raw[:at]
    return raw


@pytest.fixture(scope="module", params=NAMES)
def subject(request, tmp_path_factory):
    with serving(request.param, tmp_path_factory.mktemp(request.param)) as made:
        for seed in made.seeds:
            made.send(seed)
        yield made


def check(subject, raw: bytes) -> None:
    got, reset = subject.send(raw)
    if got:
        status, headers, _ = read_answer(
            got, bodiless=raw.lstrip(b"\r\n").startswith(b"HEAD "), whole=not reset
        )
        assert "x-injected" not in headers and status != 500, got[:500]


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_mutated_request_gets_a_valid_answer_or_a_closed_connection(subject, capsys, data):
    raw = mutated(
        data.draw(st.sampled_from(subject.seeds)), data.draw(st.lists(edit, min_size=1, max_size=5))
    )
    check(subject, raw)
    assert "Traceback" not in capsys.readouterr().err
    assert subject.alive()


#: What stands between delimiters, and whole quoted strings: names, numbers, values.
VALUE = re.compile(rb'"[^"\r\n]*"|[^=:, "/<>;\r\n?&-]+')
VALUES = [
    b"\xb2",
    b"%C2%B2",
    b"1_0",
    b"+5",
    b"0x5",
    b"9" * 40,
    b"",
    b"%0d%0aX-Injected:%201",
    b"%00",
    b"..",
    b"\xe9",
    b"%ff",
    b"5",
    b"null",
    b"[5]",
    b"a\nX-Injected: 1",
    b"a" * 300,
    b"a/b",
    b'"a\\r\\nX-Injected: 1"',
]


def test_no_value_in_place_of_another_breaks_a_server(subject, capsys):
    """Each value of each request, replaced by each of the usual traps."""
    for seed in subject.seeds:
        at = [
            m.span()
            for m in VALUE.finditer(seed)
            if m[0] not in (b"HTTP", b"1.1", b"Host", b"127.0.0.1", b"Content", b"Length")
        ]
        for start, end in at:
            for value in VALUES:
                raw = seed[:start] + value + seed[end:]
                head, mark, body = raw.partition(b"\r\n\r\n")
                check(
                    subject,
                    re.sub(
                        rb"Content-Length: [0-9]+$",
                        b"Content-Length: %d" % len(body),
                        head,
                        flags=re.M,
                    )
                    + mark
                    + body,
                )
                assert "Traceback" not in capsys.readouterr().err, raw
    assert subject.alive()


@given(
    st.one_of(st.binary(max_size=600), st.lists(st.sampled_from(NASTY), max_size=30).map(b"".join))
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_bytes_get_a_valid_answer_or_a_closed_connection(subject, capsys, raw):
    check(subject, raw)
    assert "Traceback" not in capsys.readouterr().err
    assert subject.alive()


@given(st.text(max_size=30), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_text_of_a_client_becomes_a_header_of_the_answer(subject, capsys, text, data):
    """In every part of a target, percent-encoded so that it arrives: line breaks, NUL, any
    script."""
    seed = data.draw(st.sampled_from(subject.seeds))
    escaped = "".join(
        f"%{b:02X}"
        for b in (text + "\r\nX-Injected: 1\r\n\r\nHTTP/1.1 200 OK").encode(
            "utf-8", "surrogatepass"
        )
    )
    method, target, rest = seed.split(b" ", 2)
    at = data.draw(st.integers(1, len(target)))
    check(
        subject,
        b" ".join([method, target[:at].rstrip(b"%") + escaped.encode() + target[at:], rest]),
    )
    assert "Traceback" not in capsys.readouterr().err
