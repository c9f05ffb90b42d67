"""The harness's end of the node agent: start it, say "go" and "stop", hear what it reports.

    agent = AgentClient(spec_path, ledger.mark, log_path)
    agent.ready.wait(60); agent.say("go"); agent.end()

Nothing is forked from the harness: the agent is exec'd fresh. Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from pathlib import Path

from labkit.core import secrets
from labkit.core.interpreter import module
from labkit.core.json_types import JsonObject
from labkit.core.ledger import MARK


class AgentClient:
    """The harness's end of the node agent: a reader thread turns its messages into attributes."""

    def __init__(self, spec_path: Path, mark: str, log_path: Path):
        self.failed: dict[str, str] = {}
        self.exited: JsonObject = {}
        self.server_pid: int | None = None
        self.facts: JsonObject = {}
        self.log = ""
        self.ready = threading.Event()
        self.up = threading.Event()  # every step in the foreground is done and reported
        self.gone = threading.Event()
        self.lost = False  # it ended before it was asked to
        with open(log_path, "wb", opener=secrets.private_opener) as errors:
            self.process = subprocess.Popen(
                [*module("labkit.core.agent"), str(spec_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                env={**os.environ, MARK: mark},
            )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            self.log = message.get("log") or self.log
            if "ready" in message:
                self.ready.set()
            elif "step" in message:
                self.facts.setdefault(message["step"]["phase"], {}).update(
                    message["step"]["facts"] or {}
                )
            elif "up" in message:
                self.server_pid = message["up"]["server_pid"]
                self.up.set()
            elif "failed" in message:
                self.failed = message["failed"]
                self.up.set()
            elif "exited" in message:
                self.exited = message["exited"]
                self.log = message["exited"].get("log") or self.log
        self.gone.set()
        self.up.set()
        self.ready.set()  # nobody waits for one that ended

    def say(self, word: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            assert self.process.stdin
            self.process.stdin.write(word.encode() + b"\n")
            self.process.stdin.flush()

    @property
    def over(self) -> bool:
        return bool(self.failed or self.exited or self.gone.is_set())

    def end(self, patience_s: float = 30.0) -> None:
        self.say("stop")
        with contextlib.suppress(OSError, ValueError):
            assert self.process.stdin
            self.process.stdin.close()
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.reader.join(5)
