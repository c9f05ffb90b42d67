"""What becomes of a restored GPU process, and of descriptors that are closed in another process. No
GPU, no CRIU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from labkit.core import client
from labkit.device import served
from labkit.device.fake_driver import FakeDriver
from labkit.snapshot import criu, cuda, descriptors, gpu_process, tracee
from labkit.snapshot.explain import SnapshotError

traces = pytest.mark.skipif(
    not tracee.supported(), reason="system calls are carried out on x86-64 only"
)


@pytest.fixture
def child():
    """A process with /dev/zero under two numbers, one of them to be closed on exec, that answers
    what it can read from them."""
    code = (
        "import os, sys\nfd = os.open('/dev/zero', os.O_RDWR | os.O_CLOEXEC); os.dup2(fd, 37,"
        " inheritable=True)\nprint(fd, flush=True)\nfor line in sys.stdin:\n    try:"
        " print(len(os.read(int(line), 3)), flush=True)\n    except OSError as error:"
        " print(-error.errno, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.fd = int(process.stdout.readline())

    def reads(fd: int) -> int:
        process.stdin.write(f"{fd}\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    process.reads = reads
    yield process
    process.kill()
    process.communicate()


@traces
def test_what_was_closed_in_another_process_is_open_again_under_its_numbers(child):
    before = descriptors.open_ones(child.pid, "/dev/zero")
    assert [one.number for one in before] == [child.fd, 37] and child.reads(37) == 3
    closed = descriptors.close(child.pid, "/dev/zero")
    assert (
        closed == before
        and descriptors.open_ones(child.pid, "/dev/zero") == []
        and child.reads(37) < 0
    )
    descriptors.reopen(child.pid, closed)
    assert descriptors.open_ones(child.pid, "/dev/zero") == before
    assert child.reads(37) == 3 == child.reads(child.fd)


@traces
def test_a_file_that_is_not_there_any_more_is_an_error_with_its_name(child):
    closed = descriptors.close(child.pid, "/dev/zero")
    with pytest.raises(tracee.TraceError, match="/dev/gone"):
        descriptors.reopen(child.pid, [descriptors.Closed(closed[0].number, "/dev/gone", 0, 0)])


def test_what_a_process_holds_of_the_driver_s_files_is_told(child):
    found = served.held(child.pid, "/dev/zero")
    assert (
        found["descriptors"] == {str(child.fd): "/dev/zero", "37": "/dev/zero"}
        and found["mappings"] == []
    )


def restored(tmp_path, monkeypatch, restore) -> dict:
    serving = SimpleNamespace(
        port=1, log=tmp_path / "server.log", answer=client.Answer(0.0, 1.0, tokens=[1, 2])
    )
    serving.log.write_text("")
    monkeypatch.setattr(cuda, "restore", restore)
    (tmp_path / "images").mkdir(exist_ok=True)
    one = {"want": "warm"}
    cuda._restored(FakeDriver(), serving, tmp_path / "images", tmp_path / "work", {}, [], [], one)
    return one


def test_a_restored_process_that_died_is_an_outcome_with_its_signal_and_its_last_words(
    tmp_path, monkeypatch
):
    def restore(*_, **__):
        code = (
            f"import os; open({str(tmp_path / 'server.log')!r}, 'a').write('it met a tile');"
            f" os.kill(os.getpid(), {int(signal.SIGILL)})"
        )
        # nobody else takes its exit status
        pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return pid

    one = restored(tmp_path, monkeypatch, restore)
    assert (
        one["outcome"] == "died"
        and "SIGILL" in one["error"]
        and "it met a tile" in one["error"]
        and one["gone_to_first_token_s"] is None
    )


def test_a_restore_that_is_refused_is_an_outcome_with_the_reason(tmp_path, monkeypatch):
    def restore(*_, **__):
        raise SnapshotError(
            "the driver did not restore process 7", "the GPU is of another model", ""
        )

    one = restored(tmp_path, monkeypatch, restore)
    assert (
        one["outcome"] == "refused"
        and "another model" in one["error"]
        and "gone_to_first_token_s" not in one
    )


def test_a_process_whose_gpu_state_does_not_come_back_is_ended(tmp_path, monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    driver = FakeDriver({process.pid: 1000})
    driver.processes[process.pid]["state"] = "checkpointed"
    driver.fail["restore"] = "CUDA_ERROR_OUT_OF_MEMORY"
    monkeypatch.setattr(criu, "restore", lambda *_, **__: criu.Restored(process.pid, None))
    seen: dict = {}
    with pytest.raises(SnapshotError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        gpu_process.restore(driver, tmp_path, tmp_path, {}, found=seen)
    assert seen["ended"] == "it was ended" and not os.path.exists(f"/proc/{process.pid}")
    process.returncode = -9


def test_a_refused_dump_closes_nothing_for_good_and_brings_the_process_back(
    tmp_path, monkeypatch, child
):
    driver = FakeDriver({child.pid: 1000})

    def refuse(*_, **__):
        assert (
            driver.state(child.pid) == "checkpointed"
            and descriptors.open_ones(child.pid, "/dev/zero") == []
        )
        raise SnapshotError("refused")

    if not tracee.supported():
        pytest.skip("x86-64 only")
    monkeypatch.setattr(criu, "dump", refuse)
    seen: dict = {}
    with pytest.raises(SnapshotError, match="refused"):
        gpu_process.dump(driver, child.pid, tmp_path, tmp_path, close="/dev/zero", found=seen)
    assert (
        driver.state(child.pid) == "running"
        and child.reads(37) == 3
        and seen["device_bytes"] == 1000
    )
