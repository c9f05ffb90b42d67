"""A kernel that has AMX, for hosts that have not: it answers as Linux on a Sapphire Rapids does,
and forgets over a restore as CRIU makes it."""

from __future__ import annotations

import errno

#: `arch_prctl(ARCH_GET_XCOMP_PERM)` on such a host, before and after a process asked for tile data.
PLAIN, AMX = 0x200E7, 0x600E7


class KernelWithAMX:
    """`masks`: pid -> mask (or an exception); who is not in it has `default`. `how`: "grants",
    "denies", or "forgets" what it granted."""

    def __init__(self, default: int = PLAIN):
        self.masks: dict[int, int | Exception] = {}
        self.default, self.grants, self.how = default, AMX, "grants"
        self.requests: list[tuple[int, int]] = []

    def supported(self) -> int:
        return self.grants

    def of(self, pid: int) -> int:
        mask = self.masks.get(pid, self.default)
        if isinstance(mask, Exception):
            raise mask
        return mask

    def request(self, pid: int, feature: int) -> int:
        self.requests.append((pid, feature))
        if self.how == "denies":
            return errno.EPERM
        if self.how == "grants":
            self.masks[pid] = self.of(pid) | 1 << feature
        return 0
