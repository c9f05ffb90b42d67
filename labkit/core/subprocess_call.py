"""Work in a process of its own, which ends with it: for preparations off the clock.

What a preparation imports (torch, for a conversion) stays mapped while a process lives, and mapped
pages cannot be made cold: done in the harness, it would spoil every cold trial after it. Costs one
interpreter start, 0.1 s.

    run_in_subprocess(checkpoint.ensure, workspace, "small")  # any importable function, picklable
        arguments
        and result

Raises what the function raised if it is a LabError, else a LabError with its last words. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

from labkit.core import beside, secrets
from labkit.core.interpreter import module
from labkit.core.ledger import Ledger, current
from labkit.core.refusals import refusal
from labkit.errors import LabError


def run_in_subprocess(call: Callable[..., Any], *args: Any, ledger: Ledger | None = None) -> Any:
    """`call(*args)` in a fresh interpreter. Its part of the ledger ends with it: also what it
    started, however it ended."""
    with (
        beside.scratch("lk-") as temporary,
        contextlib.closing((ledger or current()).below()) as part,
        tempfile.TemporaryFile() as question,
        tempfile.TemporaryFile() as answer,
    ):
        pickle.dump((call.__module__, call.__qualname__, args), question)
        question.seek(0)
        os.set_inheritable(answer.fileno(), True)
        process = subprocess.Popen(
            [*module("labkit.core.subprocess_call"), str(answer.fileno())],
            stdin=question,
            pass_fds=(answer.fileno(),),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **part.environment, "TMPDIR": str(temporary)},
        )
        part.note("process", process.pid)
        try:
            _, errors = process.communicate()
        except BaseException:
            process.kill()
            process.wait()
            raise
        answer.seek(0)
        try:
            good, result = pickle.load(answer)
        except EOFError:
            raise LabError(
                f"{call.__qualname__} ended without an answer (exit {process.returncode})",
                why=secrets.mask(errors).strip()[-1500:],
                fix="killed or out of memory? a smaller --preset, or more memory",
            ) from None
    if not good:
        raise result
    return result


def _main() -> None:
    module, name, args = pickle.load(sys.stdin.buffer)
    try:
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
        message = (True, target(*args))
    except LabError as error:
        message = (False, error)
    except Exception as error:
        message = (
            False,
            refusal(error)
            or LabError(
                f"{name}: {type(error).__name__}: {error}",
                why=secrets.mask(traceback.format_exc())[-2000:],
            ),
        )
    with open(int(sys.argv[1]), "wb") as answer:
        pickle.dump(message, answer)


if __name__ == "__main__":
    _main()
