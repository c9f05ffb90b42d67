"""A tokenizer is written as GGUF in the terms of llama.cpp, or refused with words; what llama.cpp
makes of it is tests/host/test_llama_cpp."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import BadInput
from labkit.subject.tokenizer import Tokenizer
from labkit.weights.gguf_merges import joined, scores_of
from labkit.weights.gguf_vocabulary import TokenType, Vocabulary, vocabulary_of
from tests.support.public_tokenizers import LLAMA3, QWEN2, tokenizer_json

LLAMA2 = "llama 2, mistral 0.1"


def of(form: str, change: Callable[[dict], object] = lambda doc: None, rows: int = 0) -> Vocabulary:
    """The vocabulary of a public form, its tokenizer.json changed."""
    doc = json.loads(tokenizer_json(form))
    change(doc)
    tokenizer = Tokenizer.from_bytes(json.dumps(doc).encode())
    return vocabulary_of(tokenizer, rows or tokenizer.size)


def test_token_types_are_ggufs():
    gguf = pytest.importorskip("gguf")
    assert {t.name: t.value for t in TokenType} == {t.name: t.value for t in gguf.TokenType}


@pytest.mark.parametrize(
    "form, model, pre, prefix, begin",
    [
        (LLAMA2, "llama", "default", True, 1),
        ("mistral 0.3", "llama", "default", True, 1),
        ("llama 3", "gpt2", "llama-bpe", False, 1),
        ("qwen 2 and 3", "gpt2", "qwen2", False, None),
        ("gpt-2", "gpt2", "gpt-2", False, 1),
    ],
)
def test_the_reader_of_llama_cpp_is_that_of_the_tokenizers_own_definition(
    form, model, pre, prefix, begin
):
    found = of(form)
    assert (found.model, found.pre, found.add_space_prefix) == (model, pre, prefix)
    assert (found.begin, found.end) == (begin, None)
    assert bool(found.scores) != bool(found.merges)


@pytest.mark.parametrize("form", [LLAMA2, "llama 3"])
def test_tokens_have_the_types_that_their_texts_are_read_by(form):
    found = of(form, rows=1000)
    types = dict(zip(found.tokens, found.types, strict=True))
    assert types["<s>"] == types["[INST]"] == TokenType.CONTROL
    assert types["<|extra|>"] == TokenType.USER_DEFINED
    assert types["[PAD999]"] == TokenType.UNUSED and len(found.tokens) == 1000
    if form == LLAMA2:
        assert types["<unk>"] == TokenType.UNKNOWN and found.unknown == 0
        assert types["<0x0A>"] == TokenType.BYTE


@pytest.mark.parametrize(
    "single, begin, end",
    [
        (["<s>", None], 1, None),
        (["<s>", None, "</s>"], 1, 2),
        ([None, "</s>"], None, 2),
        ([None], None, None),
    ],
)
def test_what_is_put_around_a_text_is_read_from_the_template(single, begin, end):
    def change(doc: dict) -> None:
        doc["post_processor"] = {
            "type": "Sequence",
            "processors": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
                {
                    "type": "TemplateProcessing",
                    "single": [
                        {"SpecialToken": {"id": token, "type_id": 0}}
                        if token
                        else {"Sequence": {"id": "A", "type_id": 0}}
                        for token in single
                    ],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
                    "special_tokens": {
                        token: {"id": token, "ids": [number], "tokens": [token]}
                        for token, number in (("<s>", 1), ("</s>", 2))
                    },
                },
            ],
        }

    found = of("llama 3", change)
    assert (found.begin, found.end) == (begin, end)


def _expression(text: str) -> Callable[[dict], None]:
    def change(doc: dict) -> None:
        doc["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": text}

    return change


def _prefixed(doc: dict) -> None:
    doc["pre_tokenizer"]["pretokenizers"][0]["add_prefix_space"] = True


def _added(**settings: object) -> Callable[[dict], None]:
    return lambda doc: doc["added_tokens"][-1].update(settings)


@pytest.mark.parametrize(
    "form, change, named",
    [
        ("llama 3", _expression(LLAMA3.replace("{1,3}", "{1,2}")), "pre_tokenizer that is not"),
        ("llama 3", lambda d: d["model"].update(dropout=0.1), "dropout"),
        ("llama 3", lambda d: d.update(normalizer={"type": "Lowercase"}), "Lowercase"),
        ("gpt-2", _prefixed, "a pre_tokenizer that is not known"),
        ("gpt-2", lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
        ("gpt-2", _added(lstrip=True), r"<\|extra\|>.* spaces beside"),
        ("gpt-2", _added(single_word=True), "whole words"),
        (LLAMA2, _added(normalized=True), "looked for in normalised text"),
        (LLAMA2, lambda d: d["model"].update(byte_fallback=False), "byte_fallback"),
        (LLAMA2, lambda d: d.update(normalizer=None), "not replaced as SentencePiece"),
        (LLAMA2, lambda d: d["model"]["merges"].pop(), "merges of SentencePiece"),
        ("mistral 0.3", lambda d: d["pre_tokenizer"].update(replacement="_"), "replacement"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_cut_otherwise_is_refused_with_words(form, change, named):
    with pytest.raises(BadInput, match=named) as refused:
        of(form, change)
    assert refused.value.why and refused.value.fix


def test_a_tokenizer_of_another_kind_is_refused():
    doc = {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁a", -1.0]]}}
    with pytest.raises(BadInput, match="of the kind Unigram"):
        vocabulary_of(Tokenizer.from_bytes(json.dumps(doc).encode()), 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda doc: doc["post_processor"].update(special_tokens={}),
        lambda doc: doc.update(
            normalizer={"type": "Precompiled", "precompiled_charsmap": None}, added_tokens=[]
        ),
    ],
    ids=["template", "normalizer"],
)
def test_what_the_tokenizers_library_panics_at_is_refused_with_words(change):
    with pytest.raises(BadInput, match="tokenizer.json"):
        of(LLAMA2, change)


def test_more_tokens_than_rows_of_the_embedding_are_refused():
    with pytest.raises(BadInput, match="the embedding 400 rows"):
        of("llama 3", rows=400)


@pytest.mark.parametrize("literal", [False, True])
def test_line_ends_of_an_expression_may_be_spelt_either_way(literal):
    text = QWEN2.replace(r"\r", "\r").replace(r"\n", "\n") if literal else QWEN2
    assert of("llama 3", _expression(text)).pre == "qwen2"


def _without_last_merge(doc: dict) -> None:
    del doc["model"]["merges"][-1]


@pytest.mark.parametrize(
    "form, ignores, pre",
    [("llama 3", True, "llama-bpe"), ("llama 3", False, "dbrx"), ("qwen 2 and 3", True, None)],
)
def test_a_word_that_no_merges_lead_to_decides_whether_words_are_taken_whole(form, ignores, pre):
    def change(doc: dict) -> None:
        _without_last_merge(doc)
        doc["model"]["ignore_merges"] = ignores

    if pre:
        assert of(form, change).pre == pre
    else:
        with pytest.raises(BadInput, match="ignore_merges is true"):
            of(form, change)


def test_what_only_odd_text_shows_is_told():
    assert "NFC" in of("qwen 2 and 3").differs[0]
    assert len(of("mistral 0.3").differs) == 2 and not of(LLAMA2).differs
    special = of(LLAMA2, lambda doc: doc["added_tokens"][1].update(normalized=True))
    assert "'<s>' within a text" in special.differs[0]
    word = of("gpt-2", lambda doc: doc["model"]["vocab"].update({"<PRE>": 900}), rows=901)
    assert "takes it for a control token" in word.differs[0]


@given(
    st.lists(st.text("abc", min_size=2, max_size=5), max_size=12),
    st.lists(st.text("abcd", max_size=30), max_size=5),
)
@settings(max_examples=300)
def test_scores_join_every_text_as_merges_do_where_they_are_not_refused(words, texts):
    merges: dict[tuple[str, str], int] = {}
    tokens = {"a", "b", "c"}
    for word in words:
        pieces, _ = joined(word, lambda one, other: merges.get((one, other)))
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            merges.setdefault(pair, len(merges))
            tokens.add("".join(pair))
            pieces = ["".join(pair), *pieces[2:]]
    scores, otherwise = scores_of(tokens, merges)
    if otherwise is None:
        rank_of = {token: -int(score) for token, score in scores.items()}
        for text in texts:
            by_merges, _ = joined(text, lambda one, other: merges.get((one, other)))
            assert joined(text, lambda one, other: rank_of.get(one + other))[0] == by_merges
