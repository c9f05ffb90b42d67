"""The embedded store as boto3, the lab's own client and hostile ones see it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import random
import zlib
from email.utils import formatdate, parsedate_to_datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labkit.errors import TransferError
from labkit.net.client import Client, Retry
from labkit.net.fetch import fetch_ranges
from labkit.net.message import Request
from labkit.net.parts import Into
from labkit.net.ranges import RangeOptions
from labkit.net.server import HTTPServer
from labkit.objects import sigv4
from labkit.objects.client import open_bucket
from labkit.objects.disk import Disk, Unstorable, decode_part, encode_part
from labkit.objects.documents import S3Error, parse
from labkit.objects.publish import publish_model
from labkit.objects.store import KEYS, Store, environment
from labkit.objects.upload import AwsChunked, UploadMismatch
from tests.support.direct import ask

DATA = random.Random(3).randbytes(6_000_000)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with HTTPServer(Store(tmp_path_factory.mktemp("store"))) as server:
        yield server


@pytest.fixture(scope="module")
def s3(store):
    boto3 = pytest.importorskip("boto3")
    from botocore.config import Config

    ((access, secret),) = KEYS.items()
    return boto3.client(
        "s3",
        endpoint_url=store.url,
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(signature_version="s3v4"),
    )


def test_boto3_writes_reads_lists_copies_and_deletes(s3):
    s3.put_object(
        Bucket="lab",
        Key="a/é + b?&.txt",
        Body=b"hello",
        Metadata={"made": "by-test"},
        ContentType="text/plain",
    )
    got = s3.get_object(Bucket="lab", Key="a/é + b?&.txt")
    assert (got["Body"].read(), got["Metadata"], got["ContentType"], got["ETag"]) == (
        b"hello",
        {"made": "by-test"},
        "text/plain",
        f'"{hashlib.md5(b"hello").hexdigest()}"',
    )
    s3.copy_object(Bucket="lab", Key="a/copy", CopySource={"Bucket": "lab", "Key": "a/é + b?&.txt"})
    assert [o["Key"] for o in s3.list_objects_v2(Bucket="lab", Prefix="a/")["Contents"]] == [
        "a/copy",
        "a/é + b?&.txt",
    ]
    s3.delete_objects(
        Bucket="lab",
        Delete={"Objects": [{"Key": "a/copy"}, {"Key": "a/é + b?&.txt"}, {"Key": "never-there"}]},
    )
    assert "Contents" not in s3.list_objects_v2(Bucket="lab", Prefix="a/")


def test_boto3_uploads_in_parts_and_reads_ranges(s3, store):
    from boto3.s3.transfer import TransferConfig

    s3.upload_fileobj(
        io.BytesIO(DATA),
        "lab",
        "big",
        Config=TransferConfig(multipart_threshold=1 << 20, multipart_chunksize=5 << 20),
    )
    assert s3.head_object(Bucket="lab", Key="big")["ETag"].endswith('-2"')
    assert (
        s3.get_object(Bucket="lab", Key="big", Range="bytes=100-199")["Body"].read()
        == DATA[100:200]
    )
    back = io.BytesIO()
    s3.download_fileobj("lab", "big", back)
    assert back.getvalue() == DATA
    assert not list((store.app.disk.uploads).iterdir())


def test_parts_are_copied_from_objects_that_are_there(s3, store):
    """Docker's registry moves a layer above 32 MB to its name this way."""
    s3.put_object(Bucket="lab", Key="source", Body=DATA)
    upload = s3.create_multipart_upload(Bucket="lab", Key="moved", ContentType="text/x-moved")[
        "UploadId"
    ]
    whole, cut = (
        {
            "Bucket": "lab",
            "Key": "moved",
            "UploadId": upload,
            "CopySource": {"Bucket": "lab", "Key": "source"},
        },
        5 << 20,
    )
    ranges = [(0, cut - 1), (cut, len(DATA) - 1)]
    parts = [
        s3.upload_part_copy(**whole, PartNumber=n, CopySourceRange=f"bytes={a}-{b}")[
            "CopyPartResult"
        ]["ETag"]
        for n, (a, b) in enumerate(ranges, 1)
    ]
    assert parts == [f'"{hashlib.md5(DATA[a : b + 1]).hexdigest()}"' for a, b in ranges]
    s3.complete_multipart_upload(
        Bucket="lab",
        Key="moved",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": n, "ETag": e} for n, e in enumerate(parts, 1)]},
    )
    got = s3.get_object(Bucket="lab", Key="moved")
    assert (got["Body"].read(), got["ContentType"]) == (DATA, "text/x-moved")
    assert not list(store.app.disk.uploads.iterdir())


