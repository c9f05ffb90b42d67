"""The canonical form: what is committed stays clean, and --fix is stable."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import BadInput
from labkit.lessons import canonical, parameters

ROOT = Path(__file__).parents[3]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_committed_notebook_is_canonical(path):
    assert [str(p) for p in canonical.look(path)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_links_between_notebooks_lead_somewhere(path):
    import re

    for cell in canonical.load(path)["cells"]:
        if cell["cell_type"] == "markdown":
            for target in re.findall(r"\]\(([\w./-]+\.(?:ipynb|md))\)", cell["source"]):
                # A link may lead to a notebook that the design names and another change brings.
                assert (path.parent / target).resolve().exists() or Path(target).stem in PLANNED, (
                    target
                )


PLANNED = {
    "00_start_here",
    "01_anatomy",
    "02_image_pull",
    "03_lazy_pull",
    "04_model_formats",
    "05_streaming",
    "06_gpu_init",
    "07_checkpoints",
    "08_stacking",
    "09_decide",
}


def _spoiled(path: Path, tmp_path: Path) -> Path:
    doc = canonical.load(path)
    doc["metadata"]["kernelspec"]["name"] = "my-conda"
    doc["metadata"]["toc"] = {}
    for i, cell in enumerate(c for c in doc["cells"] if c["cell_type"] == "code"):
        cell["execution_count"] = i
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["x"]}]
        cell["metadata"]["collapsed"] = True
        cell["source"] += "   \n"
    for cell in doc["cells"]:
        if "**Exercise:" in cell["source"]:
            cell["source"] = cell["source"].replace("difficulty 3/5", "difficulty 1/5")
    target = tmp_path / path.name
    target.write_text(canonical.dumps(doc))
    return target


def test_fix_brings_a_spoiled_notebook_back_to_the_committed_bytes(tmp_path):
    original = ROOT / "notebooks" / "01_anatomy.ipynb"
    spoiled = _spoiled(original, tmp_path)
    problems = canonical.look(spoiled)
    assert problems and all(p.fixable for p in problems)
    assert canonical.fix(spoiled) and not canonical.fix(spoiled)
    assert spoiled.read_bytes() == original.read_bytes()


def _look(tmp_path: Path, change) -> list[str]:
    doc = canonical.load(ROOT / "notebooks" / "00_start_here.ipynb")
    change(doc)
    path = tmp_path / "n.ipynb"
    path.write_text(canonical.dumps(canonical.canonical(doc)))
    return [p.text for p in canonical.look(path)]


def _code(doc):
    return [c for c in doc["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda d: _code(d)[1].update(source="\n".join(f"a{i} = {i}" for i in range(16))),
            "16 lines of code",
        ),
        (lambda d: _code(d)[0].update(metadata={}), "0 cells tagged"),
        (lambda d: _code(d)[1].update(metadata={"tags": ["parameters"]}), "2 cells tagged"),
        (lambda d: _code(d)[1].update(metadata={"tags": ["oops"]}), "unknown tag oops"),
        (lambda d: _code(d)[1].update(source="def ("), "does not parse"),
        (lambda d: _code(d)[0].update(source="blocks = len([])"), "not a plain value"),
        (lambda d: _code(d)[0].update(source="import os"), "is not `name = value`"),
        (lambda d: d["metadata"]["labkit"].pop("minutes"), "labkit.minutes is missing"),
        (
            lambda d: d["metadata"]["labkit"]["presets"]["ci"].update(nothing=1),
            "parameters that do not exist: nothing",
        ),
        (lambda d: d["cells"].pop(0), "the first cell is the title"),
        (
            lambda d: _code(d)[1].update(
                metadata={"tags": ["exercise"], "labkit": {"exercise": "start.no_such"}}
            ),
            "does not hold",
        ),
        (
            lambda d: _code(d)[1].update(metadata={"tags": ["exercise"]}),
            "without metadata labkit.exercise",
        ),
        (
            lambda d: [c.update(source="pass") for c in _code(d) if "check(" in c["source"]],
            "no later cell calls check",
        ),
    ],
)
def test_what_has_no_single_right_form_is_named(tmp_path, change, said):
    assert any(said in what for what in _look(tmp_path, change))


@given(st.text(max_size=60))
def test_canonical_form_is_a_fixed_point_for_any_source(source):
    doc = {
        "nbformat": 4,
        "nbformat_minor": 4,
        "metadata": {},
        "cells": [
            {"cell_type": "markdown", "metadata": {"x": 1}, "source": source},
            {
                "cell_type": "code",
                "metadata": {"tags": ["b", "a"]},
                "source": source,
                "outputs": [{}],
                "execution_count": 7,
            },
        ],
    }
    before = copy.deepcopy(doc)
    once = canonical.canonical(doc)
    assert doc == before and canonical.canonical(once) == once


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nbformat": 3, "cells": []}', "\x00"])
def test_what_is_no_notebook_is_refused(tmp_path, text):
    path = tmp_path / "n.ipynb"
    path.write_text(text)
    with pytest.raises(BadInput):
        canonical.load(path)


@pytest.mark.parametrize(
    ("text", "pair"),
    [("a=1", ("a", "1")), ("label=a=b", ("label", "a=b")), (" blocks =2", ("blocks", "2"))],
)
def test_a_parameter_may_hold_equals_signs(text, pair):
    assert parameters.parse_parameter(text) == pair


@pytest.mark.parametrize("text", ["a", "=1", "1a=2", ""])
def test_what_is_no_parameter_is_refused(text):
    with pytest.raises(BadInput):
        parameters.parse_parameter(text)


def test_what_is_offered_goes_to_the_notebooks_that_have_such_a_parameter():
    path = ROOT / "tests" / "notebooks" / "fixtures" / "passes.ipynb"
    offered = {"study": "a directory", "blocks": 7}
    assert parameters.parameters_for(path, "ci", {}, offered) == {"blocks": 7}
    assert parameters.parameters_for(path, "ci", {"blocks": "3"}, offered) == {"blocks": 3}


def test_parameters_are_read_with_the_type_of_their_default():
    path = ROOT / "tests" / "notebooks" / "fixtures" / "passes.ipynb"
    assert parameters.parameters_for(path, "", {"blocks": "3", "label": "7"}) == {
        "blocks": 3,
        "label": "7",
    }
    assert parameters.parameters_for(path, "ci", {}) == {"blocks": 2}
    with pytest.raises(BadInput, match="has no parameter 'lable'"):
        parameters.parameters_for(path, "", {"lable": "x"})
    with pytest.raises(BadInput, match="its default is 2"):
        parameters.parameters_for(path, "", {"blocks": "many"})
