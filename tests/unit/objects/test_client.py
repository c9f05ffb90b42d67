"""The lab's S3 client: what it signs is what it sends, and it believes what a store says in full.
Against stores with habits of AWS, Ceph, R2, Backblaze and of proxies before them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from labkit.errors import BadInput, TransferError
from labkit.net.client import Client, Retry
from labkit.net.message import Request, Response, text
from labkit.net.place import split
from labkit.net.server import HTTPServer
from labkit.objects import sigv4
from labkit.objects.access import Access
from labkit.objects.client import open_bucket
from labkit.objects.prefix import open_prefix
from labkit.objects.profile import completed

KEYS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "keeps-this-secret"}
EAGER = Retry(attempts=3, first_s=0.001, most_s=0.002)
DONE = "<CompleteMultipartUploadResult xmlns='x'><ETag>e</ETag></CompleteMultipartUploadResult>"


class Answers:
    """A store that checks signatures and gives the answers that a test puts in, by (method, query's
    first name); everything else is 200."""

    def __init__(self):
        self.answers: dict = {}
        self.seen: list[Request] = []
        self.checked = True

    def __call__(self, request: Request) -> Response:
        body = request.body.read()
        self.seen.append(request)
        if self.checked:
            sigv4.check(request, {KEYS["AWS_ACCESS_KEY_ID"]: KEYS["AWS_SECRET_ACCESS_KEY"]})
        asked = (request.method, next(iter(request.query), ""))
        answer = self.answers.get(asked, text(200, body and "", ETag='"e"'))
        # a copy: what is sent is used up
        return replace(answer(request) if callable(answer) else answer)

    def names(self):
        return [(r.method, next(iter(r.query), "")) for r in self.seen]


@pytest.fixture(scope="module")
def server():
    with HTTPServer(Answers()) as running:
        yield running


@pytest.fixture
def store(server):
    server.app.__init__()
    return server.app


@pytest.fixture
def bucket(server, store, monkeypatch):
    monkeypatch.setattr("labkit.objects.client.PART_BYTES", 4)
    env = {**KEYS, "AWS_ENDPOINT_URL": server.url}
    with open_bucket("s3://b/p", env, retry=EAGER) as opened:
        yield opened


def started(name: str):
    escaped = name.replace("&", "&amp;")
    return text(200, f"<R><UploadId>{escaped}</UploadId></R>", "application/xml")


@pytest.mark.parametrize(
    "host",
    ["http://127.0.0.1", "http://LOCALHOST", "http://localhost/", "http://me:pw@127.0.0.1/"],
)
@pytest.mark.parametrize("prefix", ["", "gate/way"])
def test_an_endpoint_may_be_written_in_any_way(server, store, host, prefix):
    scheme, _, rest = host.partition("://")
    name, slash, _ = rest.partition("/")
    env = {**KEYS, "AWS_ENDPOINT_URL": f"{scheme}://{name}:{server.port}/{prefix}{slash}"}
    with open_bucket("s3://b", env, retry=EAGER) as bucket:
        bucket.put("a b/+ü%.txt", b"1")
    (request,) = store.seen
    assert request.path == f"/{prefix}/b/a b/+ü%.txt".replace("//", "/")


@pytest.mark.parametrize(
    "url, host",
    [
        ("http://h:80/b/k", "h"),
        ("https://h:443/b/k", "h"),
        ("http://h:443/b/k", "h:443"),
        ("HTTP://Bucket.EXAMPLE:9000/b", "bucket.example:9000"),
        ("http://[::1]:80/b", "[::1]"),
        ("http://[FE80::1%25eth0]:9000/b", "[fe80::1]:9000"),
    ],
)
def test_the_host_that_is_signed_is_the_host_that_is_sent(url, host):
    signed = sigv4.sign("GET", url, {}, sigv4.Keys("a", "b"))
    assert signed["Host"] == host == split(url)[0].netloc
    assert "SignedHeaders=host;" in signed["Authorization"]


@pytest.mark.parametrize(
    "upload", ["2~XlNd+M+261dHJob/iszJktw==", "a%2Bb&c d", "_ä", "plain.id_1-2"]
)
def test_an_upload_may_have_any_name(bucket, store, tmp_path, upload):
    (tmp_path / "f").write_bytes(b"0123456789")
    store.answers = {
        ("POST", "uploads"): started(upload),
        ("POST", "uploadId"): text(200, "\n \n" + DONE, "application/xml"),
    }
    bucket.put_file("k", tmp_path / "f")
    assert {r.query["uploadId"] for r in store.seen if "uploadId" in r.query} == {upload}


def failed(code: str):
    body = f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>m</Message></Error>"
    return text(200, "   " + body, "application/xml")


@pytest.mark.parametrize(
    "answer, asked, words",
    [
        (failed("InternalError"), 3, "InternalError"),
        (failed("EntityTooSmall"), 1, "EntityTooSmall"),
        (text(200, ""), 1, "no XML"),
        (text(200, "<html/>"), 1, "does not say"),
    ],
)
def test_a_200_that_does_not_say_stored_is_a_failure_and_no_parts_stay(
    bucket, store, tmp_path, answer, asked, words
):
    (tmp_path / "f").write_bytes(b"0123456789")
    store.answers = {("POST", "uploads"): started("u"), ("POST", "uploadId"): lambda _: answer}
    with pytest.raises(TransferError, match=words):
        bucket.put_file("k", tmp_path / "f")
    assert store.names().count(("POST", "uploadId")) == asked
    assert store.names()[-1] == ("DELETE", "uploadId")


def test_an_error_that_passes_is_asked_again(bucket, store, tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    answers = iter([failed("SlowDown"), text(503, "slow down"), text(200, DONE)])
    store.answers = {
        ("POST", "uploads"): started("u"),
        ("POST", "uploadId"): lambda _: next(answers),
    }
    bucket.put_file("k", tmp_path / "f")


def test_a_403_for_what_may_not_be_there_is_no_refusal_to_write_it(bucket, store):
    store.answers = {("HEAD", ""): text(403, ""), ("GET", ""): text(403, "AccessDenied")}
    assert bucket.head("k") is None
    with pytest.raises(TransferError, match="s3:ListBucket"):
        bucket.get("k")


def test_names_that_xml_cannot_hold_are_listed(bucket, store):
    store.answers = {
        ("GET", "list-type"): text(
            200,
            "<L><EncodingType>url</EncodingType><Contents><Key>p/a%01+b%2B</Key><Size>1</Size>"
            "<ETag>&quot;e&quot;</ETag></Contents></L>",
        )
    }
    ((listed),) = bucket.list()
    assert (listed.key, listed.etag) == ("a\x01 b+", "e")
    assert store.seen[0].query["encoding-type"] == "url"


@pytest.mark.parametrize("method", ["get", "head"])
def test_a_bucket_of_another_region_is_asked_with_its_region(bucket, store, method):
    def answer(request: Request) -> Response:
        if "/eu-west-1/s3/" in request.header("authorization"):
            return text(200, "here")
        words = "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>"
        return text(400, words if method == "get" else "", X_Amz_Bucket_Region="eu-west-1")

    store.answers = {(method.upper(), ""): answer}
    for _ in range(2):
        assert getattr(bucket, method)("k").status == 200
    assert len(store.seen) == 3


def test_a_region_in_a_refusal_moves_requests_to_its_own_endpoint():
    from labkit.net.http import Answer

    access = Access("s3", {})
    url = access.url("b", "k")
    refused = Answer(301, {"x-amz-bucket-region": "eu-west-1"}, 0)
    assert access.elsewhere(url, refused) == "https://s3.eu-west-1.amazonaws.com/b/k"
    assert access.url("b", "k") == "https://s3.eu-west-1.amazonaws.com/b/k"
    assert access.elsewhere(access.url("b", "k"), refused) == ""


def test_keys_and_token_are_for_the_cloud_they_are_of(server, store):
    """A redirect to a signed URL of somebody else is followed without a signature of ours."""
    seen = []

    def elsewhere(request: Request) -> Response:
        seen.append(request)
        return text(200, "bytes")

    store.checked = False
    with HTTPServer(elsewhere) as other:
        store.answers = {("GET", ""): text(307, "", Location=f"{other.url}/x?X-Amz-Signature=a")}
        env = {
            **KEYS,
            "AWS_SESSION_TOKEN": "the-token-of-a-session",
            "AWS_ENDPOINT_URL": server.url,
        }
        with open_bucket("s3://b", env, retry=EAGER) as bucket:
            assert bucket.get("k").body == b"bytes"
    assert store.seen[0].header("x-amz-security-token")
    assert not {"authorization", "x-amz-security-token"} & set(seen[0].headers)


FILES = {
    "config": """
