"""How a process ended, in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from labkit.core import exits

RECORDS = """6,1,10,-;traps: python[41] trap invalid opcode ip:7f10 sp:7ffd error:0 in libdnnl.so.3[7f00+10000]
6,2,20,-;python[41]: a line of its own
6,3,30,-;traps: python[42] general protection fault ip:0 sp:0 error:0
"""  # noqa: E501 - a program's own lines


@pytest.mark.parametrize(
    "code, text",
    [
        (0, "ended with exit code 0"),
        (3, "ended with exit code 3"),
        (-4, "ended by SIGILL (illegal instruction)"),
        (-10, "ended by SIGUSR1"),
        (-64, "ended by SIGRTMAX"),
        (-200, "ended by signal 200"),
    ],
)
def test_an_exit_code_in_words(code, text):
    assert exits.describe(code) == text


def test_an_illegal_instruction_comes_with_the_way_round_it():
    why, fix = exits.advice(-signal.SIGILL)
    assert (
        "AMX" in why and "MKL_ENABLE_INSTRUCTIONS=AVX512 ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16" in fix
    )
    assert exits.advice(1) == exits.advice(None) == ("", "")


def test_the_code_of_a_child_is_read_without_taking_it_from_its_parent():
    child = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 4)"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert exits.exit_code(child.pid) == -4
    assert exits.exit_code(child.pid) == -4
    assert child.wait() == -4
    assert exits.exit_code(child.pid) is None


def test_a_child_that_runs_and_a_stranger_have_no_code():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert exits.exit_code(child.pid) is None
        assert exits.exit_code(1) is None
    finally:
        child.kill()
        child.communicate()


def test_a_detached_process_becomes_our_child_and_its_end_is_ours_to_read(tmp_path):
    code = (
        "import os, subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import sys;"
        f" sys.stdin.read(); sys.exit(7)']); open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))"
    )
    with exits.adopting():
        launcher = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        assert launcher.wait() == 0
    pid = int((tmp_path / "pid").read_text())
    assert exits.exit_code(pid) is None
    launcher.stdin.close()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert exits.exit_code(pid) == 7
    exits.reap(pid)
    assert not os.path.exists(f"/proc/{pid}")


def test_the_kernels_line_about_a_fault_is_the_processes_own(tmp_path, monkeypatch):
    monkeypatch.setattr(exits, "_records", lambda _: iter(RECORDS.splitlines()))
    (tmp_path / "kmsg").touch()
    assert exits.kernel_line(41, tmp_path / "kmsg").startswith(
        "traps: python[41] trap invalid opcode"
    )
    assert exits.kernel_line(4, tmp_path / "kmsg") == ""
    assert exits.kernel_line(41, tmp_path / "absent") == ""
