"""OpenAI's completions, in and out, as data: what a request asks for, what an answer looks like. No
sockets here.

    request = parse(body, vocabulary=4096)      # raises APIError(400, …) for anything a client got
        wrong
    chunk(request, "tiny", "hello", [piece])    # one SSE event; `token_ids` beside the text, so
        that tokens can be checked

Lesson: notebooks/01_anatomy.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from labkit.core.digits import decimal


class APIError(Exception):
    """A request that gets a 4xx (or 503) in OpenAI's error shape."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code or self.status,
            }
        }


#: Below this the likeliest token is certain, and its logit ÷ temperature overflows.
COLDEST = 1e-5
LOGPROBS_MOST = 20
#: What changes no answer of any server, whatever its value.
_INERT = frozenset(
    [
        "model",
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "cache_salt",
        "cache_prompt",
        "request_id",
        "priority",
        "return_token_ids",
    ]
)
#: What is not done here, with the values that ask for nothing else than what is.
_UNDONE: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "use_beam_search": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),  # a token's text comes with its own spaces
    "add_special_tokens": (True,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
}
_DONE = frozenset(
    [
        "prompt",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "logit_bias",
        "stream",
        "stream_options",
        "logprobs",
        "echo",
        "stop",
        "ignore_eos",
    ]
)


class Completion(NamedTuple):  # dataclasses would cost 1 ms more of each start
    """A checked request. `prompt`: text or token ids; `top_k` 0: all; `logprobs`: how many
    alternatives to show beside each token's own, None: no log probabilities at all."""

    prompt: str | tuple[int, ...]
    max_tokens: int = 16
    temperature: float = 0.0  # greedy unless asked: this is a reference server
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    stream: bool = False
    logprobs: int | None = None
    echo: bool = False
    stream_usage: bool = False
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    model: str = ""
    id: str = ""
    created_unix_s: int = 0

    @property
    def is_greedy(self) -> bool:
        """The likeliest token each time, and nothing to show beside it."""
        return self.temperature < COLDEST and not self.logit_bias and not self.logprobs


class Piece(NamedTuple):
    """What one token adds. `alternatives`: (text, log probability) of the likeliest at its place
    and of itself, where asked for. `finish` is set on the last."""

    token: int
    text: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...] = ()
    finish: str | None = None


def parse(raw: bytes, vocabulary: int) -> Completion:
    """The body of POST /v1/completions. What would change the answer and is not done here is
    refused, never ignored. Raises APIError."""
    try:
        doc = json.loads(raw)
    except (ValueError, RecursionError):
        raise APIError(400, "the body is not JSON") from None
    if not isinstance(doc, dict):
        raise APIError(400, f"the body is a JSON {type(doc).__name__}, expected an object")
    if "prompt" not in doc:
        raise APIError(400, "no prompt", "prompt")
    _refuse_undone(doc)
    stream, echo, logprobs = _yes(doc, "stream"), _yes(doc, "echo"), _logprobs(doc)
    if echo and logprobs is not None:
        raise APIError(400, "echo with logprobs: the prompt's are not computed here", "echo")
    max_tokens = _max_tokens(doc)
    if max_tokens == 0 and not echo:
        raise APIError(400, "max_tokens is 0: nothing would be answered", "max_tokens")
    return Completion(
        prompt=_prompt(doc["prompt"], vocabulary),
        max_tokens=max_tokens,
        temperature=_number(doc, "temperature", 0.0, 0.0, 2.0),
        top_p=_number(doc, "top_p", 1.0, 0.0, 1.0),
        top_k=max(0, _whole(doc, "top_k", 0, -1, vocabulary)),
        seed=None if doc.get("seed") is None else _whole(doc, "seed", 0, -(2**63), 2**63 - 1),
        logit_bias=_logit_bias(doc.get("logit_bias"), vocabulary),
        stream=stream,
        logprobs=logprobs,
        echo=echo,
        stream_usage=_stream_usage(doc.get("stream_options"), stream),
        stop=_stop(doc.get("stop")),
        ignore_eos=_yes(doc, "ignore_eos"),
        model=_model(doc.get("model")),
        id=f"cmpl-{time.monotonic_ns():x}",
        created_unix_s=int(time.time()),
    )


