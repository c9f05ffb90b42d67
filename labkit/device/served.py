"""A server on the device, outside of a trial: started, asked, looked at from outside; its last
words are kept when it ends.

    with server("1b") as serving:
        serving.answer.tokens, serving.start_s
        ask(serving.port, serving.ended).tokens

What a process holds of the driver's files says whether CRIU can dump it: descriptors and mappings
of /dev/nvidia*, none of which it knows (`held`). Without a GPU, LABKIT_FAKE_CUDA stands in for the
driver: the server computes on the CPU, and says so. Limit: the start. Lesson:
notebooks/06_gpu_init."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.core import client, exits, interpreter, ledger, proc, secrets, timeline
from labkit.core.beside import scratch
from labkit.core.json_types import JsonObject
from labkit.core.trial import free_port
from labkit.core.workspace import Workspace
from labkit.device.graph_techniques import gpu_device
from labkit.errors import TrialError
from labkit.subject import checkpoint

PROMPT = {"prompt": "The first token of a cold start", "max_tokens": 8, "ignore_eos": True}
#: cuDNN's attention plans anew for every shape it meets, which a start would be charged with:
#: torch's other kernels come first in all arms.
CUDNN_LAST = {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}
#: An NVML handle stays open while a process is parked, and CRIU does not know its descriptors.
NO_NVML = {"PYTORCH_NVML_BASED_CUDA_CHECK": "0"}


@dataclass
class Serving:
    """`start_s`: from before exec to the first token. `log`: its standard output and error."""

    process: subprocess.Popen[bytes]
    model: Path
    port: int
    answer: client.Answer
    start_s: float
    log: Path

    @property
    def phases_s(self) -> dict[str, float]:
        """Seconds of each phase of the start, by the server's own spans."""
        return {
            s.name: round(s.duration_s, 6)
            for s in timeline.read(self.log.with_name("timeline.jsonl"))
            if s.is_phase
        }

    @property
    def pid(self) -> int:
        return self.process.pid

    def ended(self) -> bool:
        return self.process.poll() is not None


def server_arguments(model: Path, port: int, device: str) -> list[str]:
    """Of labkit.subject.server, for weights that are read straight onto the device."""
    arguments = ["--model", str(model), "--device", device, "--port", str(port), "--init", "meta"]
    if device.startswith("cuda"):
        arguments += ["--loader", "labkit.weights.loaders.safe:load_device"]
    return arguments


@contextmanager
def server(
    preset: str,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    *,
    limit_s: float = 150,
    where: Path | None = None,
) -> Iterator[Serving]:
    """Started and asked once. Raises TrialError with its last words where no token comes."""
    space, device = Workspace.default(), gpu_device()
    model, port = checkpoint.ensure(space, preset), free_port()
    more = {
        **interpreter.environment(),
        **CUDNN_LAST,
        **NO_NVML,
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
        **(environment or {}),
    }
    # O_APPEND: CRIU lets such a file grow
    with scratch("served-", where or space.nodes) as work, open(work / "server.log", "ab") as log:
        began = timeline.now_s()
        process = subprocess.Popen(
            [
                *interpreter.module("labkit.subject.server"),
                *server_arguments(model, port, device),
                *arguments,
            ],
            env={**os.environ, **more, timeline.ENV: str(work / "timeline.jsonl")},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        entry = ledger.current().note("group", process.pid)
        try:
            answer = ask(port, lambda: process.poll() is not None, limit_s=limit_s)
            if answer.first_token_s is None:
                raise TrialError(
                    (
                        f"the server on {device} served no token within {limit_s:.0f} s:"
                        f" {answer.error}"
                        if process.poll() is None
                        else f"the server {exits.describe(process.returncode)}"
                    ),
                    last_words(work / "server.log"),
                    "labkit doctor",
                )
            known_to_fake_driver(process.pid)
            start_s = answer.first_token_s - began
            yield Serving(process, model, port, answer, start_s, work / "server.log")
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ledger.current().done(entry)


def ask(port: int, ended: Callable[[], bool], *, limit_s: float = 60, **more: Any) -> client.Answer:
    """`more` goes into the request. Ends early when `ended()` says that nobody will answer."""
    until = timeline.now_s() + limit_s
    return client.ask(
        "127.0.0.1", port, {**PROMPT, **more}, give_up=lambda: ended() or timeline.now_s() > until
    )


def first_token_s(answer: client.Answer) -> float | None:
    return None if answer.first_token_s is None else answer.first_token_s - answer.t0_s


def last_words(log: Path, most: int = 1500) -> str:
    with contextlib.suppress(OSError):
        return secrets.mask(log.read_text(errors="replace"))[-most:].strip()
    return ""


def gone(pid: int) -> bool:
    """Whether a child of ours (a restored process, for one) has ended."""
    return not proc.start_time(pid)


def death(pid: int, log: Path) -> str:
    """How a child of ours ended, with the kernel's line about it and its last words; "" while it
    runs."""
    if not gone(pid):
        return ""
    ending = f"the process {exits.describe(exits.exit_code(pid))}"
    return "; ".join(filter(None, (ending, exits.kernel_line(pid), last_words(log))))


# ---- what a process holds ------------------------------------------------------------------------

DEVICE_FILES = "/dev/nvidia"


def held(pid: int, prefix: str = DEVICE_FILES) -> JsonObject:
    """{"descriptors": {"9": "/dev/nvidiactl"}, "mappings": ["/dev/nvidia0 (3 times)"]}: what CRIU
    meets and does not know."""
    counted = Counter(path for path in proc.mapped_files(pid) if path.startswith(prefix))
    return {
        "descriptors": {
            str(number): path
            for number, path in proc.open_files(pid).items()
            if path.startswith(prefix)
        },
        "mappings": [f"{path} ({count} times)" for path, count in counted.items()],
    }


def resident_bytes(pid: int) -> int | None:
    """Of host memory; None of a process that is gone."""
    try:
        return proc.status_bytes(pid, "VmRSS")[0]
    except OSError:
        return None


def known_to_fake_driver(pid: int) -> None:
    if path := os.environ.get("LABKIT_FAKE_CUDA", ""):
        from labkit.device.fake_driver import FakeDriver

        FakeDriver.at(path).knows(pid, 1_000_000)
