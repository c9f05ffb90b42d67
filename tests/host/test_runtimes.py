"""Three runtimes, one meaning: the image's own interpreter answers, sees what the plan shows it,
and dies with its agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from dataclasses import replace

import pytest

from labkit.core.ledger import Ledger, is_mounted, start_time
from labkit.core.node_state import NodeState
from labkit.core.observe import process_facts
from labkit.core.plan import LaunchPlan, StepContext
from labkit.core.trial import free_port
from labkit.errors import TrialError
from labkit.image import build, tiny
from labkit.image.oci_layout import Layout
from labkit.image.runtimes import process, runc, userns
from labkit.image.unpack import unpack_image
from labkit.technique import Observation, technique

NAME = "lab/python:latest"
RUNTIMES = [
    pytest.param("process"),
    pytest.param("userns", marks=pytest.mark.needs("userns")),
    pytest.param("runc", marks=pytest.mark.needs("runc")),
]
MODULES = {"process": process, "userns": userns, "runc": runc}

SERVER = textwrap.dedent("""
    import http.server, json, os, sys, ssl, sqlite3
    class Tell(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen = {"prefix": sys.prefix, "env": dict(os.environ), "root": sorted(os.listdir("/")), "model": os.path.exists(sys.argv[2] + "/file"),
                    "stdout": os.readlink("/proc/self/fd/1"), "shm": os.path.isdir("/dev/shm"), "random": len(os.urandom(8))}
            try:
                open(sys.argv[2] + "/written", "w")
                seen["wrote"] = True
            except OSError:
                seen["wrote"] = False
            body = json.dumps(seen).encode()
            self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
        def log_message(self, *_): pass
    print("listening", flush=True)
    open(os.environ["LABKIT_TIMELINE"], "a").write("{}\\n")
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Tell).serve_forever()
""")  # noqa: E501 - a program's own lines


@pytest.fixture(scope="session")
def python_image(tmp_path_factory):
    """The interpreter's layer alone: an image that runs, in seconds. (rootfs, config, layout)"""
    top = tmp_path_factory.mktemp("python-image")
    manifest = build.build(top / "layout", parts=("interpreter",), level=1, name=NAME)
    layout = Layout(top / "layout")
    unpack_image(layout, manifest, top / "rootfs", fast=True)
    return top / "rootfs", layout.config(manifest), layout


@pytest.fixture
def ctx(tmp_path, workspace, python_image):
    rootfs, config, _ = python_image
    port = free_port()
    node = workspace.nodes / "one"
    for folder in (node, tmp_path / "run", tmp_path / "model"):
        folder.mkdir()
    (tmp_path / "model/file").write_text("weights")
    with Ledger.open(workspace, watch=False) as ledger:
        made = StepContext(
            node=node,
            port=port,
            timeline_path=tmp_path / "run/timeline.jsonl",
            ledger=ledger,
            server_args=["-c", SERVER, str(port), str(tmp_path / "model")],
            server_env={
                "LABKIT_TIMELINE": str(tmp_path / "run/timeline.jsonl"),
                "LABKIT_RUN": ledger.mark,
            },
            server_binds=[(str(tmp_path / "model"), str(tmp_path / "model"))],
            state=NodeState(rootfs=str(rootfs), image_config=config),
        )
        try:
            yield made
        finally:
            for end in reversed(made._ends):
                end()


def ask(port: int) -> dict:
    until = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as reply:
                return json.load(reply)
        except OSError:
            if time.monotonic() > until:
                raise


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_images_interpreter_answers_and_the_kernel_confirms_it(runtime, ctx):
    before = sorted(os.listdir(ctx.state.rootfs))
    facts = MODULES[runtime].start(ctx)
    seen = ask(ctx.port)
    assert seen["model"] and seen["prefix"].endswith("/usr/local") and seen["random"] == 8
    assert seen["stdout"].startswith("pipe:")  # a file of the host would break a CRIU dump
    assert "listening\n" in list(ctx.state.server_log)
    assert ctx.timeline_path.read_text() == "{}\n"
    proc = process_facts(facts["server_pid"])
    judged = technique(runtime).verify(
        Observation(plan=LaunchPlan({}), facts={"start": facts}, proc=proc)
    )
    assert judged.engaged, judged.how
    if runtime != "process":
        assert not seen["wrote"] and "work" not in seen["root"] and seen["shm"]
        assert sorted(os.listdir(ctx.state.rootfs)) == before  # the image is not written into
        assert not judged.facts.get("mapped_from_host")
        other = technique(runtime).verify(
            Observation(
                plan=LaunchPlan({}), facts={"start": facts}, proc=process_facts(os.getpid())
            )
        )
        assert not other.engaged


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nothing_of_the_hosts_environment_leaks_into_the_server(runtime, ctx, monkeypatch):
    monkeypatch.setenv("A_SECRET", "token")
    MODULES[runtime].start(ctx)
    seen = ask(ctx.port)
    assert "A_SECRET" not in seen["env"] and seen["env"]["LANG"] == "C.UTF-8"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_end_of_the_trial_leaves_no_process_and_no_mount(runtime, ctx):
    pid = MODULES[runtime].start(ctx)["server_pid"]
    ask(ctx.port)
    for end in reversed(ctx._ends):
        end()
    ctx._ends.clear()
    assert start_time(pid) == 0 and not is_mounted(ctx.node / "container/root")
    with open("/proc/self/mountinfo") as lines:
        assert not [line for line in lines if str(ctx.node) in line]


