"""Whether a baseline can be compared with what notebooks will measure, found out before they run.

    refuse_incomparable(baseline.read("baseline.json"), [(path, {"blocks": 2})])
        # IncomparableRecords: … 01_anatomy: 2 blocks, and a comparison takes 3

Refused is only what is sure: records of another host; or, where every experiment of every notebook
can be read from its cells (labkit.lessons.planned), other arms, options or environment than the
baseline's, or too few trials. The rest is found out by `baseline.judge` after the run. Limit: which
cache state is proven, and what an arm's technique is resolved to, is known only then. Lesson: none;
see docs/ci.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from labkit.core import host, printable, question
from labkit.core.json_types import JsonObject
from labkit.core.records import Run
from labkit.errors import IncomparableRecords
from labkit.lessons import canonical
from labkit.lessons.baseline import MIN_TRIALS, groups
from labkit.lessons.planned import Planned, planned, sources
from labkit.stack import placement
from labkit.stack.spec import Experiment

Notebooks = Sequence[tuple[Path, JsonObject]]  # each with the values of its parameters
#: What follows from an arm's stack, which a name alone does not tell.
OF_THE_STACK = ("stack.", "image", "image_extra_bytes")
#: Option of `experiment` -> fields of its question, where they are not called alike.
FIELDS = {"model_dir": ("model_dir", "model_identity"), "device": ("device", "server_args")}
SAVE = "labkit notebooks run --save-baseline FILE, here and with these parameters"


def refuse_incomparable(before: Sequence[Run], notebooks: Notebooks) -> None:
    """Raises IncomparableRecords where no arm of `before` can have a counterpart in what these
    notebooks will measure."""
    past = [
        (key[0], conditions, len(trials)) for key, (conditions, trials) in groups(before).items()
    ]
    if not past:
        raise IncomparableRecords(
            "the baseline holds no stack that was measured",
            why="there is nothing that a run could be compared with",
            fix=SAVE,
        )
    here = host.card()["id"]
    hosts = {str(conditions.get("host", here)) for _, conditions, _ in past}
    if here not in hosts:
        raise IncomparableRecords(
            "the baseline was measured on another host",
            why=f"host: {question.shown(', '.join(sorted(hosts)))} against {here}; between two"
            " machines a difference is not the code's",
            fix=f"{SAVE}; or run it on that host",
        )
    reasons: dict[str, str] = {}  # reason -> fix
    for path, values in notebooks:
        calls = planned(path, values)
        if not calls:
            return  # what it measures is known only when it has run
        for call in calls:
            found = _reason(call, past, _mentioned(path))
            if found is None:
                return
            reasons.setdefault(f"{path.stem}: {found[0]}", found[1])
    raise IncomparableRecords(
        "the baseline cannot be compared with what would be measured; nothing was started",
        why="; ".join([*reasons][:4]),
        fix=", or ".join(dict.fromkeys([*filter(None, reasons.values()), SAVE])),
    )


def refuse_too_few(notebooks: Notebooks) -> None:
    """Raises IncomparableRecords where a baseline of these notebooks would have fewer trials of
    each arm than a comparison takes."""
    blocks = []
    for path, values in notebooks:
        calls = planned(path, values)
        if not calls or any(_blocks(call) is None for call in calls):
            return
        blocks += [(path.stem, call, _blocks(call) or 0) for call in calls]
    if blocks and max(n for _, _, n in blocks) < MIN_TRIALS:
        raise IncomparableRecords(
            "a baseline of these trials could never be compared; nothing was started",
            why="; ".join(f"{name}: {_too_few(n)}" for name, _, n in blocks[:4]),
            fix=" ".join(dict.fromkeys(_more_blocks(call) for _, call, _ in blocks)),
        )


def _blocks(call: Planned) -> int | None:
    n = call.chosen.get("blocks", None if "blocks" in call.unknown else Experiment([]).blocks)
    return n if isinstance(n, int) else None


def _too_few(blocks: int) -> str:
    return f"{blocks} block{'' if blocks == 1 else 's'}, and a comparison takes {MIN_TRIALS}"


def _more_blocks(call: Planned) -> str:
    return f"-p {call.parameters.get('blocks', 'blocks')}=8"


def _reason(
    call: Planned, past: Iterable[tuple[str, JsonObject, int]], mentioned: str
) -> tuple[str, str] | None:
    """Why one experiment has no counterpart, with a fix; None where it may have one. Of several
    reasons, those of the arm that is nearest."""
    past = list(past)
    blocks = _blocks(call)
    if blocks is not None and blocks < MIN_TRIALS:
        return _too_few(blocks), _more_blocks(call)
    fitting = [one for one in past if call.arms is None or one[0] in call.arms]
    if not fitting:
        arms = ", ".join(map(printable.line, dict.fromkeys(name for name, _, _ in past)))
        return f"it measures {', '.join(call.arms or ())}, the baseline holds {arms}", ""
    own = _question(call)
    nearest: tuple[str, ...] | None = None
    for arm, conditions, trials in fitting:
        known = {n: v for n, v in conditions.items() if n in own}
        different = question.differences(
            _without(known, mentioned), _without(own, mentioned), but=OF_THE_STACK
        ).different
        if trials < MIN_TRIALS:
            few = f"{trials} trials in the baseline, and a comparison takes {MIN_TRIALS}"
            different = (few, *different)
        if not different:
            return None
        if nearest is None or len(different) < len(nearest):
            nearest = tuple(f"{printable.line(arm)}: {d}" for d in different)
            fix = " ".join(
                f"-p {name}={known[option]}"
                for option, name in call.parameters.items()
                if option in known and known[option] != own.get(option)
            )
    assert nearest is not None
    return f"{'; '.join(nearest[:4])} (baseline against now)", fix


def _question(call: Planned) -> JsonObject:
    """What is known beforehand of the question that a call asks."""
    options = {n: v for n, v in call.chosen.items() if n not in ("device", "model_dir")}
    unknown = {*call.unknown, *({"model_dir"} & {*call.chosen})}
    placed = placement.place([], str(call.chosen.get("device") or ""))
    if placed.chosen and placed.device != "cpu":
        unknown.add("device")  # a snapshot among the arms would move them all
    spec = Experiment([], **options, device=placed.device)
    own = {
        "host": host.card()["id"],
        "simulated": "",
        "scenario": spec.scenario,
        "link": spec.link,
        **spec.conditions(),
    }
    for option in unknown:
        for name in FIELDS.get(option, (option,)):
            own.pop(name, None)
    return own


def _mentioned(path: Path) -> str:
    """A notebook's code: a variable of the environment that it names may be set by it."""
    return "\n".join(sources(canonical.load(path)))


def _without(conditions: JsonObject, mentioned: str) -> JsonObject:
    environment: Mapping[str, str] = conditions.get("environment") or {}
    kept = {name: value for name, value in environment.items() if name not in mentioned}
    return {**conditions, **({"environment": kept} if "environment" in conditions else {})}
