"""Work beside work, for a pull: a call in a thread, and a stream of chunks made in a thread of its
own.

    plain = staged(decompress(packed), stop)      # on another core than its consumer
    config = background(fetch); config.result()

Limit: what the stages share is the interpreter's lock; decompression and digests release it.
Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

AHEAD = 8  # chunks between two stages: up to 1 MiB each
T = TypeVar("T")


def background(call: Callable[[], T]) -> Future[T]:
    """A call in a daemon thread: its end is nobody's to wait for at exit."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # raised again by result()
            future.set_exception(error)

    threading.Thread(target=work, name="background", daemon=True).start()
    return future


def staged(chunks: Iterable[bytes], stop: threading.Event) -> Iterator[bytes]:
    """The same chunks, from a thread of their own that is at most `AHEAD` ahead: two stages on two
    cores."""
    waiting: queue.Queue[bytes | BaseException | None] = queue.Queue(AHEAD)

    def put(item: bytes | BaseException | None) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for chunk in chunks:
                if not put(chunk):
                    return
            put(None)
        except BaseException as error:  # raised again where the chunks are consumed
            put(error)

    threading.Thread(target=work, name="stage", daemon=True).start()

    def consume() -> Iterator[bytes]:
        while True:
            try:
                item = waiting.get(timeout=0.5)
            except queue.Empty:
                if stop.is_set():
                    return
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    return consume()
