"""The same image, the same files, whichever way it arrives; and those that the field's own tools
show.

All cases of `tests.support.layer_cases` lie in one image, pulled, mounted or unpacked once for each
way."""

from __future__ import annotations

import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.core.ledger import Ledger, remove_tree, unmount
from labkit.core.workspace import Workspace
from labkit.image import containerd, oci
from labkit.image.estargz.convert import convert
from labkit.image.image_source import source_of
from labkit.image.layers import WrittenLayer, write_image
from labkit.image.objectpull import PullOptions, pull
from labkit.image.oci_layout import Layout
from labkit.image.publish import publish_image
from labkit.image.pull import pull_into
from labkit.image.push import publish_objects
from labkit.image.tree import Limits
from labkit.image.unpack import unpack_image
from labkit.net.serving import serving
from tests.host.test_lazy_mount import mounted
from tests.support.layer_cases import (
    CASES,
    CONVERTED,
    Case,
    Found,
    M,
    differences,
    observed,
    stacked,
)
from tests.support.ordinary import UID, as_ordinary_user

pytestmark = pytest.mark.needs("root")  # owners and devices are part of what arrives
PLAIN, LAZY = "lab/cases:plain", "lab/cases:lazy"
LIMITS = Limits(absolute_links=True)
ROOT = M("./", "d", mode=0o711, uid=9, gid=9, mtime=77)
WITHOUT_DEVICES = {
    name: case
    for name, case in CASES.items()
    if all(m.kind != "c" for layer in case.layers for m in layer)
}


def write_layout(path: Path, cases: dict[str, Case], name: str) -> Layout:
    layout = Layout.create(path)
    tars = stacked(cases)
    tars[0] = ROOT.raw() + tars[0]
    blobs = [layout.write_blob(tar, oci.LAYER) for tar in tars]
    write_image(layout, [("", WrittenLayer(b, b.digest, b.size_bytes)) for b in blobs], {}, name)
    return layout


