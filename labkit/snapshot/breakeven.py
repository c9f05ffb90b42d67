"""When restoring is faster than starting: two straight lines over the time to read a byte.

    start(rate)   = what a start computes (import, build, warm-up)  + weights ÷ rate
    restore(rate) = what CRIU and the kernel do anyway              + (heap + weights) ÷ min(rate,
        copy rate)

Both read the weights; a restore reads the heap in place of making it again. So it wins where the
heap comes in faster than the computation that it replaces: rate > heap ÷ (computed − fixed). Below
that disk (or link), restoring is slower than starting, and above it the gain has a bound of its
own: the computation. Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One model on one host. `computed_s`: of a start, all but reading; `fixed_s`: of a restore;
    `copy_bytes_per_s`: CRIU's copy."""

    weights_bytes: int
    heap_bytes: int
    computed_s: float
    fixed_s: float
    copy_bytes_per_s: float = 1.4e9

    def start_s(self, rate_bytes_per_s: float) -> float:
        return self.computed_s + self.weights_bytes / rate_bytes_per_s

    def restore_s(self, rate_bytes_per_s: float, *, mapped: bool = True) -> float:
        """`mapped`: the weights stay a file and are not copied by CRIU."""
        if mapped:
            return (
                self.fixed_s
                + self.heap_bytes / min(rate_bytes_per_s, self.copy_bytes_per_s)
                + self.weights_bytes / rate_bytes_per_s
            )
        return self.fixed_s + (self.heap_bytes + self.weights_bytes) / min(
            rate_bytes_per_s, self.copy_bytes_per_s
        )

    def break_even_bytes_per_s(self) -> float:
        """Read rate above which restoring wins (weights mapped). `inf`: never."""
        return break_even_rate(self.heap_bytes, self.computed_s, self.fixed_s)


def break_even_rate(heap_bytes: float, computed_s: float, fixed_s: float) -> float:
    return heap_bytes / (computed_s - fixed_s) if computed_s > fixed_s else float("inf")


def case_of(
    start: dict[str, float],
    restore: dict[str, float],
    *,
    weights_bytes: int,
    heap_bytes: int,
    read_bytes_per_s: float,
) -> Case:
    """From measured phases of a start and a restore on this host: what is left when the reading is
    taken out."""
    computed = sum(v for k, v in start.items() if k not in ("pull", "unpack", "mount", "load"))
    total = sum(restore.values())
    return Case(
        weights_bytes,
        heap_bytes,
        computed,
        max(0.0, total - (heap_bytes + weights_bytes) / read_bytes_per_s),
    )
