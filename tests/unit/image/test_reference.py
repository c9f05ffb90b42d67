"""References are read by the grammar of the distribution specification; what is none says how to
write one."""

from __future__ import annotations

import pytest

from labkit.errors import BadInput
from labkit.image.reference import parse_reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    "text,shown",
    [
        ("lab/subject", "lab/subject:latest"),
        ("http://h:5000/lab/x:1", "http://h:5000/lab/x:1"),
        ("HTTPS://h/x", "https://h/x:latest"),
        ("http://[::1]:5000/x", "http://[::1]:5000/x:latest"),
        (f"lab/x@{DIGEST}", f"lab/x@{DIGEST}"),
        (f"http://h/lab/x:v1.2@{DIGEST}", f"http://h/lab/x:v1.2@{DIGEST}"),
        ("docker.io/a__b/c-----d", "docker.io/a__b/c-----d:latest"),
        ("x:" + "T" * 128, "x:" + "T" * 128),
    ],
)
def test_references_are_completed(text, shown):
    assert str(parse_reference(text)) == shown


def test_of_a_tag_and_a_digest_the_digest_is_fetched_and_the_tag_is_its_name():
    both = parse_reference(f"http://h/lab/x:v1@{DIGEST}")
    assert (both.target, both.local) == (DIGEST, "lab/x:v1")
    assert parse_reference(f"http://h/lab/x@{DIGEST}").local == "lab/x"


def test_a_registry_without_its_scheme_is_shown_with_one():
    with pytest.raises(BadInput) as refused:
        parse_reference("127.0.0.1:5000/lab/x:v1")
    assert refused.value.fix == "write it like http://127.0.0.1:5000/lab/x:v1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Lab/X",
        "http://host",
        "http:///x",
        "ftp://h/x",
        "a/../b",
        "a..b",
        "a___b",
        "a/",
        "/a",
        "-a",
        "x:tag/y",
        "x:",
        f"x:@{DIGEST}",
        "x:" + "T" * 129,
        "x:.v1",
        "a" * 256,
        "x@sha256:zz",
        f"x@{DIGEST}@{DIGEST}",
        f"x@{DIGEST.upper()}",
        "lab/x: y",
        "x:latest\n",
    ],
)
def test_what_is_no_reference_says_how_to_write_one(text):
    with pytest.raises(BadInput):
        parse_reference(text)
