"""Work done apart comes back whole, with its errors, and leaves nothing in this process."""

from __future__ import annotations

import os
import sys

import pytest

from labkit.core.subprocess_call import run_in_subprocess
from labkit.core.units import parse_bytes
from labkit.errors import BadInput, LabError


def test_it_runs_in_another_process():
    assert run_in_subprocess(os.getpid) != os.getpid()


def test_a_lab_error_keeps_its_fix():
    with pytest.raises(BadInput) as caught:
        run_in_subprocess(parse_bytes, "much")
    assert "250MB" in caught.value.fix


def test_any_other_error_comes_with_its_traceback():
    with pytest.raises(LabError) as caught:
        run_in_subprocess(os.fspath, 7)
    assert "TypeError" in caught.value.what and "Traceback" in caught.value.why


def test_what_the_system_refuses_there_is_said_as_it_is_here():
    with pytest.raises(BadInput, match="/nowhere") as caught:
        run_in_subprocess(os.listdir, "/nowhere")
    assert "Traceback" not in str(caught.value) and caught.value.fix


def test_a_death_is_an_error():
    with pytest.raises(LabError, match="without an answer"):
        run_in_subprocess(os._exit, 7)


def test_what_it_imports_stays_there():
    before = set(sys.modules)
    run_in_subprocess(parse_bytes, "5MB")
    assert set(sys.modules) == before
