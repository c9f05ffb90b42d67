"""What is missing is grouped by the one command that unlocks it."""

from __future__ import annotations

import re
from pathlib import Path

from labkit.core import unlocks
from labkit.core.probes import Capability
from labkit.core.probes.probe import APT, HOST_TOOLS

ROOT = Path(__file__).parents[3]


def _missing(name: str, fix: str) -> Capability:
    return Capability(name, False, f"no {name}", "", fix)


def test_host_tools_is_one_line_whatever_way_it_is_named():
    found = [
        _missing("criu", f"{HOST_TOOLS}  (CRIU 4 or newer)"),
        _missing("fuse", APT + "fuse3 (its fusermount3 must be setuid root)"),
        Capability("there", True),
        _missing("skopeo", APT + "skopeo"),
    ]
    (one,) = unlocks.grouped(found)
    assert one.command == HOST_TOOLS and one.names == ("criu", "fuse", "skopeo")


def test_packages_of_one_manager_are_one_command():
    found = [
        _missing("a", APT + "util-linux"),
        _missing("llamacpp", "pip install 'labkit[llamacpp]'  (compiles for minutes)"),
        _missing("b", APT + "strace"),
        _missing("servers", "pip install 'labkit[servers]'"),
        _missing("c", ""),
    ]
    commands = [u.command for u in unlocks.grouped(found)]
    assert commands == [APT + "util-linux strace", "pip install 'labkit[llamacpp,servers]'", ""]


def test_a_gpu_is_asked_for_once():
    found = [
        _missing("gpu", "run on a GPU host; in a container: --gpus all"),
        _missing("cuda-checkpoint", "run on a GPU host with driver 570 or newer"),
    ]
    assert len(unlocks.grouped(found)) == 1


def test_the_packages_of_host_tools_are_those_of_its_script():
    script = (ROOT / "scripts" / "host-tools").read_text()
    listed = set(
        re.findall(r"[\w.-]+", " ".join(re.findall(r'packages="\$packages ([^"]*)"', script)))
    )
    assert listed - {"chromium-chromedriver"} <= unlocks.HOST_TOOLS_PACKAGES and listed
    assert all(re.search(rf"\b{re.escape(p)}\b", script) for p in unlocks.HOST_TOOLS_PACKAGES)
