"""Outcomes as JUnit XML, which every CI service reads.

    suite = Suite("run", (Case("labkit.run", "naive, block 1", 9.3),))
    junit.write(suite, "junit.xml")

One `testsuite` a command. Attributes and their order are those of the schema that Jenkins
publishes and pytest's xunit2 family follows. XML has no way to write control characters, not even
as entities: they become their escapes (labkit.core.printable), secrets are masked. Limit: a text is
cut to its last TEXT_CHARS. Lesson: none; see docs/ci.md."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from labkit.core import outputs, printable, secrets
from labkit.core.beside import replacing

PASSED, FAILED, ERROR, SKIPPED = "passed", "failure", "error", "skipped"
MARK = b'<testsuites name="labkit '
TEXT_CHARS = 20_000
#: Characters that XML 1.0 leaves out and a terminal does not mind.
_NONE_OF_XML = re.compile("[\ufffe\uffff]")


@dataclass(frozen=True)
class Case:
    """One outcome. `outcome`: PASSED, FAILED (measured, and not good), ERROR (not measured) or
    SKIPPED; of what did not pass, `kind` is a word, `message` a line, `text` the rest. `file`: the
    source that an annotation points to."""

    classname: str
    name: str
    seconds: float = 0.0
    outcome: str = PASSED
    kind: str = ""
    message: str = ""
    text: str = ""
    file: str = ""

    @property
    def bad(self) -> bool:
        return self.outcome in (FAILED, ERROR)


@dataclass(frozen=True)
class Suite:
    """Of one command of the lab. `created`: ISO 8601, or "" for unknown."""

    command: str
    cases: tuple[Case, ...]
    created: str = ""

    @property
    def bad(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.bad)


def document(suite: Suite) -> bytes:
    """UTF-8 XML."""
    from xml.etree import ElementTree as ET

    clean = _Clean()
    counts = Counter(case.outcome for case in suite.cases)
    of_all = {
        "tests": str(len(suite.cases)),
        "failures": str(counts[FAILED]),
        "errors": str(counts[ERROR]),
        "skipped": str(counts[SKIPPED]),
        "time": f"{sum(case.seconds for case in suite.cases):.3f}",
    }
    without_skipped = {name: n for name, n in of_all.items() if name != "skipped"}
    name = f"labkit {clean.line(suite.command)}"
    root = ET.Element("testsuites", {"name": name, **without_skipped})
    node = ET.SubElement(root, "testsuite", {"name": name, **of_all})
    if suite.created:
        node.set("timestamp", clean.line(suite.created))
    for case in suite.cases:
        names = {"classname": clean.line(case.classname), "name": clean.line(case.name)}
        child = ET.SubElement(node, "testcase", {**names, "time": f"{case.seconds:.3f}"})
        if case.outcome != PASSED:
            why = {"type": clean.line(case.kind), "message": clean.line(case.message)}
            ET.SubElement(child, case.outcome, why).text = clean.text(case.text[-TEXT_CHARS:])
    ET.indent(root)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, "utf-8") + b"\n"


class _Clean:
    """Text as XML may hold it, without secrets."""

    def __init__(self) -> None:
        self.masker = secrets.Masker()

    def text(self, value: str) -> str:
        return _NONE_OF_XML.sub("\ufffd", printable.text(self.masker.text(value)))

    def line(self, value: str) -> str:
        return _NONE_OF_XML.sub("\ufffd", printable.line(self.masker.text(value)))


def refuse_stranger(path: str | os.PathLike[str], option: str = "--junit") -> None:
    """Raises BadInput where a file is that is no JUnit file of the lab's."""
    outputs.refuse_stranger(
        path, lambda head: MARK in head[:200], "a JUnit file of the lab", option
    )


def write(suite: Suite, path: str | os.PathLike[str]) -> Path:
    """In place of nothing or of an older one."""
    refuse_stranger(path)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part:
        part.write_bytes(document(suite))
    return target
