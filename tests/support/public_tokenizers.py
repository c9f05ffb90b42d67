"""Small tokenizers in the forms that public models have, trained on a page in eight scripts: what
differs between Llama 2, Llama 3, Qwen and Mistral is how text is cut, not which words were
learned."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

PAGE = (
    "The first token of a cold start is what somebody waits for. items.append(x) self.value = y\n\n"
    "\tif x:\n\treturn self.value\n (self.append) 123 456 789 123456 year 2026; IT'S THEY'RE it's "
    "we'll they're\n\n    indented code = f(x) # 100% €uro naïve café größer Straße "
    "Привет мир, как дела? Γειά σου κόσμε. नमस्ते दुनिया यह एक परीक्षण है। مرحبا بالعالم "
    "你好世界 日本語のテキスト 안녕하세요 세계 "
) * 6
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SEED = LLAMA3.replace(r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*", r"\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+")
SPECIAL = ("<unk>", "<s>", "</s>")

#: A dozen and more of texts in eight scripts, with what tokenizers cut differently: digits, spaces,
#: line ends, contractions, marks before words, emoji, added tokens.
TEXTS = (
    "Hello world! It's we'll they're THEY'RE I'D",
    " a leading space",
    "two  spaces   three",
    "naïve café, 100% €uro – größer als die Straße",
    "Привет, мир! 123456789 и 2026 год",
    "Γειά σου, κόσμε",
    "नमस्ते दुनिया, यह एक परीक्षण है।",
    "مرحبا بالعالم، كيف حالك؟",
    "日本語のテキスト、你好世界。",
    "안녕하세요 세계!",
    "x:\n\n\treturn self.value\n",
    "items.append(self.value)",
    "    indented = f(x) # 100%\r\n\r\n end ",
    "emoji 🦙🚀👩\u200d💻",
    "a<|extra|>b <|extra|> c</s>d",
    "<s>[INST] hi [/INST]",
    "\t\ttabs\u00a0nbsp\u3000ideographic",
    "",
)


def _with_added(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("[INST]", "[/INST]")])
    tokenizer.add_tokens([AddedToken("<|extra|>", normalized=False)])
    return tokenizer


def _begins_with_s(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A",
        pair="<s> $A <s>:1 $B:1",
        special_tokens=[("<s>", tokenizer.token_to_id("<s>"))],
    )


def sentencepiece(metaspace: pre_tokenizers.Metaspace | None = None) -> Tokenizer:
    """As Llama 2, TinyLlama and Mistral: BPE over ▁, the bytes of anything else."""
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained = Tokenizer(models.BPE())
    trained.normalizer = spaces
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, max_token_length=8)
    trained.train_from_iterator([PAGE.replace("日", "").replace("🦙", "")], trainer)
    doc = json.loads(trained.to_str())
    words = sorted(doc["model"]["vocab"], key=doc["model"]["vocab"].get)
    tokens = [*SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), *words]
    doc["model"] |= {
        "vocab": {token: i for i, token in enumerate(tokens)},
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
    }
    if metaspace:
        doc["normalizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(doc))
    if metaspace:
        tokenizer.pre_tokenizer = metaspace
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    _begins_with_s(tokenizer)
    return _with_added(tokenizer)


def byte_level(*before: pre_tokenizers.PreTokenizer, begins: bool = True) -> Tokenizer:
    """As GPT-2, and as Llama 3 or Qwen2 with an expression `before`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *before,
            pre_tokenizers.ByteLevel(
                add_prefix_space=False,
                use_regex=not any(isinstance(b, pre_tokenizers.Split) for b in before),
            ),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([PAGE], trainer)
    if begins:
        _begins_with_s(tokenizer)
    return _with_added(tokenizer)


def by_expression(expression: str, begins: bool = True) -> Tokenizer:
    return byte_level(pre_tokenizers.Split(Regex(expression), "isolated"), begins=begins)


def _qwen2() -> Tokenizer:
    tokenizer = by_expression(QWEN2, begins=False)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


FORMS: dict[str, Callable[[], Tokenizer]] = {
    "llama 2, mistral 0.1": sentencepiece,
    "mistral 0.3": lambda: sentencepiece(pre_tokenizers.Metaspace("▁", "first", split=False)),
    "llama 3": lambda: by_expression(LLAMA3),
    "qwen 2 and 3": _qwen2,
    "gpt-2": byte_level,
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "seed-coder": lambda: by_expression(SEED),
}


@functools.cache
def tokenizer_json(form: str) -> bytes:
    return FORMS[form]().to_str().encode()
