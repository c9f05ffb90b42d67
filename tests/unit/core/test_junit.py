"""JUnit XML: what any reader of it takes, whatever a record holds."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from labkit.core import junit, secrets
from labkit.core.junit import ERROR, FAILED, SKIPPED, Case, Suite
from labkit.errors import BadInput

HOSTILE = "a\x00\x1b[2J\ud800\uffff\u202e]]>&<\"'\né漢🙂"
CASES = (
    Case("labkit.run", "naive, block 1", 9.3125),
    Case("labkit.run", HOSTILE, 0.0, FAILED, "oom", HOSTILE, HOSTILE),
    Case("labkit.run", "b", 0.0, SKIPPED, "unavailable", "no FUSE here"),
    Case("baseline", "can be compared", 0.0, ERROR, "not_comparable", "another host"),
)
#: Children and attributes as the schema of Jenkins names them.
ATTRIBUTES = {
    "testsuites": {"name", "time", "tests", "failures", "errors"},
    "testsuite": {"name", "time", "tests", "failures", "errors", "skipped", "timestamp"},
    "testcase": {"name", "time", "classname"},
    "failure": {"type", "message"},
    "error": {"type", "message"},
    "skipped": {"type", "message"},
}


@pytest.fixture(scope="module")
def root() -> ET.Element:
    return ET.fromstring(junit.document(Suite("run", CASES, "2026-01-01T00:00:00+00:00")))


def test_counts_are_those_of_the_cases(root):
    suite = root[0]
    counted = {n: suite.get(n) for n in ("tests", "failures", "errors", "skipped", "time")}
    assert counted == {
        "tests": "4",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
        "time": "9.312",
    }
    assert [child.tag for case in suite for child in case] == ["failure", "skipped", "error"]


def test_every_element_and_attribute_is_of_the_schema(root):
    for node in root.iter():
        assert set(node.attrib) <= ATTRIBUTES[node.tag], node.tag


def test_no_control_character_is_left_and_the_rest_stands_as_it_was(root):
    failure = root.find(".//failure")
    assert failure.text == "a\\x00\\x1b[2J\\ud800\ufffd\\u202e]]>&<\"'\né漢🙂"
    assert "\n" not in failure.get("message") and failure.get("message").endswith("é漢🙂")


def test_a_secret_is_masked(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    case = Case("a", "b", 0.0, FAILED, "crashed", "Bearer hf_abcdefghijklmnopqrstuvwxyz")
    written = junit.document(Suite("run", (case,)))
    assert b"abcdefghijkl" not in written and secrets.MASK in written.decode()


def test_a_file_of_somebody_else_is_kept_and_ours_is_replaced(tmp_path):
    suite = Suite("run", CASES)
    strange = tmp_path / "pytest.xml"
    strange.write_text('<?xml version="1.0"?><testsuites name="pytest tests"/>')
    with pytest.raises(BadInput, match="no JUnit|not a JUnit"):
        junit.write(suite, strange)
    own = junit.write(suite, tmp_path / "new" / "junit.xml")
    assert junit.write(suite, own).read_bytes() == junit.document(suite)
