"""How the next token is drawn, where a request asks for anything but the likeliest one.

    choose = Sampler(parse(b'{"prompt": …, "temperature": 0.7, "seed": 7}', 4096), model.device)
    for token, log_probability in generate(model, ids, 8, choose=choose): ...

Log probabilities are the model's own, before bias and temperature. Without a seed it draws from
torch's global generator (what a snapshot clones; see /_labkit/reseed). Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.subject.api import COLDEST, Completion


class Sampler:
    """`alternatives`: after each choice the likeliest tokens at its place, as many as asked for,
    and the token itself, with their log probabilities; the likeliest first."""

    def __init__(self, request: Completion, device: torch.device):
        self._request = request
        self._generator: torch.Generator | None = None
        if request.seed is not None:
            self._generator = torch.Generator(device).manual_seed(request.seed)
        tokens, biases = zip(*request.logit_bias, strict=True) if request.logit_bias else ((), ())
        self._biased = torch.tensor(tokens, dtype=torch.long, device=device)
        self._bias = torch.tensor(biases, dtype=torch.float32, device=device)
        self.alternatives: tuple[tuple[int, float], ...] = ()

    def __call__(self, logits: Tensor) -> tuple[int, float]:
        whole = logits.logsumexp(-1)
        token = self._draw(logits.index_add(0, self._biased, self._bias))
        log_probability = float(logits[token] - whole)
        if self._request.logprobs:
            most, ids = logits.topk(min(self._request.logprobs, len(logits)))
            likeliest = dict(zip(ids.tolist(), (most - whole).tolist(), strict=True))
            self.alternatives = tuple((likeliest | {token: log_probability}).items())
        return token, log_probability

    def _draw(self, scores: Tensor) -> int:
        if self._request.temperature < COLDEST:
            return int(scores.argmax())
        chances, ids = torch.softmax(scores / self._request.temperature, -1).sort(
            descending=True, stable=True
        )
        if self._request.top_k:
            chances[self._request.top_k :] = 0
        # The smallest set that holds top_p of the chance: out is what comes after it is full.
        before = chances.cumsum(-1) - chances
        chances[1:][before[1:] >= self._request.top_p * chances.sum()] = 0
        return int(ids[torch.multinomial(chances, 1, generator=self._generator)])
