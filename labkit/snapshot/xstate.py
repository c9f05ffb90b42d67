"""Permissions of CPU state: what a process was granted before its dump, and CRIU does not bring
back.

Intel's AMX computes in tiles of 8 KiB a thread, and the kernel saves them only for a process that
has asked (`arch_prctl(ARCH_REQ_XCOMP_PERM, 18)`; oneDNN and MKL do so by themselves). The
permission is a mask of the process, inherited by fork and gone with exec. CRIU 4.2 does not know
it: a restored server answers /health, and its first bfloat16 product is an illegal instruction
(docs/upstream/criu-amx.md). So the mask of every process is read before the dump, kept in the
manifest, asked for again in the restored processes while they stand stopped, before any thread of
them computes, and read back.

    wanted = masks(pid)                             # {"1": 0x600e7}: process id in the dump's
        namespace -> mask
    handed = hand_on(restored_pid, wanted)          # raises SnapshotError where the kernel does not
        grant it

The process itself has to ask, whoever wrote it, so the call is made inside of it
(`labkit.snapshot.tracee`). Limit: 1 ms a process. Kernel: Documentation/arch/x86/xstate.rst.
Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from labkit.core.host import grantable_cpu_state
from labkit.core.json_types import JsonObject
from labkit.core.proc import descendants, namespace_pids, start_time
from labkit.snapshot.explain import SnapshotError, SnapshotRefused
from labkit.snapshot.tracee import Tracee, TraceError, supported

ARCH_PRCTL, GET_PERMISSION, REQUEST_PERMISSION = 158, 0x1022, 0x1023
#: Features that a process has to ask for (the kernel's XFEATURE_MASK_USER_DYNAMIC); every other one
#: is always permitted.
DYNAMIC = {18: "AMX tile data"}
DYNAMIC_MASK = sum(1 << feature for feature in DYNAMIC)


class Permissions(Protocol):
    """The kernel's side, so that a host without such features can stand in for one that has
    them."""

    def supported(self) -> int:
        """Mask of what this host can grant."""

    def of(self, pid: int) -> int:
        """Mask of what a process was granted; 0 where the kernel knows no such thing."""

    def request(self, pid: int, feature: int) -> int:
        """Ask for one feature, in the process. errno, or 0."""


class Kernel:
    def supported(self) -> int:
        return grantable_cpu_state()

    def of(self, pid: int) -> int:
        if not supported():
            return 0
        with Tracee(pid) as tracee:
            error, mask = tracee.ask(ARCH_PRCTL, GET_PERMISSION)
        return 0 if error else mask

    def request(self, pid: int, feature: int) -> int:
        with Tracee(pid) as tracee:
            return -tracee.call(ARCH_PRCTL, REQUEST_PERMISSION, feature)


KERNEL: Permissions = Kernel()


@dataclass(frozen=True)
class Handed:
    """Masks by process id in the dump's namespace: before the dump, as CRIU left them, and as they
    are now."""

    dumped: dict[str, int] = field(default_factory=dict)
    restored: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)

    @property
    def lacking(self) -> dict[str, int]:
        """What a process had before the dump and has not now; empty when all is well."""
        return {
            pid: mask & DYNAMIC_MASK & ~self.now.get(pid, 0)
            for pid, mask in self.dumped.items()
            if mask & DYNAMIC_MASK & ~self.now.get(pid, 0)
        }

    @property
    def handed_on(self) -> str:
        """What CRIU had left behind, in words; "" where it had left nothing behind."""
        left = {
            pid: mask & DYNAMIC_MASK & ~self.restored.get(pid, 0)
            for pid, mask in self.dumped.items()
        }
        return "; ".join(
            f"{names(mask)} granted again to process {pid} ({self.restored.get(pid, 0):#x} →"
            f" {self.now.get(pid, 0):#x})"
            for pid, mask in left.items()
            if mask
        )

    @classmethod
    def from_facts(cls, facts: Mapping[str, Mapping[str, str]]) -> Handed:
        """Back from `as_facts`, as it stands in a trial's facts."""
        return cls(
            **{
                name: {pid: int(mask, 16) for pid, mask in facts.get(name, {}).items()}
                for name in ("dumped", "restored", "now")
            }
        )

    def as_facts(self) -> JsonObject:
        return {
            name: {pid: hex(mask) for pid, mask in getattr(self, name).items()}
            for name in ("dumped", "restored", "now")
        }


