"""CRIU's own words, as its sources print them, and the lab's."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.snapshot import explain

LINES = {
    "live-tcp": (
        "(00.012) Error (criu/sk-inet.c:204): inet: Connected TCP socket, consider using"
        " --tcp-established option."
    ),
    "io-uring": (
        "(00.012) Error (criu/files-ext.c:98): Can't dump file 5 of that type [600] (unknown"
        " /anon_inode:[io_uring])"
    ),
    "gpu": (
        "(00.012) Error (criu/files-ext.c:98): Can't dump file 14 of that type [20666] (chr 195:255"
        " /dev/nvidiactl)"
    ),
    "unix-socket": (
        "(00.012) Error (criu/sk-unix.c:914): unix: External socket is used. Consider using"
        " --ext-unix-sk option."
    ),
    "stray-fd": (
        "(00.012) Error (criu/files-reg.c:1831): Can't lookup mount=29 for fd=1"
        " path=/tmp/server.log"
    ),
    "terminal": (
        "(00.012) Error (criu/tty.c:2119): tty: Found dangling tty with sid 123 pgid 124 (pts) on"
        " peer fd 0."
    ),
    "deleted-file": (
        "(00.012) Error (criu/files-reg.c:960): Can't dump ghost file /dev/shm/x of 5242880 size,"
        " increase limit"
    ),
    "no-space": (
        "(00.012) Error (criu/page-xfer.c:238): Unable to write page: No space left on device"
    ),
    "old-criu": "(00.012) Error (criu/vdso.c:421): vdso: Unexpected rt vDSO area bounds",
    "pid-taken": "(00.012) Error (criu/cr-restore.c:1506): Can't fork for 77: File exists",
    "port-taken": (
        "(00.012) Error (criu/sk-inet.c:887): inet: Can't bind inet socket (id 78): Address already"
        " in use"
    ),
    "file-changed": "(00.012) Error (criu/files-reg.c:2244): File lib/libtorch.so has bad build-ID",
    "file-missing": (
        "(00.012) Error (criu/files-reg.c:2290): Can't open file srv/model.safetensors on restore:"
        " No such file or directory"
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_a_known_refusal_is_explained(name):
    error = explain.refusal("dump", LINES[name], 1)
    assert explain.cause(LINES[name]).name == name
    assert error.what.startswith("dump refused") and error.fix
    assert "goes on running" in error.why


def test_an_unknown_refusal_shows_criu_s_own_line():
    error = explain.refusal("restore", "(00.5) Error (criu/x.c:1): something nobody met\n", 1)
    assert "something nobody met" in error.what and error.fix


def test_lines_that_criu_prints_and_goes_on_after_explain_nothing():
    log = (
        "(00.1) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not"
        " permitted\n" + LINES["port-taken"]
    )
    assert explain.cause(log).name == "port-taken"


def test_every_cause_has_a_name_of_its_own_and_all_but_the_obvious_a_fix():
    names = [c.name for c in explain.CAUSES]
    assert len(set(names)) == len(names) and all(c.what and c.fix for c in explain.CAUSES)


@given(log=st.text(max_size=300))
@settings(deadline=None)
def test_any_log_gives_an_error_in_words(log):
    error = explain.refusal("dump", log, 1)
    assert error.what and error.fix
