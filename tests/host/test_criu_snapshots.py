"""Snapshots with the real CRIU: what comes back, what is refused, and that nothing is left
behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labkit.core.ledger import start_time, unmount
from labkit.core.workspace import Workspace
from labkit.snapshot import create, criu, criu_images, store, subject_server
from labkit.snapshot.cycle import restored, soak
from labkit.snapshot.explain import SnapshotError, SnapshotRefused

pytestmark = pytest.mark.needs("root", "criu")

LOADER = "labkit.weights.loaders.safe:load"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Workspace:
    return Workspace.at(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def model(home) -> Path:
    from labkit.subject import checkpoint

    return Path(checkpoint.ensure(home, "tiny"))


@pytest.fixture(scope="module")
def snapshot(home, model) -> store.Snapshot:
    environment = store.scrubbed(
        {**subject_server.short_environment(), "HF_TOKEN": "hf_neverinthe" + "image"}
    )
    return create.make_process(
        model, home.artifacts / "tiny", loader=LOADER, environment=environment
    )


def plain(code: str, **options) -> subprocess.Popen[bytes]:
    """A small process of its own session that says when it is ready (by create a file)."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        **options,
    )


def wait_for(path: Path) -> None:
    until = time.monotonic() + 20
    while not path.exists() and time.monotonic() < until:
        os.sched_yield()
    assert path.exists()


@contextlib.contextmanager
def process(tmp_path: Path, code: str):
    ready = tmp_path / "ready"
    started = plain(
        f"import os, time\n{code}\nopen({str(ready)!r}, 'w').close()\nwhile True: time.sleep(0.05)"
    )
    try:
        wait_for(ready)
        yield started.pid
        assert started.poll() is None, "the process did not go on running"
    finally:
        started.kill()
        started.wait()


def children_and_nodes(home: Workspace) -> tuple[list[int], list[str], int]:
    return sorted(criu.children()), sorted(os.listdir(home.nodes)), len(os.listdir("/proc/self/fd"))


def test_the_dumped_process_itself_answers_alike_on_another_port_and_nothing_is_left(
    snapshot, home
):
    before = children_and_nodes(home)
    with restored(snapshot, home) as back:
        assert back.port != snapshot.manifest.port
        assert tuple(back.answer.tokens) == snapshot.manifest.tokens
        assert (
            subject_server.get(back.port, "/_labkit/identity")["nonce"] == snapshot.manifest.nonce
        )
        pid = back.pid
    assert not start_time(pid)
    assert children_and_nodes(home) == before


def test_two_clones_of_one_snapshot_do_not_sample_alike(snapshot, home):
    hot = {"prompt": subject_server.PROMPT, "max_tokens": 10, "temperature": 2.0}
    drawn = []
    for _ in range(2):
        with restored(snapshot, home) as back:
            import json
            import urllib.request

            request = urllib.request.Request(
                f"http://127.0.0.1:{back.port}/v1/completions",
                json.dumps(hot).encode(),
                {"Connection": "close"},
            )
            drawn.append(
                json.loads(urllib.request.urlopen(request, timeout=60).read())["choices"][0][
                    "token_ids"
                ]
            )
            assert subject_server.get(back.port, "/_labkit/identity")["reseeded"] >= 1
    assert drawn[0] != drawn[1]


def test_a_scrubbed_secret_is_nowhere_in_the_image(snapshot):
    needle = ("hf_neverinthe" + "image").encode()
    assert not snapshot.manifest.secrets
    assert not any(needle in path.read_bytes() for path in snapshot.criu_images.iterdir())


def test_the_weights_stay_outside_of_the_image(snapshot, model):
    assert list(snapshot.manifest.mapped) == [str(model / "model.safetensors")]
    assert sum(criu_images.contents(snapshot.criu_images).values()) == sum(
        p.stat().st_size for p in snapshot.criu_images.glob("pages-*.img")
    )


@contextlib.contextmanager
def changed(path: Path, at: int, to: bytes | None = None):
    """One byte of a file is another for the length of the block (default: its lowest bit
    turned)."""
    whole = path.read_bytes() if path.stat().st_size < 1 << 20 else None
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(to or bytes([byte[0] ^ 1]))
    try:
        yield
    finally:
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(byte)
    assert whole is None or path.read_bytes() == whole


