"""Both ways with the real tools: the snapshotter mounts what we write, and we mount what ctr-remote
writes."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from labkit.core.ledger import Ledger, remove_tree, unmount
from labkit.image import oci
from labkit.image.access_record import Access
from labkit.image.estargz.convert import convert
from labkit.image.estargz.layer_cache import Options
from labkit.image.oci_layout import Layout
from labkit.image.publish import publish_image
from labkit.image.tiny import REFERENCE, tiny_layout
from labkit.net.serving import serving
from tests.host.test_lazy_mount import mounted, tree

pytestmark = pytest.mark.needs("root", "stargz", "skopeo")


def odd_layer(layout: Layout) -> tuple[oci.Descriptor, str]:
    """What the tiny image lacks: extended attributes, a device, a FIFO, a sparse file's worth of
    zeros, modes, owners."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, about, data in (
            ("odd", {"type": tarfile.DIRTYPE, "mode": 0o750, "uid": 12}, b""),
            ("odd/null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b""),
            ("odd/pipe", {"type": tarfile.FIFOTYPE}, b""),
            ("odd/zeros", {}, bytes(5_000_000)),
            (
                "odd/attributes",
                {
                    "pax_headers": {"SCHILY.xattr.user.k": "v"},
                    "mode": 0o4711,
                    "mtime": 1_600_000_000,
                },
                b"x",
            ),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in about.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return layout.write_blob(out.getvalue(), oci.LAYER), oci.digest_of(out.getvalue())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    base = tmp_path_factory.mktemp("interop")
    manifest = tiny_layout(base / "plain", 900_000)
    plain = Layout(base / "plain")
    config = plain.config(manifest)
    extra, diff_id = odd_layer(plain)
    config["rootfs"]["diff_ids"].append(diff_id)
    plain.add(
        oci.Manifest(
            plain.write_blob(oci.canonical(config), oci.CONFIG), (*manifest.layers, extra)
        ),
        REFERENCE,
    )
    convert(
        plain,
        REFERENCE,
        Layout.create(base / "ours"),
        record=[Access("usr/bin/app-again"), Access("odd/zeros")],
        options=Options(chunk_bytes=100_000),
    )
    publish_image(base / "registry", base / "ours", REFERENCE)
    return base


@pytest.fixture(scope="module")
def node(images, workspace_module):
    """A private containerd with the real stargz snapshotter, and our registry: (socket, served)."""
    with (
        Ledger.open(workspace_module) as ledger,
        serving("registry", images / "registry", ledger=ledger) as served,
    ):
        run = Path("/tmp") / f"interop-{ledger.token}"  # a socket's path is short
        ledger.note("dir", run)
        run.mkdir()
        (run / "stargz.toml").write_text(
            f'[[resolver.host."{served.address}".mirrors]]\nhost = "{served.address}"\ninsecure ='
            " true\n"
        )
        (run / "config.toml").write_text(
            f'version = 2\nroot = "{run}/root"\nstate = "{run}/state"\ndisabled_plugins ='
            f' ["io.containerd.grpc.v1.cri"]\n[grpc]\n  address = "{run}/c.sock"\n[ttrpc]\n '
            f' address = "{run}/t.sock"\n[proxy_plugins.stargz]\n  type = "snapshot"\n  address ='
            f' "{run}/s.sock"\n'
        )
        with open(run / "log", "wb") as log:
            argvs = [
                [
                    "containerd-stargz-grpc",
                    "-address",
                    f"{run}/s.sock",
                    "-root",
                    f"{run}/stargz",
                    "-config",
                    f"{run}/stargz.toml",
                ],
                ["containerd", "-c", f"{run}/config.toml"],
            ]
            daemons = []
            for argv, sock in zip(argvs, ("s.sock", "c.sock"), strict=True):
                daemons.append(
                    subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
                )
                ledger.note("group", daemons[-1].pid)
                until = time.monotonic() + 20
                while (
                    not (run / sock).exists()
                    and time.monotonic() < until
                    and daemons[-1].poll() is None
                ):
                    time.sleep(0.05)
        try:
            yield f"{run}/c.sock", served
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(20)
            for line in Path("/proc/self/mountinfo").read_text().splitlines():
                if line.split(" ")[4].startswith(str(run)):
                    unmount(line.split(" ")[4])
            (run / "log").replace(images / "log")
            remove_tree(run)


@pytest.fixture(scope="module")
def workspace_module(tmp_path_factory):
    from labkit.core.workspace import Workspace

    return Workspace.at(tmp_path_factory.mktemp("lab"))


def must(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{argv}: {done.stderr[-1500:]}"
    return done.stdout


def test_the_real_snapshotter_mounts_what_we_write_lazily_and_shows_the_same_files(
    images, node, tmp_path
):
    sock, served = node
    image = f"{served.address}/{REFERENCE}"
    served.reset()
    must("ctr-remote", "-a", sock, "images", "rpull", "--plain-http", image)
    chain = ""
    for diff_id in Layout(images / "ours").config(Layout(images / "ours").manifest(REFERENCE))[
        "rootfs"
    ]["diff_ids"]:
        chain = oci.digest_of(f"{chain} {diff_id}".encode()) if chain else diff_id
    (tmp_path / "theirs").mkdir()
    command = must(
        "ctr",
        "-a",
        sock,
        "snapshots",
        "--snapshotter",
        "stargz",
        "view",
        "--target",
        str(tmp_path / "theirs"),
        "look",
        chain,
    )
    must("sh", "-c", command)
    try:
        assert "fuse.rawBridge" in Path("/proc/self/mountinfo").read_text()
        theirs = tree(tmp_path / "theirs")
        assert os.getxattr(tmp_path / "theirs/odd/attributes", "user.k") == b"v"
    finally:
        unmount(tmp_path / "theirs")
    with mounted(served, tmp_path) as (target, _):
        ours = tree(target)
        assert os.getxattr(target / "odd/attributes", "user.k") == b"v"
    # A name that is not UTF-8 cannot stand in JSON: the reference tool shows U+FFFD in its place,
    # we the bytes.
    assert {k.decode(errors="replace").replace("\ufffd", "?") for k in theirs} == {
        k.decode(errors="replace").replace("\ufffd", "?") for k in ours
    }
    for path, about in ours.items():
        if (
            path.decode(errors="replace") in {k.decode(errors="replace") for k in theirs}
            and path in theirs
        ):
            assert about[:3] == theirs[path][:3], path


def test_we_mount_what_ctr_remote_writes(images, node, tmp_path):
    sock, served = node
    archive = tmp_path / "image.tar"
    must(
        "skopeo",
        "--insecure-policy",
        "copy",
        "--quiet",
        f"oci:{images}/plain:{REFERENCE}",
        f"oci-archive:{archive}:localhost/plain:latest",
    )
    must(
        "ctr",
        "-a",
        sock,
        "images",
        "import",
        "--no-unpack",
        "--base-name",
        "localhost/plain",
        str(archive),
    )
    name = next(n for n in must("ctr", "-a", sock, "images", "ls", "-q").split() if "plain" in n)
    target_name = f"{served.address}/lab/theirs:latest"
    must(
        "ctr-remote",
        "-a",
        sock,
        "images",
        "convert",
        "--estargz",
        "--oci",
        "--estargz-chunk-size",
        "100000",
        name,
        target_name,
    )
    must("ctr", "-a", sock, "images", "push", "--plain-http", target_name)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    with mounted(served, tmp_path / "ours") as (target, _):
        ours = tree(target)
    with mounted(served, tmp_path / "theirs", name="lab/theirs:latest") as (target, _):
        theirs = tree(target)
    odd = os.fsencode("usr/share/latin-")
    assert {k: v for k, v in theirs.items() if not k.startswith(odd)} == {
        k: v for k, v in ours.items() if not k.startswith(odd)
    }


def test_any_eager_runtime_unpacks_what_we_write(images):
    plain, ours = Layout(images / "plain"), Layout(images / "ours")
    held = [
        (manifest.layers, layout.config(manifest)["rootfs"]["diff_ids"])
        for layout in (plain, ours)
        for manifest in (layout.manifest(REFERENCE),)
    ]
    (layers, ids), (our_layers, our_ids) = held
    for a, a_id, b, b_id in zip(layers, ids, our_layers, our_ids, strict=True):
        names = []
        for layout, layer, diff_id in ((plain, a, a_id), (ours, b, b_id)):
            with layout.plain_layer(layer, diff_id) as tar:
                raw = b"".join(tar)
            names.append({m.name for m in tarfile.open(fileobj=io.BytesIO(raw))})
        assert (
            names[1] - names[0]
            <= {"stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark"}
            and names[0] <= names[1]
        )
