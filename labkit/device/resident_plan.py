"""What a technique that is resident before t0 does to a launch plan: a zygote, a warm standby, a
daemon that holds weights.

    refuse_fresh_node(plan, "a zygote"); plan = leave_out_resident(plan)

Limit: none on the clock; that is what it is for. Lesson: notebooks/06_gpu_init,
notebooks/07_checkpoints."""

from __future__ import annotations

from dataclasses import replace

from labkit.core import interpreter
from labkit.core.plan import LaunchPlan
from labkit.errors import BadInput


def refuse_fresh_node(plan: LaunchPlan, process: str) -> None:
    """Raises BadInput on a fresh node: what would be resident is named by `process`."""
    if plan.scenario == "fresh-node":
        raise BadInput(
            f"{process} is resident before t0, and on a fresh node nothing of the stack is",
            why="it would be compared with arms that bring everything over the link",
            fix="--scenario warm-node or hot-node",
        )


def leave_out_resident(plan: LaunchPlan) -> LaunchPlan:
    """The lab's packages, mapped by a process before t0, cannot be cold: they are left out of the
    cold set, in the open."""
    mapped = set(interpreter.packages())
    left = [p for p in plan.cold_paths if p in mapped or "/site-packages/" in p + "/"]
    return replace(
        plan,
        cold_paths=tuple(p for p in plan.cold_paths if p not in left),
        state=replace(plan.state, resident_before_t0=tuple(left)),
    )
