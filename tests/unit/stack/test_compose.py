from __future__ import annotations

import pytest

from labkit.stack.compose import Stack
from labkit.technique import Availability, technique


@pytest.mark.parametrize(
    ("lacks", "said"),
    [("runc: no runc", "runc: no runc"), ("root: not root", "runc: root: not root")],
)
def test_what_a_stack_lacks_names_its_technique_once(monkeypatch, lacks, said):
    monkeypatch.setattr(
        type(technique("runc")), "available", lambda *_: Availability(False, lacks, "why", "fix")
    )
    found = Stack.parse("image=full-pull,process=runc").available({})
    assert not found.ok and (found.missing, found.why, found.fix) == (said, "why", "fix")
