"""The node agent: the resident process of a node (as kubelet and containerd are) that carries out a
launch plan.

A fresh one is started for each trial, before t0; it imports the modules of the plan's steps, says
`ready`, and waits. At t0 it is told `go`, runs the steps in order, each under a span of its phase,
and reports. It stays the parent of what it started and takes it all down when told `stop`, when its
standard input ends (the harness is gone) or on SIGTERM.

    harness → agent   go | stop                             (lines on stdin)
    agent → harness   {"ready":1} {"step":{…}} {"up":{…}} {"failed":{…}} {"exited":{…}}
        {"stopped":1}

Lesson: notebooks/01_anatomy.
"""

from __future__ import annotations

import _thread
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.core import exits, secrets
from labkit.core.json_types import JsonObject
from labkit.core.ledger import Ledger
from labkit.core.node_state import NodeState
from labkit.core.plan import LaunchPlan, StepContext
from labkit.core.proc import start_time
from labkit.errors import LabError


def say(**message: Any) -> None:
    print(json.dumps(message, default=str), file=sys.__stdout__, flush=True)


def resolve(call: str) -> Callable[..., Any]:
    """ "module:function" → the function."""
    module, _, name = call.partition(":")
    return getattr(importlib.import_module(module), name)


class Agent:
    def __init__(self, spec: JsonObject):
        self.plan = LaunchPlan.from_json(spec["plan"])
        self.ledger = Ledger.join(spec["ledger"], spec["mark"])
        secrets.learn_environment(self.plan.server_env)
        secrets.learn_argv(self.plan.server_args)
        self.ctx = StepContext(
            node=Path(spec["node"]),
            port=spec["port"],
            timeline_path=Path(spec["timeline"]),
            ledger=self.ledger,
            server_args=self.plan.command_line(spec["port"], spec["node"]),
            server_env={
                **{k: os.environ[k] for k in self.plan.pass_env if k in os.environ},
                **self.plan.server_env,
                "LABKIT_SOURCE": "server",
                "LABKIT_RUN": spec["mark"],
                **({"LABKIT_TIMELINE": spec["timeline"]} if spec["timeline"] != os.devnull else {}),
            },
            server_binds=[(outside, inside) for outside, inside in self.plan.server_binds],
            state=NodeState.of(self.plan.state),
        )
        self.go, self.stop = threading.Event(), threading.Event()
        self.background: list[threading.Thread] = []
        self.trouble: list[BaseException] = []
        self.steps_running = False

    def listen(self) -> None:
        for line in sys.stdin:
            if line.strip() == "go":
                self.go.set()
            elif line.strip() == "stop":
                break
        self.stop.set()
        self.go.set()
        if self.steps_running:
            _thread.interrupt_main()

    def one(self, step: Any, function: Callable[..., Any]) -> None:
        with self.ctx.span(step.phase, call=step.call) as detail:
            facts = secrets.masked(function(self.ctx, **step.args) or {})
            detail.update(
                {k: v for k, v in facts.items() if isinstance(v, (int, float, str, bool))}
            )
        say(step={"phase": step.phase, "call": step.call, "facts": facts})

    def in_background(self, step: Any, function: Callable[..., Any]) -> None:
        try:
            self.one(step, function)
        except BaseException as error:
            self.trouble.append(error)

    def carry_out(self, functions: list[Callable[..., Any]]) -> None:
        for step, function in zip(self.plan.steps, functions, strict=True):
            if step.background:
                thread = threading.Thread(
                    target=self.in_background, args=(step, function), daemon=True
                )
                self.background.append(thread)
                thread.start()
            else:
                self.one(step, function)
        say(up={"server_pid": self.ctx.state.server_pid or None})

    def watch(self) -> None:
        """Until told to stop: report a server that ended, or a background step that failed."""
        pid = self.ctx.state.server_pid
        reported = False
        while not self.stop.wait(0.05):
            if self.trouble and not reported:
                reported = True
                raise self.trouble[0]
            if pid and not reported and not start_time(pid):
                reported = True
                process = self.ctx.state.server_process
                code = process.poll() if process is not None else exits.exit_code(pid)
                say(
                    exited={
                        "server_pid": pid,
                        "code": code,
                        "kernel": exits.kernel_line(pid),
                        "log": self.log(),
                    }
                )

    def log(self) -> str:
        lines = self.ctx.state.log_lines()[-60:]
        return secrets.mask("\n".join(line.rstrip("\n") for line in lines))[-6000:]

    def end(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        log = self.log()
        for end in reversed(self.ctx._ends):
            try:
                end()
            except Exception as error:
                print(secrets.mask(f"take-down: {type(error).__name__}: {error}"), file=sys.stderr)
        say(stopped=1, log=log)

    def main(self) -> int:
        functions = [resolve(step.call) for step in self.plan.steps]
        for step in self.plan.steps:
            # What a technique keeps resident on a node without replicas (a zygote) is there before
            # t0, and its evidence says so.
            if step.pre_start:
                resolve(step.pre_start)(self.ctx, **step.args)
        threading.Thread(target=self.listen, daemon=True).start()
        say(ready=1, pid=os.getpid())
        self.go.wait()
        code = 0
        try:
            if not self.stop.is_set():
                self.steps_running = True
                self.carry_out(functions)
                self.steps_running = False
                self.watch()
        except KeyboardInterrupt:
            pass
        except LabError as error:
            code = 1
            say(failed=secrets.masked(error.as_json()), log=self.log())
        except Exception as error:
            import traceback

            code = 1
            say(
                failed={
                    "kind": type(error).__name__,
                    "what": secrets.mask(f"{type(error).__name__}: {error}"),
                    "why": secrets.mask(traceback.format_exc())[-1500:],
                    "fix": "",
                },
                log=self.log(),
            )
        finally:
            self.steps_running = False
            self.end()
        return code


def main() -> int:
    sys.excepthook = secrets.excepthook
    signal.signal(signal.SIGTERM, lambda *_: _thread.interrupt_main())
    spec = json.loads(Path(sys.argv[1]).read_text())
    code = Agent(spec).main()
    # Interpreter exit would only add threads to wait for; everything with an end has had it.
    sys.stdout.flush()
    time.sleep(0)
    os._exit(code)


if __name__ == "__main__":
    main()
