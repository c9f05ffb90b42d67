"""The text of an answer, token by token: whole characters, and nothing of a stop string."""

from __future__ import annotations

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.subject import tokenizer
from labkit.subject.text_stream import HELD_MOST, StopStrings, TextStream

WORDS = ("▁they", "▁token", "▁", "a", "b", "é", "日")


def added(id: int, content: str) -> dict:
    return {
        "id": id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def sentencepiece(**settings: object) -> tokenizer.Tokenizer:
    """As Llama 2 and Mistral: words that carry their space, the bytes of anything else."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *WORDS]
    doc = {
        "version": "1.0",
        "added_tokens": [added(i, t) for i, t in enumerate(tokens[:3])],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": [],
        },
        **settings,
    }
    return tokenizer.Tokenizer.from_bytes(json.dumps(doc).encode())


@functools.cache
def known(name: str) -> tokenizer.Tokenizer:
    if name == "sentencepiece":
        return sentencepiece()
    return tokenizer.Tokenizer.from_bytes(tokenizer.tokenizer_json(1024))


def stream(words: tokenizer.Tokenizer, prompt: list[int], ids: list[int]) -> list[str]:
    text = TextStream(words, prompt)
    return [*map(text.push, ids), text.end()]


def ids_of(*tokens: str) -> list[int]:
    return [known("sentencepiece").inner.token_to_id(t) for t in tokens]


@pytest.mark.parametrize("name", ["sentencepiece", "byte-level"])
@given(st.text(max_size=40), st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_prompt_and_pieces_read_as_the_whole_decoded_at_once(name, text, cut):
    words = known(name)
    ids = words.encode(text)
    before = words.decode(ids[:cut])
    if before.endswith("\ufffd"):
        return  # a prompt that ends within a character
    pieces = stream(words, ids[:cut], ids[cut:])
    assert before + "".join(pieces) == words.decode(ids)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_word_after_the_prompt_keeps_its_space():
    assert stream(known("sentencepiece"), ids_of("<s>", "▁they"), ids_of("▁token"))[0] == " token"


def test_a_word_after_special_tokens_alone_keeps_the_space_of_the_text_before_them():
    prompt = ids_of("▁they", *["</s>"] * 9)
    assert stream(known("sentencepiece"), prompt, ids_of("</s>", "▁token")) == ["", " token", ""]


def test_special_tokens_without_end_are_not_decoded_again_and_again():
    words, lengths = known("sentencepiece"), []
    text = TextStream(words, ids_of("▁they"))
    text._decode = lambda ids: lengths.append(len(ids)) or words.decode(ids)
    assert "".join(map(text.push, ids_of(*["</s>"] * 100, "▁token"))) == " token"
    assert max(lengths) <= HELD_MOST + 2


def test_bytes_that_are_no_character_do_not_hold_up_what_comes_after_them():
    ids = ids_of("▁they", "<0xE2>", "<0x82>", "<0xAC>", "<0xFF>", "▁token", "a")
    pieces = stream(known("sentencepiece"), [], ids)
    assert pieces == ["they", "", "", "€", "", "\ufffd token", "a", ""]


def test_an_answer_cut_in_a_character_says_so_at_its_end():
    pieces = stream(known("sentencepiece"), ids_of("a"), ids_of("b", "<0xE2>", "<0x82>"))
    assert pieces == ["b", "", "", "\ufffd\ufffd"]


def test_endless_bytes_that_are_no_text_are_shown_in_time_but_for_a_character_at_the_end():
    for name, byte in (("sentencepiece", ids_of("<0xFF>")), ("byte-level", [258])):
        pieces = stream(known(name), [], byte * 3 * HELD_MOST)
        assert any(pieces[: 2 * HELD_MOST]) and set("".join(pieces)) == {"\ufffd"}
    face = list("😀".encode())
    ids = ids_of(*["<0xFF>"] * HELD_MOST, "a", *(f"<0x{b:02X}>" for b in face))
    assert "".join(stream(known("sentencepiece"), [], ids)).endswith("a😀")


def test_a_token_that_might_have_come_is_read_in_its_place_and_changes_nothing():
    text = TextStream(known("sentencepiece"), ids_of("▁they"))
    assert text.text_of(ids_of("▁token")[0]) == " token"
    assert text.push(ids_of("a")[0]) == "a"


@pytest.mark.parametrize("setting", ["truncation", "padding"])
def test_a_prompt_is_neither_cut_nor_filled_up_as_a_training_script_left_it(setting):
    kept = {
        "truncation": {
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 2,
            "pad_type_id": 0,
            "pad_token": "</s>",
        },
    }[setting]
    assert sentencepiece(**{setting: kept}).encode("aab") == ids_of("▁", "a", "a", "b")


def cut(stops: list[str], *texts: str) -> tuple[str, bool]:
    state, shown = StopStrings(stops), ""
    for text in texts:
        new, stopped = state.push(text)
        assert not any(s in shown + new for s in stops)
        shown += new
        if stopped:
            return shown, True
    return shown + state.end(), False


@pytest.mark.parametrize(
    "stops, texts, shown",
    [
        (["ABC"], "xABCDy", "x"),
        (["BC", "zz"], "xABCDy", "xA"),
        (["x"], "xABCDy", ""),
        (["aab"], "aaab", "a"),
        (["abab"], "abaabab", "aba"),
        (["\n\n"], "one\ntwo\n\nthree", "one\ntwo"),
    ],
)
def test_a_stop_string_over_several_tokens_ends_the_text_before_its_first_character(
    stops, texts, shown
):
    assert cut(stops, *texts) == (shown, True) == cut(stops, texts)


def test_what_only_looked_like_a_stop_string_is_shown_after_all():
    assert cut(["ABC"], *"xABA") == ("xABA", False)
    state = StopStrings(["ABC"])
    assert [state.push(c)[0] for c in "xABxA"] == ["x", "", "", "ABx", ""] and state.end() == "A"


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.text("abc", max_size=30))
def test_however_a_text_is_split_it_ends_at_the_same_place(stops, text):
    ends = [at + len(s) for s in stops if (at := text.find(s)) >= 0]
    shown, stopped = cut(stops, *text)
    assert stopped == bool(ends)
    assert text.startswith(shown) and (stopped or shown == text)
