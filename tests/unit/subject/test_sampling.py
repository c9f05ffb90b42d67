"""Which token a request gets, out of logits that are known."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from labkit.subject.api import Completion  # noqa: E402
from labkit.subject.sampling import Sampler  # noqa: E402

LOGITS = torch.tensor([1.0, 4.0, 3.0, 2.0])
LOG_CHANCES = LOGITS.log_softmax(-1).tolist()


def drawn(count: int = 300, **fields: object) -> list[int]:
    choose = Sampler(Completion("x", **fields), torch.device("cpu"))
    return [choose(LOGITS)[0] for _ in range(count)]


def test_a_seed_repeats_its_draws_and_another_draws_otherwise():
    assert drawn(temperature=2.0, seed=7) == drawn(temperature=2.0, seed=7)
    assert drawn(temperature=2.0, seed=7) != drawn(temperature=2.0, seed=8)


@pytest.mark.parametrize(
    "fields, possible",
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 2}, {1, 2}),
        ({"top_p": 0.0}, {1}),
        ({"top_p": 1e-9}, {1}),
        ({"top_p": 0.7}, {1, 2}),  # 0.54 of the chance at this temperature, then 0.27
        ({"top_k": 3, "top_p": 0.99}, {1, 2, 3}),
        ({"logit_bias": ((1, -100.0), (2, -100.0))}, {0, 3}),
    ],
)
def test_only_what_is_left_of_the_chances_is_drawn(fields, possible):
    assert set(drawn(temperature=1.4, seed=1, **fields)) == possible


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 1e-300])
def test_a_bias_is_felt_without_temperature_too(temperature):
    assert drawn(3, temperature=temperature) == [1, 1, 1]
    assert drawn(3, temperature=temperature, logit_bias=((3, 100.0),)) == [3, 3, 3]


def test_log_probabilities_are_the_models_own_with_the_token_among_the_likeliest():
    choose = Sampler(Completion("x", logprobs=2, logit_bias=((0, 100.0),)), torch.device("cpu"))
    assert choose(LOGITS) == (0, pytest.approx(LOG_CHANCES[0]))
    assert [t for t, _ in choose.alternatives] == [1, 2, 0]
    assert [p for _, p in choose.alternatives] == pytest.approx([LOG_CHANCES[t] for t in (1, 2, 0)])
