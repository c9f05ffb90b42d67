"""What this host can do: capabilities, each proven by a probe (`labkit.core.probes`).

A capability is asked of the machine, not guessed from its name: user namespaces are unshared, FUSE
is mounted, a page's residency is read back. A host that lacks one loses mechanisms, never the
meaning of a number.

    capability("fuse").ok                      # probed once a process
    for finding in doctor(): print(finding.state, finding.name, finding.why, finding.fix)

Lesson: notebooks/00_start_here."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from labkit.core import host
from labkit.errors import BadInput

if TYPE_CHECKING:
    from labkit.core.probes import Capability


@functools.cache
def capability(name: str) -> Capability:
    """Probe one capability, once a process. `package:NAME` and `command:NAME` ask for a Python
    package and a program.

    Raises BadInput for a name no probe knows: a misspelt requirement must not read as a missing
    one."""
    from labkit.core import probes

    kind, _, target = name.partition(":")
    if target and kind == "package":
        return probes.package(target)
    if target and kind == "command":
        return probes.command(target)
    if name not in probes.PROBES:
        raise BadInput(
            f"no capability called {name!r}",
            why="a requirement nobody probes would never be checked",
            fix="one of: " + ", ".join(sorted(probes.PROBES)) + ", package:NAME, command:NAME",
        )
    return probes.probed(name)


def forget() -> None:
    """Probe again next time (after installing something)."""
    from labkit.core import probes

    capability.cache_clear()
    host.card.cache_clear()
    probes.probed.cache_clear()


def doctor() -> list[Capability]:
    """Every probe, in the order of the doctor's table. A probe that crashes is a finding, not a
    crash."""
    from labkit.core import probes

    findings = []
    for name, probe in probes.PROBES.items():
        try:
            findings.append(capability(name))
        except Exception as error:  # a doctor that dies of one symptom helps nobody
            findings.append(
                probes.Capability(
                    name,
                    False,
                    f"the probe failed: {type(error).__name__}: {error}",
                    probe.why,
                    "labkit doctor --json",
                )
            )
    return findings