[default]
region = eu-central-1
[profile lab]
region = us-west-2
ca_bundle = /etc/ca.pem
services = own
s3 =
    addressing_style = virtual
    max_concurrent_requests = 20
[services own]
s3 =
    endpoint_url = https://s3.own.example
[profile asked]
sso_session = work
""",
    "credentials": """
[default]
aws_access_key_id = DEFAULT
aws_secret_access_key = of%default=
[lab]
aws_access_key_id = LAB
aws_secret_access_key = of-lab
aws_session_token = token
""",
}


@pytest.fixture
def home(tmp_path):
    (tmp_path / ".aws").mkdir()
    for name, content in FILES.items():
        (tmp_path / ".aws" / name).write_text(content)
    return {"HOME": str(tmp_path)}


def test_a_profile_of_the_files_is_read_as_boto3_reads_it(home, monkeypatch):
    boto3 = pytest.importorskip("boto3")
    for env in ({}, {"AWS_PROFILE": "lab"}):
        for name, value in {**home, **env}.items():
            monkeypatch.setenv(name, value)
        ours = Access("s3", {**home, **env})
        theirs = boto3.Session()
        client = theirs.client("s3", verify=False)
        keys = theirs.get_credentials()
        assert ours.keys == sigv4.Keys(keys.access_key, keys.secret_key, keys.token or "")
        assert ours.region == theirs.region_name
        if env:
            assert ours.endpoint == client.meta.endpoint_url
    assert ours.url("b", "k") == "https://b.s3.own.example/k"
    assert ours.outbound.env["AWS_CA_BUNDLE"] == "/etc/ca.pem"


def test_the_environment_wins_over_the_files_and_keys_are_not_mixed(home):
    env = {**home, **KEYS, "AWS_PROFILE": "lab", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    access = Access("s3", env)
    assert access.keys == sigv4.Keys(*KEYS.values())
    assert access.url("b", "k") == "http://127.0.0.1:9/b/k"


@pytest.mark.parametrize("profile, words", [("absent", "names no profile"), ("asked", "sso")])
def test_a_profile_that_gives_no_keys_is_refused_with_the_way_to_them(home, profile, words):
    with pytest.raises(BadInput, match=words):
        completed({**home, "AWS_PROFILE": profile})


@pytest.mark.parametrize(
    "env, endpoint",
    [
        ({}, "https://storage.googleapis.com"),
        ({"STORAGE_EMULATOR_HOST": "localhost:9000"}, "http://localhost:9000"),
        ({"STORAGE_EMULATOR_HOST": "http://[::1]:9000/"}, "http://[::1]:9000"),
    ],
)
def test_cloud_storages_emulator_may_be_named_without_a_scheme(env, endpoint):
    assert Access("gs", env).endpoint == endpoint


@pytest.mark.parametrize("value", ["h:9000", "ftp://h", "http://h:0", "http://h h", "http://ü"])
def test_an_endpoint_that_is_no_address_is_refused_with_its_variable(value):
    with pytest.raises(BadInput, match="AWS_ENDPOINT_URL_S3="):
        Access("s3", {"AWS_ENDPOINT_URL_S3": value})
    ignored = {"AWS_ENDPOINT_URL_S3": value, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}
    assert Access("s3", ignored).endpoint == "https://s3.us-east-1.amazonaws.com"


def test_without_a_home_nobodys_files_are_read():
    assert completed({}) == {}


def test_a_small_file_of_a_prefix_is_whole_absent_or_an_error(server, store):
    prefix = open_prefix("s3://b/models/m/", {**KEYS, "AWS_ENDPOINT_URL": server.url})
    store.answers = {("GET", ""): text(200, "0123456789"), ("HEAD", ""): text(403, "")}
    assert prefix.read("config.json", 10) == b"0123456789" and not prefix.exists("config.json")
    assert store.seen[0].path == "/b/models/m/config.json"
    with pytest.raises(BadInput, match="more than 9 bytes"):
        prefix.read("config.json", 9)
    assert prefix.start("config.json", 4)[0] == b"0123"


def test_a_model_of_a_plain_address_is_read_as_it_stands(server, store):
    store.checked = False
    store.answers = {("GET", ""): text(404, "none")}
    assert open_prefix(f"{server.url}/m/", KEYS).read("a b", 10) is None
    assert store.seen[0].path == "/m/a b" and not store.seen[0].header("authorization")


def test_a_client_without_a_bucket_keeps_its_login():
    with Client() as client:
        assert client.login is not None and client.relocate is None
