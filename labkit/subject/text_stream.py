"""The text of an answer as its tokens come: never half of a character, nothing of a stop string.

A token's text depends on the tokens around it: a SentencePiece word loses its space at the very
start of a text, and the bytes of one character may be spread over four tokens. So a window is
decoded that begins before the last text shown (with the prompt's own end, at first), and what it
adds is the token's text.

    text = TextStream(tokenizer, prompt_ids)
    text.push(17), text.push(4), text.end()      # "".join(…) is the answer

It costs two decodes of a few tokens for each token, however long the answer is. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

from collections.abc import Sequence

from labkit.subject.tokenizer import Tokenizer

#: Tokens of the prompt that the first window begins with: enough that no decoder takes what
#: follows for the start of a text.
CONTEXT_TOKENS = 5
#: More tokens than the bytes of one character: what has not become one by then never will.
HELD_MOST = 16
#: Of these last ones a character may still come (UTF-8: at most three bytes without the fourth).
UNFINISHED_MOST = 3
UNFINISHED = "\ufffd"  # what decoders write for bytes that are no character (yet)


class TextStream:
    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()):
        self._decode = tokenizer.decode
        for count in range(CONTEXT_TOKENS, CONTEXT_TOKENS + UNFINISHED_MOST + 1):
            self._ids = list(prompt_ids[-count:])
            self._before = self._decode(self._ids)
            if not self._before.startswith(UNFINISHED):
                break  # it begins with a whole character
        if not self._before:  # nothing but special tokens
            self._ids = list(prompt_ids)
            self._before = self._decode(self._ids)
        self._shown = len(self._ids)  # of the window's tokens: their text is out

    def push(self, token: int) -> str:
        """What can be shown now; "" while a character is not complete."""
        self._ids.append(token)
        text, final = self._decode(self._ids), len(self._ids)
        waits_too_long = final - self._shown > HELD_MOST
        if text.endswith(UNFINISHED):
            if not waits_too_long:
                return ""
            final -= UNFINISHED_MOST
            text = self._decode(self._ids[:final])
        added = self._show(text, final)
        if waits_too_long and not added:  # special tokens: what comes next still follows the text
            del self._ids[self._shown : final]
        return added

    def end(self) -> str:
        """What was held back, complete or not."""
        return self._show(self._decode(self._ids), len(self._ids))

    def text_of(self, token: int) -> str:
        """What `token` would add here; nothing changes."""
        return self._added(self._decode([*self._ids, token]), [*self._ids[self._shown :], token])

    def _show(self, text: str, count: int) -> str:
        """`text` is of the window's first `count` tokens. The next window begins with those that
        are shown by this."""
        added = self._added(text, self._ids[self._shown : count])
        if added:
            del self._ids[: self._shown]
            self._shown = count - self._shown
            self._before = self._decode(self._ids[: self._shown])
        return added

    def _added(self, text: str, ids: Sequence[int]) -> str:
        if text.startswith(self._before):
            return text[len(self._before) :]
        # A byte that fits no character undoes the one before it in the decoder's eyes; that one is
        # out, so the new tokens speak for themselves.
        return self._decode(ids)


class StopStrings:
    """Ends a text before the first of its stop strings. What may be the beginning of one is held
    back until it is known."""

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._longest = max((len(s) for s in stops), default=0)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(what can be shown, whether the text ends here)."""
        text = self._held + text
        found = min((at for s in self._stops if (at := text.find(s)) >= 0), default=-1)
        if found >= 0:
            self._held = ""
            return text[:found], True
        kept = min(self._longest - 1, len(text))
        while kept > 0 and not any(s.startswith(text[-kept:]) for s in self._stops):
            kept -= 1
        shown = len(text) - max(kept, 0)
        self._held = text[shown:]
        return text[:shown], False

    def end(self) -> str:
        held, self._held = self._held, ""
        return held
