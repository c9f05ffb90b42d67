"""What GitHub Actions reads of a step: annotations, and the summary of the job.

    if github.active():
        print(github.error("load took 1.3 s, was 1.1 s", title="naive: load is slower"))
    github.append_summary(markdown)

An annotation is a line `::error file=…,title=…::message` on stdout or stderr. Physical limit: of a
step ten annotations of a kind are shown, and 1 MiB of summary is kept. Source: GitHub's docs,
"Workflow commands for GitHub Actions". Lesson: none; see docs/ci.md."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from labkit.core import printable

ANNOTATIONS = 10
SUMMARY_BYTES = 1024 * 1024
_CUT = b"\n\n_Cut here: a step's summary has 1 MiB._\n"


def active(environment: Mapping[str, str] = os.environ) -> bool:
    return environment.get("GITHUB_ACTIONS", "").lower() == "true"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(printable.line(text)).replace(":", "%3A").replace(",", "%2C")


def error(message: str, *, title: str, file: str = "") -> str:
    """One line that annotates the run, and the file where there is one."""
    place = f"file={_property(in_repository(file))}," if file and in_repository(file) else ""
    return f"::error {place}title={_property(title)}::{_data(printable.text(message))}"


def in_repository(file: str, environment: Mapping[str, str] = os.environ) -> str:
    """A path as annotations name it: from the top of the checkout; "" outside of it."""
    top = Path(environment.get("GITHUB_WORKSPACE") or ".").resolve()
    path = Path(file).resolve()
    return str(path.relative_to(top)) if path.is_relative_to(top) else ""


def summary_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    found = environment.get("GITHUB_STEP_SUMMARY", "")
    return Path(found) if found else None


def append_summary(markdown: str, path: Path) -> None:
    """Behind what the step has written already, as far as it is kept. Raises OSError."""
    data = markdown.encode("utf-8", "backslashreplace") + b"\n"
    with open(path, "ab") as file:
        left = SUMMARY_BYTES - file.tell()
        if len(data) > left:
            kept = data[: max(left - len(_CUT), 0)]
            data = (kept[: kept.rfind(b"\n") + 1] + _CUT)[: max(left, 0)]
        file.write(data)
