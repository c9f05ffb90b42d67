"""What is kept of an object and answered with its bytes, its parts, its ranges, its attributes."""

from __future__ import annotations

import hashlib
import random
import re

import pytest

from labkit.objects.store import Store
from tests.support.direct import ask

FIRST, LAST = random.Random(5).randbytes(5 << 20), b"the last one"
SAID = {
    "content-type": "text/x",
    "cache-control": "max-age=60",
    "content-encoding": "gzip",
    "content-disposition": 'attachment; filename="m"',
    "content-language": "de",
    "expires": "Thu, 01 Jan 2026 00:00:00 GMT",
    "x-amz-meta-k": "v",
}


def upload(store: Store, key: str, parts: list[bytes], start: dict[str, str]) -> tuple[str, bytes]:
    """An upload with its parts brought, and the document that completes it."""
    _, body = ask(store, "POST", f"{key}?uploads", headers=start)
    upload_id = re.search(rb"<UploadId>(.+)</UploadId>", body)[1].decode()
    rows = ""
    for n, part in enumerate(parts, 1):
        answer, _ = ask(store, "PUT", f"{key}?partNumber={n}&uploadId={upload_id}", part)
        rows += f"<Part><PartNumber>{n}</PartNumber><ETag>{answer.headers['ETag']}</ETag></Part>"
    return (
        f"{key}?uploadId={upload_id}",
        f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode(),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"), open_writes=True)
    ask(store, "PUT", "/lab/put", b"0123456789", SAID)
    target, document = upload(store, "/lab/parts", [FIRST, LAST], SAID)
    assert ask(store, "POST", target, document)[0].status == 200
    ask(store, "PUT", "/lab/copy", headers={"x-amz-copy-source": "/lab/put"})
    return store


@pytest.mark.parametrize("key", ["put", "parts", "copy"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_was_said_of_an_object_is_answered_with_it(store, key, method):
    answer, _ = ask(store, method, f"/lab/{key}")
    assert SAID.items() <= {name.lower(): value for name, value in answer.headers.items()}.items()


def test_a_copy_with_replace_says_what_the_request_says(store):
    headers = {
        "x-amz-copy-source": "/lab/put",
        "x-amz-metadata-directive": "REPLACE",
        "cache-control": "no-store",
    }
    ask(store, "PUT", "/lab/replaced", headers=headers)
    answer, body = ask(store, "GET", "/lab/replaced")
    assert (body, answer.headers["Cache-Control"]) == (b"0123456789", "no-store")
    assert "Content-Encoding" not in answer.headers and "x-amz-meta-k" not in answer.headers


def test_the_framing_of_a_request_is_no_coding_of_the_object(store):
    ask(store, "PUT", "/lab/framed", b"", {"content-encoding": "aws-chunked,br"})
    assert ask(store, "GET", "/lab/framed")[0].headers["Content-Encoding"] == "br"
    ask(store, "PUT", "/lab/framed", b"", {"content-encoding": "aws-chunked"})
    assert "Content-Encoding" not in ask(store, "GET", "/lab/framed")[0].headers


@pytest.mark.parametrize(
    "name", ["Content-Type", "Cache-Control", "Content-Encoding", "Content-Disposition", "Expires"]
)
def test_a_reader_may_ask_for_another_header(store, name):
    answer, _ = ask(store, "GET", f"/lab/put?response-{name.lower()}=other")
    assert answer.headers[name] == "other"


@pytest.mark.parametrize(
    "asked, status, body",
    [
        ("bytes=2-3", 206, b"23"),
        ("bytes=-3", 206, b"789"),
        ("bytes=-99", 206, b"0123456789"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=0-1,4-5", 200, b"0123456789"),
        ("bytes=3-2", 200, b"0123456789"),
    ],
)
def test_a_range_is_sent_and_its_head_says_the_same(store, asked, status, body):
    got, sent = ask(store, "GET", "/lab/put", headers={"range": asked})
    head, _ = ask(store, "HEAD", "/lab/put", headers={"range": asked})
    assert (got.status, sent) == (status, body)
    assert (head.status, head.length) == (status, len(body))
    assert head.headers.get("Content-Range") == got.headers.get("Content-Range")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_a_range_that_is_not_there_is_invalid_range(store, method, asked):
    answer, body = ask(store, method, "/lab/put", headers={"range": asked})
    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */10")
    assert b"<Code>InvalidRange</Code>" in body


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("part, start, data", [(1, 0, FIRST), (2, len(FIRST), LAST)])
def test_a_part_is_read_by_its_number(store, method, part, start, data):
    answer, body = ask(store, method, f"/lab/parts?partNumber={part}")
    whole = len(FIRST) + len(LAST)
    assert (answer.status, answer.headers["x-amz-mp-parts-count"]) == (206, "2")
    assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(data) - 1}/{whole}"
    assert body == data if method == "GET" else (answer.length, body) == (len(data), b"")


@pytest.mark.parametrize("target", ["/lab/parts?partNumber=3", "/lab/put?partNumber=2"])
def test_a_part_that_the_object_does_not_have_is_refused(store, target):
    answer, body = ask(store, "GET", target)
    assert answer.status == 416 and b"<Code>InvalidPartNumber</Code>" in body


def test_attributes_are_those_asked_for_and_parts_come_in_pages(store):
    asked = {"x-amz-object-attributes": "ETag,ObjectSize,ObjectParts", "x-amz-max-parts": "1"}
    _, body = ask(store, "GET", "/lab/parts?attributes", headers=asked)
    assert b"<StorageClass>" not in body and b"<PartsCount>2</PartsCount>" in body
    assert f"<ObjectSize>{len(FIRST) + len(LAST)}</ObjectSize>".encode() in body
    assert b"<IsTruncated>true</IsTruncated><Part><PartNumber>1</PartNumber>" in body
    _, rest = ask(
        store, "GET", "/lab/parts?attributes", headers={**asked, "x-amz-part-number-marker": "1"}
    )
    assert b"<IsTruncated>false</IsTruncated><Part><PartNumber>2</PartNumber>" in rest
    answer, _ = ask(store, "GET", "/lab/parts?attributes", headers={"x-amz-object-attributes": "?"})
    assert answer.status == 400


@pytest.mark.parametrize(
    "headers",
    [{"if-none-match": "*"}, {"if-match": '"other"'}],
    ids=["must be absent", "must be the one known"],
)
def test_parts_are_not_joined_over_another_object_than_the_one_expected(store, headers):
    ask(store, "PUT", "/lab/guarded", b"first")
    target, document = upload(store, "/lab/guarded", [LAST], {})
    assert ask(store, "POST", target, document, headers)[0].status == 412
    assert ask(store, "GET", "/lab/guarded")[1] == b"first"
    etag = hashlib.md5(b"first").hexdigest()
    assert ask(store, "POST", target, document, {"if-match": f'"{etag}"'})[0].status == 200


def test_to_complete_again_is_answered_as_the_first_time(store):
    target, document = upload(store, "/lab/twice", [LAST], {})
    (first, once), (second, again) = (ask(store, "POST", target, document) for _ in range(2))
    assert (first.status, second.status) == (200, 200) and once == again
    ask(store, "PUT", "/lab/twice", b"something else since")
    assert ask(store, "POST", target, document)[0].status == 404


def test_a_copy_is_of_the_source_that_is_known(store):
    headers = {"x-amz-copy-source": "/lab/put", "x-amz-copy-source-if-match": '"other"'}
    assert ask(store, "PUT", "/lab/not-copied", headers=headers)[0].status == 412
    assert ask(store, "GET", "/lab/not-copied")[0].status == 404


def test_tags_are_put_counted_listed_and_removed(store):
    ask(store, "PUT", "/lab/tagged", b"", {"x-amz-tagging": "a=1&b=%26"})
    assert ask(store, "HEAD", "/lab/tagged")[0].headers["x-amz-tagging-count"] == "2"
    assert b"<Value>&amp;</Value>" in ask(store, "GET", "/lab/tagged?tagging")[1]
    assert ask(store, "DELETE", "/lab/tagged?tagging")[0].status == 204
    assert b"<TagSet></TagSet>" in ask(store, "GET", "/lab/tagged?tagging")[1]