def tree(root: int) -> dict[str, int]:
    """Process id as `root`'s own namespace numbers it -> host pid, for `root` and all below it."""
    level, found = len(namespace_pids(root)) - 1, {}
    # a zombie has no state left
    for pid in (member for member in [root, *descendants(root)] if start_time(member)):
        numbers = namespace_pids(pid)
        if len(numbers) > level >= 0:
            found[str(numbers[level])] = pid
    return found


def masks(root: int) -> dict[str, int]:
    """Of `root` and all processes below it. Raises SnapshotError where a mask that may matter
    cannot be read; they go on running."""
    found = {}
    for number, pid in tree(root).items():
        try:
            found[number] = KERNEL.of(pid)
        except TraceError as error:
            if os.path.exists(f"/proc/{pid}") and KERNEL.supported() & DYNAMIC_MASK:
                raise SnapshotError(
                    f"dump refused: the CPU permissions of process {pid} cannot be read"
                    f" ({error.what})",
                    f"{names(DYNAMIC_MASK)} would be missing after a restore. The process goes on"
                    " running.",
                    error.fix,
                ) from None
    return found


def names(mask: int) -> str:
    return ", ".join(name for feature, name in DYNAMIC.items() if mask >> feature & 1)


def refuse_if_lacking(wanted: Mapping[str, int]) -> None:
    """Before anything is started: raises SnapshotRefused where this host cannot grant what the
    processes had."""
    lacking = 0
    for mask in wanted.values():
        lacking |= mask & DYNAMIC_MASK
    lacking &= ~KERNEL.supported()
    if lacking:
        raise SnapshotRefused(
            "the snapshot's processes had a permission that this host does not grant:"
            f" {names(lacking)}",
            "without it their first such instruction is SIGILL: the CPU lacks it, or the kernel is"
            " older than 5.16 or hides it from its guests",
            "restore on a host whose /proc/cpuinfo names amx_tile, or dump again with the server"
            " started with MKL_ENABLE_INSTRUCTIONS=AVX512 ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16",
        )


def hand_on(root: int, wanted: Mapping[str, int]) -> Handed:
    """Grant the restored tree below `root` (stopped) what it had. Raises SnapshotError; the caller
    ends the tree then."""
    restored, now = {}, {}
    for number, pid in tree(root).items():
        if number not in wanted:
            continue
        try:
            restored[number] = KERNEL.of(pid)
            for feature in DYNAMIC:
                if (wanted[number] & ~restored[number]) >> feature & 1 and (
                    error := KERNEL.request(pid, feature)
                ):
                    raise SnapshotError(
                        f"the restored process {pid} was not granted {names(1 << feature)}:"
                        f" {os.strerror(error)}",
                        "its first such instruction would be SIGILL",
                        "dump again on this host; labkit doctor",
                    )
            now[number] = KERNEL.of(pid) if restored[number] != wanted[number] else restored[number]
        except TraceError as error:
            raise SnapshotError(
                f"the CPU permissions of the restored process {pid} cannot be read back:"
                f" {error.what}",
                error.why,
                error.fix,
            ) from None
    handed = Handed(dict(wanted), restored, now)
    if handed.lacking:
        raise SnapshotError(
            "restored processes lack what they had before the dump: "
            + "; ".join(f"{pid}: {names(mask)}" for pid, mask in handed.lacking.items()),
            "their first such instruction would be SIGILL",
            "dump again on this host",
        )
    return handed
