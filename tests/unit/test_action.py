"""action.yml: what is declared is used, nothing of an input reaches a shell as code, and the gate
decides as docs/ci.md says."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = ACTION["runs"]["steps"]
SCRIPTS = {step["name"]: step for step in STEPS if "run" in step}


def test_every_input_is_used_and_every_one_used_is_declared():
    used = set(re.findall(r"inputs\.([\w-]+)", json.dumps(ACTION["runs"])))
    assert used == set(ACTION["inputs"])


def test_every_step_that_is_named_is_there_and_gives_that_output():
    scripts = {step.get("id"): step.get("run", "") for step in STEPS}
    gives = (ROOT / "scripts" / "gate-outputs").read_text(encoding="utf-8")
    named = re.findall(r"steps\.(\w+)\.outputs\.(\w+)", json.dumps(ACTION))
    assert named
    for step, output in named:
        assert f"{output}=" in scripts[step] or f"{output}=" in gives, (step, output)


@pytest.mark.parametrize("step", SCRIPTS.values(), ids=[*SCRIPTS])
def test_a_script_is_sound_and_no_expression_is_pasted_into_it(step, tmp_path):
    assert "${{" not in step["run"] and step["shell"] == "bash"
    script = tmp_path / "step.sh"
    script.write_text(step["run"])
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    read = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", step["run"]))
    unknown = {n for n in read - set(step["env"]) if not n.startswith(("GITHUB_", "RUNNER_"))}
    assert not unknown and set(step["env"]) - {"TOKEN"} <= read


def test_what_it_uses_is_pinned():
    for step in STEPS:
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|[0-9a-f]{40})", step["uses"])


#: A lab that measures in no time: writes what is saved, ends with CODE where it compares.
LABKIT = """#!/bin/bash
echo "$@" >> "$CALLS"
compares=; saved=
while [ $# -gt 0 ]; do
  case "$1" in --baseline) compares=1 ;; --save-baseline) saved="$2" ;; esac
  shift
done
if [ -n "$saved" ] && { [ -z "$compares" ] || [ "$CODE" != 5 ]; }; then echo new > "$saved"; fi
if [ -z "$compares" ]; then echo '{"slower":[]}'; exit 0; fi
case "$CODE" in
  5) echo '{"slower":[],"not_comparable":{}}' ;;
  1) echo '{"slower":["naive: load took 2 s"],"baseline":{}}' ;;
  *) echo '{"slower":[],"baseline":{}}' ;;
esac
exit "$CODE"
"""
MAIN = {"GITHUB_REF_NAME": "main", "GITHUB_EVENT_NAME": "push"}
PULL = {"GITHUB_REF_NAME": "main", "GITHUB_EVENT_NAME": "pull_request"}


@pytest.mark.parametrize(
    ("event", "save", "before", "code", "ends", "calls", "kept", "comparable"),
    [
        (MAIN, "auto", False, 0, 0, 1, "new", "false"),
        (MAIN, "auto", True, 0, 0, 1, "new", "true"),
        (MAIN, "auto", True, 1, 1, 1, "old", "true"),
        (MAIN, "auto", True, 5, 0, 2, "new", "false"),
        (PULL, "auto", True, 0, 0, 1, "old", "true"),
        (PULL, "auto", True, 5, 5, 1, "old", "false"),
        (PULL, "auto", False, 0, 0, 1, None, "false"),
        (MAIN, "never", True, 0, 0, 1, "old", "true"),
        (PULL, "renew", True, 1, 0, 1, "new", "false"),
        (MAIN, "sometimes", True, 0, 2, 0, "old", None),
    ],
)
def test_a_baseline_is_compared_and_kept_as_the_page_says(
    tmp_path, event, save, before, code, ends, calls, kept, comparable
):
    baseline, output, called = (tmp_path / n for n in ("kept.json", "output", "calls"))
    if before:
        baseline.write_text("old\n")
    output.touch()
    called.touch()
    labkit = tmp_path / "labkit"
    labkit.write_text(LABKIT)
    labkit.chmod(0o755)
    step = SCRIPTS["Measure and compare"]
    given = {
        **dict.fromkeys(step["env"], ""),
        "LABKIT": str(labkit),
        "PYTHON": sys.executable,
        "BASELINE": str(baseline),
        "SAVE": save,
        "BRANCH": "main",
        "NOTEBOOKS": "01_anatomy my/*.ipynb",
        "BLOCKS": "8",
        "REPORT": "out",
        "CALLS": str(called),
        "CODE": str(code),
        "RUNNER_TEMP": str(tmp_path / "temp"),
        "GITHUB_ACTION_PATH": str(ROOT),
        "GITHUB_OUTPUT": str(output),
        **event,
    }
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env={"PATH": os.environ["PATH"], **given},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    said = called.read_text().splitlines()
    assert (done.returncode, len(said)) == (ends, calls), done
    assert (baseline.read_text().strip() if baseline.exists() else None) == kept
    outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
    assert outputs.get("comparable") == comparable
    assert ("load" in outputs.get("slower", "")) == (comparable == "true" and code == 1)
    for call in said:
        assert call.startswith(f"notebooks run {ROOT}/notebooks/01_anatomy.ipynb my/*.ipynb --out")
        assert "-p blocks=8" in call and "--preset" not in call


def test_only_the_newest_baseline_of_the_repositorys_own_branch_is_taken():
    newest = runpy.run_path(str(ROOT / "scripts" / "gate-last-run"))["newest"]

    def artifact(run: int, day: int, branch: str = "main", fork: int = 1, expired: bool = False):
        left = {"id": run, "head_branch": branch, "head_repository_id": fork, "repository_id": 1}
        return {"created_at": f"2026-01-0{day}", "expired": expired, "workflow_run": left}

    found = [
        artifact(1, 1),
        artifact(2, 2),
        artifact(3, 3, expired=True),
        artifact(4, 4, branch="topic"),
        artifact(5, 5, fork=9),
    ]
    assert newest(found, "main") == "2" and newest(found[2:], "main") == ""


def test_outputs_of_a_run_that_ended_before_it_measured_say_so():
    outputs = runpy.run_path(str(ROOT / "scripts" / "gate-outputs"))["outputs"]
    assert outputs("") == outputs("labkit: broken") == "comparable=false\nslower=[]"
    printed = 'text\n{"slower":["a: load\\u000aslower=[]"],"baseline":{}}\n'
    assert outputs(printed).splitlines()[1:] == ['slower=["a: load\\nslower=[]"]']
