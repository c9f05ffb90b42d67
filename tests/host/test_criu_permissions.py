"""CPU permissions over a real dump and restore: kept in the manifest, asked for before a thread
runs, read back; and restored processes that die.

Where the host has AMX the real thing runs (`needs("amx")`, required there by CI); elsewhere a
kernel that answers as one does stands in, around the same CRIU, the same processes and the same
containers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from labkit.core.ledger import start_time
from labkit.core.workspace import Workspace
from labkit.image import build
from labkit.image.pull import ensure_rootfs
from labkit.snapshot import container, container_create, create, criu, store, xstate
from labkit.snapshot.cycle import restored
from labkit.snapshot.explain import SnapshotError, SnapshotRefused
from labkit.snapshot.techniques import MAPPED
from labkit.snapshot.tracee import Tracee
from labkit.subject import checkpoint
from tests.support.xstate import AMX, PLAIN, KernelWithAMX

pytestmark = pytest.mark.needs("root", "criu")


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class Watching(KernelWithAMX):
    """Every process had asked before its dump; after a restore none has. Notes in which state each
    was when it was asked for."""

    def __init__(self) -> None:
        super().__init__(default=AMX)
        self.states: list[str] = []

    def forget(self, root: int) -> None:
        """What CRIU does to the processes that it brings back."""
        self.masks |= dict.fromkeys(xstate.tree(root).values(), PLAIN)

    def request(self, pid: int, feature: int) -> int:
        until = time.monotonic() + 5
        # on its way there: the signal is pending
        while state(pid) != "T" and time.monotonic() < until:
            os.sched_yield()
        self.states.append(state(pid))
        return super().request(pid, feature)


@pytest.fixture(scope="module")
def home(lab_home) -> Workspace:
    return Workspace.at(lab_home)


@pytest.fixture(scope="module")
def model(home) -> Path:
    return Path(checkpoint.ensure(home, "tiny"))


@pytest.fixture
def kernel() -> Iterator[Watching]:
    with watched() as kernel:
        yield kernel


@contextmanager
def watched() -> Iterator[Watching]:
    kernel, hand_on = Watching(), xstate.hand_on
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xstate, "KERNEL", kernel)
        patch.setattr(
            xstate, "hand_on", lambda root, wanted: kernel.forget(root) or hand_on(root, wanted)
        )
        yield kernel


@pytest.fixture(
    scope="module", params=["process", pytest.param("container", marks=pytest.mark.needs("runc"))]
)
def make(request, home, model, tmp_path_factory) -> Callable[[Path], store.Snapshot]:
    def process(target: Path) -> store.Snapshot:
        return create.make_process(model, target, loader=MAPPED)

    def runc(target: Path) -> store.Snapshot:
        layout, name = build.ensure_image(home)
        rootfs, config = ensure_rootfs(layout, name, home.artifacts / "rootfs")
        return container_create.make_container(
            rootfs,
            config,
            model,
            target,
            loader=MAPPED,
            scratch=tmp_path_factory.mktemp("scratch"),
        )

    return process if request.param == "process" else runc


@pytest.fixture(scope="module")
def dumped(make, tmp_path_factory) -> tuple[store.Snapshot, list[str]]:
    """A snapshot whose processes had the permission, and the states in which its proof found them:
    made once for all that only restore it."""
    with watched() as kernel:
        return make(tmp_path_factory.mktemp("permissions") / "snapshot"), kernel.states


@pytest.fixture
def snapshot(dumped) -> store.Snapshot:
    return dumped[0]


def test_the_mask_goes_into_the_manifest_and_back_into_every_restored_process_before_it_runs(
    dumped, home, kernel
):
    snapshot, proof = dumped
    assert snapshot.manifest.permissions and set(snapshot.manifest.permissions.values()) == {AMX}
    assert len(proof) == len(snapshot.manifest.permissions), (
        "the proof of a snapshot has to hand them on as well"
    )
    with restored(snapshot, home) as back:
        assert back.facts["permissions"] == {
            "dumped": {p: hex(AMX) for p in snapshot.manifest.permissions},
            "restored": {p: hex(PLAIN) for p in snapshot.manifest.permissions},
            "now": {p: hex(AMX) for p in snapshot.manifest.permissions},
        }
        assert tuple(back.answer.tokens) == snapshot.manifest.tokens
    assert {*proof, *kernel.states} == {"T"}, "a thread could have computed before"


def test_a_permission_that_is_denied_ends_the_restored_process(snapshot, home, kernel):
    before, kernel.how = sorted(p for p in criu.children()), "denies"
    with pytest.raises(SnapshotError, match="AMX tile data"), restored(snapshot, home):
        raise AssertionError("it was let run")
    assert sorted(p for p in criu.children() if start_time(p)) == before


def test_a_host_that_cannot_grant_it_starts_nothing(snapshot, home, kernel, monkeypatch):
    kernel.grants = PLAIN
    monkeypatch.setattr(criu, "restore", lambda *_, **__: pytest.fail("CRIU was started"))
    monkeypatch.setattr(container, "runc", lambda *_, **__: pytest.fail("runc was started"))
    with pytest.raises(SnapshotRefused, match="AMX tile data"), restored(snapshot, home):
        raise AssertionError("it was restored")


def test_a_snapshot_that_does_not_say_is_refused_where_it_matters(snapshot, home, kernel, tmp_path):
    path = tmp_path / "old"
    shutil.copytree(snapshot.path, path, copy_function=os.link)
    old = store.Snapshot(
        path,
        store.Manifest(**{**snapshot.manifest.__dict__, "permissions": {}, "schema": 1}),
    )
    (path / "manifest.json").unlink()
    (path / "manifest.json").write_text(json.dumps(old.manifest.__dict__))
    with pytest.raises(SnapshotRefused, match="does not say"), restored(old, home):
        raise AssertionError("it was restored")


def test_a_snapshot_whose_restored_process_dies_says_by_which_signal_and_is_not_kept(
    make, tmp_path, monkeypatch
):
    monkeypatch.setattr(criu, "resume", die_instead)
    with pytest.raises(SnapshotError) as caught:
        make(tmp_path / "snapshot")
    report = str(caught.value)
    assert (
        "SIGILL (illegal instruction)" in report
        and "CPU features here" in report
        and "ONEDNN_MAX_CPU_ISA" in report
    )
    assert not (tmp_path / "snapshot").exists() and not list(tmp_path.glob(".snapshot*"))


def test_a_restored_process_that_dies_is_no_time_out(snapshot, home, kernel, monkeypatch):
    monkeypatch.setattr(criu, "resume", die_instead)
    with pytest.raises(SnapshotError, match="SIGILL"), restored(snapshot, home):
        raise AssertionError("it answered")


@pytest.mark.parametrize("make", ["process"], indirect=True)
def test_a_process_whose_pages_come_later_is_asked_before_any_has_come(snapshot, home, kernel):
    with restored(snapshot, home, lazy=True) as back:
        assert back.facts["lazy"] and tuple(back.answer.tokens) == snapshot.manifest.tokens
    assert len(kernel.states) == len(snapshot.manifest.permissions)
    assert set(kernel.states) == {"T"}


def test_the_kernels_own_answer_is_read_in_a_process_whose_pages_come_later(home, model, tmp_path):
    snapshot = create.make_process(model, tmp_path / "snapshot", loader=MAPPED)
    with restored(snapshot, home, lazy=True) as back:
        assert back.facts["lazy"] and set(back.facts["permissions"]["now"]) == set(
            snapshot.manifest.permissions
        )


def die_instead(pid: int) -> None:
    """What the first AMX instruction of a process without permission does to it: the next one that
    it meets is invalid.

    A fault, not a signal from outside: the first process of a namespace ignores those."""
    with Tracee(pid) as tracee:
        registers = tracee.registers()
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(registers["rip"])
            memory.write(b"\x0f\x0b")  # ud2
        # not back into the call that it waited in
        tracee.set_registers(registers | {"orig_rax": 2**64 - 1})
    os.kill(pid, signal.SIGCONT)


#: ldtilecfg [rdi]; tilezero tmm0; tilerelease; ret
TILES = "c4e2784907 c4e27b49c0 c4e27849c0 c3"
ASKS = f"""
import ctypes, mmap, os, signal, time
libc = ctypes.CDLL(None)
assert libc.syscall(158, 0x1023, 18) == 0
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex({TILES!r}))
config = (ctypes.c_ubyte * 64)()
config[0], config[16], config[48] = 1, 64, 16
tiles = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
tiles(config)
open("ready", "w").close()
while not os.path.exists("again"): time.sleep(0.01)
tiles(config)
open("done", "w").close()
while True: time.sleep(1)
"""


@pytest.mark.needs("amx")
def test_a_program_that_computes_in_tiles_goes_on_computing_after_its_restore(tmp_path):
    started = subprocess.Popen(
        [sys.executable, "-c", ASKS],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    back = None
    try:
        wait_for(tmp_path / "ready", started.pid)
        (tmp_path / "images").mkdir()
        dumped = criu.dump(started.pid, tmp_path / "images", tmp_path / "work")
        assert all(mask & xstate.DYNAMIC_MASK for mask in dumped["permissions"].values())
        started.wait()
        back = criu.restore(
            tmp_path / "images", tmp_path / "work", permissions=dumped["permissions"]
        )
        assert not back.handed.lacking
        (tmp_path / "again").touch()
        wait_for(tmp_path / "done", back.pid)
    finally:
        criu.end([started.pid, *([back.pid] if back else [])])


def wait_for(path: Path, pid: int) -> None:
    until = time.monotonic() + 30
    while not path.exists() and start_time(pid) and time.monotonic() < until:
        os.sched_yield()
    assert path.exists(), "it ended before" if not start_time(pid) else "it hangs"
