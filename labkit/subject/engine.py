"""One model, one request at a time: requests come from the sockets' threads, tokens are made in the
main thread.

The main thread did the warm-up, so its thread pool, its device context and its compiled step are
the ones that answer. Clients that ask meanwhile wait in line: a reference server measures a start,
not a load.

    engine = Engine(model, tokenizer, max_context=2048, name="tiny")
    engine.serve_forever()                        # main thread
    for piece in engine.answer(request, engine.ids_of(request)): ...      # any other thread

Lesson: notebooks/01_anatomy.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import random
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch

from labkit.core import proc
from labkit.core.json_types import JsonObject
from labkit.subject.api import APIError, Completion, Piece
from labkit.subject.decode import Choose, Step, generate, greedy
from labkit.subject.llama import KVCache, Llama
from labkit.subject.text_stream import StopStrings, TextStream
from labkit.subject.tokenizer import Tokenizer

Result = TypeVar("Result")


class Engine:
    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        *,
        max_context: int,
        name: str,
        compiled: bool = False,
        graphs: Sequence[int] = (),
    ):
        self.model, self.tokenizer, self.max_context, self.name = (
            model,
            tokenizer,
            max_context,
            name,
        )
        self.eos = model.config.eos_token_ids
        self.step: Step | None = self._compiled() if compiled else None
        self._cache: KVCache | None = None
        self._jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.reseeded = 0
        self._shrunk, self._compiles, self._graphed = False, compiled, bool(graphs)
        if graphs:
            from labkit.subject.graphs import Graphs, recorder

            self.step = Graphs(model, self.cache(), graphs, recorder(model.device.type))

    def _compiled(self) -> Step:
        """The decode step with static shapes, through torch.compile; CUDA graphs where there is a
        GPU."""
        step: Step = torch.compile(
            self.model.forward,
            mode="reduce-overhead" if self.model.device.type == "cuda" else "default",
            dynamic=False,
        )
        return step

    def cache(self) -> KVCache:
        """Made on first use and kept: a request overwrites what the one before left, position by
        position."""
        if self._cache is None:
            self._cache = self.model.new_cache(self.max_context)
            if self._compiles:
                # A CUDA graph writes to fixed addresses: without this mark it is given up,
                # silently, for a written-to input.
                for tensor in (*self._cache.keys, *self._cache.values):
                    torch._dynamo.mark_static_address(tensor)
        return self._cache

    def warm_up(self, tokens: int) -> int:
        """Make `tokens` tokens from a one-token prompt; returns how many."""
        start = self.model.config.bos_token_id or 0
        count = 0
        if tokens:
            answer = generate(self.model, [start], tokens, cache=self.cache(), step=self.step)
            count = sum(1 for _ in answer)
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return count

    def ids_of(self, request: Completion) -> list[int]:
        """The prompt as ids. Raises APIError."""
        prompt = request.prompt
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        ids = ids or [self.model.config.bos_token_id or 0]
        if max(ids) >= self.model.config.vocab_size:
            raise APIError(400, "the tokenizer knows tokens that the model does not", "prompt")
        if len(ids) + request.max_tokens > self.max_context:
            raise APIError(
                400,
                f"{len(ids)} prompt tokens and max_tokens {request.max_tokens} exceed this server's"
                f" context of {self.max_context}",
                "max_tokens",
            )
        return ids

    def prompt_text(self, request: Completion, ids: Sequence[int]) -> str:
        """What `echo` sends back."""
        return request.prompt if isinstance(request.prompt, str) else self.tokenizer.decode(ids)

    def answer(self, request: Completion, ids: Sequence[int]) -> Generator[Piece]:
        """Tokens as they are made, after the prompt's `ids`. Closing the iterator stops the
        work."""
        out: queue.SimpleQueue[Piece | BaseException | None] = queue.SimpleQueue()
        stopped = threading.Event()
        self._jobs.put(lambda: self._generate(request, ids, out, stopped))
        try:
            while (piece := out.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            stopped.set()

    def _generate(
        self,
        request: Completion,
        ids: Sequence[int],
        out: queue.SimpleQueue[Piece | BaseException | None],
        stopped: threading.Event,
    ) -> None:
        try:
            if stopped.is_set() or not request.max_tokens:
                return
            text, stops = TextStream(self.tokenizer, ids), StopStrings(request.stop)
            eos = () if request.ignore_eos else self.eos
            choose, alternatives = self._choice(request)
            tokens = generate(
                self.model,
                ids,
                request.max_tokens,
                cache=self.cache(),
                choose=choose,
                step=self.step,
                eos=eos,
            )
            for number, (token, logprob) in enumerate(tokens, 1):
                others = tuple((text.text_of(t), p) for t, p in alternatives())
                ended, last = token in eos, number == request.max_tokens
                # what ends an answer is no part of its text
                new = ("" if ended else text.push(token)) + (text.end() if ended or last else "")
                shown, stopped_here = stops.push(new)
                if (ended or last) and not stopped_here:
                    shown += stops.end()
                finish = "stop" if ended or stopped_here else "length" if last else None
                out.put(Piece(token, shown, logprob, others, finish))
                if finish or stopped.is_set():
                    return
        except BaseException as error:
            out.put(
                error
                if isinstance(error, Exception)
                else RuntimeError("the server is shutting down")
            )
            if not isinstance(error, Exception):
                raise
        finally:
            out.put(None)

    def _choice(
        self, request: Completion
    ) -> tuple[Choose, Callable[[], Sequence[tuple[int, float]]]]:
        """How tokens are chosen, and what was likeliest at the place of the last one."""
        if request.is_greedy:
            return greedy, tuple
        # Only who asks for it pays for this import.
        from labkit.subject.sampling import Sampler

        sampler = Sampler(request, self.model.device)
        return sampler, lambda: sampler.alternatives

    def call(self, work: Callable[[], Result]) -> Result:
        """Run `work` in the main thread, between requests, and give its result."""
        future: Future[Result] = Future()

        def job() -> None:
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        self._jobs.put(job)
        return future.result()

    def serve_forever(self) -> None:
        while True:
            # A signal that arrives just before an endless wait would be seen only after it: look up
            # now and then.
            try:
                job = self._jobs.get(timeout=0.5)
            except queue.Empty:
                continue
            if self._shrunk:
                # Whatever comes next may be a clone of a snapshot: no sample is drawn from the
                # random state in the image.
                self._shrunk = False
                self.reseed()
            job()

    def shrink(self) -> JsonObject:
        """Give back what a snapshot need not hold: the KV cache, garbage, freed heap pages, the
        device allocator's cache."""
        before = proc.status_bytes("self", "VmRSS")[0]
        freed = self._cache.size_bytes if self._cache else 0
        self._cache, self._shrunk = None, True
        if self._graphed:  # recorded over the cache that goes: without this they would keep it
            self.step = None
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        with contextlib.suppress(OSError, AttributeError):
            import ctypes

            ctypes.CDLL("libc.so.6").malloc_trim(0)
        return {
            "kv_cache_bytes": freed,
            "resident_before_bytes": before,
            "resident_after_bytes": proc.status_bytes("self", "VmRSS")[0],
        }

    def reseed(self) -> JsonObject:
        """New random state from the kernel: two clones of one snapshot would otherwise draw
        alike."""
        torch.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
        random.seed(os.urandom(16))
        self.reseeded += 1
        return {"reseeded": self.reseeded}