def test_any_image_file_with_one_corrupted_byte_is_refused_and_nothing_runs(snapshot, home):
    before, files = (
        children_and_nodes(home),
        [p for p in sorted(snapshot.criu_images.iterdir()) if p.stat().st_size],
    )
    assert {"files.img", "inventory.img"} <= {p.name for p in files} and any(
        store.is_pages(p.name) for p in files
    )
    for path in files:
        with (
            changed(path, path.stat().st_size // 2),
            pytest.raises(SnapshotRefused, match=path.name),
            restored(snapshot, home),
        ):
            pass
    assert children_and_nodes(home) == before


@pytest.mark.parametrize("key", ["kernel", "machine", "cpu", "cpu_features"])
def test_one_changed_byte_of_the_card_of_kernel_and_cpu_is_refused_and_nothing_runs(
    snapshot, home, key
):
    manifest, value = snapshot.path / "manifest.json", snapshot.manifest.place[key]
    # The value's last byte, where the card has it: after "place".
    data = manifest.read_bytes()
    at = (
        data.index(f'"{key}": "{value}"'.encode(), data.index(b'"place"'))
        + len(f'"{key}": "{value}"')
        - 2
    )
    before = children_and_nodes(home)
    with (
        changed(manifest, at, b"~"),
        pytest.raises(SnapshotRefused, match="another host") as caught,
        restored(store.open_snapshot(snapshot.path), home),
    ):
        pass
    assert f"{value[:-1]}~" in caught.value.what and children_and_nodes(home) == before


def test_a_criu_that_is_killed_while_it_restores_leaves_nothing_running(
    snapshot, home, monkeypatch
):
    before, run = children_and_nodes(home), criu._run

    def kill_it(argv, on_start):
        def soon(started):
            until = time.monotonic() + 10
            while (
                len(criu.children()) <= len(before[0]) + 1
                and started.poll() is None
                and time.monotonic() < until
            ):
                os.sched_yield()  # until the first restored task is there beside CRIU itself
            started.send_signal(signal.SIGKILL)

        return run(argv, soon)

    monkeypatch.setattr(criu, "_run", kill_it)
    with pytest.raises(SnapshotError), restored(snapshot, home):
        pass
    assert children_and_nodes(home) == before


def test_a_criu_that_is_killed_while_it_dumps_leaves_no_snapshot(home, tmp_path):
    target = home.artifacts / "killed"
    with (
        contextlib.suppress(AssertionError),
        process(tmp_path, "held = bytearray(os.urandom(1 << 20) * 400)") as pid,
    ):
        with pytest.raises(SnapshotError), store.writing(target) as part:

            def as_it_writes(started):
                until = time.monotonic() + 20
                while (
                    not any((part / "images").glob("pages-*.img"))
                    and started.poll() is None
                    and time.monotonic() < until
                ):
                    os.sched_yield()
                started.send_signal(signal.SIGKILL)

            criu.dump(pid, part / "images", tmp_path / "work", on_start=as_it_writes)
    assert not [p for p in home.artifacts.iterdir() if "killed" in p.name]
    with pytest.raises(SnapshotRefused):
        store.open_snapshot(target)


def refused_dump(tmp_path: Path, code: str, home: Workspace) -> SnapshotError:
    with process(tmp_path, code) as pid, pytest.raises(SnapshotError) as caught:
        create.dump_running(pid, home.artifacts / "refused")
    assert not (home.artifacts / "refused").exists()
    assert "goes on running" in caught.value.why
    return caught.value


def test_a_live_connection_is_refused_in_words_and_the_process_goes_on(home, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = (
            "import socket\nkept = socket.create_connection(('127.0.0.1',"
            f" {server.getsockname()[1]}))"
        )
        assert "TCP connection is open" in refused_dump(tmp_path, code, home).what


def test_an_io_uring_is_refused_in_words_and_the_process_goes_on(home, tmp_path):
    code = (
        "import ctypes\nfd = ctypes.CDLL(None).syscall(425, 4, ctypes.create_string_buffer(120))\n"
        f"open({str(tmp_path / 'uring')!r}, 'w').write(str(fd))"
    )
    probe = subprocess.run([sys.executable, "-c", code], check=True)
    assert probe.returncode == 0
    if int((tmp_path / "uring").read_text()) < 0:
        pytest.skip("io_uring is turned off on this host")
    assert "io_uring" in refused_dump(tmp_path, code, home).what


def test_a_full_disk_is_refused_in_words_and_the_process_goes_on(home, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(small)], check=True)
    try:
        with (
            process(tmp_path, "held = bytearray(os.urandom(1 << 20) * 80)") as pid,
            pytest.raises(SnapshotError) as caught,
        ):
            create.dump_running(pid, small / "snapshot")
        assert "disk filled up" in caught.value.what
        assert os.listdir(small) == []
    finally:
        unmount(small)


def test_a_running_process_is_dumped_and_goes_on(home, tmp_path):
    with process(tmp_path, "held = 1") as pid:
        made = create.dump_running(pid, home.artifacts / "any")
    assert made.manifest.size_bytes > 0


def test_a_soak_of_two_cycles_loses_nothing_and_leaves_nothing(home):
    found = soak(home, preset="tiny", cycles=2)
    assert found["ok"], found
