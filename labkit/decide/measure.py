"""The starts that a forecast is fitted from: one stack at several sizes of model and image. Two
make a line, a third its error.

    runs = measure("naive", sizes=("tiny", "80MB", "small", "tiny+400MB", "tiny+800MB"), blocks=3,
        link="1gbit")
    runs = gather("naive")            # or what this host has recorded already

A size names the model (a preset, or bytes) and, after a plus, what is added to the subject's image:
unpacked bytes of packages that nobody imports. Lesson: notebooks/09_decide."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from labkit.core import host, question, records
from labkit.core.json_types import JsonObject
from labkit.core.records import Run
from labkit.core.workspace import Workspace
from labkit.errors import BadInput, LabError
from labkit.stack.sizes import model_dir_of, parse_size

MODEL_SIZES = ("tiny", "80MB", "small")
SIZES = (*MODEL_SIZES, "tiny+400MB", "tiny+800MB")


def sizes_for(arm: str) -> tuple[str, ...]:
    """The sizes worth measuring for a stack: those of the image only where it has one."""
    return SIZES if _has_image(arm) else MODEL_SIZES


def measure(
    arm: str = "naive",
    sizes: Sequence[str] = (),
    *,
    blocks: int = 3,
    scenario: str = "fresh-node",
    link: str = "loopback",
    progress: object | None = None,
    workspace: Workspace | None = None,
    name: str = "",
) -> list[Run]:
    """One record a size. Raises BadInput for a size that means nothing, MissingCapability where the
    arm cannot run here.

    Sizes take turns, a block each: a machine that slows down over minutes would otherwise bend the
    line between them. `name`: records are kept under it and gone on with, so that the same call
    with more blocks adds to what is there."""
    from labkit.stack import experiment

    space = workspace or Workspace.default()
    wanted = sizes or sizes_for(arm)
    parsed = {size: parse_size(size) for size in wanted}
    for size, (_, extra_bytes) in parsed.items():
        if extra_bytes and not _has_image(arm):
            raise BadInput(
                f"{size}: {arm} has no image to enlarge",
                fix="sizes of the model alone: " + ", ".join(MODEL_SIZES),
            )
    model_dirs = {model: model_dir_of(space, model) for model, _ in parsed.values()}
    stamp = name or time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    runs: dict[str, Run] = {}
    for block in range(blocks):
        for size in wanted if block % 2 == 0 else reversed(wanted):
            model, extra_bytes = parsed[size]
            out = space.runs / f"{stamp}-{size}.json"
            if name and _blocks_of(out) > block:
                runs[size] = _same_as_requested(
                    records.read(out),
                    arm,
                    out,
                    {
                        "scenario": scenario,
                        "link": link,
                        "preset": model,
                        "image_extra_bytes": extra_bytes,
                        "model_identity": question.identity(model_dirs[model]),
                    },
                )
                continue
            runs[size] = experiment(
                [arm],
                preset=model,
                model_dir=model_dirs[model],
                image_extra_bytes=extra_bytes,
                blocks=block + 1,
                scenario=scenario,
                link=link,
                progress=progress,
                workspace=space,
                out=out,
                resume=True,
            )
    return [runs[size] for size in wanted]


def _same_as_requested(run: Run, arm: str, out: Path, wanted: JsonObject) -> Run:
    """The run. Raises BadInput where a record under this name is of another stack, link, scenario
    or size: it would stand for what is requested now."""
    recorded = question.conditions_of(run, arm)
    different = [
        f"{k}: {question.shown(recorded[k])} against {question.shown(v)}"
        for k, v in wanted.items()
        if k in recorded and recorded[k] != v
    ]
    if arm not in run.arm_names:
        different.insert(0, f"arm: {question.shown(', '.join(run.arm_names))} against {arm}")
    if different:
        raise BadInput(
            f"{out} holds another experiment: " + "; ".join(different),
            why="its trials would be taken for these",
            fix="give another --name",
        )
    return run


def succeeded(runs: Sequence[Run], arm: str) -> list[Run]:
    """The same runs. Raises LabError with a failed trial's own words when a size has no good trial:
    a line would miss that point."""
    for run in runs:
        if not run.of_arm(arm) and (failed := run.of_arm(arm, only_ok=False)):
            last = failed[-1]
            raise LabError(
                f"no start at size {run.experiment.get('preset', '')} succeeded: {last.outcome}:"
                f" {last.error.get('what', '')}",
                why=last.error.get("why", ""),
                fix=last.error.get("fix", "labkit doctor"),
            )
    return list(runs)


def _has_image(arm: str) -> bool:
    from labkit.stack import Stack

    return arm == "best-here" or Stack.parse(arm).layers.get("image") not in ("host-env", "", None)


def _blocks_of(path: Path) -> int:
    trials = records.read(path).trials if path.exists() else ()
    return max((t.block + 1 for t in trials if t.outcome != "interrupted"), default=0)


def gather(arm: str = "", scenario: str = "", *, workspace: Workspace | None = None) -> list[Run]:
    """This host's records of an arm: the newest of each size, of the question (scenario, link and
    all else that was chosen) with most sizes. Raises BadInput for none."""
    space, here, wanted = workspace or Workspace.default(), host.card()["id"], arm or "naive"
    runs = []
    for path in sorted(space.runs.glob("*.json")):
        try:
            run = records.read(path)
        except LabError:
            continue
        if run.host.get("id") == here:
            runs.append(run)
    found = of_most_sizes(runs, wanted, scenario)
    if not found:
        raise BadInput(
            f"no record of {wanted} on this host in {space.root / 'runs'}",
            why="a forecast is fitted from starts measured here",
            fix="labkit study   (or: --records FILE …)",
        )
    return found


def of_most_sizes(runs: Iterable[Run], arm: str, scenario: str = "") -> list[Run]:
    """Those that ask one question of an arm at most sizes, the last of each size; [] for none."""
    groups: dict[tuple[tuple[str, str], ...], dict[tuple[tuple[str, str], ...], Run]] = {}
    for run in runs:
        recorded = run.arm_named(arm)
        if recorded and run.of_arm(arm) and scenario in ("", recorded.get("scenario")):
            chosen = question.conditions_of(run, arm)
            size = question.key({name: chosen.get(name) for name in question.SIZES})
            groups.setdefault(question.key(chosen, but=question.SIZES), {})[size] = run
    return list(max(groups.values(), key=len, default={}).values())
