"""Byte pair encoding by a list of merges, and by scores: when llama.cpp's SentencePiece reader cuts
text as `tokenizers` does.

    scores = scores_of(["a", "b", "ab"], {("a", "b"): 0})      # {"ab": 0.0}

`tokenizers` joins the pair of the lowest rank, where the list of merges has it; llama.cpp joins any
two neighbours whose text is a token, the highest score first. They agree on every text if they
agree on the text of every token: as long as both made the same joins, what lies within a token's
text was joined as in that text alone, so that the next join of either is one that the other makes
there too. The score of a token is therefore the rank of the merge that completes it, negative.
Limit: a pass in Python over the vocabulary, 32 000 tokens in about a second. Lesson:
notebooks/04_model_formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

Merges = Mapping[tuple[str, str], int]
#: Below the rank of any merge there is; float32 still tells it from them.
NEVER_JOINED = -1e9


def joined(text: str, rank_of: Callable[[str, str], int | None]) -> tuple[list[str], int]:
    """(the pieces that a text ends up in, the rank of the last join or -1)."""
    pieces, last = list(text), -1
    while len(pieces) > 1:
        ranks = [
            (rank, at)
            for at, pair in enumerate(pairwise(pieces))
            if (rank := rank_of(*pair)) is not None
        ]
        if not ranks:
            break
        last, at = min(ranks)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces, last


def unreachable(tokens: Iterable[str], merges: Merges) -> str | None:
    """A token that merges do not make of its own text; None if there is none."""
    rank_of = _by_merges(merges)
    return next((t for t in tokens if len(t) > 1 and joined(t, rank_of)[0] != [t]), None)


def scores_of(
    tokens: Iterable[str], merges: Merges, whole: Callable[[str], bool] = lambda _: True
) -> tuple[dict[str, float], str | None]:
    """Scores of all tokens with more than one character, and a token that by them is cut otherwise
    (None: every text is cut alike). `whole`: is this text left in one piece before the merges?"""
    rank_of, lowest = _by_merges(merges), dict[str, int]()
    for (one, other), rank in merges.items():
        lowest[one + other] = min(rank, lowest.get(one + other, rank))
    ranks: dict[str, int] = {}
    reached: dict[str, bool] = {}
    for token in tokens:
        if len(token) > 1:
            pieces, last = joined(token, rank_of)
            reached[token] = pieces == [token] and whole(token)
            ranks[token] = last if pieces == [token] else lowest.get(token, int(-NEVER_JOINED))

    def by_score(one: str, other: str) -> int | None:
        return ranks.get(one + other)

    otherwise = next((t for t in reached if (joined(t, by_score)[0] == [t]) != reached[t]), None)
    return {token: -float(rank) for token, rank in ranks.items()}, otherwise


def _by_merges(merges: Merges) -> Callable[[str, str], int | None]:
    return lambda one, other: merges.get((one, other))
