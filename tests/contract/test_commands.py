"""Every command, in every environment it may find: it ends with a documented code, says what was
wrong, and shows no traceback.

The commands are those that the parser knows, so a new one fails here until it has a call. Each
environment is a real one: a file system mounted read-only, a tmpfs that is full, a shell's own
limits, streams that are closed."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from labkit import cli
from labkit.core.arguments import Parser

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "data/recorded/epyc-2/naive-small.json"
LABKIT = (sys.executable, "-m", "labkit")
PATIENCE_S = 100


def leaves(parser: Parser, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command and subcommand that takes no further one."""
    below = [a for a in parser.filled()._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        return [path]
    return [leaf for name, sub in below[0].choices.items() for leaf in leaves(sub, (*path, name))]


LEAVES = [" ".join(leaf) for leaf in leaves(cli.parser())]

#: A call of each that does something with the workspace or the files it is given, and is over at
#: once where it may not. {home}: LABKIT_HOME; {out}: a place below it; {layout}, {model}, {record}:
#: sound inputs elsewhere; {gone}: what is not there.
CALLS = {
    "doctor": "",
    "run": "naive --preset tiny --blocks 1",
    "show": "{record}",
    "trace": "{record} --out {out}",
    "compare": "{record}",
    "study": "--preset tiny --minutes 1 --sizes 30MB --out {out}",
    "report": "--out {out} --study {study} --notebook 01_anatomy",
    "notebooks run": "01_anatomy --preset ci --out {out}",
    "notebooks check": "01_anatomy",
    "lab": "--copy-only {out}",
    "bench overhead": "--blocks 1 --preset tiny",
    "bench import": "--blocks 1 --starts 1",
    "bench load": "--blocks 1 --preset tiny --loaders safetensors --cache warm",
    "bench pull": "--blocks 1 --image tiny --arms registry-stock",
    "bench convert": "--blocks 1 --image tiny",
    "bench lazy": "--blocks 1 --arms full --links loopback",
    "bench restore": "--blocks 1 --preset tiny --arms naive-process",
    "bench forecast": "--blocks 1 --sizes tiny",
    "model make": "--bytes 1MB {out}",
    "model verify": "{model}",
    "model convert": "{model} {out} --to pickle",
    "model inspect": "{model}",
    "image build": "--tiny --out {out}",
    "image inspect": "{layout}",
    "image pull": "http://127.0.0.1:1/lab/x:latest {out}",
    "image unpack": "{layout} {out}",
    "image push": "{layout} --to s3://lab/images",
    "image recompress": "{layout} --codec none --out {out}",
    "image convert": "{layout} {out}",
    "image mount": "oci:{layout}:nobody/nothing:latest {gone}",
    "registry serve": "--root {out} --child",
    "registry add": "{layout} lab/tiny:latest --root {out}",
    "store serve": "--root {out} --child",
    "store add": "{model} s3://lab/models/x --root {out}",
    "snapshot dump": "x --preset tiny",
    "snapshot restore": "x",
    "snapshot list": "",
    "snapshot explain": "x",
    "snapshot push": "x s3://lab/x",
    "snapshot pull": "s3://lab/x x",
    "snapshot soak": "--cycles 1",
    "cuda-checkpoint": "--get-state --pid 1",
    "ablate": "--preset tiny --blocks 1 --only safetensors",
    "plan": "",
    "workshop pack": "--no-wheels --no-image --preset tiny --out {out}.tar",
    "workshop check": "{gone}",
    "site": "--out {out} --executed {gone}",
}

#: Those that say much and are over soon, in a sound environment.
TALKATIVE = (
    "doctor",
    "show",
    "compare",
    "notebooks check",
    "model verify",
    "model inspect",
    "image inspect",
    "snapshot list",
    "plan",
)


@dataclass(frozen=True)
class Ended:
    leaf: str
    code: int
    out: str
    err: str

    def faults(self) -> list[str]:
        found = [] if self.code in cli.EXIT_CODES else [f"exit code {self.code}"]
        found += (
            ["a traceback"]
            if "Traceback" in self.err + self.out or "Exception ignored" in self.err
            else []
        )
        found += ["a mistake of the lab"] if self.code == 70 else []
        found += (
            ["says no fix"]
            if self.code in (2, 3)
            and self.err
            and "  fix: " not in self.err
            and "usage:" not in self.out
            else []
        )
        return [f"labkit {self.leaf}: {', '.join(found)}: {self.err[-700:]}"] if found else []


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Sound inputs, made once: a checkpoint of 1 MB and an image of 3 MB."""
    from labkit.image import tiny
    from labkit.subject.checkpoint import make_checkpoint

    place = tmp_path_factory.mktemp("inputs")
    make_checkpoint(place / "model", size_bytes=1_000_000)
    tiny.tiny_layout(place / "layout")
    (place / "study").mkdir()
    shutil.copy(ROOT / "data/fixtures/fixture_study.json", place / "study" / "ladder.json")
    return {
        "study": place / "study",
        "model": place / "model",
        "layout": place / "layout",
        "record": RECORD,
        "gone": place / "gone",
    }


def call(
    leaf: str,
    words: str,
    inputs: dict,
    home: Path,
    *,
    shell: str = 'exec "$@"',
    env: dict[str, str | None] | None = None,
    before: tuple[str, ...] = (),
) -> Ended:
    """One command in a process of its own. `shell`: a script whose arguments are the command line;
    `before`: what enters the environment."""
    out = home / f"out-{leaf.replace(' ', '-')}"
    argv = [
        *LABKIT,
        *leaf.split(),
        *(w.format(home=home, out=out, **inputs) for w in words.split()),
    ]
    clean = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LABKIT_HOME": str(home),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        **(env or {}),
    }
    done = subprocess.run(
        [*before, "bash", "-c", shell, "labkit", *argv],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
        env={k: v for k, v in clean.items() if v is not None},
    )
    return Ended(
        f"{leaf} {words}",
        done.returncode,
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
    )


def every(wanted, each) -> list[Ended]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(each, wanted))


def faults(ended: list[Ended]) -> str:
    return "\n".join(fault for one in ended for fault in one.faults())


def test_each_command_has_a_call_here():
    assert set(LEAVES) == set(CALLS)


@pytest.mark.parametrize("leaf", LEAVES)
def test_help_and_mistakes_in_the_call_are_answered(leaf, capsys):
    """No arguments where some are needed, an unknown option, and --help, in this process."""
    words = leaf.split()
    assert cli.main([*words, "--help"]) == 0
    assert "usage: labkit" in capsys.readouterr().out
    assert cli.main([*words, "--no-such-option"]) == 2
    said = capsys.readouterr().err
    assert "fix: labkit" in said and "Traceback" not in said


GROUPS = sorted(
    {" ".join(leaf.split()[:n]) for leaf in LEAVES for n in range(1, len(leaf.split()))}
    | {"model make", "image inspect", "show", "trace", "compare", "cuda-checkpoint", "registry add"}
)


@pytest.mark.parametrize("words", GROUPS)
def test_what_is_left_out_is_named(words, capsys):
    assert cli.main(words.split()) == 2
    assert re.search(r"required|one of", capsys.readouterr().err)


@pytest.mark.parametrize(
    "line",
    [
        "run naive --blocks 0",
        "run naive --blocks -1",
        "run naive --blocks 99999999999",
        "run naive --blocks nan",
        "run naive --timeout 0",
        "run naive --timeout nan",
        "run naive --timeout inf",
        "run naive --timeout -1",
        "run naive --port 0",
        "run naive --port 65536",
        "run naive --port -1",
        "run naive --link nonsense",
        "run naive --link 0mbit",
        "run naive --scenario nonsense",
        "run naive --preset nonsense",
        "run naive --store http://x",
        "run naive --store s3://",
        "run naive --model-dir {gone}",
        "run naive --out {gone}/",
        "run naive --out {record}/x",
        "run naive --out /proc/x/y",
        "run naive --url http://x",
        "run naive --command true",
        "run",
        "run nonsense",
        "run image=nonsense",
        "run --command true --url ftp://x --weights {model}",
        "run --command true --url http://[::1 --weights {model}",
        "run --command /no/such --url http://127.0.0.1:1 --weights {model}",
        "run --command true --url http://127.0.0.1:99999 --weights {model}",
        "run --command true --url http://127.0.0.1:1 --weights {gone}",
        "run --command true --url http://127.0.0.1:1 --weights {empty}",
        "model verify {empty}",
        "model inspect {empty}",
        "model convert {empty} {gone} --to pickle",
        "store add {empty} s3://lab/x --root {gone}",
        "run naive --model-dir {empty}",
        "snapshot explain {empty}",
        "image inspect {empty}",
        "registry add {empty} x:y --root {gone}",
        "ablate --only nonsense",
        "ablate --kinds nonsense",
        "ablate --kinds ,",
        "ablate --blocks 0",
        "ablate --out {record}/x",
        "ablate --best nonsense",
        "ablate --scenario nonsense --search",
        "ablate --only safetensors --kinds ladder --scenario nonsense",
        "report --notebook nonsense",
        "report --minutes 0",
        "report --study {gone}",
        "report --no-notebooks --notebook 01",
        "report --timeout 0",
        "report --record {gone}",
        "report --record {model}/config.json",
        "report --out {record}",
        "report --notebook-preset nonsense --notebook 01",
        "notebooks run --baseline {gone}",
        "notebooks run nonsense",
        "notebooks run 01 --preset nonsense",
        "notebooks run --timeout nan",
        "notebooks run 01 --out {record}",
        "notebooks run 01 -p nonsense=1",
        "notebooks run 01 --save-baseline /proc/x/y",
        "notebooks check nonsense",
        "bench load --cache nonsense",
        "bench load --loaders nonsense",
        "bench load --loaders ,",
        "bench load --device nonsense",
        "bench load --model-dir {gone}",
        "bench load --store nonsense",
        "bench pull --arms nonsense",
        "bench pull --arms ,",
        "bench pull --part 1",
        "bench pull --image {gone}",
        "bench pull --connections 0",
        "bench lazy --arms nonsense",
        "bench lazy --links nonsense",
        "bench restore --arms nonsense",
        "bench restore --preset nonsense",
        "bench import --starts 0",
        "bench convert --chunk-size 0",
        "bench forecast --sizes nonsense",
        "model make --bytes nonsense {gone}",
        "model make --bytes 1MB --shards -1 {gone}",
        "model verify {gone}",
        "model verify {record}",
        "model inspect {gone}",
        "model convert {gone} {gone}/x --to pickle",
        "model convert {model} {gone} --to nonsense",
        "image inspect {gone}",
        "image build --out {record}",
        "image build --with-weights {gone}",
        "image pull nonsense {gone}",
        "image pull http://127.0.0.1:70000/x:y {gone}",
        "image pull http://[::1/x:y {gone}",
        "image mount http://[::1/x:y {gone}",
        "image mount nonsense {gone}",
        "image mount http://127.0.0.1:70000/x:y {gone}",
        "image pull http://127.0.0.1:1/x:y {gone}",
        "image convert {layout} {record}",
        "image convert {layout} {gone} --access-record {gone}",
        "image convert {layout} {gone} --level 99",
        "image push {layout} --to nonsense",
        "image unpack {gone} {gone}/x",
        "image recompress {layout} --codec none --out {record}",
        "registry serve --root {record}",
        "registry serve --root {gone} --port 65536",
        "registry serve --root {gone} --port -1",
        "registry serve --root {gone} --host no.such.host.invalid",
        "registry serve --root {gone} --link nonsense",
        "registry serve --root {gone} --fault nonsense",
        "registry add {gone} x:y --root {gone}",
        "registry add {layout} NONSENSE --root {gone}",
        "store add {gone} s3://lab/x --root {gone}",
        "store add {model} http://x --root {gone}",
        "store serve --root {gone} --port 65536",
        "snapshot restore nonsense",
        "snapshot explain {gone}",
        "snapshot push nonsense s3://x/y",
        "snapshot pull http://x y",
        "snapshot dump x --pid 0",
        "snapshot dump x --model {gone}",
        "snapshot soak --cycles 0",
        "snapshot list --verify",
        "cuda-checkpoint --get-state --pid 0",
        "plan --records {gone}",
        "plan --trace {gone}",
        "plan --rate nonsense",
        "plan --gpu-hour nan",
        "plan --image-size nonsense",
        "plan --keep-alive-s -1",
        "plan --concurrency 0",
        "workshop check {gone}",
        "workshop check {model}",
        "workshop pack --out {model}",
        "workshop pack --preset nonsense",
        "workshop pack --record {gone}",
        "show {gone}",
        "show {model}",
        "trace {gone}",
        "trace {record} --trial 0",
        "trace {record} --trial 9999",
        "trace {record} --out {record}",
        "compare {gone}",
        "site --record {gone}",
        "site --out {record}",
        "nonsense",
        "",
    ],
)
def test_a_mistake_is_said_before_anything_is_prepared(line, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    (tmp_path / "empty").mkdir()
    assert cli.main(
        [
            w.format(**{**inputs, "gone": tmp_path / "gone", "empty": tmp_path / "empty"})
            for w in line.split()
        ]
    ) in (2, 3)
    captured = capsys.readouterr()
    assert "  fix: " in captured.err or "usage:" in captured.out, captured.err
    assert "mistake of the lab" not in captured.err
    assert not list((tmp_path / "home").glob("models/*")), "prepared before the mistake was found"


@pytest.mark.parametrize(
    "variable, value, line",
    [
        *(
            ("AWS_ENDPOINT_URL", value, "image push {layout} --to s3://lab/x")
            for value in (
                "nonsense",
                "http://",
                "http://[::1",
                "http://127.0.0.1:70000",
                "127.0.0.1:9000",
            )
        ),
        ("STORAGE_EMULATOR_HOST", "nonsense", "image push {layout} --to gs://lab/x"),
        ("LABKIT_RECORDED", "/no/such/directory", "site --executed {gone} --out {gone}"),
        ("LABKIT_HOME", "~nobody-of-this-name/lab", "snapshot list"),
        ("LABKIT_HOME", "/dev/null", "snapshot list"),
        ("LABKIT_HOME", "/proc/lab", "doctor"),
    ],
)
def test_a_variable_of_the_environment_that_means_nothing_is_named(
    variable, value, line, inputs, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(variable, value)
    # none here: nothing is executed
    monkeypatch.setattr("labkit.cli.notebooks.folder", lambda: tmp_path)
    code = cli.main([w.format(**{**inputs, "gone": tmp_path / "gone"}) for w in line.split()])
    said = capsys.readouterr().err
    assert code == 2 and "  fix: " in said and "mistake of the lab" not in said, said
    assert variable != "AWS_ENDPOINT_URL" or variable in said


# -- a workspace that cannot be written ------------------------------------------------------------

#: Calls that write nothing of the workspace, or are about files elsewhere: they may well come
#: through.
NEEDS_NO_HOME = {
    "show",
    "compare",
    "notebooks check",
    "bench import",
    "model verify",
    "model inspect",
    "image inspect",
    "cuda-checkpoint",
    "workshop check",
}


def refused(ended: list[Ended]) -> list[str]:
    """Those that did not notice: they passed without the workspace they need."""
    return [
        one.leaf for one in ended if one.code == 0 and not one.leaf.startswith(tuple(NEEDS_NO_HOME))
    ]


@pytest.mark.parametrize("where", ["a file", "below a file"])
def test_a_workspace_that_is_a_file_is_refused_by_every_command(where, inputs, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    home = tmp_path / "file" / "lab" if where == "below a file" else tmp_path / "file"
    ended = every(LEAVES, lambda leaf: call(leaf, CALLS[leaf], inputs, home))
    assert not faults(ended), faults(ended)
    assert not refused(ended)


READ_ONLY = (
    "unshare",
    "--mount",
    "bash",
    "-c",
    'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"',
)


@pytest.mark.needs("root")
def test_a_read_only_workspace_is_refused_by_every_command(inputs, tmp_path):
    ended = every(
        LEAVES,
        lambda leaf: call(leaf, CALLS[leaf], inputs, tmp_path, before=(*READ_ONLY, str(tmp_path))),
    )
    assert not faults(ended), faults(ended)
    assert not refused(ended)


#: A tmpfs of 64 kB with some of it taken, over the workspace; TMPDIR too, as on a host with one
#: small disk.
FULL = (
    "unshare",
    "--mount",
    "bash",
    "-c",
    (
        'mount -t tmpfs -o size=64k full "$0" && head -c 60000 /dev/zero > "$0/taken" && export'
        ' TMPDIR="$0" && exec "$@"'
    ),
)


@pytest.mark.needs("root")
def test_a_full_disk_is_said_by_every_command(inputs, tmp_path):
    ended = every(
        LEAVES,
        lambda leaf: call(leaf, CALLS[leaf], inputs, tmp_path, before=(*FULL, str(tmp_path))),
    )
    assert not faults(ended), faults(ended)
    assert any("full" in one.err for one in ended if one.code == 2)


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": None},
        {"TERM": "dumb", "COLUMNS": "7"},
        {"COLUMNS": "nonsense", "LINES": "-1"},
        {"PYTHONOPTIMIZE": "2", "PYTHONWARNINGS": "error", "PYTHONDEVMODE": "1"},
    ],
    ids=[
        "ascii",
        "latin-1",
        "the C locale",
        "a dumb terminal",
        "odd columns",
        "a strict interpreter",
    ],
)
def test_an_output_that_cannot_hold_every_sign_is_written_all_the_same(env, inputs, tmp_path):
    ended = every(
        TALKATIVE,
        lambda leaf: call(
            leaf, "--no-disk" if leaf == "doctor" else CALLS[leaf], inputs, tmp_path, env=env
        ),
    )
    ended += every(
        [leaf for leaf in LEAVES if leaf not in TALKATIVE][
            :: 1 if "PYTHONIOENCODING" in env else 4
        ],
        lambda leaf: call(leaf, "--help", inputs, tmp_path, env=env),
    )
    assert not faults(ended), faults(ended)
    assert {one.leaf: one.code for one in ended if one.code} == {"plan ": 2}, (
        "plan has no record to fit here"
    )


def test_the_last_line_is_json_in_any_encoding(inputs, tmp_path):
    odd = tmp_path / "größe–🎈"
    odd.symlink_to(inputs["model"])
    for env in (
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ):
        done = call("model verify", "{odd}", {**inputs, "odd": odd}, tmp_path, env=env)
        assert json.loads(done.out.splitlines()[-1])["path"] == str(odd.resolve()) or json.loads(
            done.out.splitlines()[-1]
        )["path"] == str(odd), done


@pytest.mark.parametrize(
    "shell, codes",
    [
        ('exec "$@" >&-', {0}),
        ('exec "$@" 2>&-', {0}),
        ('exec "$@" <&-', {0}),
        ('exec "$@" >&- 2>&- <&-', {0}),
        ('exec "$@" >/dev/full', {2}),
        ('exec "$@" 2>/dev/full', {0}),
        ('exec "$@" >/dev/full 2>/dev/full', {2}),
        ('set -o pipefail; "$@" | sleep 0', {0, 141}),
        ('"$@" 2>&1 >/dev/null | sleep 0; exit ${PIPESTATUS[0]}', {0}),
    ],
)
def test_a_stream_that_is_closed_or_full_ends_no_command_in_a_traceback(
    shell, codes, inputs, tmp_path
):
    ended = every(
        TALKATIVE,
        lambda leaf: call(
            leaf, "--no-disk" if leaf == "doctor" else CALLS[leaf], inputs, tmp_path, shell=shell
        ),
    )
    assert not faults(ended), faults(ended)
    assert {one.code for one in ended if not one.leaf.startswith("plan")} <= codes


# -- limits of the shell ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limit",
    [
        "ulimit -n 16",
        "ulimit -n 6",
        "ulimit -f 8",
        "ulimit -v 400000",
        "export TMPDIR=/no/such/directory",
        "cd $(mktemp -d) && rmdir $PWD",
        "unset HOME LABKIT_HOME",
    ],
)
def test_a_small_limit_or_an_odd_shell_is_said(limit, inputs, tmp_path):
    wanted = (
        "doctor",
        "show",
        "model make",
        "model verify",
        "image build",
        "image convert",
        "registry add",
        "notebooks check",
        "snapshot list",
    )
    env = {"LABKIT_HOME": None, "HOME": str(tmp_path)} if "HOME" in limit else {}
    ended = every(
        wanted,
        lambda leaf: call(
            leaf, CALLS[leaf], inputs, tmp_path, shell=f'{limit}; exec "$@"', env=env
        ),
    )
    assert not faults(ended), faults(ended)


#: Runs each call of stdin's list and prints how it ended; for a user who may not come in here.
EACH = """
import json, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
def one(job):
    done = subprocess.run(
        job[1], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100
    )
    return [job[0], done.returncode, done.stdout, done.stderr]
with ThreadPoolExecutor(2) as pool:
    print(json.dumps(list(pool.map(one, json.load(sys.stdin)))))
"""


@pytest.fixture
def open_place(inputs):
    """A directory that every user may enter, with the sound inputs; pytest's own are closed to
    others."""
    place = Path(tempfile.mkdtemp(prefix="labkit-commands-"))
    place.chmod(0o755)
    for name in ("model", "layout", "study"):
        shutil.copytree(inputs[name], place / name)
    yield place
    shutil.rmtree(place)


@pytest.mark.needs("root")
@pytest.mark.parametrize("theirs", ["root's workspace", "no home and no name"])
def test_an_ordinary_user_without_a_workspace_is_refused_by_every_command(
    theirs, inputs, open_place
):
    """As after one `sudo labkit …`, or in a container that runs as a bare number."""
    from tests.support.ordinary import as_ordinary_user

    taken, user = open_place / "taken", open_place / "user"
    taken.mkdir(mode=0o700)
    user.mkdir()
    places = {**inputs, **{name: open_place / name for name in ("model", "layout", "study")}}
    jobs = [
        (
            leaf,
            [
                *LABKIT,
                *leaf.split(),
                *(w.format(out=taken / "out", **places) for w in CALLS[leaf].split()),
            ],
        )
        for leaf in LEAVES
    ]
    env = (
        {"LABKIT_HOME": str(taken)}
        if theirs == "root's workspace"
        else {"LABKIT_HOME": "", "HOME": "/nonexistent"}
    )
    done = as_ordinary_user(
        ["env", *(["-u", "HOME"] if "HOME" in env else []), sys.executable, "-c", EACH],
        home=user,
        input=json.dumps(jobs),
        timeout=300,
        cwd=ROOT,
        env={
            **env,
            "PYTHONPATH": str(ROOT),
            "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "y",
        },
    )
    ended = [Ended(*one) for one in json.loads(done.stdout)]
    assert not faults(ended), faults(ended)
    assert not refused(ended)
    if theirs != "root's workspace":
        assert any("LABKIT_HOME" in one.err for one in ended if one.leaf == "snapshot list")


# -- what a stack is made of -----------------------------------------------------------------------


def test_how_the_model_is_built_is_chosen_on_the_command_line(monkeypatch, capsys, tmp_path):
    """Apart from the format, and the server says which it was. On a hot node: this process may
    have torch mapped, and a cold state is proven by nobody having it."""
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    stacks = {
        "no-image,init=meta,weights=pickle": "meta",
        "no-image,init=random,weights=safetensors": "random",
    }
    options = "--preset tiny --scenario hot-node --blocks 1 --json --out"
    code = cli.main(["run", *stacks, *options.split(), str(tmp_path / "run.json")])
    said = capsys.readouterr()
    assert code == 0, said.err
    doc = json.loads(said.out.splitlines()[-1])
    assert [row["stack"]["init"] for row in doc["results"]] == list(stacks.values()), doc
    run = json.loads((tmp_path / "run.json").read_text())
    for trial in run["trials"]:
        found = {e["layer"]: e for e in trial["evidence"]}
        assert found["init"]["engaged"] and found["weights"]["engaged"]
        assert found["init"]["facts"]["init"] == stacks[trial["arm"]]


# -- what is not the caller's mistake --------------------------------------------------------------


def test_a_mistake_of_the_lab_says_so_and_where_its_traceback_is(monkeypatch, capsys, tmp_path):
    from labkit.core import records

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(records, "read", lambda path: {}["nobody expected this"])
    assert cli.main(["show", "x"]) == 70
    said = capsys.readouterr().err
    kept = next(tmp_path.glob("labkit-failure-*.txt"))
    assert (
        "a mistake of the lab, not yours" in said and str(kept) in said and "Traceback" not in said
    )
    assert "nobody expected this" in kept.read_text() and kept.stat().st_mode & 0o077 == 0


def test_the_traceback_is_shown_where_it_is_asked_for_and_the_code_stays(monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_TRACEBACK", "1")
    assert cli.main(["show", "/no/such/record"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["json", "argparse", "torch", "tempfile", "labkit_helper"])
def test_modules_in_the_working_directory_are_not_the_labs(name, inputs, tmp_path):
    (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the working directory')")
    done = call("model verify", "{model}", inputs, tmp_path, shell=f'cd {tmp_path} && exec "$@"')
    assert done.code == 0 and "a module of the working directory" not in done.err, done
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if p];"
        " from labkit.core.subprocess_call import"
        " run_in_subprocess; from labkit.core.units import parse_bytes; import os;"
        f" os.chdir({str(tmp_path)!r}); print(run_in_subprocess(parse_bytes, '5MB'))"
    )
    started = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert started.stdout.strip() == "5000000" or sys.version_info < (3, 11), started.stderr


def test_every_exit_code_is_in_the_help(capsys):
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    for code in cli.EXIT_CODES:
        assert re.search(rf"\b{code} [a-z]", said), code
        assert re.search(rf"^    {code} ", cli.__doc__ or "", re.M), code
