"""OpenAI's completions, in and out, as data: what a request asks for, what an answer looks like. No
sockets here.

    request = parse(body, vocabulary=4096)      # raises Refused(400, …) for anything a client got
        wrong
    chunk(request, "hello", [17])               # one SSE event; `token_ids` beside the text, so
        that tokens can be checked

Lesson: notebooks/01_anatomy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class APIError(Exception):
    """A request that gets a 4xx (or 503) in OpenAI's error shape."""

    def __init__(self, status: int, message: str, param: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param = status, message, param

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.status,
            }
        }


@dataclass(frozen=True)
class Completion:
    """A checked request. `prompt`: text or token ids."""

    prompt: str | tuple[int, ...]
    max_tokens: int = 16
    temperature: float = 0.0  # greedy unless asked: this is a reference server
    stream: bool = False
    logprobs: bool = False
    echo_usage: bool = False
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    model: str = ""
    id: str = field(default_factory=lambda: f"cmpl-{time.monotonic_ns():x}")
    created: int = field(default_factory=lambda: int(time.time()))


def parse(raw: bytes, vocabulary: int) -> Completion:
    """The body of POST /v1/completions. Raises Refused."""
    try:
        doc = json.loads(raw)
    except (ValueError, RecursionError):
        raise APIError(400, "the body is not JSON") from None
    if not isinstance(doc, dict):
        raise APIError(400, f"the body is a JSON {type(doc).__name__}, expected an object")
    if "prompt" not in doc:
        raise APIError(400, "no prompt", "prompt")
    for key in ("n", "best_of"):
        if doc.get(key) not in (None, 1):
            raise APIError(400, f"{key} must be 1 here", key)
    options = doc.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise APIError(400, "stream_options must be an object", "stream_options")
    return Completion(
        prompt=_prompt(doc["prompt"], vocabulary),
        max_tokens=_whole(doc, "max_tokens", 16, 1, 1_000_000),
        temperature=_temperature(doc),
        stream=_yes(doc, "stream"),
        logprobs=doc.get("logprobs") not in (None, False),
        echo_usage=bool((options or {}).get("include_usage")),
        stop=_stop(doc.get("stop")),
        ignore_eos=_yes(doc, "ignore_eos"),
        model=str(doc.get("model") or "")[:200],
    )


def _prompt(value: object, vocabulary: int) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, list)):
        value = value[0]  # OpenAI's batch of one
    if isinstance(value, str):
        if max(value, default="") >= "\ud800" and any("\ud800" <= c <= "\udfff" for c in value):
            raise APIError(400, "the prompt holds half of a surrogate pair", "prompt")
        return value
    if (
        isinstance(value, list)
        and value
        and all(isinstance(t, int) and not isinstance(t, bool) for t in value)
    ):
        outside = next((t for t in value if not 0 <= t < vocabulary), None)
        if outside is not None:
            raise APIError(
                400, f"token id {outside} is not in the vocabulary of {vocabulary}", "prompt"
            )
        return tuple(value)
    raise APIError(
        400, "prompt must be a string or a list of token ids (one prompt a request)", "prompt"
    )


def _whole(doc: dict[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = doc.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise APIError(400, f"{key} must be an integer from {low} to {high}", key)
    return value


def _temperature(doc: dict[str, Any]) -> float:
    value = doc.get("temperature")
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 2:
        raise APIError(400, "temperature must be a number from 0 to 2", "temperature")
    return float(value)


def _yes(doc: dict[str, Any], key: str) -> bool:
    value = doc.get(key)
    if value is not None and not isinstance(value, bool):
        raise APIError(400, f"{key} must be true or false", key)
    return bool(value)


def _stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    found = [value] if isinstance(value, str) else value
    if (
        not isinstance(found, list)
        or len(found) > 4
        or not all(isinstance(s, str) and s for s in found)
    ):
        raise APIError(400, "stop must be a string or up to four of them", "stop")
    return tuple(found)


def chunk(
    request: Completion,
    model: str,
    text: str,
    ids: Sequence[int],
    logprobs: Sequence[float] = (),
    finish: str | None = None,
    usage: dict[str, int] | None = None,
) -> dict[str, Any]:
    """One `text_completion` object: an SSE event, or the whole answer."""
    choice: dict[str, Any] = {
        "index": 0,
        "text": text,
        "token_ids": list(ids),
        "finish_reason": finish,
        "logprobs": (
            {"token_logprobs": list(logprobs), "tokens": [str(i) for i in ids]}
            if request.logprobs
            else None
        ),
    }
    doc = {
        "id": request.id,
        "object": "text_completion",
        "created": request.created,
        "model": model,
        "choices": [choice],
    }
    return {**doc, "usage": usage} if usage else doc


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
