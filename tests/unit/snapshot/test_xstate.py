"""CPU permissions: read and asked for inside of another process, and handed on – against the real
kernel, and against one that has AMX."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labkit.snapshot import xstate
from labkit.snapshot.explain import SnapshotError, SnapshotRefused
from labkit.snapshot.tracee import Tracee, TraceError, supported
from tests.support.xstate import AMX, PLAIN, KernelWithAMX

traced = pytest.mark.skipif(
    not supported(), reason="x86-64 only: other architectures have no such permissions"
)
GETPID, ARCH_PRCTL, NO_SUCH_CALL = 39, 158, 1000


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def busy():
    """Four threads: one sleeps in a call that would return early if it were not restarted, three
    compute."""
    code = (
        "import threading, time\ndef work():\n    while True: sum(range(500))\nfor _ in range(3):"
        " threading.Thread(target=work, daemon=True).start()\nprint('ready', flush=True)\nbegan ="
        " time.monotonic()\ntime.sleep(1)\nprint(time.monotonic() - began >= 1,"
        " flush=True)\nprint(input(), flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


@traced
def test_a_call_is_made_by_the_process_itself(busy):
    with Tracee(busy.pid) as tracee:
        assert tracee.call(GETPID) == busy.pid
        assert tracee.call(NO_SUCH_CALL) == -errno.ENOSYS


@traced
def test_the_mask_read_from_outside_is_the_one_that_the_process_reads_itself():
    code = (
        f"import ctypes\nmask = ctypes.c_uint64()\nfailed = ctypes.CDLL(None).syscall({ARCH_PRCTL},"
        f" {xstate.GET_PERMISSION}, ctypes.byref(mask))\nprint(0 if failed else mask.value,"
        " flush=True)\ninput()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert xstate.Kernel().of(child.pid) == int(child.stdout.readline())
    finally:
        child.kill()
        child.communicate()


@traced
def test_a_process_goes_on_as_it_was_after_a_hundred_looks(busy):
    for _ in range(100):
        xstate.Kernel().of(busy.pid)
    assert busy.stdout.readline() == "True\n", "its sleep was cut short"
    busy.stdin.write("still here\n")
    busy.stdin.flush()
    assert busy.stdout.readline() == "still here\n"


@traced
def test_a_stopped_process_is_still_stopped_afterwards(busy):
    os.kill(busy.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, busy.pid, os.WSTOPPED | os.WNOWAIT)
    with Tracee(busy.pid) as tracee:
        assert tracee.call(GETPID) == busy.pid
    until = time.monotonic() + 10
    while state(busy.pid) != "T" and time.monotonic() < until:
        os.sched_yield()
    assert state(busy.pid) == "T"


@traced
def test_a_signal_that_comes_meanwhile_is_delivered():
    """To the one thread there is: a second would take it, and a deadly one would end the process
    under the tracer's eyes."""
    code = (
        "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('heard',"
        " flush=True))\nprint('ready', flush=True)\ninput()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        with Tracee(child.pid) as tracee:
            os.kill(child.pid, signal.SIGUSR1)
            assert tracee.call(GETPID) == child.pid
        assert child.stdout.readline() == "heard\n"
    finally:
        child.kill()
        child.communicate()


@traced
def test_a_process_that_is_killed_under_the_tracers_eyes_is_an_error_in_words(busy):
    with pytest.raises(TraceError), Tracee(busy.pid) as tracee:
        busy.kill()
        busy.wait(10)
        tracee.call(GETPID)


@traced
def test_who_is_traced_already_or_gone_is_refused_in_words(busy):
    with Tracee(busy.pid), pytest.raises(TraceError) as caught:
        Tracee(busy.pid).__enter__()
    assert "cannot be traced" in caught.value.what and caught.value.fix
    with pytest.raises(TraceError):
        Tracee(2**22 - 1).__enter__()


@traced
def test_the_kernels_own_answer_to_a_request_comes_back(busy):
    """On a host with AMX it is granted, and inherited by nobody else; on one without, the kernel's
    refusal is the answer."""
    kernel = xstate.Kernel()
    before = kernel.of(busy.pid)
    answer = kernel.request(busy.pid, 18)
    if kernel.supported() & xstate.DYNAMIC_MASK:
        assert answer == 0 and kernel.of(busy.pid) == before | xstate.DYNAMIC_MASK
    else:
        assert (
            answer in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV)
            and kernel.of(busy.pid) == before
        )


