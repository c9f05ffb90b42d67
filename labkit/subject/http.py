"""The server's face: OpenAI's two routes, the lab's four, on the standard library's threads (no event loop: CRIU dumps it).

    GET  /health              200 only when a token can be served, else 503
    POST /v1/completions      streaming (SSE) or not; `token_ids` beside the text
    GET  /v1/models
    GET  /_labkit/identity    pid, a nonce made at process start, its monotonic time: which process answered?
    POST /_labkit/shrink      give memory back before a snapshot
    POST /_labkit/reseed      new random state after a restore

A request can be wrong in any way; it gets a 4xx in OpenAI's shape, and the server lives on. Lesson: notebooks/01_anatomy.
"""

from __future__ import annotations

import json
import socket
import socketserver
import sys
from http.server import BaseHTTPRequestHandler
from typing import Any

from labkit.subject import api
from labkit.subject.api import Refused

BODY_LIMIT_BYTES = 8 << 20
IDLE_S = 30.0  # a client that sends nothing for this long is let go


class Server(socketserver.ThreadingTCPServer):
    """`state`: what the handlers see; `state.engine` is None until a token can be served."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, state: Any):
        self.state = state
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            print(f"request from {client_address}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "labkit", ""
    timeout = IDLE_S
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: Any) -> None:
        """Quiet: a line a request would be written inside the measured path."""

    def do_GET(self) -> None:
        self._route({"/health": self._health, "/v1/models": self._models, "/_labkit/identity": self._identity})

    def do_POST(self) -> None:
        self._route({"/v1/completions": self._completions, "/_labkit/shrink": self._shrink, "/_labkit/reseed": self._reseed})

    def _route(self, routes: dict[str, Any]) -> None:
        path = self.path.split("?", 1)[0].rstrip("/")
        self._started = False
        try:
            body = self._body()
            if path not in routes:
                known = {"/health", "/v1/models", "/v1/completions", "/_labkit/identity", "/_labkit/shrink", "/_labkit/reseed"}
                raise Refused(405 if path in known else 404, f"{self.command} {path[:200]} is not served here")
            routes[path](body)
        except Refused as error:
            self._refuse(error)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            print(f"{self.command} {path[:200]}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            self._refuse(Refused(500, f"{type(error).__name__}: {error}"))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            raise Refused(411, "send a Content-Length")
        text = self.headers.get("Content-Length") or "0"
        if not (text.isascii() and text.isdigit()):
            self.close_connection = True
            raise Refused(400, "Content-Length is not a number")
        if int(text) > BODY_LIMIT_BYTES:
            self.close_connection = True
            raise Refused(413, f"more than {BODY_LIMIT_BYTES >> 20} MiB")
        body = self.rfile.read(int(text))
        if len(body) < int(text):
            raise ConnectionError("closed in mid-request")
        return body

    def _refuse(self, error: Refused) -> None:
        if self._started:  # headers are gone: an error event, then the end of the stream
            self._event(error.body())
            self._end()
        else:
            self._json(error.status, error.body())

    def _json(self, status: int, doc: dict[str, Any]) -> None:
        data = json.dumps(doc).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 503:
            self.send_header("Retry-After", "1")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _engine(self) -> Any:
        engine = self.server.state.engine
        if engine is None:
            raise Refused(503, "loading: no token can be served yet")
        return engine

    def _health(self, _: bytes) -> None:
        self._engine()
        self._json(200, {"status": "ok"})

    def _models(self, _: bytes) -> None:
        state = self.server.state
        self._json(200, {"object": "list", "data": [{"id": state.name, "object": "model", "created": int(state.started_unix_s), "owned_by": "labkit"}]})

    def _identity(self, _: bytes) -> None:
        self._json(200, self.server.state.identity())

    def _shrink(self, _: bytes) -> None:
        engine = self._engine()
        self._json(200, engine.call(engine.shrink))

    def _reseed(self, _: bytes) -> None:
        engine = self._engine()
        self._json(200, engine.call(engine.reseed))

    def _completions(self, body: bytes) -> None:
        engine = self._engine()
        request = api.parse(body, engine.model.config.vocab_size)
        pieces = engine.answer(request)
        try:
            if request.stream:
                self._stream(request, engine, pieces)
                return
            made = list(pieces)
        finally:
            pieces.close()
        total = api.usage(made[0].prompt_tokens, len(made)) if made else None
        self._json(200, api.chunk(request, engine.name, "".join(p.text for p in made), [p.token for p in made], [p.logprob for p in made],
                                  made[-1].finish if made else "length", total))

    def _stream(self, request: api.Completion, engine: Any, pieces: Any) -> None:
        first = next(pieces)  # a refusal comes before the headers
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        if self.request_version == "HTTP/1.0":
            self.close_connection = True
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._started = True
        count = 1
        self._event(api.chunk(request, engine.name, first.text, [first.token], [first.logprob], first.finish))
        for count, piece in enumerate(pieces, start=2):  # noqa: B007 – the last value is the count
            self._event(api.chunk(request, engine.name, piece.text, [piece.token], [piece.logprob], piece.finish))
        if request.echo_usage:
            self._event({**api.chunk(request, engine.name, "", []), "choices": [], "usage": api.usage(first.prompt_tokens, count)})
        self._write(b"data: [DONE]\n\n")
        self._end()

    def _event(self, doc: dict[str, Any]) -> None:
        self._write(b"data: " + json.dumps(doc, separators=(",", ":")).encode() + b"\n\n")

    def _write(self, data: bytes) -> None:
        if self.request_version != "HTTP/1.0":
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self.wfile.write(data)

    def _end(self) -> None:
        if self.request_version != "HTTP/1.0":
            self.wfile.write(b"0\r\n\r\n")
