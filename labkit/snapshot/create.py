"""Making a snapshot, off the clock: start the subject, let it serve one token, shrink it, dump it,
prove it, seal it.

Before it is sealed a snapshot is restored once, from a cold cache: the same greedy tokens must come
back, and what the process touched until then is kept as its working set, read ahead at every later
restore.

    snapshot = make_process(model_dir, target, loader="labkit.weights.loaders.safe:load")

Limit: start + bytes of the CRIU image ÷ write rate + bytes ÷ read rate. Lesson:
notebooks/07_checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from labkit.core import cold, ledger, timeline
from labkit.core.beside import scratch
from labkit.core.json_types import JsonObject
from labkit.core.proc import environ, start_time
from labkit.core.trial import free_port
from labkit.snapshot import criu, criu_images, process, store
from labkit.snapshot.explain import SnapshotRefused
from labkit.snapshot.subject_server import (
    PROMPT,
    Running,
    check_answer,
    get,
    server_command,
    serving,
    short_environment,
    shrink,
)
from labkit.snapshot.takedown import END_ORPHANS, MARK, WAKE


def make_process(
    model: Path,
    target: Path,
    *,
    loader: str,
    environment: Mapping[str, str] | None = None,
) -> store.Snapshot:
    """A snapshot of the subject as a process of this host. Raises SnapshotError; nothing is left of
    a failed one."""
    began = timeline.now_s()
    request = {"prompt": PROMPT, "max_tokens": 8}
    port = free_port()
    env = {
        **(environment if environment is not None else short_environment()),
        MARK: target.name,
    }
    with (
        store.writing(target) as part,
        scratch(".criu-", target.parent) as work,
        clones_ended(target.name),
    ):
        with serving(server_command(model, port, loader), port, env, request) as running:
            inside = environ(running.pid)
            freed = shrink(port)
            dumped = criu.dump(running.pid, part / "images", work)
        mapped = {
            p: os.path.getsize(p)
            for p in criu_images.mapped_files(part / "images").values()
            if p.startswith(str(model.resolve()) + "/")
        }
        manifest = manifest_of(
            part / "images",
            "criu-process",
            running,
            request,
            inside,
            mapped,
            {
                **dumped,
                "start_s": running.start_s,
                "shrunk": freed,
                "mark": target.name,
                "contents": criu_images.contents(part / "images"),
            },
        )
        proven = _prove(part, manifest, work)
        store.seal(
            part,
            replace(
                manifest,
                working_set=proven,
                libraries={p: list(process.stamp_of(p)) for p in proven if p not in mapped},
                facts={**manifest.facts, "prepare_s": timeline.now_s() - began},
            ),
        )
    return store.open_snapshot(target)


def manifest_of(
    directory: Path,
    technique: str,
    running: Running,
    request: JsonObject,
    environment: Mapping[str, str],
    mapped: dict[str, int],
    facts: JsonObject,
) -> store.Manifest:
    permissions = facts.pop("permissions", {})
    return store.Manifest(
        technique=technique,
        permissions=permissions,
        place=store.host_fingerprint(),
        criu=criu.version(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files=store.describe(directory),
        port=running.port,
        pid=running.pid,
        nonce=str(running.identity.get("nonce", "")),
        tokens=running.tokens,
        request=request,
        secrets=tuple(store.secrets_in(environment)),
        mapped=mapped,
        facts=facts,
    )


@contextmanager
def clones_ended(mark: str) -> Iterator[None]:
    """While a snapshot may be restored: its processes carry the environment of their dump, so the
    run's own mark does not find them."""
    entry = ledger.current().note("action", END_ORPHANS, mark_of_snapshot=mark)
    try:
        yield
    finally:
        ledger.current().done(entry)


def _prove(part: Path, manifest: store.Manifest, work: Path) -> dict[str, list[list[int]]]:
    """Restore what was just dumped, cold; the same process must give the same tokens. Returns its
    working set."""
    store.sync_images(part)
    cold.evict([part, *manifest.mapped])
    pid, _ = criu.restore(part / "images", work, permissions=manifest.permissions)
    try:
        return check_answer(pid, manifest.port, manifest)
    finally:
        criu.end([pid])


def dump_running(pid: int, target: Path, *, options: Sequence[str] = ()) -> store.Snapshot:
    """Any process, as it stands; it goes on running, also when CRIU refuses. Not proven: nobody
    knows what to ask it."""
    if not start_time(pid):
        raise SnapshotRefused(
            f"there is no process {pid}", "nothing to dump", "ps ax shows what runs"
        )
    with store.writing(target) as part, scratch(".criu-", target.parent) as work:
        inside = environ(pid)
        stopped = ledger.current().note("action", WAKE, pid=pid)
        dumped = criu.dump(pid, part / "images", work, leave_running=True, options=options)
        ledger.current().done(stopped)
        ports = criu_images.listening_ports(part / "images")
        store.seal(
            part,
            manifest_of(
                part / "images",
                "process",
                Running(pid, ports[0] if ports else 0, (), {}, 0.0),
                {},
                inside,
                {},
                {**dumped, "contents": criu_images.contents(part / "images")},
            ),
        )
    return store.open_snapshot(target)


def dump_again(pid: int, port: int, target: Path, before: store.Snapshot) -> store.Snapshot:
    """Dump a process that came from a snapshot, in its place. The process is gone afterwards."""
    with store.writing(target) as part, scratch(".criu-", target.parent) as work:
        identity = get(port, "/_labkit/identity")
        shrink(port)
        dumped = criu.dump(pid, part / "images", work)
        old = before.manifest
        manifest = manifest_of(
            part / "images",
            old.technique,
            Running(pid, port, old.tokens, identity, 0.0),
            old.request,
            {},
            old.mapped,
            {**old.facts, **dumped},
        )
        store.seal(part, replace(manifest, working_set=old.working_set, secrets=old.secrets))
    return store.open_snapshot(target)
