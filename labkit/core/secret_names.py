"""What is a secret by its name: an option, a variable, a header, a part of a URL; and where in a
text such a secret stands.

    is_secret_name("--hf-token"), is_secret_name("--max-tokens")     # (True, False)
    [text[a:b] for a, b, _ in spans(text := "curl https://me:pa55word@host/x?sig=abcdef")]     #
        ["pa55word", "abcdef"]

A name is read word by word (`hfToken`, `HF_TOKEN`, `--hf-token` are alike), so that `--tokenizer`,
`--key-frames`, `bos_token` and MODEL_KEY stay readable: a record in which everything is masked
explains nothing. Some secrets are known by their shape whatever they are called (`hf_…`, `sk-…`, a
JWT, a private key). Limit: a secret under an innocent name and of no known shape is found by
nothing here. Lesson: notebooks/09_decide."""

from __future__ import annotations

import base64
import binascii
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

MASK = "***"
#: Published by the lab itself for its embedded store (labkit.objects.store.KEYS), or placeholders
#: that open nothing.
OPEN = frozenset(
    {
        "",
        MASK,
        "labkit",
        "labkit-not-a-secret",
        "true",
        "false",
        "none",
        "null",
        "yes",
        "no",
        "on",
        "off",
        "empty",
        "auto",
        "default",
        "required",
        "basic",
        "bearer",
        "token",
        "-",
        "…",
    }
)
#: Kinds of tokens that a model reads or writes, and marks of a listing.
_TOKENS = frozenset(
    [
        "bos",
        "eos",
        "pad",
        "unk",
        "sep",
        "cls",
        "mask",
        "image",
        "video",
        "audio",
        "stop",
        "start",
        "end",
        "begin",
        "special",
        "next",
        "first",
        "last",
        "per",
        "think",
        "thinking",
        "reasoning",
        "draft",
        "tool",
        "message",
        "each",
        "one",
        "any",
        "new",
        "prompt",
        "output",
        "input",
        "max",
        "min",
        "num",
        "total",
        "single",
        "continuation",
        "page",
        "every",
        "previous",
    ]
)
#: Keys that find something rather than open it.
_KEYS = frozenset(
    [
        "model",
        "cache",
        "sort",
        "primary",
        "foreign",
        "public",
        "partition",
        "object",
        "row",
        "group",
        "dict",
        "json",
        "column",
        "lookup",
        "index",
        "map",
        "order",
        "shard",
        "routing",
        "route",
        "hash",
        "dedup",
        "idempotency",
        "config",
        "data",
        "s3",
        "blob",
        "file",
        "path",
        "query",
        "search",
        "field",
        "name",
        "label",
        "tag",
        "metric",
        "node",
        "state",
        "step",
        "tokenizer",
        "kv",
        "attention",
        "hot",
        "arrow",
        "registry",
        "layer",
        "image",
        "subject",
        "artifact",
        "trace",
        "merge",
        "join",
        "unique",
        "composite",
        "natural",
        "any",
        "template",
        "value",
        "key",
        "gpg",
        "pgp",
        "host",
        "hotkey",
        "snapshot",
    ]
)
#: What comes after a secret's name where the value only speaks of it: `--token-file`, SECRET_NAME.
_ABOUT = frozenset(
    [
        "file",
        "path",
        "dir",
        "directory",
        "name",
        "id",
        "type",
        "arn",
        "store",
        "manager",
        "backend",
        "ttl",
        "count",
        "length",
        "policy",
        "url",
        "uri",
        "endpoint",
        "header",
        "var",
        "env",
        "required",
        "prompt",
        "inside",
        "fd",
        "sock",
        "socket",
        "helper",
        "provider",
    ]
)
_PASSWORDS = ("password", "passwd", "passphrase", "passcode", "secret")
_GLUED = (
    *_PASSWORDS,
    "apikey",
    "authtoken",
    "accesstoken",
    "apitoken",
    "hftoken",
    "identitytoken",
    "registrytoken",
    "refreshtoken",
    "bearertoken",
    "privatekey",
    "secretkey",
    "accesskey",
)
HEADERS = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "ocp-apim-subscription-key",
        "x-auth-token",
        "private-token",
        "x-amz-security-token",
        "cookie",
        "set-cookie",
    }
)

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_VARIABLE = re.compile(r"\$(?:[A-Z_][A-Z0-9_]*|\{[A-Z_][A-Z0-9_]*\})")
_SCHEME = re.compile(r"(?:Bearer|Basic|Token|Digest|Negotiate)\s+", re.IGNORECASE)

