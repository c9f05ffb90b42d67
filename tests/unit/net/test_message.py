"""HTTP messages from strangers: parsed as RFC 9110/9112 say, or refused; never anything else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.net import head, message


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("bytes=0-99", [(0, 100)]),
        ("bytes=900-", [(900, 1000)]),
        ("bytes=-10", [(990, 1000)]),
        ("bytes=0-0", [(0, 1)]),
        ("bytes=990-2000", [(990, 1000)]),
        ("bytes=-5000", [(0, 1000)]),
        ("bytes=0-1, 5-6", [(0, 2), (5, 7)]),
        ("bytes=1-0", None),
        ("bytes=a-b", None),
        ("items=0-1", None),
        ("bytes", None),
        ("bytes=-", None),
        ("", None),
        (None, None),
        ("bytes=0-1,5000-", [(0, 2)]),
    ],
)
def test_ranges_read_as_the_rfc_says(text, wanted):
    assert message.parse_range(text, 1000) == wanted


@pytest.mark.parametrize("text", ["bytes=1000-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_with_no_byte_in_it_is_unsatisfiable(text):
    with pytest.raises(message.Unsatisfiable):
        message.parse_range(text, 1000)


@given(
    st.one_of(st.text(max_size=60), st.from_regex(r"bytes=[0-9,\- ]{0,40}", fullmatch=True)),
    st.integers(0, 1 << 50),
)
def test_any_range_header_gives_ranges_inside_the_file(text, size):
    try:
        found = message.parse_range(text, size)
    except message.Unsatisfiable:
        return
    assert found is None or all(0 <= start < end <= size for start, end in found)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_a_bad_message(raw):
    try:
        request = message.parse_request(raw)
        head.content_length(request.headers)
    except head.BadMessage:
        return
    assert request.path.startswith("/") and "\0" not in request.path


@given(
    st.binary(max_size=80),
    st.dictionaries(
        st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,12}", fullmatch=True),
        st.binary(max_size=30),
        max_size=5,
    ),
)
def test_requests_with_odd_targets_and_headers_do_not_crash(target, headers):
    raw = (
        b"GET /"
        + target
        + b" HTTP/1.1\r\nHost: h\r\n"
        + b"\r\n".join(k.encode() + b": " + v for k, v in headers.items())
    )
    with contextlib.suppress(head.BadMessage):
        message.parse_request(raw)


def test_absolute_form_targets_are_reduced_to_their_path():
    request = message.parse_request(b"GET http://127.0.0.1:9000/lab/a%20b?x=1 HTTP/1.1\r\nHost: h")
    assert (request.path, request.raw_path, request.query) == ("/lab/a b", "/lab/a%20b", {"x": "1"})


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 1\r\nContent-Length: 2",
        b"Content-Length: -1",
        b"Content-Length: 1e3",
        b"no colon",
        b"bad name: x",
    ],
)
def test_headers_that_smuggle_are_refused(headers):
    with pytest.raises(head.BadMessage):
        head.content_length(
            message.parse_request(b"PUT / HTTP/1.1\r\nHost: h\r\n" + headers).headers
        )


@pytest.mark.parametrize(
    "text",
    [
        "bytes=1_0-",
        "bytes=+1-5",
        "bytes=-1_0",
        "bytes=0x0-5",
        "bytes=²-5",
        "bytes=٣-5",
        "bytes=0-5\n",
        "bytes =0-5",
        "bytes=0-" + "9" * 30,
        "bytes=" + "0-0," * 5000,
    ],
)
def test_a_range_that_is_none_is_ignored_as_the_rfc_says(text):
    assert message.parse_range(text, 1000) is None


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 200)), min_size=1, max_size=50))
def test_no_ranges_ask_for_more_bytes_than_there_are(pairs):
    found = message.parse_range("bytes=" + ",".join(f"{a}-{b}" for a, b in pairs), 100)
    assert found is None or sum(end - start for start, end in found) <= 100
