"""What is known of public servers, in one table: how to recognise one, where its health is, what
its log says when.

A log line is a witness, not a measurement: it names a stretch of the start more finely than /proc
can, and it is the fallback where /proc shows nothing (a container, another user's process). Marks
become spans named `phase.detail`. `tested` says with which version a kind was run in this lab; ""
means its patterns were read, never seen at work here.

    kind = recognise(["vllm", "serve", "DIR"]);  kind.name, kind.tested     # ("vllm", "")

Lesson: notebooks/09_decide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """One line of a log. `span`: the stretch that ends with it. Its start: `seconds` (a group in
    `line`) before it, or the last line that matched `begin`, or nothing (then it is a moment)."""

    span: str
    line: str
    begin: str = ""


@dataclass(frozen=True)
class ServerKind:
    name: str
    command: str  # a pattern of its command line
    marks: tuple[Mark, ...] = ()
    # asked in turn until one is known (not 404); (): never asked
    health: tuple[str, ...] = ("/health", "/v1/models")
    tested: str = ""
    note: str = ""


_UVICORN = (
    Mark("ready.application", r"Application startup complete"),
    Mark("ready.listening", r"Uvicorn running on (?P<url>\S+)"),
)
_LLAMA_CPP = (
    Mark("build.metadata", r"llama_model_loader: loaded meta data"),
    Mark(
        "load.tensors",
        r"(llama_context: constructing|llama_init_from_model|llama_new_context_with_model)",
        begin=r"load_tensors: (loading model tensors|layer)",
    ),
    Mark(
        "warmup.kv_cache",
        r"(llama_kv_cache|kv_cache).*size\s*=",
        begin=r"llama_context: constructing",
    ),
)

KINDS = (
    ServerKind(
        "transformers-serve",
        r"\btransformers(-cli)?\b.*\bserve\b",
        (
            Mark(
                "load.weights",
                r"Loading (weights|checkpoint shards):\s+100%",
                begin=r"Loading (weights|checkpoint shards):\s+0%",
            ),
            *_UVICORN,
        ),
        tested="transformers 5.23.0 on CPU",
        note="name the model on its command line, or it is loaded by the first request",
    ),
    ServerKind(
        "llama-cpp-python",
        r"\bllama_cpp\.server\b",
        (*_LLAMA_CPP, *_UVICORN),
        health=(),
        tested="llama-cpp-python 0.3.36 on CPU",
        note=(
            "any second request ends the first one's stream (interrupt_requests), so its health is"
            " never asked while it answers"
        ),
    ),
    ServerKind(
        "llama.cpp",
        r"\bllama-server\b",
        (
            *_LLAMA_CPP,
            Mark(
                "warmup.empty_run",
                r"(model loaded|server is listening)",
                begin=r"warming up the model",
            ),
            Mark("ready.listening", r"server is listening on"),
        ),
    ),
    ServerKind(
        "vllm",
        r"\bvllm\b",
        (
            Mark("load.weights", r"Loading weights took (?P<seconds>[\d.]+) s"),
            Mark("load.model", r"Model loading took [\d.]+ GiB.*? (?P<seconds>[\d.]+) s"),
            Mark("warmup.compile", r"torch\.compile (takes|took) (?P<seconds>[\d.]+) s"),
            Mark("warmup.cuda_graphs", r"Graph capturing finished in (?P<seconds>[\d.]+) sec"),
            Mark("warmup.engine", r"init engine .* took (?P<seconds>[\d.]+) s"),
            *_UVICORN,
        ),
    ),
    ServerKind(
        "sglang",
        r"\bsglang\b",
        (
            Mark("load.weights", r"Load weight end", begin=r"Load weight begin"),
            Mark("warmup.kv_cache", r"KV Cache is allocated", begin=r"Load weight end"),
            Mark(
                "warmup.cuda_graphs",
                r"Capture cuda graph end\. Time elapsed: (?P<seconds>[\d.]+) s",
            ),
            Mark("ready.fired_up", r"The server is fired up and ready to roll"),
            *_UVICORN,
        ),
    ),
    ServerKind(
        "tgi",
        r"\btext-generation-(launcher|server|router)\b",
        (
            Mark("load.shard", r"Shard ready in (?P<seconds>[\d.]+)s"),
            Mark(
                "warmup.model",
                r"(Setting max batch total tokens|Using config)",
                begin=r"Warming up model",
            ),
            Mark("ready.listening", r"\bConnected\b"),
        ),
    ),
    ServerKind("labkit", r"\blabkit\.subject\.server\b", tested="this lab"),
)
UNKNOWN = ServerKind("own-server", "")


def recognise(argv: Sequence[str]) -> ServerKind:
    """The kind whose pattern the command line matches, or one with no marks: /proc alone tells its
    phases."""
    line = " ".join(argv)
    return next((k for k in KINDS if re.search(k.command, line)), UNKNOWN)


def read_marks(
    kind: ServerKind, log: Sequence[tuple[float, str]]
) -> list[tuple[str, float, float, str]]:
    """(span, start, end, line) for each mark in the log, given as (seconds, line); the first match
    of each mark counts."""
    found = []
    for mark in kind.marks:
        start_s: float | None = None
        for at_s, line in log:
            if mark.begin and start_s is None and re.search(mark.begin, line):
                start_s = at_s
            match = re.search(mark.line, line)
            if match:
                if duration_s := match.groupdict().get("seconds"):
                    start_s = at_s - float(duration_s)
                found.append((mark.span, min(start_s or at_s, at_s), at_s, line.strip()[:200]))
                break
    return found
