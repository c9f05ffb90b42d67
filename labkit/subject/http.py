"""The server's HTTP side: OpenAI's two routes, the lab's four, on a thread a connection (no event
loop: CRIU dumps it).

    GET  /health              200 only when a token can be served, else 503
    POST /v1/completions      streaming (SSE) or not; `token_ids` beside the text
    GET  /v1/models, /v1/models/NAME
    GET  /_labkit/identity    pid, a nonce made at process start, its monotonic time: which process
        answered?
    POST /_labkit/shrink      give memory back before a snapshot
    POST /_labkit/reseed      new random state after a restore

Sockets, heads and limits are `labkit.net.server`'s; the last two want `X-Labkit` or JSON, as
everything under `/_labkit/` (`labkit.net.guard`). A request can be wrong in any way; it gets a 4xx
in OpenAI's shape, and the server lives on. Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import contextlib
import itertools
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
    from labkit.subject.api import Piece
    from labkit.subject.engine import Engine
    from labkit.subject.server import State

MODELS, CHAT = "/v1/models/", "/v1/chat/completions"
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
        return _refused(APIError(status, message))

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
        if path.startswith(MODELS):
            reads[path] = lambda _: _json(200, self._known(path[len(MODELS) :]))
        routes = {"GET": reads, "HEAD": reads, "POST": posts}.get(request.method, {})
        body = request.body.read(BODY_LIMIT_BYTES)
        try:
            if path in routes:
                if request.header("content-encoding", "identity").lower() != "identity":
                    raise APIError(415, "a body with a Content-Encoding: send it as it is")
                return routes[path](body)
            refusal = f"{request.method} {path[:200]} is not served here"
            if path == CHAT:
                refusal += ": no chat template is applied; POST the whole text to /v1/completions"
            allowed = "POST" if path in posts else "GET, HEAD"
            if path in reads | posts:
                return _refused(APIError(405, refusal), Allow=allowed)
            raise APIError(404, refusal)
        except APIError as error:
            return _refused(error)
        except Exception as error:
            return _refused(APIError(500, _logged(error)))

    def _engine(self) -> Engine:
        engine = self.state.engine
        if engine is None:
            raise APIError(503, "loading: no token can be served yet")
        return engine

    def _health(self, _: bytes) -> Response:
        self._engine()
        return _json(200, {"status": "ok"})

    def _models(self, _: bytes) -> Response:
        return _json(200, {"object": "list", "data": [self._known(self.state.name)]})

    def _known(self, name: str) -> JsonObject:
        """The one model that there is. Raises APIError for any other's name."""
        if name != self.state.name:
            raise APIError(
                404,
                f"the model {name[:200]!r} does not exist: this server has {self.state.name!r}",
                "model",
                "model_not_found",
            )
        return {
            "id": name,
            "object": "model",
            "created": int(self.state.started_unix_s),
            "owned_by": "labkit",
        }

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
        if request.model:
            self._known(request.model)
        ids = engine.ids_of(request)
        echoed = engine.prompt_text(request, ids) if request.echo else ""
        answer = engine.answer(request, ids)
        if request.stream:
            first = list(itertools.islice(answer, 1))  # a failure comes before the head
            return Response(
                200,
                {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"},
                stream=_events(request, engine, len(ids), echoed, first, answer),
            )
        with contextlib.closing(answer):
            pieces = list(answer)
        return _json(
            200,
            api.chunk(
                request,
                engine.name,
                echoed + "".join(p.text for p in pieces),
                pieces,
                pieces[-1].finish if pieces else "length",
                api.usage(len(ids), len(pieces)),
            ),
        )


def _events(
    request: api.Completion,
    engine: Engine,
    prompt_tokens: int,
    echoed: str,
    first: list[Piece],
    answer: Generator[Piece],
) -> Iterator[bytes]:
    try:
        if echoed or not first:
            finish = None if first else "length"
            yield _event(api.chunk(request, engine.name, echoed, finish=finish))
        count = offset = 0
        for piece in itertools.chain(first, answer):
            yield _event(
                api.chunk(request, engine.name, piece.text, [piece], piece.finish, offset=offset)
            )
            count, offset = count + 1, offset + len(piece.text)
        if request.stream_usage:
            total = api.usage(prompt_tokens, count)
            yield _event({**api.chunk(request, engine.name, "", usage=total), "choices": []})
        yield b"data: [DONE]\n\n"
    except APIError as error:  # the head is gone: an error event, then the end of the stream
        yield _event(error.body())
    except Exception as error:
        yield _event(APIError(500, _logged(error)).body())
    finally:
        answer.close()


def _logged(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    print(f"completion: {text}", file=sys.stderr, flush=True)
    return text


def _event(doc: JsonObject) -> bytes:
    return b"data: " + json.dumps(doc, separators=(",", ":")).encode() + b"\n\n"


def _json(status: int, doc: JsonObject, **headers: str) -> Response:
    if status == 503:
        headers["Retry-After"] = "1"
    return text(status, json.dumps(doc), "application/json", **headers)


def _refused(error: APIError, **headers: str) -> Response:
    return _json(error.status, error.body(), **headers)
