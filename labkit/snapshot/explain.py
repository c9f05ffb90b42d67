"""CRIU's log in the lab's words: what it met, why that cannot be in a snapshot, and the step that
removes it.

CRIU refuses what it cannot bring back – the far end of a connection, a ring shared with the kernel,
a file outside of the container – and says so in the terms of its source code. The table below knows
the refusals an inference server meets; anything else is shown as CRIU's own error lines. The
process goes on running after a refused dump.

    raise refusal("dump", log_text)

Lesson: notebooks/07_checkpoints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.core.criu_log import error_lines
from labkit.errors import LabError


class SnapshotError(LabError):
    """CRIU refused, or failed. `text` is as the rest of the family: what, why, fix."""


class SnapshotRefused(SnapshotError):
    """The snapshot does not fit here (kernel, CPU, version, damaged, half-written). Nothing was
    started."""


@dataclass(frozen=True)
class Cause:
    """`pattern` on CRIU's log; `name` is what tests and records call it."""

    name: str
    pattern: str
    what: str
    why: str
    fix: str


#: First match wins, so the particular stands before the general.
CAUSES = (
    Cause(
        "no-space",
        r"No space left on device|errno 28\b|= -28\b|Disk quota exceeded",
        "the disk filled up during the dump",
        "a CRIU image is as large as the memory in use; what was written so far is not restorable"
        " and was removed",
        "free some space, or put LABKIT_HOME on a larger disk; shrink the server first (POST"
        " /_labkit/shrink)",
    ),
    Cause(
        "live-tcp",
        r"Connected TCP socket|consider using --tcp-established",
        "a TCP connection is open",
        "its other end does not go back in time with the process: after a restore it would talk to"
        " nobody",
        "close it before the dump (a hub or metrics client, a keep-alive request), or dump with"
        " --tcp-established or --tcp-close",
    ),
    # The kernel (6.7 and later) passes no ring to another process, so CRIU stumbles before it can
    # name it.
    Cause(
        "io-uring",
        r"io_uring|send_fds failed \(-22\)",
        "an io_uring is open",
        "the ring is memory shared with the kernel, which CRIU cannot rebuild",
        "turn it off: UV_USE_IO_URING=0 for libuv and uvloop, or an asyncio loop without it",
    ),
    Cause(
        "gpu",
        r"/dev/nvidia|nvidia-uvm|/dev/kfd|cuda_plugin",
        "a GPU is in use",
        "the driver's state is not in the process's memory; CRIU sees device files it does not"
        " know",
        "park the GPU's state first: labkit cuda-checkpoint --toggle --pid PID, then dump (device"
        " layer: cuda-checkpoint)",
    ),
    Cause(
        "unix-socket",
        r"[Ee]xternal (?:unix )?socket is used|--ext-unix-sk|Can't dump half of stream unix",
        "a unix socket leads outside of the snapshot",
        "its peer (a log daemon, D-Bus, a parent process) is not part of it",
        "close it before the dump, or start the server without that client",
    ),
    Cause(
        "stray-fd",
        r"Can't lookup mount=?.*for fd=|Can't dump .*external mount|unreachable mount",
        "a descriptor points to a file outside of the container",
        "usually stdout redirected to a file of the host: inside, that file does not exist",
        "start the container with pipes or /dev/null as standard streams",
    ),
    Cause(
        "terminal",
        r"dangling tty|Found a tty|tty: .*(?:sid|session)|--shell-job",
        "the process has a terminal",
        "a terminal belongs to whoever sits at it",
        "start it with </dev/null >/dev/null in a session of its own (setsid)",
    ),
    Cause(
        "deleted-file",
        r"ghost file .*(?:size|limit)|Can't dump ghost file|increase limit",
        "a large deleted file is still open or mapped",
        "it has no name to open again, so its bytes would have to be in the CRIU image",
        "close it; /dev/shm segments of data-loader workers are the usual ones",
    ),
    Cause(
        "session",
        r"[Ss]ession leader.*(?:outside|not in)|A session leader of \d+\(\d+\) is outside of its"
        r" pid namespace",
        "the process's session leader is not part of the snapshot",
        "CRIU restores whole sessions",
        "start it with setsid",
    ),
    Cause(
        "old-criu",
        r"Unexpected rt vDSO area bounds|vdso: Can't find",
        "this CRIU is too old for this kernel",
        "the kernel's vDSO changed shape in 6.10 and later",
        "scripts/host-tools --only criu brings CRIU 4",
    ),
    Cause(
        "no-file-type",
        r"Can't dump file \d+ of that type \[\w+\] \(([^)]*)\)",
        "a descriptor of a kind CRIU cannot bring back",
        "the log names its kind",
        "close it before the dump; `ls -l /proc/PID/fd` shows it",
    ),
    Cause(
        "denied",
        r"(?:Unable to seize|ptrace|seize).*(?:Operation not permitted|Permission denied)|You need"
        r" to be root|CAP_CHECKPOINT_RESTORE",
        "the kernel did not let CRIU trace the process",
        "another tracer (a debugger, strace) holds it, or root is missing",
        "end the tracer; run as root",
    ),
    Cause(
        "gone",
        r"No such process|Can't find process|Unable to seize \d+: 3",
        "the process ended before it was dumped",
        "",
        "start it again",
    ),
    Cause(
        "pid-taken",
        r"Pid \d+ (?:do(?:es)? not match|is taken)|Can't fork for \d+: File exists|clone3? .*File"
        r" exists",
        "a process id of the snapshot is taken on this host",
        "a restored process gets its old id back",
        "dump it in a pid namespace of its own, as `labkit snapshot dump` does for what it starts",
    ),
    Cause(
        "port-taken",
        r"Can't bind.*socket.*Address already in use|inet: .*Address already in use",
        "the port of the snapshot is in use here",
        "a listening socket comes back on the port it had",
        "end what listens there, or labkit snapshot restore --port N",
    ),
    Cause(
        "file-changed",
        r"has bad (?:size|mode|build-?ID|build id|checksum)|File .* bad build",
        "a file that the process had open or mapped is another one now",
        "its code or data in memory would not fit the file on disk (a package was upgraded, an"
        " OCI image rebuilt)",
        "dump again with the files as they are now",
    ),
    Cause(
        "file-missing",
        r"Can't open file ([^\s:]+)|Unable to open .*No such file|Can't open (?:root|cwd)",
        "a file that the process had open or mapped is not here",
        "a snapshot holds memory, not the libraries and the model behind it",
        "bring the same OCI image and model to the same paths, or restore where it was dumped",
    ),
    Cause(
        "cpu",
        r"cpu: .*(?:fail|mismatch|not supported|miss)|CPU.*(?:incompatible|capabilities)|xsave"
        r" size",
        "this CPU lacks something that the snapshot's CPU had",
        "code that was compiled or chosen for it is in the CRIU image (vector kernels, for one)",
        "restore on the same CPU model, or dump here",
    ),
    Cause(
        "damaged",
        r"magic.*(?:mismatch|doesn't match|wrong)|Failed to (?:read|parse)|Unexpected"
        r" EOF|Corrupted|image.*(?:truncat|corrupt)|Unpacking|pb_read",
        "a CRIU image file is damaged",
        "CRIU could not read it",
        "dump again; labkit snapshot list shows which snapshots are whole",
    ),
    Cause(
        "illegal-instruction",
        r"killed by signal 4\b",
        "the process was restored and ended by SIGILL (illegal instruction)",
        "an instruction that this CPU lacks, or that the kernel did not permit to this process",
        "restore on the CPU model of the dump, or dump here",
    ),
    Cause(
        "killed",
        r"^$",
        "CRIU ended without a word",
        "it was killed, or could not be started",
        "criu check",
    ),
)


