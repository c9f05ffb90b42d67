"""labkit.image.takedown: a container is deleted only when the entry can be the lab's own."""

from __future__ import annotations

import pytest

from labkit.core import takedown
from labkit.core.takedown import Scope
from labkit.image import takedown as image_takedown


@pytest.fixture
def removed(monkeypatch):
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(
        image_takedown,
        "delete_container",
        lambda root, name, timeout_s: calls.append((root, name)),
    )
    return calls


def entry(**detail):
    return {"id": "c", "kind": "action", "target": "image:delete-container", **detail}


def test_a_container_below_the_workspace_is_deleted_before_files_are(tmp_path, removed):
    state = tmp_path / "node" / "state"
    state.mkdir(parents=True)
    scope = Scope("labkit-0123456789abcdef", "0123456789abcdef", (str(tmp_path),))
    takedown.end(
        [
            {"id": "d", "kind": "dir", "target": str(tmp_path / "node")},
            entry(container="labkit-1-2", root=str(state)),
        ],
        scope,
    )
    assert removed == [(str(state), "labkit-1-2")] and not (tmp_path / "node").exists()


@pytest.mark.parametrize(
    "forged",
    [
        {"container": "someone-else", "root": "{state}"},
        {"container": "labkit-1-2/../x", "root": "{state}"},
        {"container": "labkit-1-2", "root": "/run/runc"},
        {"container": "labkit-1-2", "root": "{state}/absent"},
        {"container": ["labkit-1-2"], "root": "{state}"},
        {"container": "labkit-1-2", "root": None},
        {"container": "labkit-1-2"},
    ],
)
def test_what_cannot_be_ours_is_left_alone(tmp_path, removed, forged):
    state = tmp_path / "node" / "state"
    state.mkdir(parents=True)
    forged = {
        k: v.replace("{state}", str(state)) if isinstance(v, str) else v for k, v in forged.items()
    }
    scope = Scope("labkit-0123456789abcdef", "0123456789abcdef", (str(tmp_path),))
    takedown.end([entry(**forged)], scope)
    assert removed == []
