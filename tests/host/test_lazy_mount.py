"""The lazy mount against a registry with faults: the files of the image or an error, never wrong
bytes, and nothing left mounted."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from labkit.core.ledger import is_mounted, unmount
from labkit.image import access_record
from labkit.image.access_record import Access
from labkit.image.estargz.convert import convert
from labkit.image.estargz.layer_cache import Options
from labkit.image.oci_layout import Layout
from labkit.image.publish import publish_image
from labkit.image.tiny import REFERENCE, tiny_layout
from labkit.image.unpack import unpack_image
from labkit.net.serving import serving

pytestmark = pytest.mark.needs("root", "fuse")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """(registry root, plain tree): a tiny image as eStargz with small chunks, and what its files
    are."""
    base = tmp_path_factory.mktemp("lazy")
    tiny_layout(base / "plain", 1_500_000)
    lazy = Layout.create(base / "lazy")
    convert(
        Layout(base / "plain"),
        REFERENCE,
        lazy,
        record=[Access("usr/bin/app")],
        options=Options(chunk_bytes=64 << 10),
    )
    publish_image(base / "registry", base / "lazy", REFERENCE)
    unpack_image(Layout(base / "plain"), Layout(base / "plain").manifest(REFERENCE), base / "tree")
    return base


@pytest.fixture
def registry(image):
    with serving("registry", image / "registry") as served:
        yield served


@contextmanager
def mounted(served, folder: Path, *options: str, name: str = REFERENCE):
    target = folder / "mnt"
    target.mkdir(exist_ok=True)
    argv = [
        sys.executable,
        "-m",
        "labkit.image.lazyfs",
        f"{served.url}/{name}",
        str(target),
        "--cache",
        str(folder / "cache"),
        "--stats",
        str(folder / "stats.json"),
        "--log",
        str(folder / "log"),
        *options,
    ]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        said = json.loads(process.stdout.readline())
        assert "mounted" in said, said
        yield target, process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(15)
        unmount(target)
        assert not is_mounted(target)


def tree(top: Path) -> dict[bytes, tuple]:
    found = {}
    for folder, names, files in os.walk(os.fsencode(top)):
        for name in names + files:
            path = os.path.join(folder, name)
            about = os.lstat(path)
            kind = stat.S_IFMT(about.st_mode)
            body = (
                os.readlink(path)
                if kind == stat.S_IFLNK
                else (
                    hashlib.sha256(open(path, "rb").read()).digest()
                    if kind == stat.S_IFREG
                    else b""
                )
            )
            found[os.path.relpath(path, os.fsencode(top))] = (
                kind,
                0 if kind == stat.S_IFLNK else stat.S_IMODE(about.st_mode),
                body,
                about.st_nlink if kind == stat.S_IFREG else 0,
            )
    return found


def stats_of(folder: Path) -> dict:
    return json.loads((folder / "stats.json").read_text())


def test_the_mount_shows_what_unpacking_makes_and_touching_little_fetches_little(
    image, registry, tmp_path
):
    with mounted(registry, tmp_path, "--no-background", "--record", str(tmp_path / "record")) as (
        target,
        _,
    ):
        assert (target / "etc/hostname").read_text() == "tiny\n"
        few = registry.stats()["bytes_sent"]
        until = time.monotonic() + 10
        while not (tmp_path / "stats.prefetched").exists():  # what waits for the link goes by this
            assert time.monotonic() < until
            time.sleep(0.01)
        assert tree(target) == tree(image / "tree")
    assert few < registry.stats()["bytes_sent"] * 0.6
    assert access_record.read(tmp_path / "record")[0].path == "etc/hostname"
    assert stats_of(tmp_path)["errors"] == 0


def test_a_second_mount_of_the_same_cache_asks_for_no_file_again(registry, image, tmp_path):
    with mounted(registry, tmp_path) as (target, _):
        first = tree(target)
    registry.reset()
    with mounted(registry, tmp_path, "--no-prefetch", "--no-background") as (target, _):
        assert tree(target) == first
    assert (
        sum(c["bytes_sent"] for p, c in registry.stats()["by_path"].items() if "/blobs/" in p)
        < 20_000
    )


def test_resets_refusals_stragglers_and_corruption_do_not_show(image, registry, tmp_path):
    with mounted(registry, tmp_path, "--no-prefetch", "--no-background") as (target, _):
        registry.set_faults(
            [
                "reset:rate=0.05",
                "429:rate=0.1,retry_after=0.05",
                "503:rate=0.05,retry_after=0.05",
                "truncate:rate=0.05",
                "corrupt:nth=5,times=1,min_bytes=50000",
                "straggler:nth=9,slowed_to=20kB/s,times=1",
            ],
            seed=3,
        )
        assert tree(target) == tree(image / "tree")
        found = registry.stats()["faults"]
    assert stats_of(tmp_path)["errors"] == 0 and stats_of(tmp_path)["retries"] > 0 and found


def test_a_chunk_that_always_arrives_wrong_is_an_error_and_never_wrong_bytes(
    image, registry, tmp_path
):
    with mounted(registry, tmp_path, "--no-prefetch", "--no-background") as (target, _):
        registry.set_faults(["corrupt:rate=1"])
        with pytest.raises(OSError) as caught:
            (target / "usr/lib/libbig.so").read_bytes()
        assert caught.value.errno == errno.EIO
        registry.set_faults([])
        assert (target / "usr/lib/libbig.so").read_bytes() == (
            image / "tree/usr/lib/libbig.so"
        ).read_bytes()
    assert "arrived wrong" in (tmp_path / "log").read_text() and stats_of(tmp_path)["corrupt"] >= 3


def test_a_dead_registry_is_eio_with_the_blob_in_the_log_and_the_mount_recovers(image, tmp_path):
    with serving("registry", image / "registry") as served:
        port = served.port
        context = mounted(
            served, tmp_path, "--no-prefetch", "--no-background", "--io-timeout", "1.5"
        )
        target, _ = context.__enter__()
    try:
        began_s = time.monotonic()
        with pytest.raises(OSError) as caught:
            (target / "usr/lib/libbig.so").read_bytes()
        assert caught.value.errno == errno.EIO and time.monotonic() - began_s > 1.0
        assert (
            "sha256:" in (tmp_path / "log").read_text()
            and "did not arrive" in (tmp_path / "log").read_text()
        )
        with pytest.raises(OSError):  # another chunk: the registry is known to be gone by now
            (target / "app/weights.bin").read_bytes()
        waited = re.findall(r"did not arrive in (\d+\.\d) s", (tmp_path / "log").read_text())
        assert float(waited[0]) >= 1.5 and float(waited[-1]) < 1.5
        with serving("registry", image / "registry", port=port):
            assert (target / "usr/lib/libbig.so").read_bytes() == (
                image / "tree/usr/lib/libbig.so"
            ).read_bytes()
    finally:
        context.__exit__(None, None, None)


def test_a_registry_that_is_away_for_a_while_only_delays(image, tmp_path):
    with serving("registry", image / "registry") as served:
        port = served.port
        context = mounted(
            served, tmp_path, "--no-prefetch", "--no-background", "--io-timeout", "30"
        )
        target, _ = context.__enter__()
    try:
        reader = subprocess.Popen(
            ["sha256sum", str(target / "usr/lib/libbig.so")], stdout=subprocess.PIPE
        )
        until = time.monotonic() + 10
        while "retries" not in stats_text(tmp_path) and time.monotonic() < until:
            time.sleep(0.05)
        with serving("registry", image / "registry", port=port):
            out = reader.communicate(timeout=30)[0].split()[0].decode()
        assert out == hashlib.sha256((image / "tree/usr/lib/libbig.so").read_bytes()).hexdigest()
    finally:
        context.__exit__(None, None, None)


def stats_text(folder: Path) -> str:
    """ "retries" appears once one was counted."""
    try:
        return "retries" if stats_of(folder)["retries"] else ""
    except (OSError, ValueError):
        return ""


def test_a_torn_cache_is_fetched_again(image, registry, tmp_path):
    with mounted(registry, tmp_path) as (target, _):
        right = tree(target)
    for path in (tmp_path / "cache").iterdir():
        with open(path, "r+b") as blob:
            blob.seek(1000)
            blob.write(os.urandom(30_000))
    with mounted(registry, tmp_path, "--no-prefetch", "--no-background") as (target, _):
        assert tree(target) == right


def test_a_cache_smaller_than_the_image_still_serves_all_of_it(image, registry, tmp_path):
    with mounted(registry, tmp_path, "--cache-limit", "200kB", "--memory", "200kB") as (target, _):
        assert tree(target) == tree(image / "tree")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_signals_and_crashes_leave_nothing_mounted(registry, tmp_path, number):
    with mounted(registry, tmp_path) as (target, process):
        held = os.open(target / "etc/hostname", os.O_RDONLY)
        process.send_signal(number)
        process.wait(15)
    # whoever still holds a file is told that its file system is gone
    with contextlib.suppress(OSError):
        os.close(held)


def test_a_layer_without_a_vouched_toc_is_refused(image, tmp_path):
    publish_image(tmp_path / "registry", image / "plain", REFERENCE)
    with serving("registry", tmp_path / "registry") as served:
        (tmp_path / "mnt").mkdir()
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "labkit",
                "image",
                "mount",
                f"{served.url}/{REFERENCE}",
                str(tmp_path / "mnt"),
                "--cache",
                str(tmp_path / "cache"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (
        done.returncode == 2
        and "no TOC digest" in done.stderr
        and "labkit image convert" in done.stderr
    )
    assert not is_mounted(tmp_path / "mnt")
