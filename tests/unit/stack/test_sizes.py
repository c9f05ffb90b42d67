from __future__ import annotations

import pytest

from labkit.errors import BadInput
from labkit.stack.sizes import model_dir_of, parse_size


def test_a_size_names_the_model_and_what_is_added_to_the_image():
    assert [parse_size(s) for s in ("tiny", "80MB", "small+400MB")] == [
        ("tiny", 0),
        ("80MB", 0),
        ("small", 400_000_000),
    ]
    for wrong in ("", "huge", "tiny+", "tiny+lots"):
        with pytest.raises(BadInput):
            parse_size(wrong)


def test_a_preset_is_made_by_its_name_and_bytes_are_a_checkpoint_that_is_made_once(workspace):
    assert model_dir_of(workspace, "tiny") == ""
    there = workspace.models / "bytes-80000000"
    there.mkdir(parents=True)
    (there / "config.json").write_text("{}")
    assert model_dir_of(workspace, "80MB") == str(there)
