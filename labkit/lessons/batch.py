"""Notebooks headless, one after the other: their pages, and the comparison with a baseline.

    batch = run_all([Path("notebooks/01_anatomy.ipynb")], Path("report"), preset="ci")
    batch.results[0].outcome      # ok | failed | timeout | dead_kernel | killed | incomplete

They measure, so never two at once. Lesson: none; see STYLE.md, Notebooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from labkit.core import outputs
from labkit.core.json_types import JsonMapping, JsonObject
from labkit.errors import BadInput, IncomparableRecords
from labkit.lessons import baseline as past
from labkit.lessons import canonical, execute, foresight, pages, parameters


@dataclass(frozen=True)
class Batch:
    """What a batch left: a result a notebook, the page, and what got slower than the baseline."""

    results: tuple[execute.Result, ...]
    page: Path
    slower: tuple[str, ...] = ()
    compared: past.Judged | None = None
    not_comparable: IncomparableRecords | None = None

    @property
    def failed(self) -> bool:
        return not self.results or any(r.outcome != "ok" for r in self.results)

    @property
    def code(self) -> int:
        if self.failed or self.slower:
            return 1
        return IncomparableRecords.exit_code if self.not_comparable else 0

    def as_json(self) -> JsonObject:
        return {
            "notebooks": [{**asdict(r), "error": r.error[:500]} for r in self.results],
            "failed": sum(r.outcome != "ok" for r in self.results),
            "seconds": round(sum(r.seconds for r in self.results), 3),
            "slower": list(self.slower),
            "report": str(self.page),
            **({"baseline": self.compared.as_json()} if self.compared else {}),
            **({"not_comparable": self.not_comparable.as_json()} if self.not_comparable else {}),
        }


def run_all(
    paths: Sequence[Path],
    out: Path,
    *,
    preset: str = "",
    given: JsonMapping | None = None,
    timeout_s: float = 900.0,
    baseline: str = "",
    save_baseline: str = "",
    say: Callable[[str], object] | None = None,
) -> Batch:
    """Run notebooks one after the other, write pages, compare with a baseline. Raises BadInput for
    every mistake before anything runs, and IncomparableRecords where it is known by then that the
    baseline cannot be compared; what is known only after is in the batch."""
    parameters.refuse_nothing(paths, preset)
    if say and (
        without := [p.stem for p in paths if preset and preset not in parameters.presets(p)]
    ):
        say(f"without a preset {preset!r}, so with their own defaults: {', '.join(without)}")
    values = [parameters.parameters_for(path, preset, given or {}) for path in paths]
    before = past.read(baseline) if baseline else None
    if save_baseline:
        past.refuse_overwriting(save_baseline)
    refuse_strangers(paths, out)
    chosen = list(zip(paths, values, strict=True))
    if before is not None:
        foresight.refuse_incomparable(before, chosen)
    if save_baseline:
        foresight.refuse_too_few(chosen)
    results = []
    for path, injected in chosen:
        if say:
            say(f"{path.stem} …")
        results.append(execute.run_one(path, out, injected, timeout_s))
    judged, refused = None, None
    if baseline or save_baseline:
        measured = past.collect([Path(p) for r in results for p in r.records])
        try:
            if save_baseline:
                past.write(measured, save_baseline)
            if before is not None:
                judged = past.judge(before, measured)
        except IncomparableRecords as error:
            refused = error
    slower = judged.slower if judged else ()
    page = pages.notebooks_page(results, out, slower, refused)
    return Batch(tuple(results), page, slower, judged, refused)


def refuse_strangers(paths: Sequence[Path], out: Path) -> None:
    """Raises BadInput where an executed notebook, or its page, would replace what was not executed
    here – the notebook itself, above all."""
    for path in paths:
        executed = out / path.name
        outputs.refuse_stranger(executed, partial(_was_executed, executed), "an executed notebook")
    pages.refuse_strangers([out / "index.html", *(out / f"{path.stem}.html" for path in paths)])


def _was_executed(path: Path, _begins: bytes) -> bool:
    with contextlib.suppress(BadInput, AttributeError, TypeError, KeyError):
        return "papermill" in canonical.load(path)["metadata"]
    return False