def cause(log: str) -> Cause | None:
    """The first cause in the table that the log's error lines show; for refusals that CRIU only
    warns of, the whole log."""
    errors = "\n".join(error_lines(log))
    for one in CAUSES[:-1]:
        if errors and re.search(one.pattern, errors):
            return one
    return CAUSES[-1] if not log.strip() else None


def refusal(
    doing: str, log: str, status: int | None = None, *, running: bool = True
) -> SnapshotError:
    """The exception for a failed `dump` or `restore`. `running`: whether the process goes on (a
    refused dump leaves it alone)."""
    found, lines = cause(log), error_lines(log)
    detail = re.search(found.pattern, "\n".join(lines)) if found and lines else None
    subject = f" ({detail.group(1)})" if detail and detail.groups() else ""
    first_error = f"; CRIU: {lines[0][:240]}" if lines else ""
    goes_on = " The process goes on running." if doing == "dump" and running else ""
    if found is None:
        return SnapshotError(
            f"{doing} failed: CRIU ended with {status}{first_error}",
            (" | ".join(lines[-3:]) + goes_on).strip(),
            "labkit snapshot explain LOG; criu check",
        )
    if found.name not in ("no-file-type", "file-missing", "file-changed"):
        first_error = ""
    return SnapshotError(
        f"{doing} refused: {found.what}{subject}{first_error}",
        (found.why + "." if found.why else "") + goes_on,
        found.fix,
    )
