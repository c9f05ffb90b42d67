"""A snapshot of a process that has imported everything and touched no device: restored, it makes
its context, loads and serves.

CRIU has nothing to refuse here – there is no context yet – and its image is small: imports only.
What it saves is exec, dynamic linking and imports; the context, the weights and the warm-up are
paid as ever, so one CRIU image serves every model. Unlike a zygote nothing is resident.

    python -m labkit.snapshot.import_warm --preset 1b --cold 1 --warm 3      # JSON lines, the last
        one counts; root

The waiting process looks for a file with its arguments every millisecond. Limit: the CRIU image ÷
disk rate, CRIU's copy at 1.2–1.6 GB/s, and the rest of the start. Lesson:
notebooks/07_checkpoints."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.core import cold, interpreter, ledger, timeline
from labkit.core.beside import replacing, scratch
from labkit.core.json_types import JsonObject
from labkit.core.trial import free_port
from labkit.core.workspace import Workspace
from labkit.device import served
from labkit.device.graph_techniques import gpu_device
from labkit.device.trial_output import Notify, cache_facts, fail, report
from labkit.errors import LabError, TrialError
from labkit.snapshot import criu
from labkit.snapshot.gpu_process import (
    criu_errors,
    mapped_files,
    outcome_of,
    refused,
    without_plugins,
)

LOOKS_EVERY_S = 0.001
READY, GO, SPANS = "ready", "go.json", "timeline.jsonl"


@dataclass(frozen=True)
class _Dumped:
    """The process that has imported, as CRIU images in `work`; the files that it has mapped; the
    model that it will serve, and the tokens that are right."""

    work: Path
    permissions: Mapping[str, int]
    mapped: Sequence[str]
    model: Path
    tokens: Sequence[int]

    @property
    def criu_images(self) -> Path:
        return self.work / "images"


def trial(preset: str, times: Mapping[str, int], found: JsonObject, notify: Notify) -> None:
    """One CRIU image; each restore gets its model and port, serves a token and is ended."""
    space = Workspace.default()
    found |= {"preset": preset, "device": gpu_device(), "criu": criu.version(), "restores": []}
    # to compare with, and its tokens: the files are warm for it
    with served.server(preset) as plain:
        found |= {"start_s": plain.start_s, "start_phases_s": plain.phases_s}
    notify()
    with scratch("import-warm-", space.artifacts) as work:
        pid, mapped, held = _waiting(work)
        criu_images = work / "images"
        criu_images.mkdir()
        try:
            dump = criu.dump(pid, criu_images, work / "dump", options=without_plugins(work))
        finally:
            found["dump"] = {"held": held, "criu": criu_errors(work / "dump" / "dump.log")}
            criu.end([pid])
        found["dump"] |= {
            "dump_s": dump["dump_s"],
            "pages_bytes": dump["pages_bytes"],
            "image_bytes": sum(p.stat().st_size for p in criu_images.iterdir()),
        }
        notify()
        dumped = _Dumped(work, dump["permissions"], mapped, plain.model, plain.answer.tokens)
        for state in [*["cold"] * times["cold"], *["warm"] * times["warm"]]:
            entry: JsonObject = {"want": state}
            found["restores"].append(entry)
            try:
                _restored(dumped, entry)
            except (LabError, OSError) as error:
                entry |= refused(error, work / "server.log")
                entry["criu"] = criu_errors(work / "restore" / "restore.log")
            if entry["outcome"] != "ok":
                fail(found, f"restore, {state}", entry["error"])
            notify()


def _waiting(work: Path) -> tuple[int, list[str], JsonObject]:
    """A process that has imported; its pid, what it has mapped, what it holds of the driver's
    files. Raises TrialError."""
    log = work / "server.log"
    with open(log, "ab") as out:
        process = subprocess.Popen(
            [*interpreter.module("labkit.snapshot.import_warm"), "--waits-in", str(work)],
            env={**os.environ, **interpreter.environment(), **served.CUDNN_LAST},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd="/",
            start_new_session=True,
        )
    ledger.current().note("group", process.pid)
    until = timeline.now_s() + 60
    while not (work / READY).exists():
        if process.poll() is not None or timeline.now_s() > until:
            raise TrialError(
                "the process that imports did not get ready",
                served.last_words(log),
                "labkit doctor",
            )
        time.sleep(0.005)
    process.returncode = 0  # CRIU ends it, and criu.end takes its status
    return process.pid, mapped_files(process.pid), served.held(process.pid)


def _restored(dumped: _Dumped, entry: JsonObject) -> None:
    """One restore to its first token, into `entry`; the process is ended again. Raises LabError,
    OSError."""
    port, work = free_port(), dumped.work
    files: dict[str, Sequence[str | Path]] = {
        "image": [dumped.criu_images],
        "mapped_files": dumped.mapped,
        "model": [dumped.model],
    }
    entry["cache"] = {
        name: cache_facts(cold.set_cache_state(paths, entry["want"], caches=name == "image"))
        for name, paths in files.items()
    }
    (work / SPANS).unlink(missing_ok=True)
    with replacing(work / GO) as part:
        part.write_text(json.dumps(served.server_arguments(dumped.model, port, gpu_device())))
    began, pid = timeline.now_s(), 0
    try:
        pid, _ = criu.restore(
            dumped.criu_images,
            work / "restore",
            permissions=dumped.permissions,
            options=without_plugins(work),
        )
        entry["criu_restore_s"] = timeline.now_s() - began
        answer = served.ask(port, lambda: served.gone(pid), limit_s=100)
        entry |= {
            "gone_to_first_token_s": answer.first_token_s - began if answer.first_token_s else None,
            "equal_tokens": answer.tokens == dumped.tokens,
            "phases_s": {
                s.name: round(s.duration_s, 6) for s in timeline.read(work / SPANS) if s.is_phase
            },
        }
        entry |= outcome_of(answer, dumped.tokens, served.death(pid, work / "server.log"))
    finally:
        if pid:
            criu.end([pid])


# ---- the process that waits ----------------------------------------------------------------------


def wait(folder: Path) -> int:
    """Import, say so, and become a server when the arguments are there."""
    import torch  # noqa: F401

    from labkit.snapshot.zygote import become
    from labkit.subject import engine, http, llama, server, tokenizer  # noqa: F401

    with contextlib.suppress(ImportError):  # what the loader brings
        from labkit.weights.loaders import safe  # noqa: F401
    (folder / READY).touch()
    while not (folder / GO).exists():
        time.sleep(LOOKS_EVERY_S)
    return become(json.loads((folder / GO).read_text()), {timeline.ENV: str(folder / SPANS)})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m labkit.snapshot.import_warm")
    parser.add_argument("--preset", default="1b")
    parser.add_argument("--cold", type=int, default=1)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--waits-in", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.waits_in:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return wait(args.waits_in)
    times = {"cold": args.cold, "warm": args.warm}
    return report(
        lambda found, notify: trial(args.preset, times, found, notify), {"part": "import-warm"}
    )


if __name__ == "__main__":
    sys.exit(main())
