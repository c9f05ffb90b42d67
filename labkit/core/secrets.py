"""Secrets stay where they were given: no record, log, page or screen of the lab shows one, and the
program started gets it whole.

    secrets.learn_command("serve --api-key abc-12345")    # its secret values are known to this
        process from now on
    secrets.mask("the key abc-12345 is wrong")             # "the key *** is wrong"
    secrets.masked({"environ": {"HF_TOKEN": "x"}, "n": 1}) # {"environ": {"HF_TOKEN": "***"}, "n":
        1}

By name first (`labkit.core.secret_names`), then by value: what was learned from a command, a URL, a
credentials file or this process's environment is masked wherever it turns up again – also
percent-encoded, in base64 at any offset (`Basic` logins), escaped for JSON, Python, HTML or a
shell, and cut off at the end of a text. Masking twice changes nothing.

Limits: a value of less than 6 characters (8, where all are letters of one case) is masked by name
only – by value it would hide half of the text; numbers are never masked; a plain lower-case word as
a JSON key is left, as it is the record's own. Lesson: notebooks/09_decide."""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import json
import os
import re
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from labkit.core.secret_names import MASK, arguments, is_secret_name, opens_nothing, spans

#: A part of a value, cut off at the end of a text, is masked from this length on.
PART_CHARS = 8
_SCHEMA_WORD = re.compile(r"[a-z][a-z_]{0,40}\Z")

_known: frozenset[str] = frozenset()
_lock = threading.Lock()


def learn(*values: str) -> None:
    """Remember secret values of this process. Too short ones, placeholders and paths of files that
    are here are passed over."""
    global _known
    new = {part for value in filter(None, values) for part in _worth(value)}
    if not new <= _known:
        with _lock:
            _known |= new


def _worth(value: str) -> Iterator[str]:
    for one in {
        value,
        unquote(value),
        *(line for line in value.splitlines() if len(line) > 16 and "-----" not in line),
    }:
        one = one.strip()
        letters = one.isalpha() and (one.islower() or one.isupper())
        if len(one) >= (8 if letters else 6) and not opens_nothing(one):
            yield one


def learn_command(text: str) -> None:
    """Every secret of a command line, as a shell would read it."""
    learn(*_in_text(text))
    with contextlib.suppress(ValueError):
        learn_argv(shlex.split(text))


def learn_argv(argv: Sequence[str]) -> None:
    """Every secret of an argument list; an argument that is a command itself (`sh -c '…'`) is read
    as one."""
    learn(*(argv[i][at:] for i, at in arguments(argv)))
    for argument in argv:
        if re.search(r"\s", argument) and argument != " ".join(argv):
            learn_command(argument)
        else:
            learn(*_in_text(argument))


def learn_environment(environment: Mapping[str, str]) -> None:
    learn(*_of_environment(environment))


def names_in(environment: Mapping[str, str]) -> list[str]:
    """Names of variables that hold a secret, also one inside of a URL. Never their values."""
    return sorted(
        k
        for k, v in environment.items()
        if v and (is_secret_name(k) or ("://" in v and _in_text(v)))
    )


def _in_text(text: str) -> list[str]:
    return [text[a:b] for a, b, sure in spans(text) if sure]


def _of_environment(environment: Mapping[str, str]) -> list[str]:
    known = [v for k, v in environment.items() if v and is_secret_name(k)]
    for value in environment.values():
        if "://" in value:
            known += _in_text(value)
    return known


class Masker:
    """What is known now, as one pattern: for many texts in a row."""

    def __init__(self) -> None:
        own = {part for value in _of_environment(os.environ) for part in _worth(value)}
        self.values = tuple(sorted(_known | own))
        self._plain, self._coded = _patterns(self.values)

    def text(self, text: str) -> str:
        return self.by_value(self.by_name(text))

    def by_name(self, text: str) -> str:
        pieces, at = [], 0
        for start, end, _ in sorted(spans(text)):
            if end > at:
                pieces += [text[at : max(start, at)], MASK if start >= at else ""]
                at = end
        return "".join([*pieces, text[at:]]) if pieces else text

    def by_value(self, text: str) -> str:
        if self._plain is None or self._coded is None:
            return text
        masked = _without_runs(self._plain.sub(MASK, text), self._coded)
        for value in self.values:
            masked = _without_part(masked, value)
        return masked

    def argv(self, argv: Sequence[str]) -> list[str]:
        shown = list(argv)
        for i, at in arguments(argv):
            shown[i] = shown[i][:at] + MASK
        return [self.text(a) for a in shown]

    def doc(self, value: Any, name: str = "") -> Any:
        """The same document, masked. What is no JSON becomes text, as a record's writer would make
        it."""
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, Mapping):
            return {self._key(k): self.doc(v, str(k)) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            if all(isinstance(v, str) for v in value):
                return [
                    self._string(v, name) for v in (self.argv(value) if len(value) > 1 else value)
                ]
            return [self.doc(v, name) for v in value]
        return self._string(str(value), name)

    def values_in(self, value: Any) -> Any:
        """The same JSON, its strings masked by value only."""
        if isinstance(value, dict):
            return {k: self.values_in(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.values_in(v) for v in value]
        return self.by_value(value) if isinstance(value, str) else value

    def _key(self, key: Any) -> Any:
        return key if not isinstance(key, str) or _SCHEMA_WORD.match(key) else self.text(key)

    def _string(self, text: str, name: str) -> str:
        return (
            MASK if name and is_secret_name(name) and not opens_nothing(text) else self.text(text)
        )


def mask(text: str) -> str:
    return Masker().text(text)


def masked(doc: Any) -> Any:
    return Masker().doc(doc)


def mask_argv(argv: Sequence[str]) -> list[str]:
    return Masker().argv(argv)


def mask_page(text: str) -> str:
    """By value only: in a page's markup and code, names stand beside much that is no secret."""
    return Masker().by_value(text)


@functools.lru_cache(8)
def _patterns(values: tuple[str, ...]) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
    """(the values as texts hold them, the values as base64 holds them)."""
    if not values:
        return None, None
    plain = sorted({f for value in values for f in _forms(value)}, key=len, reverse=True)
    coded = sorted({f for value in values for f in _base64_forms(value)}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, plain))), re.compile("|".join(map(re.escape, coded)))


