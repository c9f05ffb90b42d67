"""Token after token out of a model, with a KV cache of just the size needed, or one that is kept.

    for token, log_probability in generate(model.finish(), prompt_ids, max_tokens=8):
        ...

The limit of decoding one token is reading every weight once: bytes ÷ memory bandwidth. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from labkit.subject.llama import KVCache, Llama

Step = Callable[[Tensor, Tensor, KVCache, "int | None"], Tensor]
#: The next token out of one position's logits (float32, one for each entry of the vocabulary), with
#: its log probability.
Choose = Callable[[Tensor], "tuple[int, float]"]


def greedy(logits: Tensor) -> tuple[int, float]:
    token = int(logits.argmax())
    return token, float(logits[token] - logits.logsumexp(-1))


@torch.inference_mode()
def generate(
    model: Llama,
    prompt_ids: Sequence[int],
    max_tokens: int,
    *,
    cache: KVCache | None = None,
    choose: Choose = greedy,
    eos: Sequence[int] = (),
    step: Step | None = None,
) -> Iterator[tuple[int, float]]:
    """Yield (token id, its log probability); `choose` takes it. `step` replaces the decode step (a
    compiled one); it is called with reach=None."""
    context = cache.context if cache else len(prompt_ids) + max_tokens
    cache = cache or model.new_cache(context)
    ids = torch.tensor([list(prompt_ids)], device=model.device)
    logits = model(
        ids, torch.arange(ids.shape[1], device=model.device), cache, ids.shape[1], last_only=True
    )
    for at in range(len(prompt_ids), len(prompt_ids) + max_tokens):
        token, log_probability = choose(logits[0, -1].float())
        yield token, log_probability
        if token in eos or at + 1 >= min(context, len(prompt_ids) + max_tokens):
            return
        ids, position = (
            torch.tensor([[token]], device=model.device),
            torch.tensor([at], device=model.device),
        )
        logits = step(ids, position, cache, None) if step else model(ids, position, cache, at + 1)