@pytest.mark.parametrize(
    "wanted", ["bytes=0-99999999999", "bytes=9-3", "bytes=-5", "0-3", "bytes=0-3,5-9"]
)
def test_a_part_is_not_copied_from_a_range_that_the_object_does_not_have(s3, store, wanted):
    from botocore.exceptions import ClientError

    s3.put_object(Bucket="lab", Key="source", Body=b"0123456789")
    upload = s3.create_multipart_upload(Bucket="lab", Key="moved")["UploadId"]
    with pytest.raises(ClientError, match="InvalidArgument"):
        s3.upload_part_copy(
            Bucket="lab",
            Key="moved",
            UploadId=upload,
            PartNumber=1,
            CopySource="lab/source",
            CopySourceRange=wanted,
        )
    assert s3.list_parts(Bucket="lab", Key="moved", UploadId=upload).get("Parts", []) == []
    s3.abort_multipart_upload(Bucket="lab", Key="moved", UploadId=upload)
    assert not list(store.app.disk.uploads.iterdir())


def test_listing_pages_and_folds_folders_in_byte_order(s3):
    keys = ["p/a", "p/a.b", "p/a/1", "p/a0", "p/b/1", "p/b/2", "p/c"]
    for key in [k for k in keys if k != "p/a"]:
        s3.put_object(Bucket="lab", Key=key, Body=b"")
    pages = list(
        s3.get_paginator("list_objects_v2").paginate(
            Bucket="lab", Prefix="p/", PaginationConfig={"PageSize": 2}
        )
    )
    assert [o["Key"] for page in pages for o in page["Contents"]] == sorted(
        keys[1:], key=str.encode
    ) and len(pages) == 3
    folded = list(
        s3.get_paginator("list_objects_v2").paginate(
            Bucket="lab", Prefix="p/", Delimiter="/", PaginationConfig={"PageSize": 1}
        )
    )
    assert [p["Prefix"] for page in folded for p in page.get("CommonPrefixes", [])] == [
        "p/a/",
        "p/b/",
    ]
    assert [o["Key"] for page in folded for o in page.get("Contents", [])] == [
        "p/a.b",
        "p/a0",
        "p/c",
    ]


def test_errors_are_s3s_own(s3):
    for call, code in [
        (lambda: s3.get_object(Bucket="lab", Key="absent"), "NoSuchKey"),
        (lambda: s3.list_objects_v2(Bucket="absent"), "NoSuchBucket"),
        (lambda: s3.get_object_torrent(Bucket="lab", Key="x"), "NotImplemented"),
        (lambda: s3.delete_bucket(Bucket="lab"), "BucketNotEmpty"),
    ]:
        with pytest.raises(s3.exceptions.ClientError) as caught:
            s3.put_object(Bucket="lab", Key="keeps/the/bucket", Body=b"")
            call()
        assert caught.value.response["Error"]["Code"] == code


def test_a_precondition_guards_reads_and_writes(s3):
    etag = s3.put_object(Bucket="lab", Key="guarded", Body=b"1")["ETag"]
    s3.get_object(Bucket="lab", Key="guarded", IfMatch=etag)
    for call in (
        lambda: s3.get_object(Bucket="lab", Key="guarded", IfMatch='"other"'),
        lambda: s3.put_object(Bucket="lab", Key="guarded", Body=b"2", IfNoneMatch="*"),
    ):
        with pytest.raises(s3.exceptions.ClientError) as caught:
            call()
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412


def test_presigned_urls_work_and_only_for_what_was_signed(s3, store):
    s3.put_object(Bucket="lab", Key="signed", Body=b"for a while")
    url = s3.generate_presigned_url(
        "get_object", Params={"Bucket": "lab", "Key": "signed"}, ExpiresIn=60
    )
    with Client() as client:
        assert client.ask("GET", url).body == b"for a while"
        with pytest.raises(TransferError, match="403"):
            client.ask("GET", url.replace("/signed?", "/big?"))


def test_unsigned_reads_pass_and_unsigned_writes_do_not(store):
    with Client() as client:
        assert client.ask("GET", f"{store.url}/lab?list-type=2").status == 200
        with pytest.raises(TransferError, match="AccessDenied"):
            client.ask("PUT", f"{store.url}/lab/x", body=b"")


@pytest.mark.parametrize(
    "keys, code",
    [
        (sigv4.Keys("labkit", "guess"), "SignatureDoesNotMatch"),
        (sigv4.Keys("who", "ever"), "InvalidAccessKeyId"),
    ],
)
def test_a_wrong_signature_is_refused_for_reads_too(store, keys, code):
    with (
        Client(authorize=lambda m, u, h: sigv4.sign(m, u, h, keys)) as client,
        pytest.raises(TransferError, match=code),
    ):
        client.ask("GET", f"{store.url}/lab?list-type=2")