class Images:
    """The image plain and converted, in a registry and in a bucket."""

    def __init__(self, top: Path):
        self.top = top
        self.plain = write_layout(top / "plain", CASES, PLAIN)
        self.lazy = Layout.create(top / "lazy")
        convert(self.plain, PLAIN, self.lazy, target_name=LAZY)
        for layout, name in ((self.plain, PLAIN), (self.lazy, LAZY)):
            publish_image(top / "registry", layout.path, name)
        self.bucket = publish_objects(top / "store", self.plain, PLAIN)["url"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Images:
    return Images(tmp_path_factory.mktemp("arrive"))


@pytest.fixture(scope="module")
def registry(images):
    with serving("registry", images.top / "registry") as served:
        yield served


@contextmanager
def full_pull(images: Images, registry, top: Path, name: str = PLAIN) -> Iterator[Path]:
    layout = Layout(top / "pulled")
    manifest, _ = pull_into(layout, f"{registry.url}/{name}")
    unpack_image(layout, manifest, top / "root", limits=LIMITS)
    yield top / "root"


@contextmanager
def full_pull_of_a_converted_image(images: Images, registry, top: Path) -> Iterator[Path]:
    with full_pull(images, registry, top, LAZY) as root:
        yield root


@contextmanager
def object_pull(images: Images, registry, top: Path) -> Iterator[Path]:
    with (
        serving("store", images.top / "store") as served,
        source_of(f"{images.bucket}#{PLAIN}", served.env) as source,
    ):
        pull(source, top / "root", scratch=top / "blobs", options=PullOptions(limits=LIMITS))
    yield top / "root"


@contextmanager
def lazy_mount(images: Images, registry, top: Path) -> Iterator[Path]:
    with mounted(registry, top, name=LAZY) as (target, _):
        yield target


WAYS = [
    full_pull,
    full_pull_of_a_converted_image,
    object_pull,
    pytest.param(lazy_mount, marks=pytest.mark.needs("fuse")),
]


def wrong(tree: dict[str, Found], cases: dict[str, Case]) -> dict[str, list[str]]:
    """What is not as the cases expect it, by case."""
    found = {
        name: differences(tree, case.expected, str(at))
        for at, (name, case) in enumerate(cases.items())
    }
    return {name: lines for name, lines in found.items() if lines}


@pytest.fixture(scope="module")
def tree(images, tmp_path_factory) -> dict[str, Found]:
    """What the image is on a disk."""
    root = tmp_path_factory.mktemp("unpacked") / "root"
    unpack_image(images.plain, images.plain.manifest(PLAIN), root, limits=LIMITS)
    return observed(root)


def test_a_tree_is_what_its_layers_mean(tree):
    assert not wrong(tree, CASES)
    assert {name for name in tree if "/" not in name} == {str(at) for at in range(len(CASES))}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_shows_that_tree_to_the_last_attribute(way, images, registry, tmp_path, tree):
    with way(images, registry, tmp_path) as root:
        top = root.stat()
        assert observed(root) == tree
    assert (stat.S_IMODE(top.st_mode), top.st_uid, top.st_mtime) == (0o711, 9, 77)


def of_user(tree: dict[str, Found]) -> dict[str, Found]:
    return {
        name: replace(found, owner=(UID, UID), mode=(found.mode or 0) & 0o1777)
        for name, found in tree.items()
    }


def test_a_user_without_root_gets_the_same_files_as_their_owner():
    home = Path(tempfile.mkdtemp(prefix="labkit-arrive-"))  # pytest's own are closed to others
    try:
        layout = write_layout(home / "layout", WITHOUT_DEVICES, PLAIN)
        unpack_image(layout, layout.manifest(PLAIN), home / "root", limits=LIMITS)
        expected = observed(home / "root")
        remove_tree(home / "root")
        argv = ["image", "unpack", str(home / "layout"), str(home / "user"), "--absolute-links"]
        done = as_ordinary_user([sys.executable, "-m", "labkit", *argv], home=home, timeout=60)
        assert done.returncode == 0, done.stderr
        assert observed(home / "user") == of_user(expected)
    finally:
        remove_tree(home)


def shown_by(tool: str) -> dict[str, Case]:
    return {name: case for name, case in CASES.items() if tool in case.same}


@pytest.mark.needs("command:umoci")
def test_umoci_unpacks_the_same(tmp_path):
    cases = shown_by("umoci")
    write_layout(tmp_path / "layout", cases, "t")
    subprocess.run(
        ["umoci", "unpack", "--image", f"{tmp_path / 'layout'}:t", str(tmp_path / "bundle")],
        check=True,
        capture_output=True,
    )
    assert not wrong(observed(tmp_path / "bundle" / "rootfs"), cases)


@pytest.mark.needs("command:containerd", "command:ctr")
def test_overlayfs_shows_the_same_after_containerd(tmp_path, workspace: Workspace):
    plain, converted = shown_by("containerd"), shown_by("containerd") | shown_by(CONVERTED)
    layout = write_layout(tmp_path / "plain", plain, "t")
    publish_image(tmp_path / "registry", layout.path, PLAIN)
    layout = write_layout(tmp_path / "more", converted, "t")
    convert(layout, "t", Layout.create(tmp_path / "lazy"))
    publish_image(tmp_path / "registry", tmp_path / "lazy", LAZY)
    with (
        Ledger.open(workspace, watch=False) as ledger,
        serving("registry", tmp_path / "registry", ledger=ledger) as served,
        containerd.running(workspace.nodes / "ctd", ledger, registry=served.address) as node,
    ):
        for image, cases in ((PLAIN, plain), (LAZY, converted)):
            name, target = f"{served.address}/{image}", tmp_path / f"mnt-{len(cases)}"
            target.mkdir()
            node.pull(name)
            node.ctr("images", "mount", name, str(target))
            try:
                assert not wrong(observed(target), cases), image
            finally:
                unmount(target)
