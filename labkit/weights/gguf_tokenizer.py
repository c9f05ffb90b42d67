"""The keys `tokenizer.*` of a GGUF file: the vocabulary, which of its tokens begin, end and fill up
a text, and the chat templates.

    add_tokenizer(writer, vocabulary, tokenizer, config, source)

llama.cpp has defaults for what is missing (of byte-level BPE token 11 ends an answer), so that
an end is always written. Source: llama.cpp, src/llama-vocab.cpp. Lesson:
notebooks/04_model_formats."""

from __future__ import annotations

import re
from typing import Any

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.subject.config import LlamaConfig, parsed
from labkit.subject.tokenizer import Tokenizer
from labkit.weights.gguf_vocabulary import Vocabulary
from labkit.weights.source import CheckpointSource

#: Of a text, a turn, a message: an answer ends with each.
_ENDS = ("eos", "eot", "eom")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9]")


def add_tokenizer(
    writer: Any,
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    config: LlamaConfig,
    source: CheckpointSource,
) -> None:
    """Raises BadInput for ids that are no tokens, or an answer without an end."""
    settings = _settings(source)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    else:
        writer.add_token_merges(vocabulary.merges)
    begin = config.bos_token_id if vocabulary.begin is None else vocabulary.begin
    ends = list(dict.fromkeys(i for i in (vocabulary.end, *config.eos_token_ids) if i is not None))
    if outside := [i for i in (begin, *ends) if i is not None and i >= config.vocab_size]:
        raise BadInput(
            f"{source.root}: the token {outside[0]} of a vocabulary of {config.vocab_size} begins"
            " or ends a text",
            fix="compare bos_token_id and eos_token_id with their source",
        )
    if not ends:
        raise BadInput(
            f"{source.root}/config.json: no eos_token_id",
            why="llama.cpp would take another token for the end of an answer",
            fix="add it: the id of the token that ends a text",
        )
    if len(ends) > len(_ENDS):
        raise BadInput(
            f"{source.root}: {len(ends)} tokens that end an answer",
            why=f"a GGUF file names {len(_ENDS)} at most: answers would run on past the others",
            fix="leave the needless ones out of eos_token_id",
        )
    if begin is not None:
        writer.add_bos_token_id(begin)
    for kind, number in zip(_ENDS, ends, strict=False):
        getattr(writer, f"add_{kind}_token_id")(number)
    writer.add_add_bos_token(vocabulary.begin is not None)
    writer.add_add_eos_token(vocabulary.end is not None)
    unknown, fill = vocabulary.unknown, _token(settings, "pad_token", tokenizer)
    if unknown is None:
        unknown = _token(settings, "unk_token", tokenizer)
    if unknown is not None:
        writer.add_unk_token_id(unknown)
    if fill is not None:
        writer.add_pad_token_id(fill)
    _add_chat_templates(writer, _chat_templates(source, settings))


def _chat_templates(source: CheckpointSource, settings: JsonObject) -> dict[str, str]:
    """By name; most models have one, "default", some another for tools."""
    file, found = source.read("chat_template.jinja"), settings.get("chat_template")
    if file is not None:
        found = file.decode("utf-8", "replace")
    if isinstance(found, str):
        return {"default": found}
    return {
        _NOT_IN_A_NAME.sub("_", entry["name"]): entry["template"]
        for entry in (found if isinstance(found, list) else ())
        if isinstance(entry, dict)
        and all(isinstance(entry.get(key), str) for key in ("name", "template"))
    }


def _add_chat_templates(writer: Any, templates: dict[str, str]) -> None:
    import gguf

    keys, named = gguf.Keys.Tokenizer, [name for name in templates if name != "default"]
    if named:
        writer.add_array(keys.CHAT_TEMPLATES, named)
    for name, text in templates.items():
        writer.add_string(
            keys.CHAT_TEMPLATE if name == "default" else keys.CHAT_TEMPLATE_N.format(name=name),
            text,
        )


def _settings(source: CheckpointSource) -> JsonObject:
    raw = source.read("tokenizer_config.json")
    doc = parsed(raw, source.address("tokenizer_config.json"), "") if raw else {}
    return doc if isinstance(doc, dict) else {}


def _token(settings: JsonObject, key: str, tokenizer: Tokenizer) -> int | None:
    found = settings.get(key)
    text = found.get("content") if isinstance(found, dict) else found
    return tokenizer.inner.token_to_id(text) if isinstance(text, str) else None
