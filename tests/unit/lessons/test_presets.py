"""A notebook has two presets: `ci` is for tests, `report` for pages that people read."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from labkit.cli import notebooks, report, site, workshop
from labkit.lessons import canonical, parameters
from labkit.lessons.report import Options

NOTEBOOKS = sorted((Path(__file__).parents[3] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_each_notebook_has_both_presets_and_they_name_its_own_parameters(path):
    known = canonical.parameters(canonical.load(path))
    found = parameters.presets(path)
    assert set(found) == {"ci", "report"}
    for values in found.values():
        assert values and set(values) <= set(known)
        kinds = {name: type(known[name]) for name in values}
        assert {name: type(value) for name, value in values.items()} == kinds


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_page_for_people_is_of_the_size_of_a_test(path):
    assert parameters.presets(path)["report"].get("preset") != "tiny"
    assert parameters.presets(path)["report"].get("image") != "tiny"


@pytest.mark.parametrize("command", [notebooks, report, site, workshop], ids=lambda c: c.__name__)
def test_no_command_takes_the_preset_of_tests_by_itself(command):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    pending, defaults = [parser], []
    while pending:
        for action in pending.pop()._actions:
            defaults.append(action.default)
            if isinstance(action, argparse._SubParsersAction):
                pending += action.choices.values()
    assert "ci" not in defaults and Options().notebook_preset == "report"


def test_the_notebooks_that_measure_what_a_study_does_take_its_record():
    have = {p.stem[:2] for p in NOTEBOOKS if "study" in canonical.parameters(canonical.load(p))}
    assert {"00", "01", "08", "09"} <= have