@pytest.fixture
def amx(monkeypatch) -> KernelWithAMX:
    kernel = KernelWithAMX()
    monkeypatch.setattr(xstate, "KERNEL", kernel)
    return kernel


def test_what_a_process_had_is_asked_for_again_and_read_back(amx, busy):
    amx.masks[busy.pid] = PLAIN  # as CRIU leaves it
    wanted = {str(busy.pid): AMX}
    handed = xstate.hand_on(busy.pid, wanted)
    assert amx.requests == [(busy.pid, 18)]
    assert (handed.restored, handed.now, handed.lacking) == (
        {str(busy.pid): PLAIN},
        {str(busy.pid): AMX},
        {},
    )
    assert xstate.Handed.from_facts(handed.as_facts()) == handed
    assert "0x200e7 → 0x600e7" in handed.handed_on


def test_nothing_is_asked_for_where_nothing_was_left_behind(amx, busy):
    amx.masks[busy.pid] = PLAIN
    handed = xstate.hand_on(busy.pid, {str(busy.pid): PLAIN})
    assert amx.requests == [] and handed.handed_on == "" and not handed.lacking


@pytest.mark.parametrize("how", ["denies", "forgets"])
def test_a_kernel_that_does_not_grant_it_fails_the_restore_with_its_reason(amx, busy, how):
    amx.masks[busy.pid], amx.how = PLAIN, how
    with pytest.raises(SnapshotError) as caught:
        xstate.hand_on(busy.pid, {str(busy.pid): AMX})
    assert "AMX tile data" in caught.value.what and "SIGILL" in caught.value.why


def test_a_process_of_the_dump_that_did_not_come_back_is_noticed(amx, busy):
    amx.masks[busy.pid] = AMX
    with pytest.raises(SnapshotError, match="lack"):
        xstate.hand_on(busy.pid, {str(busy.pid): AMX, "77": AMX})


def test_a_host_without_it_refuses_before_anything_starts(amx):
    xstate.refuse_if_lacking({"1": AMX})
    amx.grants = PLAIN
    with pytest.raises(SnapshotRefused) as caught:
        xstate.refuse_if_lacking({"1": PLAIN, "2": AMX})
    assert "AMX tile data" in caught.value.what and "ONEDNN_MAX_CPU_ISA" in caught.value.fix
    xstate.refuse_if_lacking({"1": PLAIN})


def test_a_mask_that_cannot_be_read_stops_the_dump_only_where_it_may_matter(amx, busy):
    amx.masks[busy.pid] = TraceError("process is traced", fix="end the tracer")
    with pytest.raises(SnapshotError, match="cannot be read"):
        xstate.masks(busy.pid)
    amx.grants = PLAIN
    assert xstate.masks(busy.pid) == {}


def test_children_are_read_too_and_dead_ones_are_left_out(amx):
    code = (
        "import os, subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c',"
        " 'input()'])\nzombie = os.fork() or os._exit(0)\nos.waitid(os.P_PID, zombie, os.WEXITED |"
        " os.WNOWAIT)\nprint(child.pid, zombie, flush=True)\nchild.wait()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        child, zombie = map(int, parent.stdout.readline().split())
        amx.masks |= {parent.pid: PLAIN, child: AMX, zombie: TraceError("no such process")}
        assert xstate.masks(parent.pid) == {str(parent.pid): PLAIN, str(child): AMX}
    finally:
        parent.communicate("\n")


@pytest.mark.needs("root")
def test_numbers_are_those_of_the_dumps_own_namespace(amx):
    outer = subprocess.Popen(
        [
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            sys.executable,
            "-c",
            "print(1, flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        outer.stdout.readline()
        inner = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())
        assert xstate.tree(inner) == {"1": inner}
    finally:
        outer.kill()
        outer.communicate()
