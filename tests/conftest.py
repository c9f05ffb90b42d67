"""Capabilities: `@pytest.mark.needs("fuse", "containers")` skips with its reason where the host
lacks one.

`LABKIT_REQUIRE=fuse,containers,criu` (CI sets it to all it installed) turns such a skip into a
failure, so that a check is never lost silently."""

from __future__ import annotations

import os
import signal

import pytest

try:
    from hypothesis import settings
except ImportError:  # host tests run without it
    pass
else:
    # no test asserts a time, hypothesis neither: hosts are busy
    settings.register_profile("lab", deadline=None)
    settings.load_profile("lab")

# A CI that runs in the background hands down SIGINT as ignored, and so would every process that a
# test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests measure beside each other on purpose: none waits for another's turn, and no trial is
# repeated because a neighbour was busy.
os.environ.setdefault("LABKIT_BESIDE", "1")

REQUIRED = {c.strip() for c in os.environ.get("LABKIT_REQUIRE", "").split(",") if c.strip()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from labkit.core import capabilities

    known: dict[str, str] = {}
    for item in items:
        for mark in item.iter_markers("needs"):
            for name in mark.args:
                if name not in known:
                    found = capabilities.capability(name)
                    known[name] = "" if found.ok else f"needs {name}: {found.missing} ({found.fix})"
                if known[name]:
                    if name in REQUIRED:
                        item.add_marker(pytest.mark.usefixtures("_required_capability_missing"))
                    else:
                        item.add_marker(pytest.mark.skip(reason=known[name]))


@pytest.fixture
def _required_capability_missing(request: pytest.FixtureRequest) -> None:
    names = [n for m in request.node.iter_markers("needs") for n in m.args]
    pytest.fail(f"LABKIT_REQUIRE names a capability this host lacks, of: {', '.join(names)}")


@pytest.fixture
def workspace(tmp_path):
    from labkit.core.workspace import Workspace

    return Workspace.at(tmp_path / "lab")


@pytest.fixture(scope="session")
def lab_home(tmp_path_factory):
    """One workspace for all tests that need the subject's image: it is built once a session
    (LABKIT_HOME where CI set it)."""
    from pathlib import Path

    return Path(os.environ.get("LABKIT_HOME") or tmp_path_factory.mktemp("lab-home"))


@pytest.fixture(scope="session")
def home_with_image(lab_home):
    """The same with the subject's image and the tiny checkpoint in it, for tests that copy them to
    a user's home: else that user builds them again, a minute."""
    import subprocess
    import sys

    code = (
        "from labkit.core.workspace import Workspace as W; from labkit.image import build; from"
        " labkit.subject import checkpoint as c; build.ensure_image(W.default());"
        " c.ensure(W.default(), 'tiny')"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LABKIT_HOME": str(lab_home)},
        check=True,
        timeout=500,
    )
    return lab_home
