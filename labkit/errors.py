"""Errors that end in a fix: what happened, why it matters, the command that changes it.

A user's mistake never shows a traceback: `labkit.cli` prints the three lines and exits 2.

    raise BadInput("model.safetensors: header says 9e18 bytes, the file has 4096",
                   why="a truncated or forged file; nothing was loaded",
                   fix="labkit model verify DIR, then fetch the shard again")
"""

from __future__ import annotations

from typing import Any, ClassVar


class LabError(Exception):
    """Root of the family. `what` happened, `why` it matters, `fix`: a command or a step. All plain
    text."""

    #: What a command that it ends exits with.
    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, why: str = "", fix: str = ""):
        super().__init__(what)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, str]:
        return {"kind": type(self).__name__, "what": self.what, "why": self.why, "fix": self.fix}

    def _render_traceback_(self) -> list[str]:
        """IPython asks for this: a notebook shows the three lines, as the command line does."""
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.what, self.why, self.fix))


class BadInput(LabError):
    """A file, argument or combination the lab refuses: truncated shard, hostile layer, unknown
    name."""


class MissingCapability(LabError):
    """The host cannot do this (no FUSE, no root, no GPU). Changes the label of a result, never its
    method."""

    exit_code = 3


class TransferError(LabError):
    """Bytes did not arrive after every retry, or arrived wrong. Nothing wrong was kept."""


class IncomparableRecords(LabError):
    """Two records differ in host, cache state, scenario or link: refusing to compare them as if
    they were the same."""

    exit_code = 5


class TrialError(LabError):
    """The trial could not be carried out (the stack did not start, a step failed). Recorded as an
    outcome."""
