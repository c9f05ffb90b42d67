"""Notebooks headless: papermill underneath, with what papermill gets wrong put right.

A notebook runs in a process of its own. Its outcome is that process's exit status – a kernel that
died and a cell that was cut off are saved by papermill as completed. Unknown parameters are an
error before anything runs. At a time-out every process of the notebook is ended, also those that
gave themselves a session: they are found by a mark in their environment. The lab's own watchdogs
are left to finish first, since they take down what a killed trial left.

    made = run_all([Path("notebooks/01_anatomy.ipynb")], Path("report"), preset="ci")
    made.results[0].outcome      # ok | failed | timeout | dead_kernel | killed | incomplete

Exercise cells get their solution (labkit.lessons.check) in place of the learner's stub. Lesson:
none; see STYLE.md, Notebooks."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from labkit.core import outputs, secrets
from labkit.core.beside import scratch
from labkit.core.interpreter import module
from labkit.core.ledger import Ledger, marked_pids
from labkit.core.proc import start_time
from labkit.errors import BadInput
from labkit.lessons import canonical
from labkit.lessons.check import HEADLESS

MARK = "LABKIT_NOTEBOOK"
OUTCOMES = ("ok", "failed", "timeout", "dead_kernel", "killed", "incomplete")


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


@dataclass(frozen=True)
class Made:
    results: tuple[Result, ...]
    page: Path
    slower: tuple[str, ...] = ()
    compared: Any = None  # a baseline.Judged, where there was a baseline

    @property
    def code(self) -> int:
        return (
            1
            if self.slower or not self.results or any(r.outcome != "ok" for r in self.results)
            else 0
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "notebooks": [{**asdict(r), "error": r.error[:500]} for r in self.results],
            "failed": sum(r.outcome != "ok" for r in self.results),
            "seconds": round(sum(r.seconds for r in self.results), 3),
            "slower": list(self.slower),
            "report": str(self.page),
            **({"baseline": self.compared.as_json()} if self.compared else {}),
        }


def parse_parameter(text: str) -> tuple[str, str]:
    """`k=v`; the value may hold further "=". Raises BadInput."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise BadInput(f"not a parameter: {text!r}", fix="-p blocks=3")
    return name.strip(), value


def presets(path: Path) -> dict[str, Any]:
    return dict(canonical.load(path)["metadata"].get("labkit", {}).get("presets", {}))


def refuse_nothing(paths: Sequence[Path], preset: str) -> None:
    """Raises BadInput where there is no notebook, or none of them knows the preset: nothing shown
    must not read as all is well."""
    if not paths:
        raise BadInput(
            "no notebook to run",
            why="with none executed, none has come through",
            fix="labkit notebooks run, from a checkout of the lab",
        )
    known = sorted({name for path in paths for name in presets(path)})
    if preset and preset not in known:
        raise BadInput(
            f"no notebook has a preset {preset!r}",
            why="they would run with their own defaults, for much longer",
            fix="one of: " + (", ".join(known) or "none here"),
        )


def parameters_for(path: Path, preset: str, given: dict[str, Any]) -> dict[str, Any]:
    """What is injected: the preset's values, then those given, read with the type of the notebook's
    own defaults.

    Raises BadInput for a name that the notebook does not have, or a value of another kind."""
    doc = canonical.load(path)
    known = canonical.parameters(doc)
    values = dict(doc["metadata"].get("labkit", {}).get("presets", {}).get(preset, {}))
    for name, text in given.items():
        if name not in known:
            raise BadInput(
                f"{path.stem} has no parameter {name!r}",
                why="papermill would warn and run with the defaults",
                fix=f"its parameters: {', '.join(known) or 'none'}",
            )
        values[name] = _typed(name, text, known[name])
    return values


def _typed(name: str, text: Any, default: Any) -> Any:
    if not isinstance(text, str) or isinstance(default, str):
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False", "null": "None"}.get(text, text))
    except (ValueError, SyntaxError):
        value = text
    fits = (
        default is None
        or isinstance(value, type(default))
        or (isinstance(default, float) and isinstance(value, int))
        or value is None
    )
    if not fits or (
        isinstance(value, bool) and not isinstance(default, bool) and default is not None
    ):
        raise BadInput(
            f"parameter {name} is {text!r}; its default is {default!r}",
            fix=f"give a {type(default).__name__}",
        )
    return value


def with_solutions(doc: dict[str, Any]) -> dict[str, Any]:
    """The notebook with each exercise's stub replaced by its solution."""
    from labkit.lessons.check import exercise

    for cell in doc["cells"]:
        name = cell.get("metadata", {}).get("labkit", {}).get("exercise")
        if name and cell["cell_type"] == "code":
            cell["source"] = (
                f"# Run headless: this is the solution of {name}.\n{exercise(name).source}"
            )
    return doc


