"""Server-sent events with JSON in them, as the servers of models send them: any line ending,
comments, an event's data over several lines, with or without the empty line after it.

    reader = EventReader()
    reader.feed(b'data: {"choices": [{"te')        # []
    reader.feed(b'xt": "Hello"}]}\\r\\n\\r\\n')        # [{"choices": [{"text": "Hello"}]}]

An event counts when its JSON is whole, not at the empty line that ends it: a server that delays
that one is not slower by it. Source: HTML Living Standard, server-sent events. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import json
import re
from typing import Final

from labkit.core.json_types import JsonObject

DONE: Final = "[DONE]"
#: A carriage return at the end of what has come may be half of a CRLF.
_LINE_END = re.compile(rb"\r\n|\n|\r(?=[^\n])")
_MARK = b"\xef\xbb\xbf"


class EventReader:
    """`feed` it what comes, `end` it with the body."""

    def __init__(self) -> None:
        self._rest = self._data = b""
        self.seen = b""  # the beginning of the body, for whoever has to say what else it was

    def feed(self, data: bytes) -> list[JsonObject | str]:
        """The events that are whole now: JSON objects, and DONE."""
        if len(self.seen) < 300:
            self.seen += data[:300]
        *lines, self._rest = _LINE_END.split(self._rest + data)
        return [event for line in lines if (event := self._line(line)) is not None]

    def end(self) -> list[JsonObject | str]:
        """The last one, where nothing ended its line."""
        event = self._line(self._rest.rstrip(b"\r"))
        self._rest = b""
        return [] if event is None else [event]

    def _line(self, line: bytes) -> JsonObject | str | None:
        field, _, value = line.removeprefix(_MARK).partition(b":")
        if field == b"error":  # no field of the standard; llama.cpp had it
            return {"error": value.strip().decode(errors="replace")}
        if not line:
            self._data = b""
        if field != b"data":
            return None
        self._data += (b"\n" if self._data else b"") + value.removeprefix(b" ")
        if self._data.strip() == DONE.encode():
            return DONE
        try:
            event = json.loads(self._data)
        except (ValueError, RecursionError):
            return None  # its next line may complete it
        self._data = b""
        return event if isinstance(event, dict) else None