def test_the_labs_client_writes_lists_and_reads_in_signed_ranges(store, tmp_path):
    (tmp_path / "f").write_bytes(DATA)
    with open_bucket("s3://lab/own", environment(store.url)) as bucket:
        bucket.put_file("dir/f", tmp_path / "f")
        assert [(o.key, o.size_bytes) for o in bucket.list("dir/")] == [("dir/f", len(DATA))]
        got = bytearray(len(DATA))
        fetch_ranges(
            bucket.client,
            bucket.url("dir/f"),
            len(DATA),
            Into.buffer(got),
            part_bytes=1 << 20,
            options=RangeOptions(connections=4),
        )
        assert got == DATA and bucket.head("absent") is None


def test_a_file_above_one_part_goes_up_in_parts_and_leaves_none_behind(
    store, tmp_path, monkeypatch
):
    monkeypatch.setattr("labkit.objects.client.PART_BYTES", 5 << 20)
    (tmp_path / "f").write_bytes(DATA)
    with open_bucket(
        "s3://lab/own", environment(store.url), retry=Retry(attempts=2, first_s=0.001)
    ) as bucket:
        bucket.put_file("parts", tmp_path / "f")
        assert bucket.get("parts").body == DATA
    assert not list(store.app.disk.uploads.iterdir())


def test_a_published_model_is_linked_and_readable_by_s3_and_gcs(store, tmp_path):
    (tmp_path / "m" / "sub").mkdir(parents=True)
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "sub" / "w").write_bytes(b"weights")
    facts = publish_model(store.app.disk.root, tmp_path / "m", "models/x")
    assert (facts["url"], facts["objects"]) == ("s3://lab/models/x", 2)
    with Client() as client:
        assert client.ask("GET", f"{store.url}/lab/models/x/sub/w").body == b"weights"
        listed = json.loads(
            client.ask("GET", f"{store.url}/storage/v1/b/lab/o?prefix=models/x/").body
        )
        assert [i["name"] for i in listed["items"]] == ["models/x/config.json", "models/x/sub/w"]
        assert (
            client.ask(
                "GET",
                f"{store.url}/storage/v1/b/lab/o/models%2Fx%2Fsub%2Fw?alt=media",
                {"Range": "bytes=1-2"},
                ok=(206,),
            ).body
            == b"ei"
        )
        with pytest.raises(TransferError, match="404"):
            client.ask("GET", f"{store.url}/storage/v1/b/lab/o/absent?alt=media")


def test_published_files_are_replaced_not_edited_by_a_write(store, s3, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w").write_bytes(b"mine")
    publish_model(store.app.disk.root, tmp_path / "m", "models/y")
    s3.put_object(Bucket="lab", Key="models/y/w", Body=b"theirs")
    assert (tmp_path / "m" / "w").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "path",
    [
        "/lab/../../etc/passwd",
        "/../etc/passwd",
        "/.labkit/notes",
        "/lab/%2e%2e/%2e%2e/secret",
        "/lab//..//../x",
    ],
)
def test_no_key_leads_out_of_its_bucket(store, path):
    (store.app.disk.root.parent / "secret").write_bytes(b"outside")
    with Client() as client, pytest.raises(TransferError, match="404|400"):
        client.ask("GET", store.url + path)


@given(st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=50))
def test_any_key_is_a_path_below_the_bucket_and_reads_back(tmp_path_factory, key):
    parts = key.split("/")
    try:
        names = [encode_part(p) for p in parts]
    except Unstorable:
        return
    assert all(n not in ("", ".", "..") and "/" not in n for n in names)
    assert [decode_part(n) for n in names] == parts


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(
    st.lists(st.text("ab/.é\n%", min_size=1, max_size=6), min_size=1, max_size=8, unique=True),
    st.text("ab/", max_size=2),
    st.integers(1, 3),
)
def test_pages_of_a_listing_join_to_the_whole(tmp_path_factory, keys, prefix, page):
    disk = Disk(tmp_path_factory.mktemp("disk"))
    disk.make_bucket("lab")
    kept = set()
    for key in keys:
        with contextlib.suppress(Unstorable), disk.incoming() as body:
            body.write_bytes(b"x")
            disk.keep("lab", key, body, etag="e")
            kept.add(key)
    found, after = [], ""
    while True:
        objects, _, after = disk.listing("lab", prefix, "", after, page)
        found += [o.key for o in objects]
        if not after:
            break
    assert found == sorted((k for k in kept if k.startswith(prefix)), key=lambda k: k.encode())


