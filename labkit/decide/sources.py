"""What a plan is fitted from: the starts that were chosen, this host's study, its records, or those
of a recorded host that is named.

    source = choose(Wanted())                      # this host's newest study, else its records
    source = choose(Wanted(host="epyc-2"))         # recorded there, and stamped so in every output
    source.runs, source.arm, source.words

Nothing recorded elsewhere stands in for this host unasked: without a study here the recorded hosts
are offered by name. Lesson: notebooks/09_decide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from labkit.core import printable, records
from labkit.core.records import Run
from labkit.core.workspace import Workspace
from labkit.decide.measure import gather, of_most_sizes
from labkit.decide.plan import arm_of
from labkit.errors import BadInput
from labkit.stack import replay
from labkit.study.record import Study, latest, read, recorded

#: From so many sizes on a line is tested by one that was left out of it.
ENOUGH = 3


@dataclass(frozen=True)
class Wanted:
    """How the reader chose: records, a study's directory, or a recorded host; nothing: this host.
    `arm`, `scenario`: "" for naive, and for the one with most sizes."""

    records: tuple[str, ...] = ()
    study: str = ""
    host: str = ""
    arm: str = ""
    scenario: str = ""


@dataclass(frozen=True)
class Source:
    """`words`: where the starts come from, in a line."""

    runs: tuple[Run, ...]
    arm: str
    words: str


def choose(wanted: Wanted, workspace: Workspace | None = None) -> Source:
    """Raises BadInput where two ways are given, where there is nothing, or for a host that has
    nothing recorded to plan from."""
    ways = [w for w in ("records", "study", "host") if getattr(wanted, w)]
    if len(ways) > 1:
        raise BadInput(
            " and ".join(f"--{w}" for w in ways) + " both say what to plan from",
            fix=f"give one of them, such as --{ways[0]}",
        )
    if wanted.records:
        runs = tuple(records.read(path) for path in wanted.records)
        return Source(runs, wanted.arm or arm_of(runs), "the records given")
    if wanted.study:
        return _of_study(read(wanted.study), wanted)
    if wanted.host:
        return _recorded(wanted)
    if (study := latest(workspace)) and study.run.of_arm(wanted.arm or study.naive):
        return _of_study(study, wanted)
    return _here(wanted, workspace)


def _of_study(study: Study, wanted: Wanted) -> Source:
    """Of another arm than naive a study has one size: its ladder's."""
    where = f"the study in {study.path}" if study.path else f"study {study.run.id}"
    return Source(study.runs, wanted.arm or study.naive, printable.line(where))


def _here(wanted: Wanted, workspace: Workspace | None) -> Source:
    arm = wanted.arm or "naive"
    try:
        runs = gather(arm, wanted.scenario, workspace=workspace)
    except BadInput:
        runs = []
    if len(runs) >= ENOUGH:
        return Source(tuple(runs), arm, "this host's records")
    sizes = {0: "no record", 1: "records of one size"}.get(len(runs), f"{len(runs)} sizes")
    hosts = recorded_hosts()
    offered = "; ".join(f"{h.host} ({h.words})" for h in hosts)
    raise BadInput(
        f"no study on this host, and {sizes} of {printable.line(arm)}",
        why=f"a plan is fitted from {ENOUGH} sizes or more, measured here"
        + (f". Recorded elsewhere: {offered}" if offered else ""),
        fix="labkit study"
        + (f", or labkit plan --host {hosts[0].host}" if hosts else "")
        + ", or --records FILE …",
    )


@dataclass(frozen=True)
class RecordedHost:
    """A recorded host that can be planned from, and the starts that would be used."""

    host: str
    runs: tuple[Run, ...]
    arm: str

    @property
    def words(self) -> str:
        chosen = self.runs[0].arm_named(self.arm)
        known = [str(chosen.get(k, "")) for k in ("scenario", "link")]
        sizes = "one size" if len(self.runs) == 1 else f"{len(self.runs)} sizes"
        return printable.line(", ".join(filter(None, (self.arm, *known, sizes))))


def recorded_hosts(arm: str = "", scenario: str = "") -> list[RecordedHost]:
    """Those with starts of an arm, most sizes first; of each its study, else the records of one
    question that hold most sizes."""
    found, studies = [], recorded()
    for host in sorted({*studies, *(n.split("/", 1)[0] for n in replay.names())}):
        runs = list(studies[host].runs) if host in studies else _plain(host)
        name = arm or _most_sizes(runs)
        group = of_most_sizes(runs, name, scenario) if name else []
        if group:
            found.append(RecordedHost(host, tuple(group), name))
    return sorted(found, key=lambda h: (-len(h.runs), h.host))


def _plain(host: str) -> list[Run]:
    return [replay.replay(n) for n in replay.names() if n.split("/", 1)[0] == host]


def _most_sizes(runs: Sequence[Run]) -> str:
    """The arm that was measured at most sizes, naive before others; "" without one."""
    names: Iterable[str] = dict.fromkeys(n for r in runs for n in r.arm_names if r.of_arm(n))
    return max(names, key=lambda n: (len(of_most_sizes(runs, n)), n == "naive"), default="")


def _recorded(wanted: Wanted) -> Source:
    hosts = recorded_hosts(wanted.arm, wanted.scenario)
    one = next((h for h in hosts if h.host == wanted.host), None)
    if one is None:
        of = f" of {printable.line(wanted.arm)}" if wanted.arm else ""
        raise BadInput(
            f"no starts{of} to plan from were recorded on {printable.line(wanted.host)}",
            fix="one of: "
            + ("; ".join(f"{h.host} ({h.words})" for h in hosts) or "none is shipped"),
        )
    return Source(one.runs, one.arm, f"recorded host {one.host}: {one.words}")
