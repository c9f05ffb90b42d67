"""A notebook's run, from the study where one was handed to it, else measured here and now.

    run = measured(study, ["naive"], lambda: experiment(["naive"], preset=preset, blocks=blocks))
    alone, rungs = parts(run)      # technique -> its arm; the ladder's arms from the bottom up

`study` is the notebook's parameter: the directory of a study, "" in JupyterLab. What is not handed
over is said: an arm that the study left out, or that could not run on this host. A capability that
is missing stays a trial's outcome `unavailable`, so that a recorded run stands in for it
(`labkit.stack.replay.live_or_recorded`). Lesson: notebooks/08_stacking."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from labkit.core import printable
from labkit.core.records import Run
from labkit.stack import ablate
from labkit.stack.compose import Stack
from labkit.study.record import RUNG, Study, of_run, read
from labkit.technique import techniques


def measured(
    study: str,
    arms: Sequence[str],
    measure: Callable[[], Run],
    say: Callable[[str], object] = print,
) -> Run:
    """The study's run with these arms (none named: all of them), or what `measure` measures: where
    no study is given, or it has none of the arms.

    Raises BadInput where the directory holds no study."""
    if not study:
        return measure()
    found = read(study)
    wanted = list(arms) or list(dict.fromkeys([*found.run.arm_names, *found.left_out]))
    there = [name for name in wanted if found.run.of_arm(name, only_ok=False)]
    if there:
        say(_introduced(found.run.narrowed(there), study))
    for name in wanted:
        if why := _lacking(found, name):
            say(f"{printable.line(name)}: {printable.line(why)}")
    if not there:
        say(f"{printable.line(study)} has none of these, so they are measured here and now.")
        return measure()
    return found.run.narrowed(there)


def _introduced(run: Run, study: str) -> str:
    arm, host = run.arms[0], run.host.get("title") or run.host.get("id", "")
    over = f" over {arm['link']}" if arm["link"] else ""
    counts = sorted({len(run.of_arm(name)) for name in run.arm_names})
    starts = " to ".join(dict.fromkeys((str(counts[0]), str(counts[-1]))))
    what = f"{run.experiment.get('preset', '')}{over}, {arm['scenario']}"
    return printable.line(
        f"Not measured again: from the study in {study}, measured {run.created} on {host}: {what},"
        f" {starts} cold starts an arm."
    )


def _lacking(found: Study, name: str) -> str:
    """Why the study has no good trial of an arm, or fewer than it wanted; "" where it has all."""
    if reason := found.left_out.get(name):
        return f"left out of the study: {reason}"
    trials = found.run.of_arm(name, only_ok=False)
    if not trials:
        return "the study did not measure it"
    if any(t.ok for t in trials):
        return ""
    error = trials[-1].error
    fix = f" ({error['fix']})" if error.get("fix") else ""
    return f"{trials[-1].outcome}: {error.get('what', 'no reason is recorded')}{fix}"


def parts(run: Run, base: str = "naive") -> tuple[dict[str, str], list[str]]:
    """(technique -> the arm that has only it on the base, the ladder's arms from the bottom up), of
    arms with a good trial.

    Which arm is a rung stands in a study's record; the arms of an ablation say it by their
    names."""
    stacks = {arm["name"]: arm["stack"] for arm in run.arms if run.of_arm(arm["name"])}
    start = Stack(base, stacks.get(base, {}))
    alone: dict[str, str] = {}
    known = {t.name for t in techniques()}
    for name, stack in stacks.items():
        added = {t for layer, t in stack.items() if start.layers.get(layer) != t}
        for technique in sorted(added & known):
            if _layers(ablate.put(start, technique)) == _layers(Stack(name, stack)):
                alone.setdefault(technique, name)
    if (run.experiment.get("notes") or {}).get("study"):
        rungs = [step.arm for step in of_run(run).steps if step.kind == RUNG]
    else:
        rungs = [name for name in stacks if name.startswith(ablate.RUNG)]
    return alone, [name for name in rungs if name in stacks]


def _layers(stack: Stack) -> dict[str, str]:
    return {layer: name for layer, name in stack.layers.items() if name}