def _framed(chunks, trailer=b""):
    return (
        b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks if c) + b"0\r\n" + trailer + b"\r\n"
    )


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(1, 40))
def test_aws_chunked_frames_join_to_the_payload_however_they_arrive(chunks, step):
    raw = _framed(chunks, b"x-amz-checksum-crc32:abc=\r\n")
    reader = AwsChunked(raw[i : i + step] for i in range(0, len(raw), step))
    assert b"".join(reader) == b"".join(chunks)
    assert reader.trailers == {"x-amz-checksum-crc32": "abc="}


@given(st.lists(st.binary(min_size=1, max_size=80), max_size=6))
def test_any_bytes_are_aws_chunked_or_refused(blocks):
    with contextlib.suppress(UploadMismatch):
        b"".join(AwsChunked(iter(blocks)))


def _put(store, headers, body):
    request = Request(
        "PUT", "/lab/k", "/lab/k", "/lab/k", {}, "", {"content-length": "4", **headers}
    )
    request.body = type(
        "Body", (), {"__iter__": lambda self: iter([body]), "read": lambda self, n=0: body}
    )()
    return Store(store.app.disk.root, open_writes=True)(request)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-md5": base64.b64encode(bytes(16)).decode()},
        {"x-amz-checksum-crc32": base64.b64encode(bytes(4)).decode()},
        {"x-amz-checksum-sha256": base64.b64encode(bytes(32)).decode()},
        {"x-amz-content-sha256": "0" * 64},
        {"content-md5": "not base64!"},
    ],
)
def test_bytes_other_than_announced_never_get_a_name(store, headers):
    assert _put(store, headers, b"data").status == 400
    assert not (store.app.disk.root / "lab" / "k").exists() and not list(
        store.app.disk.uploads.iterdir()
    )


def test_a_checksum_in_the_trailer_is_checked(store):
    def put(crc):
        trailer = b"x-amz-checksum-crc32:" + base64.b64encode(crc.to_bytes(4, "big")) + b"\r\n"
        return _put(
            store,
            {
                "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
                "x-amz-trailer": "x-amz-checksum-crc32",
            },
            _framed([b"data"], trailer),
        ).status

    assert (put(zlib.crc32(b"data")), put(1)) == (200, 400)


def test_signed_chunks_are_verified_one_by_one():
    signed = sigv4.Signed(
        "labkit", "0" * 64, "20260101/us-east-1/s3/aws4_request", "20260101T000000Z", b"key"
    )
    first = sigv4.chunk_signature(signed.signature, signed, hashlib.sha256(b"data").hexdigest())
    last = sigv4.chunk_signature(first, signed, sigv4.EMPTY)
    raw = f"4;chunk-signature={first}\r\ndata\r\n0;chunk-signature={last}\r\n\r\n".encode()
    assert b"".join(AwsChunked([raw], signed)) == b"data"
    with pytest.raises(UploadMismatch):
        b"".join(AwsChunked([raw.replace(b"data", b"dada")], signed))


def test_our_signature_is_botocores():
    botocore = pytest.importorskip("botocore.auth")
    import datetime

    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    url, now = (
        "http://127.0.0.1:9000/lab/a%20b/%C3%A9?list-type=2&prefix=x%2Fy",
        datetime.datetime.now(datetime.timezone.utc),
    )
    request = AWSRequest("GET", url, headers={"Range": "bytes=0-1"})
    request.context["timestamp"] = now.strftime("%Y%m%dT%H%M%SZ")
    signer = botocore.S3SigV4Auth(Credentials("labkit", "s"), "s3", "us-east-1")
    signer.add_auth(request)
    ours = sigv4.sign(
        "GET",
        url,
        {"Range": "bytes=0-1"},
        sigv4.Keys("labkit", "s"),
        payload=sigv4.EMPTY,
        now=datetime.datetime.strptime(request.context["timestamp"], "%Y%m%dT%H%M%SZ"),
    )
    assert (
        ours["Authorization"].rpartition("=")[2]
        == request.headers["Authorization"].rpartition("=")[2]
    )


def test_the_date_of_a_signed_request_may_stand_in_its_date_header(tmp_path):
    botocore = pytest.importorskip("botocore.auth")
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest("PUT", "http://store:80/lab/k", headers={"Date": "now"})
    ((access, secret),) = KEYS.items()
    botocore.S3SigV4Auth(Credentials(access, secret), "s3", "us-east-1").add_auth(request)
    headers = {name.lower(): value for name, value in request.headers.items()} | {"host": "store"}
    assert "x-amz-date" not in headers
    store = Store(tmp_path)
    assert ask(store, "PUT", "/lab/k", headers=headers)[0].status == 200
    later = {**headers, "date": formatdate(parsedate_to_datetime(headers["date"]).timestamp() + 1)}
    assert ask(store, "PUT", "/lab/k", headers=later)[0].status == 403