# A name first; its value is looked at only where the name is a secret's, so that no text takes time
# with the square of its length.
_OPTION = re.compile(
    r"(?<![\w-])--?(?P<name>[A-Za-z][\w.-]{0,60})(?:=|[ \t]+(?!-)|\\?['\"]\s{0,4},\s{0,4}\\?['\"])"
)
_ARGUMENT = re.compile(
    r"\"(?P<d>(?:[^\"\\\n]|\\.)*)\"|'(?P<s>[^'\n]*)'|(?P<b>(?:[^\s'\"\\&|;<>]|\\[^\"'\s])+)"
)
_PAIR = re.compile(
    r"(?<![\w.$])(?P<name>[A-Za-z_][\w.-]{0,60})(?P<quote>\\?['\"])?(?P<op>\s{0,4}[=:]\s{0,4})(?:\[\s{0,4})?"
)
_VALUE = re.compile(
    r"\\?\"(?P<d>(?:[^\"\\\n]|\\[^\"\n])*)\\?\"|'(?P<s>[^'\n]*)'|(?P<b>(?:[^\s'\"\\&|;<>,()\[\]{}]|\\[^\"'\s])+)"
)
_HEADER = re.compile(
    r"(?<![\w-])(?:" + "|".join(sorted(HEADERS)) + r")\s*:\s*(?P<value>[^\r\n'\"\\]+)",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"(?<=://)(?P<user>[^\s/?#'\"<>:@]*)(?::(?P<password>[^\s/?#'\"<>]*))?@")
