"""A command reads the arguments it is given, whatever the process was called with."""

from __future__ import annotations

import sys

import pytest

from labkit import cli
from tests.contract.test_commands import CALLS

PLACES = {n: f"/nowhere/{n}" for n in ("home", "out", "layout", "model", "record", "study", "gone")}


@pytest.mark.parametrize("command", CALLS)
def test_a_command_is_parsed_from_what_main_is_given(command, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["another-program", "--of-its-own"])
    given = [*command.split(), *CALLS[command].format_map(PLACES).split()]
    args = cli.parser().parse_args(given)
    assert args.command == given[0]
