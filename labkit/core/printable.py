"""Text that came from elsewhere – a record, a file's name, a server's log – made safe to print or
to put on a page.

A terminal obeys what it is sent: an arm called `ESC[2J` would clear the screen, a right-to-left
override would turn a number around, a newline in a name would make a line that nobody wrote.
Control, format and separator characters and lone surrogates (which no terminal's encoding takes)
become their escapes; everything else stays as it is. This protects the display only: the record
keeps what it holds, and JSON escapes for itself.

    line("a\\x1b[2Jb\\n")     # 'a\\\\x1b[2Jb\\\\x0a': for a name, a cell, a title
    text(log)               # the same, but lines stay lines and tabs stay tabs

Lesson: notebooks/01_anatomy.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

#: C0, C1, format characters (bidirectional overrides and invisible ones among them), line and
#: paragraph separators, surrogates.
_FORMAT = (
    "\u00ad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff"
)
_LINE = re.compile(f"[\x00-\x1f\x7f-\x9f{_FORMAT}]")
_TEXT = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_FORMAT}]")
#: Where a record holds text of several lines.
_MANY_LINES = ("log_tail", "why", "log")


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def line(value: object) -> str:
    """As one line: newlines and tabs are escaped too."""
    return _LINE.sub(_escaped, str(value))


def text(value: object) -> str:
    """As text of several lines."""
    return _TEXT.sub(_escaped, str(value))


def every(value: Any, many_lines: bool = False) -> Any:
    """A copy of a record, or of any part of one, in which every string may be shown."""
    if isinstance(value, str):
        return text(value) if many_lines else line(value)
    if isinstance(value, dict):
        return {line(k): every(v, many_lines or k in _MANY_LINES) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(every(v, many_lines) for v in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value,
            **{f.name: every(getattr(value, f.name), f.name in _MANY_LINES) for f in fields(value)},
        )
    return value
