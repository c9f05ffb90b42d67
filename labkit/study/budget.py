"""The time of a study: which arms each block has, so that what was begun is finished in the minutes
that were given.

Naive and the ladder come first, five blocks of them whatever it takes: below five pairs nothing is
significant. After the first block the seconds of a trial are known; arms alone and challengers join
from the second block on, in their order, as far as five blocks of each fit, and naive goes on
beside them, since a pair is of one block. What does not fit is left out, with the minutes that it
would take. Time that is left goes into more blocks of what is undecided.

    schedule = Schedule(arms, minutes=10)
    while names := schedule.block(number, run): …

Lesson: notebooks/08_stacking."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from labkit.core import stats
from labkit.core.records import Run
from labkit.core.units import show_s
from labkit.errors import BadInput
from labkit.stack.compose import Stack
from labkit.study.arms import Arms
from labkit.study.record import ALONE, CHALLENGER, NAIVE, RUNG

BLOCKS, MOST_BLOCKS = stats.MIN_PAIRS, 10
#: A challenger whose parts add up to this much more than the best arm is not tried.
HOPELESS = 1.5
#: An arm that failed so often and never succeeded gets no further trial.
GIVEN_UP_AFTER = 2
#: A first guess at one trial, seconds on two cores: of an image technique with the starting of the
#: server, and of a loader for 250 MB. The first block replaces it.
IMAGE_S = {"full-pull": 14.0, "object-pull": 8.0, "estargz-lazy": 6.0}
LOADER_S = {"pickle": 4.0}
OTHER_IMAGE_S, OTHER_LOADER_S, RESTORE_S = 8.0, 2.0, 2.0
#: What is made once for an arm with a snapshot: a container started, dumped, published.
SNAPSHOT_MADE_S = 15.0
#: What a trial takes beside its clock: eviction, proof, taking down.
OVERHEAD_S = 1.5
GUESSED_FOR_BYTES = 250e6


@dataclass
class Schedule:
    """`minutes`: for the whole study, counted from when this is made. `later_s`: what has to follow
    the blocks, seconds, from those of one naive trial. `clock`: seconds."""

    arms: Arms
    minutes: float
    later_s: Callable[[float], float] = lambda naive_s: 0.0
    clock: Callable[[], float] = time.monotonic
    left_out: dict[str, str] = field(default_factory=dict)
    _began_s: float = field(init=False)
    _joined: dict[str, int] = field(default_factory=dict)  # arm -> its first block

    def __post_init__(self) -> None:
        self._began_s = self.clock()

    def block(self, number: int, run: Run) -> list[str]:
        """The arms of block `number`, given the trials so far; [] where the study is over."""
        if not self._joined:
            core = dict.fromkeys(self.arms.of_kind(NAIVE, RUNG), 0)
            self._joined = self._of_before(run) or core
        if number == 1:
            self._let_join(run)
        self._give_up(run)
        due = [a for a, first in self._joined.items() if first <= number < first + BLOCKS]
        if due:
            return self._with_naive(due)
        more = self._with_naive(self._undecided(run)) if 0 < number < MOST_BLOCKS else []
        return more if self._fits(run, self._seconds(run, more)) else []

    def _with_naive(self, arms: list[str]) -> list[str]:
        """A pair is of one block: naive is in each."""
        return ["naive", *(a for a in arms if a != "naive")] if arms else []

    def ahead(self, number: int) -> list[str]:
        """An arm for each trial that is certain from block `number` on."""
        return [
            a
            for a, first in self._joined.items()
            for _ in range(max(first, number), first + BLOCKS)
        ]

    @property
    def spent_s(self) -> float:
        return self.clock() - self._began_s

    def _of_before(self, run: Run) -> dict[str, int]:
        """The arms of a study that is gone on with, each from its first block."""
        first: dict[str, int] = {}
        for t in run.trials:
            first[t.arm] = min(t.block, first.get(t.arm, t.block))
        missing = [a for a in self.arms.of_kind(NAIVE, RUNG) if a not in first]
        return {**first, **dict.fromkeys(missing, 0)} if first else {}

    def _fits(self, run: Run, more_s: float) -> bool:
        later_s = self.later_s(median_s(run, "naive"))
        return self.spent_s + more_s + later_s <= 60 * self.minutes

    def _let_join(self, run: Run) -> None:
        """Whatever fits beside what is still to come of the ladder."""
        core = list(self._joined)
        ahead_s = (BLOCKS - 1) * self._seconds(run, core)
        one_more_s = self._seconds(run, ["naive"])  # the block that the last to join needs
        fastest_s = min((m for a in core if (m := median_s(run, a))), default=0.0)
        for arm in self.arms.of_kind(ALONE, CHALLENGER):
            if arm in self._joined:
                continue
            expected_s = self._expected_s(run, arm)
            if self.arms.kind_of(arm) == CHALLENGER and expected_s > HOPELESS * fastest_s:
                self.left_out[arm] = (
                    f"its parts, measured apart, add up to {show_s(expected_s)}: the best here"
                    f" takes {show_s(fastest_s)}"
                )
                continue
            made_s = SNAPSHOT_MADE_S if self.arms.stacks[arm].layers.get("snapshot") else 0.0
            needs_s = BLOCKS * (expected_s + OVERHEAD_S) + made_s
            if self._fits(run, ahead_s + one_more_s + needs_s):
                self._joined[arm] = 1
                ahead_s += needs_s
            else:
                self.left_out[arm] = (
                    f"not in the time given: --minutes as many as now, and {needs_s / 60:.1f} more"
                )

    def _give_up(self, run: Run) -> None:
        for arm in [a for a in self._joined if a != "naive"]:
            every = run.of_arm(arm, only_ok=False)
            if len(every) >= GIVEN_UP_AFTER and not any(t.ok for t in every):
                del self._joined[arm]
                self.left_out[arm] = (
                    f"{len(every)} trials failed: {every[-1].outcome}:"
                    f" {every[-1].error.get('what', '')}"
                )

    def _undecided(self, run: Run) -> list[str]:
        """Arms of which it is not known whether they differ from naive, or from the rung below."""
        rungs = [a for a in self.arms.of_kind(NAIVE, RUNG) if a in self._joined]
        pairs = [(a, "naive") for a in self._joined if a != "naive"]
        pairs += list(zip(rungs[1:], rungs, strict=False))
        undecided = dict.fromkeys(arm for pair in pairs if not _decided(run, *pair) for arm in pair)
        return [a for a in self._joined if a in undecided]

    def _seconds(self, run: Run, arms: Sequence[str]) -> float:
        """One block of these arms."""
        return sum((median_s(run, arm) or self._expected_s(run, arm)) + OVERHEAD_S for arm in arms)

    def _expected_s(self, run: Run, arm: str) -> float:
        """What one trial may take, from the arms that hold its parts: alone on naive not longer
        than naive; a challenger as its rung, with the difference of the image techniques."""
        naive_s = median_s(run, "naive") or guess_s(self.arms.stacks["naive"])
        if self.arms.kind_of(arm) != CHALLENGER:
            return naive_s
        stack = self.arms.stacks[arm].layers
        for rung, layers in ((r, self.arms.stacks[r].layers) for r in self.arms.of_kind(RUNG)):
            same = all(
                stack.get(k) == v for k, v in layers.items() if k not in ("image", "process")
            )
            if same and layers["image"] != stack["image"] and (rung_s := median_s(run, rung)):
                images = [median_s(run, layers["image"]), median_s(run, stack["image"])]
                if all(images):
                    return max(rung_s - (images[0] or 0.0) + (images[1] or 0.0), 0.5)
        return naive_s


def median_s(run: Run, arm: str) -> float:
    """0 where no trial of the arm succeeded yet."""
    times = [t.total_s for t in run.of_arm(arm) if t.total_s]
    return stats.median(times) if times else 0.0


def _decided(run: Run, arm: str, against: str) -> bool:
    base = {t.block: t.total_s for t in run.of_arm(against) if t.total_s}
    pairs = [(t.total_s, base[t.block]) for t in run.of_arm(arm) if t.total_s and t.block in base]
    try:
        return bool(stats.paired_ratio(pairs)["significant"])
    except BadInput:
        return True  # nothing to be said: it failed, and is given up elsewhere


def guess_s(stack: Stack, size_bytes: float = GUESSED_FOR_BYTES) -> float:
    """A first guess at one trial of a stack with weights of so many bytes."""
    image_s = IMAGE_S.get(stack.layers.get("image", ""), OTHER_IMAGE_S)
    loader_s = LOADER_S.get(stack.layers.get("weights", ""), OTHER_LOADER_S)
    moved_s = RESTORE_S if stack.layers.get("snapshot") else loader_s
    return image_s + moved_s * max(size_bytes / GUESSED_FOR_BYTES, 1.0)
