"""Carrying a study out: the ladder in one experiment, then naive at other sizes, within the minutes
given.

    study = conduct(StudyOptions(minutes=10, link="1gbit"))
    study.run, study.sizes, study.left_out

Everything is measured, nothing is carried over from an older study; an interrupted one is gone on
with (`resume`). Lesson: notebooks/08_stacking."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from labkit.core import host, records
from labkit.core.json_types import JsonMapping
from labkit.core.ledger import Ledger
from labkit.core.records import Run
from labkit.core.workspace import Workspace
from labkit.errors import BadInput, LabError
from labkit.stack.experiment import experiment
from labkit.stack.placement import place
from labkit.stack.progress import notify
from labkit.stack.sizes import model_dir_of, parse_size
from labkit.study.arms import Arms, planned
from labkit.study.budget import BLOCKS, OVERHEAD_S, Schedule, guess_s
from labkit.study.record import LADDER, NAIVE, RUNG, Study, read
from labkit.subject.presets import config_of

LINK = "1gbit"
#: A larger model from so many minutes on, where memory holds it four times.
LARGER_FROM_MINUTES, LARGER = 60.0, "1b"
#: Model, and bytes added to the image: with the ladder's own three sizes of either, by its preset.
SIZES = {
    "tiny": ("30MB+100MB", "60MB+200MB"),
    "small": ("tiny+200MB", "1GB+600MB"),
    "1b": ("tiny+200MB", "small+600MB"),
    "8b": ("small+200MB", "1b+600MB"),
}
#: What the sizes take, as multiples of a naive trial of the ladder, and the making of their images.
SIZES_IN_NAIVE_STARTS, SIZES_MADE_S = 3.2, 50.0


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """`out`: the study's directory, by default a new one in the workspace's runs/. `minutes`: for
    all of it. `preset`: "" chooses by minutes and memory. `link`: emulated, "" is 1 Gbit/s, or
    none beside a `store` (s3://… or gs://…, with this environment's credentials). `device`: as for
    an experiment. `sizes`: None is what the preset has beside it, () none."""

    out: Path | None = None
    minutes: float = 15.0
    preset: str = ""
    link: str = ""
    store: str = ""
    device: str = ""
    sizes: tuple[str, ...] | None = None
    seed: int = 0
    resume: bool = False
    overwrite: bool = False

    @property
    def over(self) -> str:
        """The link that is emulated."""
        return self.link or ("loopback" if self.store else LINK)


def conduct(
    options: StudyOptions, *, workspace: Workspace | None = None, progress: object | None = None
) -> Study:
    """Carry the study out and return it. Raises BadInput, MissingCapability where naive cannot run
    here, KeyboardInterrupt (what was measured is kept)."""
    space, card = workspace or Workspace.default(), host.card()
    kept = space.runs / f"study-{datetime.now(timezone.utc):%Y%m%dT%H%M%S}"
    out = options.out or kept
    preset = options.preset or preset_for(options.minutes, int(card.get("memory_bytes") or 0))
    device = place((), options.device).device
    arms = planned(card, device, options.store)
    records.refuse_overwriting(out / LADDER, options.resume, options.overwrite)
    sizes = SIZES[preset] if options.sizes is None else options.sizes
    for size in sizes:
        parse_size(size)
    if options.overwrite:
        for path in out.glob("size-*.json"):  # of other sizes, perhaps: they are another study's
            records.refuse_overwriting(path, overwrite=True)
            path.unlink()
    schedule = Schedule(
        arms,
        options.minutes,
        later_s=lambda naive_s: (
            SIZES_MADE_S + SIZES_IN_NAIVE_STARTS * (naive_s + OVERHEAD_S) if sizes else 0.0
        ),
    )
    size_bytes = 2 * config_of(preset).parameters
    guesses = {arm: guess_s(stack, size_bytes) for arm, stack in arms.stacks.items()}
    core = arms.of_kind(NAIVE, RUNG)
    notify(progress, "note", estimate(core, guesses, options.minutes))
    notify(progress, "plan", core, BLOCKS, guesses)

    def block(number: int, run: Run) -> list[str]:
        names = schedule.block(number, run)
        notify(progress, "replan", schedule.ahead(number) or names)
        return names

    with Ledger.open(space):
        run = experiment(
            list(arms.stacks.values()),
            preset=preset,
            link=options.over,
            store=options.store,
            device=options.device,
            blocks=BLOCKS,
            seed=options.seed,
            out=out / LADDER,
            resume=options.resume,
            overwrite=options.overwrite,
            schedule=block,
            notes={"study": _notes(arms, options, {})},
            progress=progress,
            workspace=space,
        )
        left_out = {**arms.left_out, **schedule.left_out}
        records.write(_closed(run, _notes(arms, options, left_out)), out / LADDER)
        if run.of_arm("naive"):
            for size in sizes:
                _size(size, out, options, run.floors, space, progress)
    if out != kept and not options.resume:
        with contextlib.suppress(OSError):  # where `latest` looks
            kept.symlink_to(out.resolve(), target_is_directory=True)
    return read(out)


def preset_for(minutes: float, memory_bytes: int) -> str:
    """The checkpoint that so many minutes and so much memory allow: 250 MB, or 2.2 GB."""
    needed = 4 * 2 * config_of(LARGER).parameters
    return LARGER if minutes >= LARGER_FROM_MINUTES and memory_bytes >= needed else "small"


def estimate(core: Sequence[str], guesses: Mapping[str, float], minutes: float) -> str:
    """What the study is going to take, in a sentence, before anything is measured. `guesses`:
    seconds of a trial, by arm."""
    ladder_s = BLOCKS * sum(guesses[arm] + OVERHEAD_S for arm in core)
    return (
        f"{len(core)} arms of the ladder in {BLOCKS} blocks: about {ladder_s / 60:.0f} min by a"
        f" first guess, and what else fits into {minutes:.0f} min; the first block tells more"
    )


def _notes(arms: Arms, options: StudyOptions, left_out: dict[str, str]) -> dict[str, object]:
    return {
        "steps": [
            {"label": s.label, "technique": s.technique, "arm": s.arm, "kind": s.kind}
            for s in arms.steps
        ],
        "minutes": options.minutes,
        "left_out": left_out,
    }


def _closed(run: Run, notes: dict[str, object]) -> Run:
    """The run, with what is known at its end; arms that were planned and got no trial are no arms
    of it."""
    tried = {t.arm for t in run.trials}
    experiment_ = {
        **run.experiment,
        "arms": [arm for arm in run.arms if arm["name"] in tried],
        "notes": {**run.experiment.get("notes", {}), "study": notes},
    }
    return replace(run, experiment=experiment_)


def _size(
    size: str,
    out: Path,
    options: StudyOptions,
    floors: JsonMapping,
    space: Workspace,
    progress: object | None,
) -> None:
    """Naive at another size. One that cannot be made or started leaves the study without it."""
    target = out / f"size-{size}.json"
    if target.exists() and options.resume:
        return
    notify(progress, "note", f"naive at another size, for the plan: {size}")
    model, extra_bytes = parse_size(size)
    try:
        experiment(
            ["naive"],
            preset=model,
            model_dir=model_dir_of(space, model),
            image_extra_bytes=extra_bytes,
            blocks=1,
            link=options.over,
            store=options.store,
            device=options.device,
            out=target,
            overwrite=target.exists(),
            floors=floors,
            progress=progress,
            workspace=space,
        )
    except BadInput:
        raise
    except LabError as error:
        notify(progress, "note", f"{size} is left out: {error.what}")
