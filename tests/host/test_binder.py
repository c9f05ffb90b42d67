"""Binder's and the dev container's steps, taken as they are taken there: an ordinary user, no
/dev/fuse, 2 GB of memory, no root.

The packages themselves are those of this interpreter (conda's download is not what is tested);
everything after them is run as written: binder/postBuild in a copy of the checkout, then
JupyterLab, then the first notebook."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from labkit.core.ledger import remove_tree
from tests.support.environment import OFFLINE, sibling
from tests.support.ordinary import as_ordinary_user, memory_limit

ROOT = Path(__file__).resolve().parents[2]
TWO_GB = 2_000_000_000 // 4096 * 4096  # whole pages: the kernel rounds a limit up to them
#: JupyterLab as Binder starts it, asked for its list of contents until it answers.
START = r"""
python -m jupyterlab --no-browser --ip=127.0.0.1 --port=0 --ServerApp.token=t --ServerApp.port_retries=0 > "$HOME/jupyter.log" 2>&1 &
server=$!
for _ in $(seq 300); do
    url=$(grep -o 'http://127.0.0.1:[0-9]*' "$HOME/jupyter.log" | head -1)
    if [ -n "$url" ] && curl -sf "$url/api/contents/notebooks?token=t"; then kill $server; wait $server; exit 0; fi
    kill -0 $server || break
    sleep 0.2
done
cat "$HOME/jupyter.log" >&2; exit 1
"""  # noqa: E501 - a program's own lines


@pytest.fixture(scope="module")
def binder():
    """(home, run): a built Binder, and a way to run a command in it. Takes postBuild's steps
    once."""
    home = Path(tempfile.mkdtemp(prefix="labkit-binder-"))
    home.chmod(0o755)
    try:
        lab = home / "repo"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
        for name in listed.decode().split("\0"):
            if name and (ROOT / name).is_file() and not name.startswith("tests/"):
                (lab / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, lab / name)
        sibling(home / "conda")
        with memory_limit(TWO_GB) as memory:

            def run(*argv: str, **options):
                env = {"PATH": f"{home}/conda/bin:/usr/local/bin:/usr/bin:/bin", **OFFLINE}
                return as_ordinary_user(
                    argv,
                    home=home,
                    env=env,
                    cwd=lab,
                    may_gain=False,
                    bare_dev=True,
                    memory=memory,
                    timeout=280,
                    **options,
                )

            built = run("binder/postBuild")
            assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
            yield home, run, built, memory
    finally:
        remove_tree(home)


pytestmark = [pytest.mark.needs("root")]


def test_post_build_installs_the_checkout_itself_and_the_doctor_names_what_is_missing(binder):
    home, run, built, _ = binder
    assert "MISSING" in built.stdout and "fuse" in built.stdout
    where = run(
        "python",
        "-c",
        "import labkit, os; print(labkit.__file__, os.getuid(), os.path.exists('/dev/fuse'))",
    )
    assert where.stdout.split() == [
        str(home / "repo" / "labkit" / "__init__.py"),
        "47110",
        "False",
    ], where.stderr


def test_recorded_runs_and_syllabi_are_found_from_there(binder):
    _, run, *_ = binder
    done = run(
        "python",
        "-c",
        "from labkit.lessons import syllabus; from labkit.stack import replay;"
        " print(len(replay.names()),"
        " syllabus.minutes_of('01_anatomy'))",
    )
    assert done.returncode == 0 and int(done.stdout.split()[0]) >= 1, done.stderr


def test_jupyterlab_starts_and_shows_the_notebooks(binder):
    _, run, *_ = binder
    done = run("bash", "-c", START)
    assert done.returncode == 0 and "00_start_here.ipynb" in done.stdout, done.stderr[-2000:]


def test_the_first_notebook_comes_through_in_2_gb(binder, home_with_image):
    """A naive start: pulled, unpacked, started, loaded, answered."""
    home, run, _, memory = binder
    for room in ("images", "models"):
        shutil.copytree(home_with_image / room, home / "lab" / room, symlinks=True)
    done = run(
        "labkit", "notebooks", "run", "00", "--preset", "ci", "--out", str(home / "out"), "--json"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    record = json.loads(
        Path(json.loads(done.stdout.splitlines()[-1])["notebooks"][0]["records"][0]).read_text()
    )
    assert [(t["outcome"], t["cache"]["state"]) for t in record["trials"]] == [
        ("ok", "cold")
    ] and record["host"]["rootness"] != "root"
    if memory is None:
        pytest.skip(
            "no control group for memory can be made here: the notebook ran without the limit"
        )
    # the counter includes the page that was over the limit and made the kernel reclaim
    assert 0 < memory.most_used_bytes <= TWO_GB + (1 << 20)


def test_the_dev_container_calls_only_what_there_is():
    said = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    command = said["postCreateCommand"]
    assert (
        "-c constraints.txt" in command
        and (ROOT / "constraints.txt").exists()
        and "'.[dev]'" in command
    )
    script = command.split("&&")[1].split()
    assert os.access(ROOT / script[0], os.X_OK)
    done = subprocess.run(
        [*script, "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode in (0, 1) and "unknown" not in (done.stdout + done.stderr), done.stderr
