"""What one command would unlock: findings of the doctor, grouped by what changes them.

    for unlock in grouped(capabilities.doctor()): print(unlock.command, unlock.names)

`make host-tools` installs a dozen things, so it is one line; packages of one manager are one
command. Lesson: notebooks/00_start_here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from labkit.core.probes.probe import APT, HOST_TOOLS, OK, Capability

#: What scripts/host-tools installs with apt-get (a test reads them there).
HOST_TOOLS_PACKAGES = frozenset(
    {
        "fuse3",
        "containerd",
        "runc",
        "stargz-snapshotter",
        "docker-registry",
        "skopeo",
        "umoci",
        "iproute2",
        "pigz",
        "rclone",
        "chromium",
        "chromium-driver",
        "chromium-browser",
    }
)
_EXTRA = re.compile(r"pip install 'labkit\[([\w,-]+)\]'")


@dataclass(frozen=True)
class Unlock:
    """`command`: what to do; `found`: the capabilities that it gives, or frees of a limit."""

    command: str
    found: tuple[Capability, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.found)


def grouped(findings: Iterable[Capability]) -> list[Unlock]:
    """Those of the findings that are missing or limited and say what changes them, the command that
    unlocks most first; what nothing changes comes last, under ""."""
    groups: dict[str, list[Capability]] = {}
    for found in findings:
        if found.state != OK:
            groups.setdefault(_kind(found.fix), []).append(found)
    unlocks = [Unlock(_command(kind, found), tuple(found)) for kind, found in groups.items()]
    return sorted(unlocks, key=lambda u: (not u.command, u.command != HOST_TOOLS, -len(u.found)))


def _kind(fix: str) -> str:
    """What fixes of one command have in common."""
    command = re.split(r"\s+\(", fix, maxsplit=1)[0]
    if command.startswith(APT):
        packages = command.removeprefix(APT).split()
        return HOST_TOOLS if HOST_TOOLS_PACKAGES.issuperset(packages) else APT
    if _EXTRA.match(command):
        return "pip install"
    return re.split(r"; | with ", command, maxsplit=1)[0]


def _command(kind: str, found: Iterable[Capability]) -> str:
    fixes = [re.split(r"\s+\(", c.fix, maxsplit=1)[0] for c in found]
    if kind == APT:
        packages = [p for fix in fixes for p in fix.removeprefix(APT).split()]
        return APT + " ".join(dict.fromkeys(packages))
    if kind == "pip install":
        extras = [match[1] for fix in fixes if (match := _EXTRA.match(fix))]
        return f"pip install 'labkit[{','.join(dict.fromkeys(extras))}]'"
    return kind if kind == HOST_TOOLS else max(fixes, key=len)
