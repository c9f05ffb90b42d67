"""Containers with the real CRIU, through runc: dumped, restored as themselves, refused in words,
nothing left behind."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.core import beside
from labkit.core.ledger import start_time
from labkit.core.workspace import Workspace
from labkit.image import build
from labkit.image.pull import ensure_rootfs
from labkit.image.runtimes import runc
from labkit.snapshot import container_create, criu, store, subject_server
from labkit.snapshot.cycle import restored
from labkit.snapshot.explain import SnapshotError, SnapshotRefused
from labkit.snapshot.techniques import MAPPED
from labkit.subject import checkpoint

pytestmark = pytest.mark.needs("root", "criu", "runc")


@pytest.fixture(scope="module")
def home(lab_home) -> Workspace:
    return Workspace.at(lab_home)


@pytest.fixture(scope="module")
def image(home):
    layout, name = build.ensure_image(home)
    return ensure_rootfs(layout, name, home.artifacts / "rootfs")


@pytest.fixture(scope="module")
def model(home) -> Path:
    return Path(checkpoint.ensure(home, "tiny"))


@pytest.fixture(scope="module")
def snapshot(home, image, model):
    rootfs, config = image
    made = container_create.make_container(
        rootfs,
        config,
        model,
        home.artifacts / "container-under-test",
        loader=MAPPED,
        scratch=home.nodes / "container-under-test-work",
    )
    yield made
    from labkit.core.ledger import remove_tree

    remove_tree(made.path)


def left(home: Workspace) -> dict[str, object]:
    """Everything a container may leave: processes, node directories, mounts, cgroups,
    descriptors."""
    mounts = Path("/proc/self/mountinfo").read_text().count(str(home.root))
    groups = sorted(
        str(p)
        for pattern in ("labkit/labkit-*", "*/labkit/labkit-*")
        for p in Path("/sys/fs/cgroup").glob(pattern)
    )
    return {
        "children": sorted(criu.children()),
        "nodes": sorted(os.listdir(home.nodes)),
        "mounts": mounts,
        "cgroups": groups,
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def test_the_dumped_container_itself_answers_alike_in_its_own_namespaces_and_nothing_is_left(
    snapshot, home
):
    before = left(home)
    with restored(snapshot, home) as back:
        pid = back.pid
        assert back.port != snapshot.manifest.port
        assert tuple(back.answer.tokens) == snapshot.manifest.tokens
        who = subject_server.get(back.port, "/_labkit/identity")
        assert who["nonce"] == snapshot.manifest.nonce and who["reseeded"] >= 1
        for kind in ("mnt", "pid", "ipc", "uts"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    assert not start_time(pid)
    assert left(home) == before


def test_weights_and_libraries_of_a_container_stay_outside_of_its_image(snapshot, model, image):
    manifest = snapshot.manifest
    assert manifest.technique == "criu-container"
    assert list(manifest.mapped) == [str(model / "model.safetensors")]
    assert any(
        "libtorch" in path and os.path.exists(str(image[0]) + path) for path in manifest.working_set
    )


def test_a_damaged_image_of_a_container_is_refused_and_no_container_is_made(snapshot, home):
    pages = next(p for p in sorted(snapshot.criu_images.iterdir()) if store.is_pages(p.name))
    before = left(home)
    with flipped(pages), pytest.raises(SnapshotRefused, match=pages.name), restored(snapshot, home):
        pass
    assert left(home) == before


def test_a_container_of_another_kernel_is_refused(snapshot, home):
    foreign = replace(
        snapshot.manifest, place={**snapshot.manifest.place, "kernel": "5.10.0-other"}
    )
    with pytest.raises(SnapshotRefused, match=r"5\.10\.0-other"):
        store.Snapshot(snapshot.path, foreign).refuse_if_foreign(criu=criu.version())


def test_a_live_connection_is_refused_in_words_and_the_container_goes_on(
    home, image, model, tmp_path
):
    rootfs, config = image
    with beside.scratch("refused-", tmp_path) as work:
        subject = container_create.ContainerSubject(rootfs, config, model, MAPPED, "refused", work)
        with subject.context() as ctx:
            runc.start(ctx)
            pid = ctx.state.server_pid
            asked = {"prompt": subject_server.PROMPT, "max_tokens": 4}
            tokens = subject_server.first_tokens(
                ctx.port, asked, lambda: start_time(pid) != 0
            ).tokens
            (work / "images").mkdir()
            with (
                socket.create_connection(("127.0.0.1", ctx.port)),
                pytest.raises(SnapshotError) as caught,
            ):
                container_create.checkpoint(ctx.state.container, work / "images", work / "work")
            assert (
                "TCP connection is open" in caught.value.what
                and "goes on running" in caught.value.why
            )
            assert (
                tokens
                and subject_server.first_tokens(
                    ctx.port, asked, lambda: start_time(pid) != 0
                ).tokens
                == tokens
            )


class flipped:
    """One bit of a file turned over for the length of the block."""

    def __init__(self, path: Path):
        self.path, self.at = path, path.stat().st_size // 2

    def __enter__(self) -> None:
        with open(self.path, "r+b") as file:
            file.seek(self.at)
            byte = file.read(1)
            file.seek(self.at)
            file.write(bytes([byte[0] ^ 1]))

    def __exit__(self, *_: object) -> None:
        self.__enter__()
