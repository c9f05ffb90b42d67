"""Why a trial is no measurement: each outcome but "ok", with its error.

    raise OutOfMemory("the kernel killed the server for memory", fix="a smaller --preset")
    error.failed(trial)          # the trial with this outcome and this error

`kind` in a record is the class's name. Lesson: notebooks/01_anatomy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from labkit.core.records import Trial
from labkit.errors import TrialError


class TrialFailure(TrialError):
    """Root of the family. `outcome`: a word of the record's schema."""

    outcome: ClassVar[str] = "crashed"

    def failed(self, trial: Trial, **seen: Any) -> Trial:
        """`trial` with this outcome; `seen`: other fields of it."""
        return replace(trial, error=self.as_json(), **{"outcome": self.outcome, **seen})


class CacheUnproven(TrialFailure):
    """Files that should have been cold were in memory, or nobody could tell."""

    outcome = "cache_unproven"


class OutOfMemory(TrialFailure):
    outcome = "oom"


class Killed(TrialFailure):
    """A signal from outside ended the server."""

    outcome = "killed"


class ServerExited(TrialFailure):
    """The server, or the node agent, ended before a token."""


class Reported(TrialFailure):
    """A step failed in the node agent, which reported it: the error's own kind stays."""

    def __init__(self, error: Mapping[str, str]):
        super().__init__(error.get("what", ""), error.get("why", ""), error.get("fix", ""))
        self.kind = error.get("kind", type(self).__name__)

    def as_json(self) -> dict[str, str]:
        return {**super().as_json(), "kind": self.kind}


class NoToken(TrialFailure):
    """No token came from a server of the user's own; `outcome` says whether it ended."""


class Refused(TrialFailure):
    """The server answered, and not with tokens."""


class TimeOut(TrialFailure):
    outcome = "timeout"


class WrongTokens(TrialFailure):
    outcome = "wrong_tokens"


class NoEvidence(TrialFailure):
    """A mechanism was not at work, so something else was measured."""

    outcome = "no_evidence"
