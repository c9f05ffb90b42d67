"""What a CI service reads: quoted text starts no other command, and summaries have an end."""

from __future__ import annotations

import pytest

from labkit.core import github, markdown


def test_an_annotation_is_one_command_whatever_it_quotes(monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    line = github.error(
        "50 %\r\n::set-output name=a::b", title="naive, a: load", file=str(tmp_path / "n,1.ipynb")
    )
    assert line == (
        "::error file=n%2C1.ipynb,title=naive%2C a%3A load::50 %25\\x0d%0A::set-output name=a::b"
    )


def test_a_file_outside_of_the_checkout_is_not_named(monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path / "work"))
    assert github.error("m", title="t", file=str(tmp_path / "n.ipynb")) == "::error title=t::m"


@pytest.mark.parametrize(
    ("before", "cut"), [(0, False), (github.SUMMARY_BYTES - 300, True), (2 * 10**6, True)]
)
def test_a_summary_goes_behind_what_is_there_as_far_as_it_is_kept(tmp_path, before, cut):
    path = tmp_path / "summary"
    path.write_bytes(b"x" * before)
    github.append_summary("line\n" * 100, path)
    written = path.read_bytes()
    assert written.startswith(b"x" * before) and (b"Cut here" in written) == (
        cut and before < github.SUMMARY_BYTES
    )
    assert len(written) <= max(before, github.SUMMARY_BYTES)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("`x` *y* _z_", r"\`x\` \*y\* \_z\_"),
        ("<script>&", "&lt;script&gt;&amp;"),
        ("[a](b) ![c]", r"\[a\](b) \!\[c\]"),
        ("a\nb\x1b", r"a\\x0ab\\x1b"),
        (None, ""),
    ],
)
def test_markup_in_a_cell_is_text(text, shown):
    assert markdown.inline(text) == shown
    assert markdown.table([[text, 1]], ["h", "n"]).splitlines()[2] == f"| {shown} | 1 |"


def test_a_block_is_not_ended_by_what_it_quotes():
    block = markdown.block("a\n````\n<b>")
    assert block.startswith("`````text\n") and block.endswith("\n`````")
