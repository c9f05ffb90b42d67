"""What the store is asked that it does not do is refused by name, and nothing happens."""

from __future__ import annotations

import pytest

from labkit.objects.store import Store
from tests.support.direct import ask


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"), open_writes=True)
    assert ask(store, "PUT", "/lab/k", b"data")[0].status == 200
    return store


@pytest.mark.parametrize(
    "method, target, code",
    [
        ("DELETE", "/lab/k?versionId=abc", "NoSuchVersion"),
        ("DELETE", "/lab/k?legal-hold", "NotImplemented"),
        ("DELETE", "/lab/k?uploads", "NotImplemented"),
        ("DELETE", "/lab/k?what=else", "InvalidArgument"),
        ("PUT", "/lab/k?retention", "NotImplemented"),
        ("PUT", "/lab/k?partNumber=1", "InvalidArgument"),
        ("PUT", "/other?versioning", "NotImplemented"),
        ("PUT", "/other?lifecycle", "NotImplemented"),
        ("PUT", "/other?what=else", "InvalidArgument"),
        ("DELETE", "/lab?policy", "NotImplemented"),
        ("GET", "/lab/k?torrent", "NotImplemented"),
        ("GET", "/lab/k?versionId=abc", "NoSuchVersion"),
        ("GET", "/lab/k?acl&tagging", "InvalidRequest"),
        ("GET", "/lab?list-type=2&marker=x", "InvalidArgument"),
        ("GET", "/lab?metrics", "NotImplemented"),
        ("POST", "/lab/k?restore", "NotImplemented"),
        ("POST", "/lab/k", "MethodNotAllowed"),
        ("PATCH", "/lab/k", "MethodNotAllowed"),
    ],
)
def test_what_is_not_in_the_table_is_refused_and_changes_nothing(store, method, target, code):
    answer, body = ask(store, method, target, b"other")
    assert answer.status >= 400 and f"<Code>{code}</Code>".encode() in body
    assert ask(store, "GET", "/lab/k")[1] == b"data"
    assert [name for name, _ in store.disk.buckets()] == ["lab"]


@pytest.mark.parametrize(
    "headers, code",
    [
        ({"x-amz-acl": "public-read"}, "NotImplemented"),
        ({"x-amz-grant-read": "id=x"}, "NotImplemented"),
        ({"x-amz-server-side-encryption": "AES256"}, "NotImplemented"),
        ({"x-amz-object-lock-mode": "GOVERNANCE"}, "NotImplemented"),
        ({"x-amz-storage-class": "GLACIER"}, "NotImplemented"),
        ({"x-amz-write-offset-bytes": "4"}, "NotImplemented"),
        ({"x-goog-if-generation-match": "0"}, "NotImplemented"),
        ({"x-amz-expected-bucket-owner": "someone"}, "AccessDenied"),
        ({"x-amz-tagging": "a=1&a=2"}, "InvalidTag"),
        ({"x-amz-meta-k": "v" * 3000}, "MetadataTooLarge"),
    ],
)
def test_a_write_with_a_wish_that_is_not_granted_is_refused(store, headers, code):
    answer, body = ask(store, "PUT", "/lab/k", b"other", headers)
    assert answer.status >= 400 and f"<Code>{code}</Code>".encode() in body
    assert ask(store, "GET", "/lab/k")[1] == b"data"


@pytest.mark.parametrize(
    "headers",
    [{"x-amz-acl": "private"}, {"x-amz-storage-class": "STANDARD"}, {"x-amz-acl": ""}],
)
def test_a_wish_for_what_is_so_already_is_granted(store, headers):
    expected = 200 if all(headers.values()) else 501
    assert ask(store, "PUT", "/lab/wish", b"", headers)[0].status == expected


@pytest.mark.parametrize(
    "target, holds",
    [
        ("/lab?acl", b"FULL_CONTROL"),
        ("/lab/k?acl", b"FULL_CONTROL"),
        ("/lab?versioning", b"VersioningConfiguration"),
        ("/lab?location", b"LocationConstraint"),
        ("/lab?policy", b"NoSuchBucketPolicy"),
        ("/lab?lifecycle", b"NoSuchLifecycleConfiguration"),
        ("/lab?versions", b"<VersionId>null</VersionId>"),
        ("/lab/k?tagging", b"<TagSet></TagSet>"),
        ("/lab/k?versionId=null", b"data"),
    ],
)
def test_a_sub_resource_that_is_known_answers_of_itself(store, target, holds):
    assert holds in ask(store, "GET", target)[1]
