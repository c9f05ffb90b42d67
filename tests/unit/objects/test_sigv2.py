"""Signature version 2: botocore makes it, the store checks it."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from labkit.objects.store import KEYS, Store
from tests.support.direct import ask

((ACCESS, SECRET),) = KEYS.items()
HOST = "store:80"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"), open_reads=False)


def header_signed(method: str, path: str, secret: str = SECRET) -> dict[str, str]:
    auth = pytest.importorskip("botocore.auth")
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest(method, f"http://{HOST}{path}", headers={"x-amz-meta-k": "v"})
    request.auth_path = path.partition("?")[0]
    auth.HmacV1Auth(Credentials(ACCESS, secret)).add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


def presigned(method: str, path: str, seconds: int = 60) -> str:
    auth = pytest.importorskip("botocore.auth")
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest(method, f"http://{HOST}{path}")
    request.auth_path = path.partition("?")[0]
    auth.HmacV1QueryAuth(Credentials(ACCESS, SECRET), expires=seconds).add_auth(request)
    url = urlsplit(request.url)
    return f"{url.path}?{url.query}"


def test_what_botocore_signs_is_done(store):
    answer, _ = ask(store, "PUT", "/lab/a%20b", b"data", header_signed("PUT", "/lab/a%20b"))
    assert answer.status == 200
    assert ask(store, "GET", "/lab/a%20b", headers=header_signed("GET", "/lab/a%20b"))[1] == b"data"
    target = "/lab/a%20b?response-content-type=text%2Fx"
    got, body = ask(store, "GET", presigned("GET", target))
    assert (body, got.headers["Content-Type"]) == (b"data", "text/x")
    listed = "/lab/?acl"
    assert ask(store, "GET", listed, headers=header_signed("GET", listed))[0].status == 200


@pytest.mark.parametrize(
    "target, code",
    [
        (lambda: presigned("GET", "/lab/a").replace("/lab/a?", "/lab/b?"), "SignatureDoesNotMatch"),
        (lambda: presigned("PUT", "/lab/a"), "SignatureDoesNotMatch"),
        (lambda: presigned("GET", "/lab/a", -60), "AccessDenied"),
        (lambda: presigned("GET", "/lab/a").replace("Expires=", "Expires=9"), "SignatureDoesNot"),
        (lambda: presigned("GET", "/lab/a") + "&acl", "SignatureDoesNotMatch"),
        (lambda: presigned("GET", "/lab/a").replace("KeyId=lab", "KeyId=x"), "InvalidAccessKeyId"),
    ],
)
def test_another_request_than_the_one_signed_is_refused(store, target, code):
    answer, body = ask(store, "GET", target())
    assert answer.status == 403 and code.encode() in body


@pytest.mark.parametrize(
    "changed, code",
    [
        ({"date": "Thu, 01 Jan 2026 00:00:00 GMT"}, "RequestTimeTooSkewed"),
        ({"date": "Tue, 07 Jul 1950 21:53:04 GMT"}, "AccessDenied"),
        ({"date": ""}, "AccessDenied"),
        ({"x-amz-meta-k": "other"}, "SignatureDoesNotMatch"),
        ({"authorization": f"AWS {ACCESS}:AAAA"}, "SignatureDoesNotMatch"),
        ({"authorization": "AWS who:AAAA"}, "InvalidAccessKeyId"),
    ],
)
def test_a_changed_header_is_refused(store, changed, code):
    headers = {**header_signed("GET", "/lab/a"), **changed}
    answer, body = ask(store, "GET", "/lab/a", headers=headers)
    assert answer.status == 403 and code.encode() in body