_HEADER_ARGUMENT = re.compile(
    r"(?:-H|--[a-z-]+=)?\s*(?:"
    + "|".join(sorted(HEADERS))
    + r")\s*:\s*(?:(?:Bearer|Basic|Token|Digest|Negotiate)\s+)?(?=\S)",
    re.IGNORECASE,
)
#: NAME=VALUE, --option=VALUE, --env=NAME=VALUE, -eNAME=VALUE.
_ASSIGNED = re.compile(r"-{0,2}(?P<outer>[A-Za-z_][\w.-]*)=(?:(?P<inner>[A-Za-z_][\w.-]*)=)?")
_CURL_USER = re.compile(
    r"\bcurl\b[^\n]{0,2000}?\s(?:-u|--user)[ =]?['\"]?[^\s:'\"]+:(?P<value>[^\s'\"]+)"
)
_SCHEMED = re.compile(r"\b(?P<scheme>Bearer|Basic)\s+(?P<value>[A-Za-z0-9._~+/=-]{8,})")
_SHAPE = re.compile(
    r"\b(?:sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|nvapi-[\w-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|eyJ[\w-]{8,3000}\.[\w-]{8,}\.[\w-]{8,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
#: A text without any of these has no secret by name in it: most texts are passed over by one
#: search.
_HINT = re.compile(
    r"key|token|secret|pass|pwd|auth|cookie|credential|sig|://|pat\b|bearer|basic|jwt|sas|session|sk-|hf_|gh[pousr]_|glpat|nvapi|AKIA|ASIA|xox|ya29|eyJ|curl",
    re.IGNORECASE,
)


@lru_cache(4096)
def is_secret_name(name: str) -> bool:
    """Whether what stands under this name (of an option, a variable, a header, a JSON key) is
    nobody else's business."""
    words = [w.lower() for w in _WORD.findall(name)]
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if words[-3:] == ["access", "key", "id"]:
        return True
    if words[-2:] == ["session", "id"]:
        return "xdg" not in words
    if last in _ABOUT:
        return False
    if any(w in words for w in _PASSWORDS) or last.endswith(_GLUED):
        return True
    if last == "key":
        return bool(before) and before not in _KEYS
    if last in ("token", "auth"):
        return before not in _TOKENS
    if last in ("keys", "tokens"):
        return before in ("api", "access", "secret", "private", "auth")
    if last in ("pat", "pwd", "sas", "jwt"):
        return last == "jwt" or bool(before)
    return last in (
        "credential",
        "credentials",
        "cookie",
        "cookies",
        "authorization",
        "signature",
        "sig",
    ) or ("private", "key") in itertools.pairwise(words)


def opens_nothing(value: str) -> bool:
    """A placeholder, a reference to a variable, or the path of a file that is here: not the secret
    itself."""
    if value.lower() in OPEN or _VARIABLE.fullmatch(value):
        return True
    return value.startswith(("/", "./", "../", "~/")) and os.path.exists(os.path.expanduser(value))


def _looks_random(value: str) -> bool:
    return len(value) >= 8 and any(c.isdigit() for c in value) and any(c.isalpha() for c in value)


def _is_basic(value: str) -> bool:
    try:
        return b":" in base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return False


def spans(text: str) -> Iterator[tuple[int, int, bool]]:
    """(start, end, sure) of every secret that its name, place or shape gives away; they may
    overlap. Not `sure`: to be masked where it stands, but not worth being looked for anywhere
    else."""
    if not _HINT.search(text):
        return
    for _, value in _named(text, _OPTION, _ARGUMENT):
        yield from _group(value, "d", "s", "b", sure=True)
    for found, value in _named(text, _PAIR, _VALUE):
        if ":" in found["op"] and found["name"].lower() in HEADERS:
            continue
        content = value["d"] or value["s"] or value["b"] or ""
        sure = bool(found["quote"]) or found["op"] == "="
        counted = content.isdigit() and len(content) < 6 and found["name"].lower().endswith("token")
        if (sure and not counted) or _looks_random(content):
            yield from _group(value, "d", "s", "b", sure=sure)
    for found in _HEADER.finditer(text):
        scheme = _SCHEME.match(found["value"])
        yield from _part(
            text, found.start("value") + (scheme.end() if scheme else 0), found.end("value"), True
        )
    for found in _USERINFO.finditer(text):
        yield from _group(found, "password", sure=True)
        if found["password"] is None and len(found["user"]) >= 16:
            yield from _group(found, "user", sure=True)
    for found in _CURL_USER.finditer(text):
        if not found["value"].isdigit():
            yield from _group(found, "value", sure=True)
    for found in _SCHEMED.finditer(text):
        if (
            _is_basic(found["value"])
            if found["scheme"] == "Basic"
            else _looks_random(found["value"])
        ):
            yield from _group(found, "value", sure=False)
    for found in _SHAPE.finditer(text):
        yield found.start(), found.end(), True


def _named(
    text: str, names: re.Pattern[str], values: re.Pattern[str]
) -> Iterator[tuple[re.Match[str], re.Match[str]]]:
    """(name, value) where the name is a secret's. No name is looked for within such a value."""
    until = 0
    for found in names.finditer(text):
        if (
            found.start() >= until
            and is_secret_name(found["name"])
            and (value := values.match(text, found.end()))
        ):
            until = value.end()
            yield found, value


def _group(found: re.Match[str], *names: str, sure: bool) -> Iterator[tuple[int, int, bool]]:
    for name in names:
        if found[name]:
            yield from _part(found.string, found.start(name), found.end(name), sure)


def _part(text: str, start: int, end: int, sure: bool) -> Iterator[tuple[int, int, bool]]:
    value = text[start:end].rstrip()
    if not opens_nothing(value):
        yield start, start + len(value), sure


def arguments(argv: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(index, where in it the secret begins) of arguments that are secret to their end. What stands
    within one: `spans`."""
    takes = several = False
    for i, argument in enumerate(argv):
        option = re.fullmatch(r"--?([A-Za-z][\w.-]*)(=.*)?", argument, re.DOTALL)
        value_here = takes and not (option and not _looks_random(argument))
        if several and ("/" in argument or not _looks_random(argument) or os.path.exists(argument)):
            value_here = False
        if value_here:
            if not opens_nothing(argument):
                yield i, 0
            takes = several = several or _is_api_key(argv[i - 1])  # vLLM's takes several
            continue
        takes = several = False
        given = _ASSIGNED.match(argument)
        if option and not option[2]:
            takes = is_secret_name(option[1])
        elif (
            given
            and (
                ends := [
                    given.end(n)
                    for n in ("outer", "inner")
                    if given[n] and is_secret_name(given[n])
                ]
            )
            and not opens_nothing(argument[ends[0] + 1 :])
        ):
            yield i, ends[0] + 1
        elif header := _HEADER_ARGUMENT.match(argument):
            yield i, header.end()


def _is_api_key(argument: str) -> bool:
    return argument.lstrip("-").replace("_", "-").lower() in ("api-key", "api-keys")
