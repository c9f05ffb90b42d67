"""A model's tokenizer as a GGUF file describes it: llama.cpp cuts text into the same tokens.

    vocabulary = vocabulary_of(Tokenizer.from_dir("/models/llama-2"), 32_000)
    vocabulary.model, vocabulary.pre, vocabulary.types[0]        # "llama", "default", UNKNOWN

Two readers of llama.cpp are written for: `gpt2` (byte-level BPE: Llama 3, Qwen2) with merges and
the name of a pre-tokenizer, and `llama` (SentencePiece BPE: Llama 2, Mistral) with scores. Input is
the tokenizer as the lab's own server loads it. Refused is what would cut ordinary text otherwise;
what concerns odd text alone is listed in `differs`. Source: llama.cpp, src/llama-vocab.cpp.
Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.subject.tokenizer import Tokenizer, byte_symbols
from labkit.weights.gguf_merges import NEVER_JOINED, scores_of, unreachable
from labkit.weights.gguf_splitting import (
    CONVERTER,
    SPACE,
    ByteLevelSplit,
    byte_level,
    composes,
    is_byte_level,
    metaspace,
)

#: What llama.cpp takes for a control token by its text, also where the tokenizer has it as a word.
_CONTROL_BY_TEXT = re.compile(
    r"</s>|\[(EOT|EOS|PAD)\]|_?<EOT>|<(eos|PRE|SUF|MID|PAD|REPO|reponame)>"
    r"|<\|(eot_id|eom_id|im_end|end|return|calls?|flush|endoftext|end_of_text)\|>"
    r"|<end_of_(turn|utterance)>|<\|(repo_name|file_sep)\|>"
    r"|<\|fim_(prefix|suffix|middle|pad|repo)\|>|<fim[-_](prefix|suffix|middle|pad|repo)>"
)
_OTHERWISE = "llama.cpp would cut ordinary text otherwise: other tokens, another answer"


class TokenType(IntEnum):
    """As `tokenizer.ggml.token_type` counts them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """`tokens` and `types`: one for each row of the embedding. `scores` of the model `llama`,
    `merges` of `gpt2`. `begin`, `end`: ids put before and after every text. `differs`: texts that
    llama.cpp cuts otherwise."""

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    add_space_prefix: bool = False
    begin: int | None = None
    end: int | None = None
    unknown: int | None = None
    differs: tuple[str, ...] = ()


def _refused(problem: str, why: str = _OTHERWISE, fix: str = CONVERTER) -> BadInput:
    return BadInput(f"tokenizer.json: {problem}", why, fix)


