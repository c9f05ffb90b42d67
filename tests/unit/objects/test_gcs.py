"""Cloud Storage's reads of the store: what is asked beside the name is done or refused."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from urllib.parse import quote

import pytest

from labkit.objects.gcs import glob_regex
from labkit.objects.store import Store
from tests.support.direct import ask

ONE, LIST = "/storage/v1/b/lab/o/dir%2Fone.bin", "/storage/v1/b/lab/o"


def read(store: Store, target: str) -> dict:
    return json.loads(ask(store, "GET", target)[1])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"), open_writes=True)
    for key in ("a", "b", "dir/one.bin", "dir/sub/two.bin", "z"):
        headers = {"content-type": "text/x", "cache-control": "no-cache", "x-amz-meta-k": "v"}
        answer, _ = ask(store, "PUT", f"/lab/{key}", b"data", headers)
        assert answer.status == 200
    return store


def test_metadata_says_type_headers_hash_and_whole_links(store):
    doc = read(store, ONE)
    assert (doc["contentType"], doc["cacheControl"], doc["metadata"]) == (
        "text/x",
        "no-cache",
        {"k": "v"},
    )
    assert doc["md5Hash"] == base64.b64encode(hashlib.md5(b"data").digest()).decode()
    link = doc["mediaLink"].removeprefix("http://store:80")
    media, body = ask(store, "GET", link)
    assert (body, media.headers["x-goog-generation"]) == (b"data", doc["generation"])
    assert media.headers["x-goog-hash"] == f"md5={doc['md5Hash']}"


@pytest.mark.parametrize(
    "query, status",
    [
        ("ifGenerationMatch={g}", 200),
        ("ifGenerationMatch=1", 412),
        ("ifGenerationMatch=0", 412),
        ("ifGenerationNotMatch={g}", 304),
        ("ifGenerationNotMatch=1", 200),
        ("ifMetagenerationMatch=1", 200),
        ("ifMetagenerationMatch=2", 412),
        ("generation={g}", 200),
        ("generation=1", 404),
        ("generation=x", 400),
        ("restoreToken=x", 501),
    ],
)
@pytest.mark.parametrize("alt", ["json", "media"])
def test_a_generation_asked_for_is_the_one_read(store, alt, query, status):
    generation = read(store, ONE)["generation"]
    answer, _ = ask(store, "GET", f"{ONE}?alt={alt}&{query.format(g=generation)}")
    assert answer.status == status


@pytest.mark.parametrize(
    "query, names, folders",
    [
        ("startOffset=b&endOffset=z", ["b", "dir/one.bin", "dir/sub/two.bin"], []),
        ("startOffset=b&delimiter=/", ["b", "z"], ["dir/"]),
        ("matchGlob=dir/*.bin", ["dir/one.bin"], []),
        ("matchGlob=**.bin", ["dir/one.bin", "dir/sub/two.bin"], []),
        ("matchGlob={a,z}", ["a", "z"], []),
        ("prefix=dir/&delimiter=/", ["dir/one.bin"], ["dir/sub/"]),
    ],
)
def test_a_listing_is_of_the_names_asked_for_and_pages_join(store, query, names, folders):
    found, prefixes, token = [], [], ""
    while True:
        doc = read(store, f"{LIST}?{quote(query, safe='=&/')}&maxResults=1{token}")
        found += [item["name"] for item in doc["items"]]
        prefixes += doc.get("prefixes", [])
        if not doc.get("nextPageToken"):
            break
        token = f"&pageToken={doc['nextPageToken']}"
    assert (found, prefixes) == (names, folders)


@pytest.mark.parametrize(
    "target, status",
    [
        (f"{LIST}?versions=true", 501),
        (f"{LIST}?pageToken=zz", 400),
        (f"{LIST}?maxResults=x", 400),
        ("/storage/v1/b/absent", 404),
        ("/storage/v1/b/absent/o", 404),
        ("/storage/v1/b/lab?ifMetagenerationMatch=7", 412),
    ],
)
def test_what_is_not_done_is_refused_in_googles_form(store, target, status):
    answer, body = ask(store, "GET", target)
    assert answer.status == status and json.loads(body)["error"]["code"] == status


@pytest.mark.parametrize(
    "method, target",
    [
        ("POST", "/upload/storage/v1/b/lab/o?uploadType=media&name=new"),
        ("DELETE", ONE),
        ("POST", "/batch/storage/v1"),
    ],
)
def test_a_write_is_refused_with_the_way_that_writes(store, method, target):
    answer, body = ask(store, method, target)
    assert answer.status == 501 and "S3" in json.loads(body)["error"]["message"]


def test_a_private_bucket_is_not_read_unsigned_through_googles_door(tmp_path):
    store = Store(tmp_path, open_reads=False)
    assert ask(store, "GET", LIST)[0].status == 401


@pytest.mark.parametrize(
    "glob, name, fits",
    [
        ("a/*.bin", "a/b.bin", True),
        ("a/*.bin", "a/b/c.bin", False),
        ("**/x", "x", True),
        ("**/x", "a/b/x", True),
        ("[a-c]?", "b1", True),
        ("[!a-c]?", "b1", False),
        ("[", "[", True),
        ("a.b", "aXb", False),
        ("[[a]", "[", True),
    ],
)
def test_a_glob_is_read_as_cloud_storage_reads_it(glob, name, fits):
    assert bool(re.fullmatch(glob_regex(glob), name)) is fits