def run_all(
    paths: Sequence[Path],
    out: Path,
    *,
    preset: str = "",
    given: dict[str, Any] | None = None,
    timeout_s: float = 900.0,
    baseline: str = "",
    save_baseline: str = "",
    say: Callable[[str], Any] | None = None,
) -> Made:
    """Run notebooks one after the other (they measure: never beside each other), write pages,
    compare with a baseline."""
    from labkit.lessons import pages

    refuse_nothing(paths, preset)
    if say and (without := [p.stem for p in paths if preset and preset not in presets(p)]):
        say(f"without a preset {preset!r}, so with their own defaults: {', '.join(without)}")
    # every mistake is found before anything runs
    wanted = [(path, parameters_for(path, preset, given or {})) for path in paths]
    before = None
    if baseline:
        from labkit.lessons import baseline as past

        before = past.read(baseline)
    if save_baseline:
        from labkit.lessons import baseline as past

        past.refuse_overwriting(save_baseline)
    refuse_strangers(paths, out)
    results = []
    for path, values in wanted:
        if say:
            say(f"{path.stem} …")
        results.append(run_one(path, out, values, timeout_s))
    judged = None
    if baseline or save_baseline:
        from labkit.lessons import baseline as past

        measured = past.collect([Path(p) for r in results for p in r.records])
        if save_baseline:
            past.write(measured, save_baseline)
        if before is not None:
            judged = past.judge(before, measured)
    slower = judged.slower if judged else ()
    return Made(tuple(results), pages.notebooks_page(results, out, slower), slower, judged)


def refuse_strangers(paths: Sequence[Path], out: Path) -> None:
    """Raises BadInput where an executed notebook, or its page, would replace what was not executed
    here – the notebook itself, above all."""
    from labkit.lessons import pages

    for path in paths:
        executed = out / path.name
        outputs.refuse_stranger(executed, partial(_was_executed, executed), "an executed notebook")
    pages.refuse_strangers([out / "index.html", *(out / f"{path.stem}.html" for path in paths)])


def _was_executed(path: Path, _begins: bytes) -> bool:
    with contextlib.suppress(BadInput, AttributeError, TypeError, KeyError):
        return "papermill" in canonical.load(path)["metadata"]
    return False


def run_one(
    path: Path,
    out: Path,
    values: dict[str, Any],
    timeout_s: float,
    more: Mapping[str, str] | None = None,
) -> Result:
    """Execute one notebook in a session of its own, `more` in its environment; everything it
    started is gone when this returns."""
    from labkit.core.workspace import Workspace

    out.mkdir(parents=True, exist_ok=True)
    executed = (out / path.name).resolve()
    executed.unlink(missing_ok=True)
    runs = Workspace.default().runs
    runs_before = {p: p.stat().st_mtime_ns for p in runs.glob("*.json")}
    mark = f"{os.getpid()}-{uuid.uuid4().hex}"
    with Ledger.open(Workspace.default()) as book, scratch("labkit-notebook-") as folder:
        prepared, status = folder / path.name, folder / "status.json"
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
            MARK: mark,
            HEADLESS: "1",
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "LABKIT_DISPLAY": "plain",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        began_s = time.monotonic()
        printed = folder / "printed.txt"
        # Into a file: a child that the notebook left behind would hold a pipe open long after the
        # runner is gone.
        with open(printed, "wb") as to:
            child = subprocess.Popen(
                [*module("labkit.lessons.execute"), json.dumps(spec)],
                env=environment,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=to,
                stderr=subprocess.STDOUT,
            )
        outcome = ""
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            outcome = "timeout"
        except BaseException:
            _end(mark)
            raise
        seconds = time.monotonic() - began_s
        ended = _end(mark, patience_s=0.0 if outcome else 15.0)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
        told: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            told = json.loads(status.read_text())
        said = printed.read_text(errors="replace")
    _mask_outputs(executed)
    said, error = secrets.mask(said), secrets.mask(told.get("error", ""))
    if outcome == "timeout":
        error = f"not over after {timeout_s:.0f} s"
    elif child.returncode < 0:
        outcome, error = (
            "killed",
            f"the runner ended by signal {signal.Signals(-child.returncode).name}",
        )
    elif child.returncode:
        outcome, error = told.get("outcome", "failed"), error or said[-2000:]
    else:
        error = _unfinished(executed)
        outcome = "incomplete" if error else "ok"
    new = tuple(
        str(p) for p in sorted(runs.glob("*.json")) if runs_before.get(p) != p.stat().st_mtime_ns
    )
    return Result(
        path.stem,
        outcome,
        round(seconds, 3),
        _cell_seconds(executed),
        error,
        str(executed) if executed.exists() else "",
        ended,
        new,
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


def _kill(pids: Any) -> int:
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


def _child(spec: dict[str, Any]) -> int:
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
        told = {
            "outcome": "failed",
            "error": f"{error.ename}: {error.evalue} (code cell {error.exec_count})",
        }
    except DeadKernelError as error:
        told = {"outcome": "dead_kernel", "error": f"the kernel died: {error}"}
    except CellTimeoutError as error:
        told = {"outcome": "timeout", "error": str(error)}
    except Exception as error:
        told = {"outcome": "failed", "error": f"{type(error).__name__}: {error}"}
    else:
        return 0
    Path(spec["status"]).write_text(json.dumps(told))
    return 1


if __name__ == "__main__":
    sys.exit(_child(json.loads(sys.argv[1])))