@given(st.binary(max_size=200))
def test_any_document_is_the_one_wanted_or_malformed(raw):
    with pytest.raises(S3Error):
        parse(raw, "Delete")


def test_entity_bombs_are_refused_unread():
    bomb = (
        b'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY a "aa"><!ENTITY b'
        b' "&a;&a;">]><Delete>&b;</Delete>'
    )
    with pytest.raises(S3Error, match="document type"):
        parse(bomb, "Delete")


def test_runai_streamer_reads_it_over_s3_and_gcs(store, tmp_path):
    """In a process of its own: the AWS SDK reads its environment once."""
    import subprocess
    import sys

    st_torch = pytest.importorskip("safetensors.torch")
    pytest.importorskip("runai_model_streamer")
    import torch

    (tmp_path / "m").mkdir()
    st_torch.save_file(
        {"w": torch.arange(300_000, dtype=torch.float32)}, tmp_path / "m" / "model.safetensors"
    )
    publish_model(store.app.disk.root, tmp_path / "m", "models/r")
    code = (
        "import sys, torch\nfrom runai_model_streamer import SafetensorsStreamer\nwith"
        " SafetensorsStreamer() as s:\n s.stream_file(sys.argv[1])\n for n, t in s.get_tensors():"
        " assert torch.equal(t.cpu(), torch.arange(300_000, dtype=torch.float32))\nprint('same')"
    )
    for scheme in ("s3", "gs"):
        env = {**os.environ, **environment(store.url)}
        done = subprocess.run(
            [sys.executable, "-c", code, f"{scheme}://lab/models/r/model.safetensors"],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "same" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize(
    "query, status",
    [
        ("max-keys=²", 400),
        ("max-keys=-1", 400),
        ("max-keys=1_0", 400),
        ("max-keys=%2B5", 400),
        ("max-keys=5", 200),
    ],
)
def test_numbers_of_a_listing_are_digits(store, query, status):
    with Client(retry=Retry(attempts=1)) as client:
        assert (
            client.ask("GET", f"{store.url}/lab?list-type=2&{query}", ok=(200, 400)).status
            == status
        )


@pytest.mark.parametrize(
    "stream",
    [
        b"1_0;x\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\n",
        b"\r\n",
        b"0\r\nx-amz-checksum-crc32c:a\nX-Injected: 1\r\n\r\n",
        b"0\r\nx-amz-checksum-a\nb:c\r\n\r\n",
        b"0\r\nno colon here\r\n\r\n",
    ],
)
def test_aws_chunked_framing_is_strict(stream):
    with pytest.raises(UploadMismatch):
        list(AwsChunked([stream]))


def test_an_object_without_descriptors_left_is_not_another_object(tmp_path, monkeypatch):
    """Neither a note nor a folder that cannot be read may be taken for one that is not there:
    another ETag, a shorter list."""
    import errno

    disk = Disk(tmp_path)
    disk.make_bucket("lab")
    with disk.incoming() as body:
        body.write_bytes(b"hello")
        disk.keep("lab", "a/key", body, etag="5d41402abc4b2a76b9719d911017c592")

    def none_left(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("labkit.objects.disk.Path.read_text", none_left)
    with pytest.raises(OSError):
        disk.open("lab", "a/key")
    monkeypatch.setattr("labkit.objects.disk.os.scandir", none_left)
    with pytest.raises(OSError):
        list(disk.walk("lab", ""))


@pytest.mark.parametrize(
    "answer",
    [
        b"<ListBucketResult><Contents><Key>a</Key><Size>1_0</Size></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key><Size>-1</Size></Contents></ListBucketResult>",
        b"<ListBucketResult><NextContinuationToken>same</NextContinuationToken></ListBucketResult>",
        b"<!DOCTYPE a [<!ENTITY b 'c'>]><ListBucketResult/>",
        b"no XML",
    ],
)
def test_a_listing_that_makes_no_sense_is_one_clear_error(answer):
    from labkit.net.message import text

    with (
        HTTPServer(lambda request: text(200, answer, "application/xml")) as server,
        open_bucket("s3://lab", {"AWS_ENDPOINT_URL": server.url}) as bucket,
    ):
        with pytest.raises(TransferError):
            list(bucket.list())
