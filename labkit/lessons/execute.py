"""A notebook headless: papermill underneath, with what papermill gets wrong put right.

A notebook runs in a process of its own. Its outcome is that process's exit status – a kernel that
died and a cell that was cut off are saved by papermill as completed. At a time-out every process of
the notebook is ended, also those that gave themselves a session: they are found by a mark in their
environment. The lab's own watchdogs are left to finish first, since they take down what a killed
trial left.

    result = run_one(Path("notebooks/01_anatomy.ipynb"), Path("report"), {"blocks": 2}, 900)
    result.outcome      # ok | failed | timeout | dead_kernel | killed | incomplete

Exercise cells get their solution (labkit.lessons.check) in place of the learner's stub. Lesson:
none; see STYLE.md, Notebooks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from labkit.core import record_list, secrets
from labkit.core.beside import scratch
from labkit.core.interpreter import module
from labkit.core.json_types import JsonObject
from labkit.core.ledger import Ledger, marked_pids
from labkit.core.proc import start_time
from labkit.errors import BadInput
from labkit.lessons import canonical
from labkit.lessons.check import HEADLESS

MARK = "LABKIT_NOTEBOOK"


@dataclass(frozen=True)
class Result:
    """One notebook. `cells`: seconds of each code cell, None where it did not end."""

    name: str
    outcome: str
    seconds: float
    cells: tuple[float | None, ...] = ()
    error: str = ""
    executed: str = ""  # path of the executed notebook, as far as it got
    ended: int = 0  # processes that outlived the notebook and were ended
    records: tuple[str, ...] = ()  # runs that it recorded

    @property
    def slowest(self) -> str:
        known = [(s, i) for i, s in enumerate(self.cells, 1) if s is not None]
        return f"{max(known)[0]:.1f} s in code cell {max(known)[1]}" if known else ""


def with_solutions(doc: JsonObject) -> JsonObject:
    """The notebook with each exercise's stub replaced by its solution."""
    from labkit.lessons.check import exercise

    for cell in doc["cells"]:
        name = cell.get("metadata", {}).get("labkit", {}).get("exercise")
        if name and cell["cell_type"] == "code":
            cell["source"] = (
                f"# Run headless: this is the solution of {name}.\n{exercise(name).source}"
            )
    return doc