@pytest.mark.parametrize("runtime", [RUNTIMES[0], RUNTIMES[1]])
def test_a_killed_agent_takes_the_server_along(runtime, tmp_path, workspace, python_image):
    rootfs, config, _ = python_image
    port = free_port()
    (workspace.nodes / "one").mkdir()
    script = textwrap.dedent(f"""
        import json, sys, time
        from pathlib import Path
        from labkit.core.node_state import NodeState
        from labkit.core.plan import StepContext
        from labkit.core.ledger import Ledger
        from labkit.core.workspace import Workspace
        from labkit.image.runtimes import {runtime}
        with Ledger.open(Workspace.at({str(workspace.root)!r}), watch=False) as ledger:
            ctx = StepContext(node=Path({str(workspace.nodes / "one")!r}), port={port}, timeline_path=Path("/dev/null"), ledger=ledger,
                              server_args=["-c", "import time; print('up', flush=True); time.sleep(600)"], server_env={{}}, server_binds=[],
                              state=NodeState(rootfs={str(rootfs)!r}, image_config=json.loads({json.dumps(json.dumps(config))})))
            print({runtime}.start(ctx)["server_pid"], flush=True)
            time.sleep(600)
    """)  # noqa: E501 - a program's own lines
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as agent:
        assert agent.stdout
        pid = int(agent.stdout.readline())
        assert start_time(pid)
        agent.send_signal(signal.SIGKILL)
        agent.wait()
        until = time.monotonic() + 20
        while start_time(pid) and time.monotonic() < until:
            time.sleep(0.01)
        assert start_time(pid) == 0


@pytest.mark.needs("userns")
def test_a_root_that_cannot_be_entered_says_why(ctx):
    ctx.state.image_config = {"config": {"Entrypoint": ["/no/such/program"]}}
    with pytest.raises(TrialError, match="did not start"):
        userns.start(ctx)


def test_the_process_runtime_refuses_a_bind_it_cannot_make(ctx):
    ctx.server_binds = [("/somewhere", "/elsewhere")]
    with pytest.raises(TrialError, match="cannot appear"):
        process.start(ctx)


def test_a_server_of_the_host_is_no_evidence_for_the_image(ctx):
    facts = process.start(ctx)
    ask(ctx.port)
    proc = process_facts(facts["server_pid"])
    foreign = replace(
        Observation(
            plan=LaunchPlan({}),
            facts={"start": facts},
            proc={**proc, "maps": [*proc["maps"], "/usr/lib/libforeign.so"]},
        )
    )
    assert not technique("process").verify(foreign).engaged


@pytest.mark.needs("skopeo", "umoci")
def test_skopeo_and_umoci_accept_what_the_lab_builds(tmp_path, python_image):
    _, _, layout = python_image
    subprocess.run(
        ["skopeo", "copy", "--quiet", f"oci:{layout.path}:{NAME}", f"oci:{tmp_path}/copy:x"],
        check=True,
        capture_output=True,
    )
    manifest = tiny.tiny_layout(tmp_path / "tiny")
    unpack_image(Layout(tmp_path / "tiny"), manifest, tmp_path / "ours")
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    subprocess.run(
        [
            "umoci",
            "unpack",
            *rootless,
            "--image",
            f"{tmp_path}/tiny:{tiny.REFERENCE}",
            str(tmp_path / "theirs"),
        ],
        check=True,
        capture_output=True,
    )
    assert (
        subprocess.run(
            [
                "diff",
                "-r",
                "--no-dereference",
                str(tmp_path / "ours"),
                str(tmp_path / "theirs/rootfs"),
            ],
            capture_output=True,
        ).returncode
        == 0
    )
