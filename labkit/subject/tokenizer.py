"""Text to token ids and back: a public model's `tokenizer.json` through `tokenizers`, or a small
one made here.

Made ones are byte-level BPE (any text goes in and comes out unchanged), with merges learned from a
page of English and the rest of the vocabulary filled up with pronounceable words, so that the
vocabulary, its file and the time to parse it have the size of a real model's: 128 256 entries are 4
MB of JSON.

    tokenizer = Tokenizer.from_dir("DIR"); tokenizer.encode("The first token");
        tokenizer.decode([17, 4])

Lesson: notebooks/01_anatomy.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from typing import Any

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.subject.source import read_small

#: Tokenizers in their libraries' own files.
SLOW = ("tokenizer.model", "spiece.model", "merges.txt", "tekken.json", "vocab.txt")
SPECIAL = ("<|begin|>", "<|end|>", "<|unknown|>")
SMALLEST_VOCABULARY = len(SPECIAL) + 256
MERGES = 700

_TEXT = """A cold start is the time from the request that finds no replica to the first token that
its client receives. The image is pulled from a registry, unpacked on the disk of the node and
started; the interpreter imports its libraries; the device makes its context; the model is built
and its weights are read from storage, copied to their place and touched; then the server says
that it is ready and the first token comes back. Each of these phases has a floor: the bytes
that must move, divided by the bandwidth of what moves them. What is measured above the floor
can be saved, by moving fewer bytes, by moving them earlier, or by moving them in parallel. What
is below it was already in a cache, and the measurement has to say so. People who run models for
other people pay for the time in which a device waits. They keep it warm, and pay for nothing;
or they scale to zero, and somebody waits. There are good reasons for both of them, and one way
to find out: measure it on your own machine, with your own model, many times, in random order,
and look at all of the points. When the difference is smaller than the noise, there is no
difference to speak of. The quick brown fox jumps over the lazy dog. How much would it take to
load a large language model from an object store, and why does it take longer the first time?
Once upon a time there was a server that could answer every question but the one that was asked
before it had started. Hello, world! My name is what I would like to know."""


class Tokenizer:
    """A thin face of `tokenizers.Tokenizer`: ids out, text back."""

    def __init__(self, inner: Any):
        self.inner = inner

    @staticmethod
    def from_dir(directory: str | PathLike[str]) -> Tokenizer:
        """Of a local model directory or a URL. Raises BadInput."""
        there = functools.partial(os.path.join, directory)
        if not os.path.exists(there("tokenizer.json")) and (
            other := next((n for n in SLOW if os.path.exists(there(n))), "")
        ):
            raise BadInput(
                f"{directory}: {other} without a tokenizer.json",
                why="tokens are read from the latter, which transformers makes of the former",
                fix=f'python -c "from transformers import AutoTokenizer as T;'
                f" T.from_pretrained('{directory}').save_pretrained('{directory}')\"",
            )
        raw = read_small(directory, "tokenizer.json")
        return Tokenizer.from_bytes(raw, f"{directory}/tokenizer.json")

    @staticmethod
    def from_bytes(raw: bytes, where: str = "tokenizer.json") -> Tokenizer:
        from tokenizers import Tokenizer as Inner

        try:
            inner = Inner.from_buffer(raw)
            inner.encode("")  # shows a template of tokens that are not in the vocabulary
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # the library raises bare Exception, and of Rust a panic
            raise BadInput(
                f"{where}: {str(error)[:200]}",
                why="text cannot be turned into tokens without it",
                fix="fetch tokenizer.json again from where the model came",
            ) from None
        # A training script's settings, kept in the file: a prompt is neither cut nor filled up.
        inner.no_truncation()
        inner.no_padding()
        return Tokenizer(inner)

    @property
    def size(self) -> int:
        return self.inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode(list(ids), skip_special_tokens=True)


@functools.cache
def byte_symbols() -> tuple[str, ...]:
    """GPT-2's printable stand-in of each byte value."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return tuple(chr(b) if b in printable else chr(next(rest)) for b in range(256))


@functools.cache
def learned_merges() -> tuple[tuple[str, str], ...]:
    """The most frequent pairs of the page, joined again and again; ties go to the smaller pair, so
    that every host learns the same."""
    symbols = byte_symbols()
    words = Counter(
        tuple(symbols[b] for b in word.encode())
        for word in re.findall(r" ?[A-Za-z]+|[^A-Za-z\s]+", _TEXT.replace("\n", " "))
    )
    merges = []
    for _ in range(MERGES):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        joined: Counter[tuple[str, ...]] = Counter()
        for word, count in words.items():
            merged, i = [], 0
            while i < len(word):
                if word[i : i + 2] == best:
                    merged.append(word[i] + word[i + 1])
                    i += 2
                else:
                    merged.append(word[i])
                    i += 1
            joined[tuple(merged)] += count
        words = joined
    return tuple(merges)


def _word(number: int) -> str:
    """A pronounceable word for any number: base 100 in syllables, at least two."""
    syllables: list[str] = []
    while number or len(syllables) < 2:
        number, digit = divmod(number, 100)
        syllables.append("bcdfghjklmnprstvwxyz"[digit // 5] + "aeiou"[digit % 5])
    return "Ġ" + "".join(reversed(syllables))


def vocabulary(size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """(tokens in id order, merges) with exactly `size` tokens."""
    if size < SMALLEST_VOCABULARY:
        raise BadInput(
            f"a vocabulary of {size}",
            why="bytes and special tokens alone need more",
            fix=f"at least {SMALLEST_VOCABULARY}",
        )
    tokens = [*SPECIAL, *byte_symbols()]
    known, merges = set(tokens), []
    for one, other in learned_merges():
        if len(tokens) == size:
            break
        merges.append((one, other))
        if one + other not in known:
            known.add(one + other)
            tokens.append(one + other)
    number = 0
    while len(tokens) < size:
        word = _word(number)
        number += 1
        if word not in known:
            known.add(word)
            tokens.append(word)
    return tokens, merges


def tokenizer_json(size: int) -> bytes:
    """A complete `tokenizer.json` with `size` entries; the same bytes on every host."""
    tokens, merges = vocabulary(size)
    doc = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": s,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, s in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": SPECIAL[0], "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {SPECIAL[0]: {"id": SPECIAL[0], "ids": [0], "tokens": [SPECIAL[0]]}},
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [list(m) for m in merges],
        },
    }
    return json.dumps(doc, ensure_ascii=False, separators=(",", ":")).encode()


def tokenizer_config(context: int) -> JsonObject:
    """`tokenizer_config.json`, for the public libraries that ask for it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "unk_token": SPECIAL[2],
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
