"""What the OCI distribution specification (1.1 and its main branch) says a registry MUST do, in its
order; one server, a repository of its own for each test."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
from dataclasses import dataclass

import pytest

from labkit.image import oci
from labkit.image.registry import Registry
from labkit.net.server import HTTPServer

EMPTY = "application/vnd.oci.empty.v1+json"
ABSENT = "sha256:" + "0" * 64
#: The codes that an error may have (spec.md, "Error Codes").
CODES = {
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


@dataclass
class Repository:
    """One name in the registry, and what a client does with it."""

    server: HTTPServer
    name: str

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        if not path.startswith("/"):
            path = f"/v2/{self.name}/{path}"
        connection = http.client.HTTPConnection(self.server.host, self.server.port, timeout=10)
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        raw = answer.read()
        connection.close()
        held = {key.lower(): value for key, value in answer.getheaders()}
        if answer.status >= 400 and held.get("content-type") == "application/json" and raw:
            assert {error["code"] for error in json.loads(raw)["errors"]} <= CODES
        return Answer(answer.status, held, raw)

    def start(self) -> str:
        started = self.ask("POST", "blobs/uploads/")
        assert started.status == 202
        return started.headers["location"]

    def push(self, data: bytes, digest: str = "") -> Answer:
        return self.ask("PUT", f"{self.start()}?digest={digest or sha256(data)}", data)

    def manifest(self, **more: object) -> bytes:
        """Of an image whose blobs were pushed."""
        for blob in (b"{}", b"layer"):
            self.push(blob)
        doc = {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST,
            "config": {"mediaType": EMPTY, "digest": sha256(b"{}"), "size": 2},
            "layers": [{"mediaType": oci.LAYER, "digest": sha256(b"layer"), "size": 5}],
            **more,
        }
        return json.dumps({k: v for k, v in doc.items() if v is not None}, indent=2).encode()

    def put(self, reference: str, raw: bytes, kind: str = oci.MANIFEST) -> Answer:
        return self.ask("PUT", f"manifests/{reference}", raw, Content_Type=kind)


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sha512(data: bytes) -> str:
    return "sha512:" + hashlib.sha512(data).hexdigest()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with HTTPServer(Registry(tmp_path_factory.mktemp("registry"))) as running:
        yield running


_NUMBERS = itertools.count()


@pytest.fixture
def repo(server):
    return Repository(server, f"conformance/repo-{next(_NUMBERS)}")


# -- pull ------------------------------------------------------------------------------------------


def test_the_base_of_the_api_answers(repo):
    assert repo.ask("GET", "/v2/").status == 200


@pytest.mark.parametrize("digest", [sha256, sha512])
def test_a_manifest_comes_back_as_its_bytes_with_digest_type_and_length(repo, digest):
    raw = repo.manifest()
    pushed = repo.put(digest(raw), raw)
    assert (pushed.status, pushed.headers["docker-content-digest"]) == (201, digest(raw))
    for place in (f"manifests/{digest(raw)}", pushed.headers["location"]):
        got, head = repo.ask("GET", place), repo.ask("HEAD", place)
        assert (got.status, got.body, head.status, head.body) == (200, raw, 200, b"")
        for one in (got, head):
            assert one.headers["docker-content-digest"] == digest(raw)
            assert one.headers["content-type"] == oci.MANIFEST
            assert one.headers["content-length"] == str(len(raw))


@pytest.mark.parametrize("digest", [sha256, sha512])
def test_a_blob_comes_back_whole_with_digest_and_length(repo, digest):
    pushed = repo.push(b"some bytes", digest(b"some bytes"))
    for place in (f"blobs/{digest(b'some bytes')}", pushed.headers["location"]):
        got, head = repo.ask("GET", place), repo.ask("HEAD", place)
        assert (got.status, got.body, head.status, head.body) == (200, b"some bytes", 200, b"")
        for one in (got, head):
            assert one.headers["docker-content-digest"] == digest(b"some bytes")
            assert one.headers["content-length"] == "10"


@pytest.mark.parametrize(
    "wanted,status,body",
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=10-", 416, None),
    ],
)
def test_a_part_of_a_blob_is_sent_as_http_says(repo, wanted, status, body):
    repo.push(b"0123456789")
    got = repo.ask("GET", f"blobs/{sha256(b'0123456789')}", Range=wanted)
    assert got.status == status and (body is None or got.body == body)


@pytest.mark.parametrize(
    "path,code",
    [
        (f"blobs/{ABSENT}", "BLOB_UNKNOWN"),
        (f"manifests/{ABSENT}", "MANIFEST_UNKNOWN"),
        ("manifests/absent", "MANIFEST_UNKNOWN"),
        ("/v2/no/such/manifests/latest", "MANIFEST_UNKNOWN"),
        ("/v2/no/such/tags/list", "NAME_UNKNOWN"),
        ("blobs/uploads/" + "0" * 32, "BLOB_UPLOAD_UNKNOWN"),
    ],
)
def test_what_is_not_there_is_a_404_with_its_code(repo, path, code):
    repo.push(b"something")
    got = repo.ask("GET", path)
    assert (got.status, got.json["errors"][0]["code"]) == (404, code)
    if "/uploads/" not in path:
        assert repo.ask("HEAD", path).status == 404


@pytest.mark.parametrize("reference", ["sha256:bad", "md5:" + "0" * 32, ".bad", "-bad", "b" * 129])
def test_what_is_neither_tag_nor_digest_is_refused(repo, reference):
    raw = repo.manifest()
    assert repo.put(reference, raw).status == 400
    assert repo.ask("GET", f"manifests/{reference}").status in (400, 404)


@pytest.mark.parametrize("name", ["UPPER", "a//b", "a..b", "a___b", "a-", "-a", "a/" + "b" * 260])
def test_a_name_that_is_none_is_refused(repo, name):
    assert repo.ask("POST", f"/v2/{name}/blobs/uploads/").status in (400, 404)


# -- push ------------------------------------------------------------------------------------------


def test_a_blob_may_come_with_the_post(repo):
    got = repo.ask("POST", f"blobs/uploads/?digest={sha256(b'one')}", b"one")
    assert got.status == 201 and repo.ask("GET", got.headers["location"]).body == b"one"


def test_chunks_come_in_order_and_say_how_far_they_are(repo):
    place, data = repo.start(), b"0123456789"
    for first, last in ((0, 3), (4, 7)):
        chunk = data[first : last + 1]
        got = repo.ask("PATCH", place, chunk, Content_Range=f"{first}-{last}")
        assert (got.status, got.headers["range"]) == (202, f"0-{last}")
        place = got.headers["location"]
        # again, and one too far
        assert repo.ask("PATCH", place, chunk, Content_Range=f"{first}-{last}").status == 416
        assert repo.ask("PATCH", place, chunk, Content_Range=f"{last + 2}-{last + 5}").status == 416
        seen = repo.ask("GET", place)
        assert (seen.status, seen.headers["range"]) == (204, f"0-{last}")
        place = seen.headers["location"]
    end = f"{place}?digest={sha256(data)}"
    assert repo.ask("PUT", end, b"89", Content_Range="9-10").status == 416
    done = repo.ask("PUT", end, b"89", Content_Range="8-9")
    assert done.status == 201 and repo.ask("GET", done.headers["location"]).body == data
    assert repo.ask("GET", place).status == 404


def test_the_last_chunk_may_come_before_the_put(repo):
    place = repo.ask("PATCH", repo.start(), b"all of it").headers["location"]
    assert repo.ask("PUT", f"{place}?digest={sha512(b'all of it')}").status == 201


def test_an_empty_blob_is_a_blob(repo):
    assert repo.push(b"").status == 201
    assert repo.ask("GET", f"blobs/{sha256(b'')}").body == b""


@pytest.mark.parametrize("digest", [sha256(b"other"), sha512(b"other"), "md5:00", "sha256:x", ""])
def test_a_wrong_or_unknown_digest_is_refused_and_nothing_is_kept(repo, digest):
    assert repo.ask("PUT", f"{repo.start()}?digest={digest}", b"this").status == 400
    assert repo.ask("HEAD", f"blobs/{sha256(b'this')}").status == 404


def test_a_cancelled_upload_is_gone(repo):
    place = repo.start()
    assert repo.ask("DELETE", place).status == 204 and repo.ask("GET", place).status == 404


def test_a_blob_is_mounted_from_another_repository_or_an_upload_is_started(repo, server):
    repo.push(b"shared")
    other = Repository(server, repo.name + "-other")
    mounted = other.ask("POST", f"blobs/uploads/?mount={sha256(b'shared')}&from={repo.name}")
    assert mounted.status == 201 and other.ask("GET", mounted.headers["location"]).body == b"shared"
    for query in (f"mount={ABSENT}&from={repo.name}", f"mount={ABSENT}"):
        got = other.ask("POST", f"blobs/uploads/?{query}")
        assert got.status == 202 and "location" in got.headers


def test_a_manifest_is_stored_under_its_tag_and_its_digest(repo):
    raw = repo.manifest()
    pushed = repo.put("v1", raw)
    assert (pushed.status, pushed.headers["docker-content-digest"]) == (201, sha256(raw))
    for place in ("manifests/v1", f"manifests/{sha256(raw)}", pushed.headers["location"]):
        assert repo.ask("GET", place).body == raw


def test_a_push_by_digest_may_name_tags(repo):
    raw = repo.manifest()
    pushed = repo.put(f"{sha256(raw)}?tag=1.2&tag=1&tag=latest", raw)
    assert pushed.status == 201
    assert [t.strip() for t in pushed.headers["oci-tag"].split(",")] == ["1.2", "1", "latest"]
    assert repo.ask("GET", "tags/list").json["tags"] == ["1", "1.2", "latest"]
    assert repo.put(f"{sha256(raw)}?tag=.bad", raw).status == 400


def test_parameters_of_a_content_type_are_ignored(repo):
    raw = repo.manifest()
    assert repo.put("v1", raw, oci.MANIFEST + "; charset=utf-8").status == 201
    assert repo.ask("GET", "manifests/v1").headers["content-type"] == oci.MANIFEST


def test_a_manifest_of_another_type_than_it_says_is_refused(repo):
    assert repo.put("v1", repo.manifest(), oci.INDEX).status == 400


def test_a_manifest_whose_blobs_are_not_there_is_refused_with_their_code(repo):
    missing = {"mediaType": oci.LAYER, "digest": ABSENT, "size": 1}
    index = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [missing]}
    for raw, kind in (
        (repo.manifest(layers=[missing]), oci.MANIFEST),
        (json.dumps(index).encode(), oci.INDEX),
    ):
        got = repo.put("v1", raw, kind)
        assert got.json["errors"][0]["code"] == "MANIFEST_BLOB_UNKNOWN"


@pytest.mark.parametrize(
    "more",
    [
        {"layers": []},
        {"layers": [{"mediaType": "x/y", "digest": ABSENT, "size": 1, "urls": ["http://o/x"]}]},
        {"subject": {"mediaType": oci.MANIFEST, "digest": ABSENT, "size": 1}},
        {"artifactType": "x/y", "unknown": {"field": [1]}},
        {"mediaType": None},
        {"annotations": {"big": "x" * 4_000_000}},
    ],
    ids=["no layers", "foreign layer", "absent subject", "artifact", "no media type", "4 MB"],
)
def test_manifests_of_every_kind_are_accepted_as_they_are(repo, more):
    raw = repo.manifest(**more)
    assert repo.put("v1", raw).status == 201 and repo.ask("GET", "manifests/v1").body == raw


def test_a_manifest_beyond_the_limit_is_413_to_a_client_that_sends_all_of_it(repo):
    raw = repo.manifest(annotations={"big": "x" * 12_000_000})
    assert repo.put("v1", raw).status == 413


def test_an_empty_manifest_is_refused(repo):
    assert repo.put("v1", b"").status == 400


def test_an_index_holds_manifests_and_indexes_or_nothing(repo):
    raw, kind = repo.manifest(), oci.MANIFEST
    for level in range(3):
        assert repo.put(f"level-{level}", raw, kind).status == 201
        listed = {"mediaType": kind, "digest": sha256(raw), "size": len(raw)}
        doc = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [listed]}
        raw, kind = json.dumps(doc).encode(), oci.INDEX
    empty = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": []}
    assert repo.put("empty", json.dumps(empty).encode(), oci.INDEX).status == 201


# -- content discovery -----------------------------------------------------------------------------


def test_tags_are_listed_in_order_page_by_page(repo):
    raw, tags = repo.manifest(), ["B", "a10", "a2", "b", "v1"]
    for tag in reversed(tags):
        repo.put(tag, raw)
    assert repo.ask("GET", "tags/list").json == {"name": repo.name, "tags": tags}
    place, seen = "tags/list?n=2", []
    while place:
        page = repo.ask("GET", place)
        seen.append(page.json["tags"])
        link = page.headers.get("link", "")
        assert not link or link.endswith('; rel="next"')
        place = link.partition("<")[2].partition(">")[0]
    assert seen == [tags[:2], tags[2:4], tags[4:]]
    assert repo.ask("GET", "tags/list?last=a10").json["tags"] == tags[2:]
    assert repo.ask("GET", "tags/list?last=v1").json["tags"] == []


@pytest.mark.parametrize("place", ["tags/list?n=0", "/v2/_catalog?n=0"])
def test_a_page_of_nothing_is_empty_and_the_last(repo, place):
    repo.put("v1", repo.manifest())
    page = repo.ask("GET", place)
    assert page.status == 200 and "link" not in page.headers
    assert page.json.get("tags", page.json.get("repositories")) == []


def subject_of(raw: bytes) -> dict:
    return {"mediaType": oci.MANIFEST, "digest": sha256(raw), "size": len(raw)}


@pytest.fixture
def referrers(repo):
    """A subject, and what each manifest that refers to it is to be listed with."""
    subject = repo.manifest()
    repo.put("v1", subject)
    about = {"subject": subject_of(subject)}
    index = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [], **about}
    wanted = {}
    for raw, kind, more in (
        (
            repo.manifest(**about, artifactType="x/y", annotations={"a": "1"}),
            oci.MANIFEST,
            {"artifactType": "x/y", "annotations": {"a": "1"}},
        ),
        (repo.manifest(**about), oci.MANIFEST, {"artifactType": EMPTY}),
        (repo.manifest(**about, artifactType=""), oci.MANIFEST, {"artifactType": EMPTY}),
        (json.dumps(index).encode(), oci.INDEX, {}),
        (json.dumps({**index, "artifactType": "x/y"}).encode(), oci.INDEX, {"artifactType": "x/y"}),
    ):
        pushed = repo.put(sha256(raw), raw, kind)
        assert (pushed.status, pushed.headers["oci-subject"]) == (201, sha256(subject))
        wanted[sha256(raw)] = {
            "mediaType": kind,
            "digest": sha256(raw),
            "size": len(raw),
            **more,
        }
    return sha256(subject), wanted


def test_referrers_are_an_index_of_what_refers_to_a_manifest(repo, referrers):
    subject, wanted = referrers
    got = repo.ask("GET", f"referrers/{subject}")
    assert (got.status, got.headers["content-type"]) == (200, oci.INDEX)
    assert got.json["schemaVersion"] == 2 and got.json["mediaType"] == oci.INDEX
    assert {one["digest"]: one for one in got.json["manifests"]} == wanted
    assert "oci-filters-applied" not in got.headers


def test_a_broken_file_among_the_manifests_refers_to_nothing(repo, referrers):
    subject, wanted = referrers
    disk = repo.server.app.disk
    for at, raw in enumerate((b"{", b"[]", b'{"subject": 5}', None)):
        disk.note_manifest(repo.name, f"{at}" * 64, oci.MANIFEST, [])
        if raw is not None:
            disk.blob(f"{at}" * 64).write_bytes(raw)
    got = repo.ask("GET", f"referrers/{subject}")
    assert {one["digest"] for one in got.json["manifests"]} == wanted.keys()


@pytest.mark.parametrize("kind", ["x/y", EMPTY, "other/type", ""])
def test_referrers_are_filtered_by_their_type_and_say_so(repo, referrers, kind):
    subject, wanted = referrers
    got = repo.ask("GET", f"referrers/{subject}?artifactType={kind.replace('+', '%2B')}")
    assert got.headers["oci-filters-applied"] == "artifactType"
    assert {one["digest"] for one in got.json["manifests"]} == {
        digest for digest, one in wanted.items() if one.get("artifactType", "") == kind
    }


def test_nothing_refers_to_what_is_not_there_and_no_digest_is_refused(repo):
    for where in ("", "/v2/no/such/"):
        got = repo.ask("GET", f"{where}referrers/{ABSENT}")
        assert (got.status, got.json["manifests"]) == (200, [])
    assert repo.ask("GET", "referrers/sha256:xyz").status == 400


# -- content management ----------------------------------------------------------------------------


def test_a_deleted_tag_is_gone_and_its_manifest_is_not(repo):
    raw = repo.manifest()
    for tag in ("v1", "v2"):
        repo.put(tag, raw)
    assert repo.ask("DELETE", "manifests/v2").status == 202
    assert repo.ask("GET", "manifests/v2").status == 404
    assert repo.ask("GET", "manifests/v1").body == raw
    assert repo.ask("GET", "tags/list").json["tags"] == ["v1"]


def test_a_deleted_manifest_is_gone_with_its_tags_and_as_a_referrer(repo):
    raw = repo.manifest()
    repo.put("v1", raw)
    note = repo.manifest(subject=subject_of(raw))
    repo.put(sha256(note), note)
    for one in (note, raw):
        assert repo.ask("DELETE", f"manifests/{sha256(one)}").status == 202
        assert repo.ask("GET", f"manifests/{sha256(one)}").status == 404
    assert repo.ask("GET", "manifests/v1").status == 404
    assert repo.ask("GET", "tags/list").json["tags"] == []
    assert repo.ask("GET", f"referrers/{sha256(raw)}").json["manifests"] == []


def test_a_deleted_blob_is_gone_here_and_not_elsewhere(repo, server):
    other = Repository(server, repo.name + "-other")
    for one in (repo, other):
        one.push(b"both have it")
    assert repo.ask("DELETE", f"blobs/{sha256(b'both have it')}").status == 202
    assert repo.ask("GET", f"blobs/{sha256(b'both have it')}").status == 404
    assert other.ask("GET", f"blobs/{sha256(b'both have it')}").body == b"both have it"


@pytest.mark.parametrize(
    "path",
    [
        f"blobs/{ABSENT}",
        f"manifests/{ABSENT}",
        "manifests/absent",
        f"/v2/no/such/manifests/{ABSENT}",
        "/v2/no/such/manifests/v1",
        f"/v2/no/such/blobs/{ABSENT}",
    ],
)
def test_what_is_not_there_cannot_be_deleted(repo, path):
    repo.put("v1", repo.manifest())
    assert repo.ask("DELETE", path).status == 404


@pytest.mark.parametrize("path", ["tags/list", f"referrers/{ABSENT}", "/v2/_catalog"])
def test_what_is_only_read_is_not_written(repo, path):
    repo.put("v1", repo.manifest())
    assert repo.ask("DELETE", path).status == 405