def run_one(
    path: Path,
    out: Path,
    values: JsonObject,
    timeout_s: float,
    more: Mapping[str, str] | None = None,
) -> Result:
    """Execute one notebook in a session of its own, `more` in its environment; everything it
    started is gone when this returns."""
    from labkit.core.workspace import Workspace

    out.mkdir(parents=True, exist_ok=True)
    executed = (out / path.name).resolve()
    executed.unlink(missing_ok=True)
    mark = f"{os.getpid()}-{uuid.uuid4().hex}"
    with (
        Ledger.open(Workspace.default()) as book,
        scratch("labkit-notebook-") as directory,
        record_list.handed_down(directory / "records.jsonl") as noted,
    ):
        prepared, status = directory / path.name, directory / "status.json"
        prepared.write_text(canonical.dumps(with_solutions(canonical.load(path))), encoding="utf-8")
        spec = {
            "input": str(prepared),
            "output": str(executed),
            "parameters": values,
            "cwd": str(path.resolve().parent),
            "status": str(status),
        }
        # CI would be seen by other tools as well; the display of the lab is told directly.
        environment = {
            **os.environ,
            **(more or {}),
            **book.environment,
            **noted.environment,
            MARK: mark,
            HEADLESS: "1",
            "JUPYTER_RUNTIME_DIR": str(directory / "runtime"),
            "LABKIT_DISPLAY": "plain",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        began_s = time.monotonic()
        log = directory / "printed.txt"
        # Into a file: a child that the notebook left behind would hold a pipe open long after the
        # runner is gone.
        with open(log, "wb") as to:
            child = subprocess.Popen(
                [*module("labkit.lessons.execute"), json.dumps(spec)],
                env=environment,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=to,
                stderr=subprocess.STDOUT,
            )
        timed_out = False
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        except BaseException:
            _end(mark)
            raise
        seconds = time.monotonic() - began_s
        ended = _end(mark, patience_s=0.0 if timed_out else 15.0)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
        reported: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            reported = json.loads(status.read_text())
        printed = secrets.mask(log.read_text(errors="replace"))
        recorded = noted.paths()
    _mask_outputs(executed)
    if timed_out:
        outcome, error = "timeout", f"not over after {timeout_s:.0f} s"
    elif child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        outcome, error = "killed", f"the runner ended by signal {name}"
    elif child.returncode:
        outcome = reported.get("outcome", "failed")
        error = secrets.mask(reported.get("error", "")) or printed[-2000:]
    else:
        error = _unfinished(executed)
        outcome = "incomplete" if error else "ok"
    return Result(
        path.stem,
        outcome,
        round(seconds, 3),
        _cell_seconds(executed),
        error,
        str(executed) if executed.exists() else "",
        ended,
        tuple(map(str, recorded)),
    )


def _mask_outputs(executed: Path) -> None:
    """What the cells printed, without the secrets that this process knows: an executed notebook is
    shown around."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        doc = json.loads(executed.read_text(encoding="utf-8"))
        shown = secrets.Masker()
        outputs = [[shown.values_in(o) for o in cell.get("outputs", [])] for cell in doc["cells"]]
        if outputs != [cell.get("outputs", []) for cell in doc["cells"]]:
            for cell, masked in zip(doc["cells"], outputs, strict=True):
                if "outputs" in cell:
                    cell["outputs"] = masked
            executed.write_text(
                json.dumps(doc, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )


def _end(mark: str, patience_s: float = 0.0) -> int:
    """End every process that carries the mark. Watchdogs of the lab's ledger go last: they are
    cleaning up. Returns how many were ended."""
    deadline_s = time.monotonic() + patience_s
    while patience_s and marked_pids(mark, MARK) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    killed = _kill(p for p in marked_pids(mark, MARK) if not _is_watchdog(p))
    deadline_s = time.monotonic() + 20
    while (left := marked_pids(mark, MARK)) and time.monotonic() < deadline_s:
        killed += _kill(p for p in left if not _is_watchdog(p))
        time.sleep(0.05)
    return killed + _kill(marked_pids(mark, MARK))


def _kill(pids: Iterable[int]) -> int:
    count = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            count += 1
    return count


def _is_watchdog(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return (
            b"labkit.core.watchdog" in Path(f"/proc/{pid}/cmdline").read_bytes()
            and start_time(pid) > 0
        )
    return False


def _unfinished(executed: Path) -> str:
    """Why an executed notebook does not count although its runner was content; "" when it does."""
    try:
        doc = canonical.load(executed)
    except BadInput as error:
        return error.what
    code = [c for c in doc["cells"] if c["cell_type"] == "code"]
    if not any(c["source"].strip() for c in code):
        return "it has no code: nothing was executed"
    for i, cell in enumerate(code, 1):
        if any(o.get("output_type") == "error" for o in cell.get("outputs", [])):
            return f"code cell {i} holds an error"
        if cell["source"].strip() and cell.get("execution_count") is None:
            return f"code cell {i} was not executed"
    return ""


def _cell_seconds(executed: Path) -> tuple[float | None, ...]:
    with contextlib.suppress(BadInput):
        doc = canonical.load(executed)
        return tuple(
            c["metadata"].get("papermill", {}).get("duration")
            for c in doc["cells"]
            if c["cell_type"] == "code"
        )
    return ()


def _child(spec: JsonObject) -> int:
    """In the runner's process: execute, say in the status file what went wrong, exit by it."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            spec["input"],
            spec["output"],
            parameters=spec["parameters"],
            cwd=spec["cwd"],
            kernel_name="python3",
            progress_bar=False,
            log_output=False,
        )
    except PapermillExecutionError as error:
        outcome = "failed"
        reason = f"{error.ename}: {error.evalue} (code cell {error.exec_count})"
    except DeadKernelError as error:
        outcome, reason = "dead_kernel", f"the kernel died: {error}"
    except CellTimeoutError as error:
        outcome, reason = "timeout", str(error)
    except Exception as error:
        outcome, reason = "failed", f"{type(error).__name__}: {error}"
    else:
        return 0
    Path(spec["status"]).write_text(json.dumps({"outcome": outcome, "error": reason}))
    return 1


if __name__ == "__main__":
    sys.exit(_child(json.loads(sys.argv[1])))