def vocabulary_of(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """`size`: rows of the embedding. Raises BadInput for what llama.cpp cannot be told."""
    doc = json.loads(tokenizer.inner.to_str())
    model = doc["model"]
    if model["type"] != "BPE":
        raise _refused(
            f"a tokenizer of the kind {model['type']}",
            "BPE is written, byte-level or of SentencePiece: llama.cpp's readers of other kinds"
            " place spaces and unknown letters otherwise",
        )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model[key]:
            raise _refused(f"BPE with {key} {model[key]!r:.80}")
    kind = _byte_level if is_byte_level(doc["pre_tokenizer"]) else _sentencepiece
    begin, end = _around(doc["post_processor"])
    found = kind(doc, _listed(doc, size))
    odd = [
        f"{text!r} within a text: llama.cpp takes it for a control token"
        for text, kind_of in zip(found.tokens, found.types, strict=True)
        if kind_of == TokenType.NORMAL and _CONTROL_BY_TEXT.fullmatch(text)
    ]
    return replace(found, begin=begin, end=end, differs=(*found.differs, *odd))


@dataclass(frozen=True)
class _Listed:
    tokens: tuple[str, ...]
    types: tuple[int, ...]


def _listed(doc: JsonObject, size: int) -> _Listed:
    """Every token at its id; rows of the embedding without one are unused. Raises BadInput."""
    known: dict[int, tuple[str, int]] = {
        number: (text, TokenType.NORMAL) for text, number in doc["model"]["vocab"].items()
    }
    for added in doc["added_tokens"]:
        text = added["content"]
        if added["single_word"] or added["lstrip"] or added["rstrip"]:
            raise _refused(
                f"the added token {text!r:.80} takes in spaces beside it, or whole words"
            )
        if "\0" in text:
            raise _refused(f"the added token {text!r:.80} has a zero byte")
        known[added["id"]] = (
            text,
            TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED,
        )
    outside = max(known, default=0)
    if outside >= size:
        raise _refused(
            f"token {known[outside][0]!r:.80} has the id {outside}, the embedding {size} rows",
            "tokenizer and model are of two, and a GGUF file has one token for each row",
            "fetch config.json, tokenizer.json and the weights again from one place",
        )
    texts = {text for text, _ in known.values()}
    filled = [known.get(i) or (_unused(i, texts), TokenType.UNUSED) for i in range(size)]
    return _Listed(tuple(text for text, _ in filled), tuple(kind for _, kind in filled))


def _unused(number: int, texts: set[str]) -> str:
    name = f"[PAD{number}]"
    while name in texts:
        name = f"[{name}]"
    return name


def _byte_level(doc: JsonObject, listed: _Listed) -> Vocabulary:
    model = doc["model"]
    if missing := next((s for s in byte_symbols() if s not in model["vocab"]), None):
        raise _refused(f"byte-level BPE without the byte {missing!r}")
    split = _split(doc)
    differs = (
        ("text that is not in Unicode's NFC: llama.cpp does not compose it",)
        if composes(doc["normalizer"])
        else ()
    )
    return Vocabulary(
        "gpt2",
        split.name,
        listed.tokens,
        listed.types,
        merges=tuple(" ".join(pair) for pair in model["merges"]),
        unknown=model["vocab"].get(model["unk_token"]),
        differs=differs,
    )


def _split(doc: JsonObject) -> ByteLevelSplit:
    """llama.cpp's pre-tokenizer that cuts alike. Whether words are taken whole before merges are
    asked makes no difference where merges lead to every token."""
    model, candidates = doc["model"], byte_level(doc["pre_tokenizer"])
    ignores = bool(model["ignore_merges"])
    if candidates[0].ignores_merges == ignores:
        return candidates[0]
    added = {token["content"] for token in doc["added_tokens"]}
    lost = unreachable((t for t in model["vocab"] if t not in added), _ranks(model))
    if lost is None:
        return candidates[0]
    same = next((c for c in candidates if c.ignores_merges == ignores), None)
    if same is None:
        raise _refused(
            f"ignore_merges is {str(ignores).lower()}, and no merges lead to {lost!r:.80}"
        )
    return same


def _sentencepiece(doc: JsonObject, listed: _Listed) -> Vocabulary:
    model = doc["model"]
    vocabulary, unknown = model["vocab"], model["vocab"].get(model["unk_token"])
    spaces = metaspace(doc["normalizer"], doc["pre_tokenizer"])
    in_bytes = {f"<0x{value:02X}>" for value in range(256)}
    if not model["byte_fallback"] or not in_bytes <= vocabulary.keys():
        raise _refused("SentencePiece BPE without byte_fallback to 256 byte tokens")
    differs = list(spaces.differs)
    for added in doc["added_tokens"]:
        if added["normalized"] and doc["normalizer"]:
            if not added["special"]:
                raise _refused(
                    f"the added token {added['content']!r:.80} is looked for in normalised text",
                    fix='set its "normalized" to false, as SentencePiece looks for it',
                )
            differs.append(
                f"{added['content']!r:.80} within a text: llama.cpp finds it before normalising"
            )
    added_texts = {added["content"] for added in doc["added_tokens"]}
    texts = [text for text in listed.tokens if text not in added_texts]
    scores, otherwise = scores_of(
        texts, _ranks(model), lambda text: not spaces.splits or SPACE not in text[1:]
    )
    if otherwise is not None:
        raise _refused(f"merges of SentencePiece would not have it: {otherwise!r:.80}")
    types = list(listed.types)
    for text in in_bytes:
        types[vocabulary[text]] = TokenType.BYTE
    if unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    return Vocabulary(
        "llama",
        "default",
        listed.tokens,
        tuple(types),
        scores=tuple(
            scores.get(text, 0.0) if kind == TokenType.NORMAL else NEVER_JOINED
            for text, kind in zip(listed.tokens, types, strict=True)
        ),
        add_space_prefix=spaces.prefix,
        unknown=unknown,
        differs=tuple(differs),
    )


def _ranks(model: JsonObject) -> dict[tuple[str, str], int]:
    return {(one, other): rank for rank, (one, other) in enumerate(model["merges"])}


def _around(post_processor: Any) -> tuple[int | None, int | None]:
    """Ids that are put before and after every text. Raises BadInput."""
    if post_processor is None or post_processor["type"] == "ByteLevel":
        return None, None
    if post_processor["type"] == "Sequence":
        found = [_around(member) for member in post_processor["processors"]]
        several = [pair for pair in found if pair != (None, None)]
        if len(several) > 1:
            raise _refused("two post_processors that add tokens")
        return several[0] if several else (None, None)
    if post_processor["type"] != "TemplateProcessing":
        raise _refused(f"a post_processor of the kind {post_processor['type']}")
    before: list[int] = []
    after: list[int] = []
    seen = False
    for part in post_processor["single"]:
        if "Sequence" in part:
            seen = True
        else:
            ids = post_processor["special_tokens"][part["SpecialToken"]["id"]]["ids"]
            (after if seen else before).extend(ids)
    if len(before) > 1 or len(after) > 1:
        raise _refused("more than one token before or after every text")
    return next(iter(before), None), next(iter(after), None)
