"""The numbers in a synthetic checkpoint: shaped and scaled like a trained model's, remade alone
from a tensor's name.

Each block of a tensor has a generator of its own, seeded by (seed, name, block), so any tensor can
be made again without the others, in parallel, on any host. 64 random bits give four values: each
16-bit number is looked up in the table of normal quantiles in bfloat16 – integers only, so no host
rounds differently. About 0.2 G values/s a core; the floor is writing the file.

The head is "anchored": its row for one token leans towards the embedding of another, so that greedy
decoding walks through the vocabulary by wide margins (rounding differs between devices and formats;
the tokens should not), while log probabilities still depend on every weight.

    for task in tasks("model.norm.weight", (2048,), config):
        file.write(task())                                      # uint16 arrays, bfloat16 bits

Lesson: notebooks/04_model_formats.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np

from labkit.subject.config import LlamaConfig
from labkit.subject.tokenizer import SPECIAL

BLOCK = 8 << 20  # values: 16 MiB of bfloat16, four times that while they are made
# standard deviations of the other logits that the anchored one leads by, were no layer in between
ANCHOR = 16.0
SEED = 20


@functools.cache
def _normal() -> np.ndarray:
    """65 536 quantiles of the standard normal, float64, symmetric."""
    inverse = NormalDist().inv_cdf
    half = np.array([inverse((i + 0.5) / 65536) for i in range(32768, 65536)])
    return np.concatenate((-half[::-1], half))


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float → bfloat16 bits (uint16), rounded to nearest even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


@functools.lru_cache(maxsize=16)
def _table(scale: float, middle: float) -> np.ndarray:
    return to_bfloat16(_normal() * scale + middle)


def _draw(name: str, block: int, count: int, table: np.ndarray, seed: int) -> np.ndarray:
    key = int.from_bytes(
        hashlib.blake2b(f"{seed}:{name}:{block}".encode(), digest_size=16).digest(), "little"
    )
    return table[np.random.SFC64(key).random_raw(-(-count // 4)).view(np.uint16)[:count]]


def _plain(
    name: str,
    block: int,
    start: int,
    stop: int,
    config: LlamaConfig,
    shape: tuple[int, ...],
    seed: int,
) -> np.ndarray:
    """Values [start, stop) of a tensor; `start` is a multiple of BLOCK-aligned rows, numbered by
    `block`."""
    if name.endswith("norm.weight"):
        table = _table(0.1, 1.0)
    elif name.endswith(".bias"):
        table = _table(0.1, 0.0)
    elif name == "model.embed_tokens.weight":
        table = _table(1.0, 0.0)
    else:
        # Fan-in scaling; what is added to the residual stream is divided by the number of
        # additions, as in training.
        residual = (
            math.sqrt(2 * config.num_hidden_layers)
            if name.endswith(("o_proj.weight", "down_proj.weight"))
            else 1.0
        )
        table = _table(1.0 / (math.sqrt(shape[-1]) * residual), 0.0)
    return _draw(name, block, stop - start, table, seed)


def successor(token: np.ndarray, vocabulary: int) -> np.ndarray:
    """The token whose head row leans on `token`'s embedding; never a special one. One to one on the
    ordinary tokens."""
    special = len(SPECIAL)
    ordinary = vocabulary - special
    step = next(
        s for s in range(int(ordinary * 0.618), 2 * ordinary + 2) if math.gcd(s, ordinary) == 1
    )
    return (token - special + step) % ordinary + special


def _anchored(
    block: int, start: int, stop: int, config: LlamaConfig, shape: tuple[int, ...], seed: int
) -> np.ndarray:
    """Rows of the head: random, plus a share of the embedding of the token that this row
    succeeds."""
    width = shape[1]
    first, last = start // width, stop // width
    random = to_float32(_plain("lm_head.weight", block, start, stop, config, shape, seed)).reshape(
        last - first, width
    )
    special = len(SPECIAL)
    rows = np.arange(first, last)
    ordinary = shape[0] - special
    step = int(successor(np.array([special]), shape[0])[0]) - special
    before = (rows - special - step) % ordinary + special
    # 1/sqrt(width) for the row's scale, ANCHOR/sqrt(width) for the dot product's
    lean = np.float32(ANCHOR / width)
    for low, high in _runs(before):
        embedding = _embedding_rows(int(before[low]), int(before[high - 1]) + 1, config, seed)
        part = random[low:high]
        np.add(part, embedding * lean, out=part, where=(rows[low:high] >= special)[:, None])
    return to_bfloat16(random).ravel()


def _runs(numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """Index ranges within which numbers rise by one."""
    cuts = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
    yield from itertools.pairwise(cuts)


def _embedding_rows(first: int, last: int, config: LlamaConfig, seed: int) -> np.ndarray:
    """Rows [first, last) of the embedding, float32, from the blocks that hold them."""
    shape = (config.vocab_size, config.hidden_size)
    rows = []
    for block, start, stop in spans(shape):
        low, high = max(first, start // shape[1]), min(last, stop // shape[1])
        if low < high:
            bits = _plain("model.embed_tokens.weight", block, start, stop, config, shape, seed)
            rows.append(
                to_float32(
                    bits.reshape(-1, shape[1])[low - start // shape[1] : high - start // shape[1]]
                )
            )
    return np.concatenate(rows)


def spans(shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(block, first value, end) of a tensor: whole rows, about BLOCK values."""
    width = shape[-1] if len(shape) > 1 else 1
    total = math.prod(shape)
    size = max(1, BLOCK // width) * width
    return [(i, start, min(start + size, total)) for i, start in enumerate(range(0, total, size))]


def tasks(
    name: str, shape: tuple[int, ...], config: LlamaConfig, seed: int = SEED
) -> list[Callable[[], np.ndarray]]:
    """The blocks of a tensor as functions, in order; each gives bfloat16 bits and may run in any
    thread."""
    if name == "lm_head.weight":
        return [functools.partial(_anchored, *s, config, shape, seed) for s in spans(shape)]
    return [functools.partial(_plain, name, *s, config, shape, seed) for s in spans(shape)]
