"""The step that replaces start, import, build, load and warm-up: bring the process back as it was
after its first token.

    Step("restore", "labkit.snapshot.process:restore", {"snapshot": "/…/artifacts/criu-process-…"})

Kernel, CPU, CRIU and every file are checked before anything starts; the pages while they are read
ahead, with the process held stopped until it has its CPU permissions back and the last page was
right. It listens on the trial's port; a server that was shrunk for a dump draws new random state
before its next answer, so that two clones do not sample alike. Limit: (CRIU image + working set)
bytes ÷ read rate, and CRIU's copy of its image at 1.2–1.6 GB/s. Lesson:
notebooks/07_checkpoints."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.core import timeline
from labkit.core.json_types import JsonObject
from labkit.core.plan import StepContext
from labkit.snapshot import criu, criu_images, readahead, store, transport, xstate
from labkit.snapshot.explain import SnapshotError, SnapshotRefused
from labkit.snapshot.takedown import END_ORPHANS


def restore(ctx: StepContext, snapshot: str, lazy: bool = False) -> JsonObject:
    """ctx.state: `snapshot_dir` overrides `snapshot` (a fresh node's copy), `moved` maps paths of
    the dump to paths here."""
    where = store.open_snapshot(ctx.state.snapshot_dir or snapshot)
    moved = dict(ctx.state.moved)
    work = ctx.node / "restore"
    refuse_if_unfit(where, moved)
    entry = ctx.ledger.note(
        "action", END_ORPHANS, mark_of_snapshot=str(where.manifest.facts.get("mark", ""))
    )
    # let run at once, it must not meet a file without its bytes
    fetched = transport.wait_for_model(ctx) if lazy else 0
    pieces = readahead.pieces_of(where, moved=moved, coming=coming_files(ctx, where))
    # first: a small read or write waits behind all that is in the disk's queue
    with ctx.span("restore.place"):
        linked = stage_images(where, work / "images", port=ctx.port, moved=moved)
    with readahead.reading([] if lazy else pieces) as ahead:
        ctx.on_stop(ahead.stop)
        with ctx.span("restore.criu"):
            daemon = start_lazy(linked, work, ctx) if lazy else None
            pid, handed = criu.restore(
                linked,
                work,
                permissions=where.manifest.permissions,
                stopped=not lazy,
                options=[*(["--lazy-pages"] if lazy else []), *validation(where)],
            )

        def end() -> None:
            criu.end([pid])
            ctx.ledger.done(entry)

        ctx.on_stop(end)
        ctx.state.server_pid = pid
        with ctx.span("restore.checked"):
            if not lazy:
                ahead.checked()
                fetched = transport.wait_for_model(ctx)
                criu.resume(pid)
    return {
        "server_pid": pid,
        "model_bytes_fetched": fetched,
        "nonce": where.manifest.nonce,
        "image_bytes": where.manifest.size_bytes,
        "pages_bytes": pages_bytes(where),
        "mapped_bytes": sum(where.manifest.mapped.values()),
        "working_set_bytes": working_set_bytes(where),
        "read_ahead_s": ahead.seconds,
        "lazy": bool(daemon),
        "dumped_pid": where.manifest.pid,
        "permissions": handed.as_facts(),
        "secrets": ", ".join(where.manifest.secrets),
    }


def know_criu(ctx: StepContext, **_: Any) -> None:
    """Before t0, as a node's runtime would: which CRIU is here, and the checksum's library. Nothing
    of the snapshot is read."""
    criu.version()
    store.crc32()


def coming_files(ctx: StepContext, snapshot: store.Snapshot) -> tuple[str, ...]:
    """Model files (paths at the dump) that still cross the link while the process is restored and
    held."""
    return tuple(snapshot.manifest.mapped) if ctx.state.has(transport.SnapshotDownload) else ()


def working_set_bytes(snapshot: store.Snapshot) -> int:
    return sum(length for ranges in snapshot.manifest.working_set.values() for _, length in ranges)


def pages_bytes(snapshot: store.Snapshot) -> int:
    return sum(f["size_bytes"] for n, f in snapshot.manifest.files.items() if store.is_pages(n))


def refuse_if_unfit(snapshot: store.Snapshot, moved: Mapping[str, str]) -> None:
    """Everything that can be known before a process is started: host, whole files, small files byte
    for byte, mapped files."""
    snapshot.refuse_if_foreign(criu=criu.version())
    if snapshot.manifest.schema < 2 and xstate.KERNEL.supported() & xstate.DYNAMIC_MASK:
        raise SnapshotRefused(
            f"the snapshot {snapshot.path.name} does not say which CPU permissions its"
            " processes had",
            "it was made before they were recorded, and on this CPU the first instruction of"
            f" {xstate.names(xstate.DYNAMIC_MASK)} could be SIGILL",
            "labkit snapshot dump makes one here",
        )
    xstate.refuse_if_lacking(snapshot.manifest.permissions)
    snapshot.verify(pages=False)
    for path, size in snapshot.manifest.mapped.items():
        here = moved.get(path, path)
        if not os.path.exists(here) or os.path.getsize(here) != size:
            raise SnapshotRefused(
                f"{here} is not the file that the snapshot maps",
                f"{size} bytes were mapped at the dump, and stay outside of the CRIU image",
                "bring the model back to that path, or dump again",
            )


def stamp_of(path: str) -> tuple[int, int]:
    """Size and time of the last change; (0, 0) for what is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def validation(snapshot: store.Snapshot) -> list[str]:
    """CRIU reads the build ID of every library, a hundred small reads of a cold disk; not where
    each is the very file of the dump."""
    libraries = snapshot.manifest.libraries
    same = libraries and all(stamp_of(path) == tuple(stamp) for path, stamp in libraries.items())
    return ["--file-validation", "filesize"] if same else []


def stage_images(
    snapshot: store.Snapshot, directory: Path, *, port: int | None, moved: Mapping[str, str]
) -> Path:
    """A directory of links to the CRIU image files, with its own files.img for this port and these
    paths."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, parents=True)
    for name in snapshot.manifest.files:
        if name == "files.img":
            shutil.copy(snapshot.criu_images / name, directory / name)
        else:
            # Hard links: a container's task opens its pages after it has changed its root, where a
            # symlink leads nowhere.
            try:
                os.link(snapshot.criu_images / name, directory / name)
            except OSError:
                shutil.copy(snapshot.criu_images / name, directory / name)
    criu_images.move(
        directory, port=port if port and port != snapshot.manifest.port else None, paths=moved
    )
    return directory


def start_lazy(criu_images: Path, work: Path, ctx: StepContext) -> subprocess.Popen[bytes]:
    """`criu lazy-pages`: the process runs at once, its pages come through userfaultfd when they are
    touched."""
    daemon = subprocess.Popen(
        [criu.program(), "lazy-pages", "-D", str(criu_images), "-W", str(work), "-o", "lazy.log"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def end() -> None:
        daemon.kill()
        daemon.wait()

    ctx.on_stop(end)
    until = timeline.now_s() + 5
    while (
        not (work / "lazy-pages.socket").exists()
        and daemon.poll() is None
        and timeline.now_s() < until
    ):
        time.sleep(0.002)
    if daemon.poll() is not None:
        raise SnapshotError(
            "lazy pages are not possible here",
            "userfaultfd is missing or not allowed (vm.unprivileged_userfaultfd, seccomp)",
            "restore without --lazy-pages",
        )
    return daemon
