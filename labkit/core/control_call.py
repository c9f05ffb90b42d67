"""HTTP beside what is measured: counters of the lab's servers, a server's identity or health.

    status, body = call("http://127.0.0.1:8000/health", timeout_s=2.0)
    counters = call_json(registry + "/_labkit/stats")

A new connection each time, no retry, no redirect, and no proxy of the environment: everything asked
is on this host or named with its address. Lesson: none."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit


def host_port(host: str, port: int) -> str:
    """With the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def http_url(host: str, port: int, path: str = "") -> str:
    return f"http://{host_port(host, port)}{path}"


def call(
    url: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 5.0,
) -> tuple[int, bytes]:
    """Status and body. Raises OSError where no HTTP answer came."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port or 80, timeout=timeout_s
    )
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target or "/", body, {"Connection": "close", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"{url}: no HTTP answer: {error!r}") from error
    finally:
        connection.close()


def call_json(url: str, **options: Any) -> Any:
    """The body of a 200, parsed. Raises OSError for another status or none, ValueError for a body
    that is no JSON."""
    status, body = call(url, **options)
    if status != 200:
        raise OSError(f"{url} answered {status}: {body[:200].decode('utf-8', 'replace')}")
    return json.loads(body)
