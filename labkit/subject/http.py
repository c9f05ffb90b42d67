"""The server's HTTP side: OpenAI's two routes, the lab's four, on a thread a connection (no event
loop: CRIU dumps it).

    GET  /health              200 only when a token can be served, else 503
    POST /v1/completions      streaming (SSE) or not; `token_ids` beside the text
    GET  /v1/models
    GET  /_labkit/identity    pid, a nonce made at process start, its monotonic time: which process
        answered?
    POST /_labkit/shrink      give memory back before a snapshot
    POST /_labkit/reseed      new random state after a restore

Sockets, heads and limits are `labkit.net.server`'s; the last two want `X-Labkit` or JSON, as
everything under `/_labkit/` (`labkit.net.guard`). A request can be wrong in any way; it gets a 4xx
in OpenAI's shape, and the server lives on. Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

from labkit.core.json_types import JsonObject
from labkit.net import server as net
from labkit.net.guard import exposure, warn
from labkit.net.message import Request, Response, text
from labkit.subject import api
from labkit.subject.api import APIError

BODY_LIMIT_BYTES = 8 << 20
if TYPE_CHECKING:
    from labkit.subject.engine import Engine, Piece
    from labkit.subject.server import State

#: At most so many requests hold a body at a time.
CONNECTIONS_MOST = 128

Routes = dict[str, Callable[[bytes], Response]]


class ModelServer(net.HTTPServer):
    """`state`: what the handlers see; `state.engine` is None until a token can be served."""

    most = CONNECTIONS_MOST

    def __init__(self, host: str, port: int, state: State):
        self.state = state
        warn(
            exposure(
                host, "the model answers whoever asks", "put a proxy that asks for a key before it"
            )
        )
        super().__init__(self.control, host=host, port=port, name="labkit")

    def refuse(self, status: int, message: str) -> Response:
        return _refused(status, message)

    def control(self, request: Request) -> Response:
        path = request.path.rstrip("/")
        reads: Routes = {
            "/health": self._health,
            "/v1/models": self._models,
            "/_labkit/identity": self._identity,
        }
        posts: Routes = {
            "/v1/completions": self._completions,
            "/_labkit/shrink": self._shrink,
            "/_labkit/reseed": self._reseed,
        }
        routes = {"GET": reads, "HEAD": reads, "POST": posts}.get(request.method, {})
        body = request.body.read(BODY_LIMIT_BYTES)
        try:
            if path not in routes:
                raise APIError(
                    405 if path in reads | posts else 404,
                    f"{request.method} {path[:200]} is not served here",
                )
            return routes[path](body)
        except APIError as error:
            return _refused(error.status, error.message, error.param)
        except Exception as error:
            return _refused(500, _logged(error))

    def _engine(self) -> Engine:
        engine = self.state.engine
        if engine is None:
            raise APIError(503, "loading: no token can be served yet")
        return engine

    def _health(self, _: bytes) -> Response:
        self._engine()
        return _json(200, {"status": "ok"})

    def _models(self, _: bytes) -> Response:
        state = self.state
        return _json(
            200,
            {
                "object": "list",
                "data": [
                    {
                        "id": state.name,
                        "object": "model",
                        "created": int(state.started_unix_s),
                        "owned_by": "labkit",
                    }
                ],
            },
        )

    def _identity(self, _: bytes) -> Response:
        return _json(200, self.state.identity())

    def _shrink(self, _: bytes) -> Response:
        engine = self._engine()
        return _json(200, engine.call(engine.shrink))

    def _reseed(self, _: bytes) -> Response:
        engine = self._engine()
        return _json(200, engine.call(engine.reseed))

    def _completions(self, body: bytes) -> Response:
        engine = self._engine()
        request = api.parse(body, engine.model.config.vocab_size)
        pieces = engine.answer(request)
        if request.stream:
            first = next(pieces)  # a refusal comes before the head
            return Response(
                200,
                {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"},
                stream=_events(request, engine, first, pieces),
            )
        try:
            answered = list(pieces)
        finally:
            pieces.close()
        total = api.usage(answered[0].prompt_tokens, len(answered)) if answered else None
        return _json(
            200,
            api.chunk(
                request,
                engine.name,
                "".join(p.text for p in answered),
                [p.token for p in answered],
                [p.logprob for p in answered],
                answered[-1].finish if answered else "length",
                total,
            ),
        )


def _events(
    request: api.Completion, engine: Engine, first: Piece, pieces: Generator[Piece]
) -> Iterator[bytes]:
    count = 1
    try:
        yield _event(
            api.chunk(
                request, engine.name, first.text, [first.token], [first.logprob], first.finish
            )
        )
        for count, piece in enumerate(pieces, start=2):  # noqa: B007 – the last value is the count
            yield _event(
                api.chunk(
                    request, engine.name, piece.text, [piece.token], [piece.logprob], piece.finish
                )
            )
        if request.echo_usage:
            yield _event(
                {
                    **api.chunk(request, engine.name, "", []),
                    "choices": [],
                    "usage": api.usage(first.prompt_tokens, count),
                }
            )
        yield b"data: [DONE]\n\n"
    except APIError as error:  # the head is gone: an error event, then the end of the stream
        yield _event(error.body())
    except Exception as error:
        yield _event(APIError(500, _logged(error)).body())
    finally:
        pieces.close()


def _logged(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    print(f"completion: {text}", file=sys.stderr, flush=True)
    return text


def _event(doc: JsonObject) -> bytes:
    return b"data: " + json.dumps(doc, separators=(",", ":")).encode() + b"\n\n"


def _json(status: int, doc: JsonObject) -> Response:
    headers = {"Retry-After": "1"} if status == 503 else {}
    return text(status, json.dumps(doc), "application/json", **headers)


def _refused(status: int, message: str, param: str | None = None) -> Response:
    return _json(status, APIError(status, message, param).body())
