"""Of an index, the image of this machine is taken, by operating system, architecture and variant as
containerd does."""

from __future__ import annotations

import json

import pytest

from labkit.errors import BadInput
from labkit.image import oci, platforms


@pytest.fixture(autouse=True)
def amd64(monkeypatch):
    monkeypatch.setattr(platforms, "architecture", lambda: "amd64")


class Documents:
    """A registry of documents by digest: `image(...)` and `index(...)` give descriptors."""

    def __init__(self):
        self.held: dict[str, bytes] = {}

    def put(self, doc: dict, kind: str, platform: dict | None, **more: object) -> dict:
        raw = json.dumps(doc).encode()
        self.held[oci.digest_of(raw)] = raw
        listed = {"mediaType": kind, "digest": oci.digest_of(raw), "size": len(raw), **more}
        return listed if platform is None else {**listed, "platform": platform}

    def image(self, name: str, platform: dict | None = None, config: dict | None = None, **more):
        described = self.put(config or {}, oci.CONFIG, None)
        doc = {"schemaVersion": 2, "config": described, "layers": [], "annotations": {"is": name}}
        return self.put(doc, oci.MANIFEST, platform, **more)

    def index(self, *entries: dict, platform: dict | None = None) -> dict:
        return self.put({"schemaVersion": 2, "manifests": list(entries)}, oci.INDEX, platform)

    def chosen(self, index: dict) -> str:
        return platforms.find_manifest(
            self.held.__getitem__,
            index["digest"],
            "lab/x",
            lambda m: json.loads(self.held[m.config.digest]),
        ).annotations["is"]


def of(architecture: str, variant: str = "", os: str = "linux") -> dict:
    return {"os": os, "architecture": architecture} | ({"variant": variant} if variant else {})


ATTESTATION = of("unknown", os="unknown")


@pytest.mark.parametrize(
    "listed,wanted",
    [
        ([of("s390x"), of("amd64")], 1),
        ([of("amd64", "v9"), of("amd64")], 1),
        ([of("amd64", "v3"), of("amd64", "v1")], 1),
        ([of("386"), of("amd64")], 1),
        ([of("386"), of("arm64")], 0),
        ([of("amd64", os="windows"), of("x86_64")], 1),
        ([ATTESTATION, of("amd64"), of("amd64")], 1),
        ([{}, {"architecture": "arm64"}, {"architecture": "amd64"}, of("amd64")], 2),
        ([{"os": None, "architecture": 7}, of("AMD64", os="Linux")], 1),
    ],
)
def test_the_best_platform_is_taken_and_the_first_of_two_alike(listed, wanted):
    docs = Documents()
    entries = [docs.image(str(at), platform) for at, platform in enumerate(listed)]
    assert docs.chosen(docs.index(*entries)) == str(wanted)


@pytest.mark.parametrize(
    "listed",
    [[], [of("vax")], [of("amd64", "v2")], [ATTESTATION], [of("amd64", os="windows")]],
)
def test_an_index_without_an_image_for_this_machine_says_what_it_has(listed):
    docs = Documents()
    entries = [docs.image("x", platform) for platform in listed]
    with pytest.raises(BadInput, match="not for linux/amd64"):
        docs.chosen(docs.index(*entries))


def test_an_artifact_without_a_platform_is_not_the_image():
    docs = Documents()
    note = docs.image("note", None, {}, artifactType="application/vnd.in-toto+json")
    blob = docs.put({"any": "thing"}, "application/x-note", None)
    mine = docs.image("mine", None, {"architecture": "amd64", "os": "linux"})
    theirs = docs.image("theirs", None, {"architecture": "s390x", "os": "linux"})
    assert docs.chosen(docs.index(blob, note, theirs, mine)) == "mine"
    assert docs.chosen(docs.index(mine, docs.image("listed", of("amd64")))) == "listed"


def test_an_index_in_an_index_is_followed_but_not_for_ever():
    docs = Documents()
    inner = docs.index(docs.image("arm", of("arm64")), docs.image("mine", of("amd64")))
    assert docs.chosen(docs.index(docs.index(docs.image("x", of("vax"))), inner)) == "mine"
    deep = docs.image("deep", of("amd64"))
    for _ in range(5):
        deep = docs.index(deep)
    with pytest.raises(BadInput, match="too deep"):
        docs.chosen(deep)


def test_arm64_takes_its_own_then_what_else_it_runs(monkeypatch):
    monkeypatch.setattr(platforms, "architecture", lambda: "arm64")
    docs = Documents()
    v7, v6, own = (
        docs.image(n, of(*p))
        for n, p in (("v7", ("arm",)), ("v6", ("arm", "6")), ("own", ("aarch64", "v8")))
    )
    assert docs.chosen(docs.index(v6, v7, own)) == "own"
    assert docs.chosen(docs.index(v6, v7)) == "v7"