def _refuse_undone(doc: dict[str, Any]) -> None:
    for key, value in doc.items():
        if value is None or key in _DONE or key in _INERT:
            continue
        if key not in _UNDONE:
            raise APIError(400, f"unrecognized request argument: {key[:100]}", key[:100])
        if value not in _UNDONE[key]:
            only = json.dumps(_UNDONE[key][0])
            raise APIError(400, f"{key} is not done here: leave it out, or send {only}", key)


def _model(value: object) -> str:
    if not isinstance(value, (str, type(None))):
        raise APIError(400, "model must be a string", "model")
    return value or ""


def _max_tokens(doc: dict[str, Any]) -> int:
    keys = [k for k in ("max_tokens", "max_completion_tokens") if doc.get(k) is not None]
    found = {_whole(doc, k, 16, 0, 1_000_000) for k in keys} or {16}
    if len(found) > 1:
        raise APIError(400, "max_tokens and max_completion_tokens differ", "max_completion_tokens")
    return found.pop()


def _logprobs(doc: dict[str, Any]) -> int | None:
    if doc.get("logprobs") is None or doc["logprobs"] is False:
        return None
    return _whole(doc, "logprobs", 0, 0, LOGPROBS_MOST)


def _logit_bias(value: object, vocabulary: int) -> tuple[tuple[int, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise APIError(400, "logit_bias must be an object: token id to bias", "logit_bias")
    found = []
    for key, bias in value.items():
        try:
            token = decimal(key, vocabulary - 1)
        except ValueError:
            raise APIError(
                400,
                f"logit_bias: {key[:40]!r} is no token id of the vocabulary of {vocabulary}",
                "logit_bias",
            ) from None
        found.append((token, _number({"logit_bias": bias}, "logit_bias", 0.0, -100.0, 100.0)))
    return tuple(found)


def _stream_usage(value: object, stream: bool) -> bool:
    if value is None:
        return False
    if not isinstance(value, dict):
        raise APIError(400, "stream_options must be an object", "stream_options")
    if not stream:
        raise APIError(400, "stream_options go with stream: true", "stream_options")
    known = ("include_usage", "include_obfuscation")
    for key in value:
        if key not in known and value[key] not in (None, False):
            raise APIError(400, f"stream_options: {key[:100]} is not done here", "stream_options")
    return _yes(value, "include_usage")


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


def _number(doc: dict[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = doc.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise APIError(400, f"{key} must be a number from {low:g} to {high:g}", key)
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
    pieces: Sequence[Piece] = (),
    finish: str | None = None,
    usage: dict[str, int] | None = None,
    offset: int = 0,
) -> dict[str, Any]:
    """One `text_completion` object: an SSE event, or the whole answer. `offset`: characters of the
    answer that came before."""
    choice: dict[str, Any] = {
        "index": 0,
        "text": text,
        "token_ids": [p.token for p in pieces],
        "finish_reason": finish,
        "logprobs": None
        if request.logprobs is None
        else _log_probabilities(request, pieces, offset),
    }
    doc = {
        "id": request.id,
        "object": "text_completion",
        "created": request.created_unix_s,
        "model": model,
        "choices": [choice],
    }
    return {**doc, "usage": usage} if usage or request.stream_usage else doc


def _log_probabilities(
    request: Completion, pieces: Sequence[Piece], offset: int
) -> dict[str, list[Any] | None]:
    """`tokens` are what each token showed, so that they join to the text."""
    lengths = [len(p.text) for p in pieces]
    return {
        "tokens": [p.text for p in pieces],
        "token_logprobs": [p.logprob for p in pieces],
        # of alternatives that read alike the likelier one stays
        "top_logprobs": [dict(p.alternatives[::-1]) for p in pieces] if request.logprobs else None,
        "text_offset": list(itertools.accumulate([offset, *lengths]))[:-1],
    }


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
