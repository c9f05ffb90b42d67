"""How a tokenizer cuts text before it merges, and the name that llama.cpp knows this under.

    byte_level(doc["pre_tokenizer"], ignores_merges=True).name        # "llama-bpe"
    metaspace(doc["normalizer"], doc["pre_tokenizer"]).prefix         # True: Llama 2

A GGUF file names its pre-tokenizer, llama.cpp holds the expressions. So the definition in
tokenizer.json is recognised as a whole – the same expressions in the same order – or refused; those
that llama.cpp only approximates (Tekken, GPT-4o: letters with marks, capitals outside ASCII) are
not in the table. Source: llama.cpp, src/llama-vocab.cpp. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput

CONVERTER = "use llama.cpp's convert_hf_to_gguf.py, and compare its token ids with transformers'"
SPACE = "▁"

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + _WORDS + r"|\p{N}{1,3}" + _MARKS + _SPACES
_QWEN2 = _CONTRACTIONS + _WORDS + r"|\p{N}" + _MARKS + _SPACES
_SEED = _CONTRACTIONS + _WORDS + r"|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + _SPACES


class ByteLevelSplit(NamedTuple):
    """`ignores_merges`: a word that is a token becomes that token, whatever the merges say."""

    name: str
    ignores_merges: bool


#: The expressions in their order -> as llama.cpp has them. Of two, the one that takes words whole
#: comes first.
_KNOWN = {
    (_GPT2,): (ByteLevelSplit("gpt-2", False),),
    (_LLAMA3,): (ByteLevelSplit("llama-bpe", True), ByteLevelSplit("dbrx", False)),
    (_QWEN2,): (ByteLevelSplit("qwen2", False),),
    (_SEED,): (ByteLevelSplit("seed-coder", False),),
    (r"\p{N}", _GPT2): (ByteLevelSplit("smollm", False),),
}


class Metaspace(NamedTuple):
    """`prefix`: a space is put before the text. `splits`: no token reaches over a space.
    `differs`: what of this llama.cpp does otherwise."""

    prefix: bool
    splits: bool
    differs: tuple[str, ...] = ()


def _steps(doc: Any, key: str) -> list[JsonObject]:
    """A sequence's members, of whatever depth, or the one there is."""
    if doc is None:
        return []
    if doc["type"] == "Sequence":
        return [step for member in doc[key] for step in _steps(member, key)]
    return [doc]


def _refused(problem: str, doc: Any) -> BadInput:
    return BadInput(
        f"tokenizer.json: {problem}: {json.dumps(doc, ensure_ascii=False)[:300]}",
        why="llama.cpp has no reader that cuts text like this: other tokens, another answer",
        fix=CONVERTER,
    )


def is_byte_level(pre_tokenizer: Any) -> bool:
    return any(s["type"] == "ByteLevel" for s in _steps(pre_tokenizer, "pretokenizers"))


def byte_level(pre_tokenizer: Any) -> tuple[ByteLevelSplit, ...]:
    """Those of llama.cpp that cut at the same places. Raises BadInput."""
    expressions = tuple(_expressions(pre_tokenizer))
    found = _KNOWN.get(expressions)
    if found is None:
        raise _refused("a pre_tokenizer that is not known", pre_tokenizer)
    return found


def _expressions(pre_tokenizer: Any) -> Iterator[str]:
    steps = _steps(pre_tokenizer, "pretokenizers")
    for step in steps[:-1]:
        kind = step["type"]
        if kind == "Digits" and step["individual_digits"]:
            yield r"\p{N}"
        elif (
            kind == "Split"
            and "Regex" in step["pattern"]
            # matches alone, or with what lies between them: these expressions leave nothing between
            and (step["behavior"], step["invert"]) in (("Isolated", False), ("Removed", True))
        ):
            yield step["pattern"]["Regex"].replace("\r", r"\r").replace("\n", r"\n")
        else:
            raise _refused("a pre_tokenizer that is not known", pre_tokenizer)
    last = steps[-1]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        raise _refused("a pre_tokenizer that is not known", pre_tokenizer)
    if last["use_regex"]:
        yield _GPT2


def composes(normalizer: Any) -> bool:
    """Does a byte-level tokenizer bring text into Unicode's NFC first? Raises BadInput for any
    other normalizer."""
    steps = [step["type"] for step in _steps(normalizer, "normalizers")]
    if any(step != "NFC" for step in steps):
        raise _refused("a normalizer that is not known", normalizer)
    return bool(steps)


def metaspace(normalizer: Any, pre_tokenizer: Any) -> Metaspace:
    """Of a SentencePiece tokenizer, in either of the two spellings of transformers. Raises
    BadInput."""
    normalizers = sorted(
        (
            (step["type"], step.get("prepend"), step.get("pattern"), step.get("content"))
            for step in _steps(normalizer, "normalizers")
        ),
        key=str,
    )
    splitters = _steps(pre_tokenizer, "pretokenizers")
    replace = ("Replace", None, {"String": " "}, SPACE)
    if not splitters and normalizers in (
        [replace],
        [("Prepend", SPACE, None, None), replace],
    ):
        return Metaspace(len(normalizers) == 2, False)
    if normalizers or len(splitters) != 1 or splitters[0]["type"] != "Metaspace":
        raise _refused(
            "spaces are not replaced as SentencePiece does",
            {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer},
        )
    [step] = splitters
    if step["replacement"] != SPACE:
        raise _refused("a replacement of spaces that is not known", pre_tokenizer)
    scheme = step["prepend_scheme"]
    differs = []
    if scheme != "never":
        differs.append("text that begins with a space: llama.cpp puts one more before it")
    if scheme == "first":
        differs.append("text behind a special token: llama.cpp puts a space before it")
    return Metaspace(scheme != "never", step["split"], tuple(differs))