_RUN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_-")


def _without_runs(text: str, coded: re.Pattern[str]) -> str:
    """In base64 the neighbours of a value share characters with it: the whole run of them goes. (A
    pattern that began with such a run would try it from each of its characters: a minute for a
    picture.)"""
    pieces, at = [], 0
    for found in coded.finditer(text):
        start, end = found.span()
        if start < at:
            continue
        while start > at and text[start - 1] in _RUN:
            start -= 1
        while end < len(text) and text[end] in _RUN:
            end += 1
        pieces += [text[at:start], MASK]
        at = end
    return "".join([*pieces, text[at:]]) if pieces else text


def _forms(value: str) -> set[str]:
    """As it stands, and as URLs, JSON (also JSON in JSON), Python, HTML and shells write it."""
    forms = {
        value,
        quote(value),
        quote(value, safe=""),
        quote_plus(value),
        quote(value, safe="").lower(),
        html.escape(value),
        html.escape(value, quote=False),
        html.escape(value).replace("&#x27;", "&#39;"),  # Pygments
        html.escape(value).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),  # Jinja2
        repr(value)[1:-1],
    }
    for ascii_only in (True, False):
        once = json.dumps(value, ensure_ascii=ascii_only)[1:-1]
        forms |= {once, json.dumps(once, ensure_ascii=ascii_only)[1:-1]}
    quoted = shlex.quote(value)
    return forms | ({quoted[1:-1]} if quoted.startswith("'") else set())


def _base64_forms(value: str) -> set[str]:
    """The characters that the value alone decides, at each of the three offsets it can have in a
    longer base64 text."""
    raw, forms = value.encode("utf-8", "surrogateescape"), set()
    for before in range(3):
        coded = base64.b64encode(bytes(before) + raw).decode()
        bits = 8 * (before + len(raw))
        sure = coded[-(-8 * before // 6) : bits // 6]
        if len(sure) >= 6:
            forms |= {sure, sure.replace("+", "-").replace("/", "_")}
    return forms


def _without_part(text: str, value: str) -> str:
    """`text` without a part of the value that was cut off at its end, or at its beginning."""
    longest = min(len(value) - 1, len(text))
    for n in range(longest, PART_CHARS - 1, -1):
        if text.endswith(value[:n]):
            text = text[:-n] + MASK
            break
    for n in range(longest, PART_CHARS - 1, -1):
        if text.startswith(value[-n:]):
            return MASK + text[n:]
    return text


class _Screen:
    """A text stream that masks what is written to it."""

    def __init__(self, stream: Any):
        self.unmasked = stream

    def write(self, text: str) -> int:
        self.unmasked.write(mask(text))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unmasked, name)


@contextmanager
def screened() -> Iterator[None]:
    """While the block runs, nothing printed by this process shows a secret. Also a decorator."""
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, _Screen):
        yield
        return
    sys.stdout, sys.stderr = _Screen(sys.stdout), _Screen(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def own_words() -> Any:
    """Stdout as it was before `screened`: for what is masked already, and for keys that a server of
    the lab hands to whoever started it."""
    return getattr(sys.stdout, "unmasked", sys.stdout)


def excepthook(kind: type[BaseException], error: BaseException, where: Any) -> None:
    """`sys.excepthook` for a fault of the lab itself: the traceback, masked."""
    import traceback

    sys.stderr.write(mask("".join(traceback.format_exception(kind, error, where))))


def private_opener(path: str, flags: int) -> int:
    """For `open(…, opener=private_opener)`: a new file is readable by its owner only."""
    return os.open(path, flags, 0o600)


def write_private(path: str | os.PathLike[str], text: str) -> None:
    """A file that may hold argv or environment as the program gets them: 0600, also where it was
    there before."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape", opener=private_opener) as out:
        os.fchmod(out.fileno(), 0o600)
        out.write(text)
