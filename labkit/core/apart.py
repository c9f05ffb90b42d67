"""Work in a process of its own, which ends with it: for preparations off the clock.

What a preparation imports (torch, for a conversion) stays mapped while a process lives, and mapped pages cannot be made
cold: done in the harness, it would spoil every cold trial after it. Costs one interpreter start, 0.1 s.

    apart(checkpoint.ensure, workspace, "small")      # any importable function, picklable arguments and result

Raises what the function raised if it is a LabError, else a LabError with its last words. Lesson: notebooks/01_anatomy.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

from labkit.core.interpreter import module
from labkit.core.ledger import MARK, Ledger
from labkit.core.refusals import refusal
from labkit.errors import LabError


def apart(call: Callable[..., Any], *args: Any, ledger: Ledger | None = None) -> Any:
    """`call(*args)` in a fresh interpreter. With a ledger the process is found and ended if the harness dies."""
    with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as answer:
        pickle.dump((call.__module__, call.__qualname__, args), question)
        question.seek(0)
        os.set_inheritable(answer.fileno(), True)
        process = subprocess.Popen([*module("labkit.core.apart"), str(answer.fileno())], stdin=question, pass_fds=(answer.fileno(),),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, **({MARK: ledger.mark} if ledger else {})})
        entry = ledger.note("process", process.pid) if ledger else ""
        try:
            _, errors = process.communicate()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            if ledger:
                ledger.done(entry)
        answer.seek(0)
        try:
            good, result = pickle.load(answer)
        except EOFError:
            raise LabError(f"{call.__qualname__} ended without an answer (exit {process.returncode})", why=errors.strip()[-1500:],
                           fix="killed or out of memory? a smaller --preset, or more memory") from None
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
        message = (False, refusal(error) or LabError(f"{name}: {type(error).__name__}: {error}", why=traceback.format_exc()[-2000:]))
    with open(int(sys.argv[1]), "wb") as answer:
        pickle.dump(message, answer)


if __name__ == "__main__":
    _main()
