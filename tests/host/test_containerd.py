"""The real path: a private containerd pulls or mounts what the lab builds, starts it, and leaves
nothing behind."""

from __future__ import annotations

import os
import time

import pytest

from labkit.core.ledger import Ledger, start_time
from labkit.core.node_state import PlanState
from labkit.core.plan import LaunchPlan
from labkit.core.proc import mounts
from labkit.errors import BadInput, TransferError
from labkit.image import build, containerd
from labkit.image.oci_layout import Layout
from labkit.image.publish import publish_image
from labkit.net.serving import serving
from labkit.technique import Artifact, Observation, technique

NAME = "lab/python:latest"
SAY = [
    "/usr/local/bin/python3",
    "-c",
    "import sys, time; print('from', sys.prefix, flush=True); time.sleep(600)",
]

pytestmark = pytest.mark.needs("root", "containers")


@pytest.fixture(scope="module")
def registry_root(tmp_path_factory):
    """A registry's directory with the interpreter's image, plain and as eStargz."""
    from labkit.image.estargz.convert import convert
    from labkit.image.estargz.layer_cache import Options

    top = tmp_path_factory.mktemp("containerd")
    build.build(top / "plain", parts=("interpreter",), level=1, name=NAME)
    convert(
        Layout(top / "plain"),
        NAME,
        Layout.create(top / "lazy"),
        target_name=NAME + "-esgz",
        options=Options(level=1),
    )
    root = top / "registry"
    root.mkdir()
    publish_image(root, top / "plain", NAME)
    publish_image(root, top / "lazy", NAME + "-esgz")
    return (
        root,
        Layout(top / "lazy").manifest(NAME + "-esgz").layers_bytes,
        Layout(top / "plain").manifest(NAME).layers_bytes,
    )


def _left(folder) -> list[str]:
    with open("/proc/self/mountinfo") as lines:
        return [line for line in lines if str(folder) in line]


def _wait_for(path, text: str) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until and not (path.exists() and text in path.read_text()):
        time.sleep(0.02)
    assert text in path.read_text()


@pytest.mark.parametrize("lazy", [False, pytest.param(True, marks=pytest.mark.needs("stargz"))])
def test_an_image_runs_and_nothing_is_left(lazy, tmp_path, workspace, registry_root):
    root, lazy_bytes, plain_bytes = registry_root
    with (
        Ledger.open(workspace, watch=False) as ledger,
        serving("registry", root, ledger=ledger) as served,
    ):
        image = f"{served.address}/{NAME}{'-esgz' if lazy else ''}"
        with containerd.running(
            workspace.nodes / "ctd", ledger, registry=served.address, stargz=lazy
        ) as node:
            daemons = [p.pid for p in node.processes]
            node.pull(image)
            sent = served.stats()["bytes_sent"]
            assert sent < lazy_bytes / 4 if lazy else sent >= plain_bytes
            assert bool(node.fuse_mounts()) == lazy
            pid = containerd.run_command(
                node,
                image,
                "one",
                SAY,
                {"A": "1"},
                [(str(workspace.root), "/work/lab", "ro")],
                tmp_path / "log",
            )
            _wait_for(tmp_path / "log", "from /usr/local")
            table = mounts(pid)
            assert next(m.kind for m in table if m.point == "/") == "overlay" and any(
                m.point == "/work/lab" for m in table
            )
            assert os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
            run = node.run
    assert not start_time(pid) and not any(start_time(d) for d in daemons)
    assert not _left(tmp_path) and not (workspace.nodes / "ctd").exists() and not run.exists()


@pytest.mark.needs("stargz")
def test_an_image_without_a_table_of_contents_is_pulled_whole_and_found_out(
    tmp_path, workspace, registry_root
):
    root, _, plain_bytes = registry_root
    with (
        Ledger.open(workspace, watch=False) as ledger,
        serving("registry", root, ledger=ledger) as served,
        containerd.running(
            workspace.nodes / "ctd", ledger, registry=served.address, stargz=True
        ) as node,
    ):
        node.pull(f"{served.address}/{NAME}")  # says nothing, and pulls everything
        mounts, sent = len(node.fuse_mounts()), served.stats()["bytes_sent"]
    plan = LaunchPlan({}, state=PlanState(lazy_image_bytes=plain_bytes))
    seen = Observation(
        plan=plan,
        facts={
            "mount": {"registry_bytes": sent},
            "start": {"fuse_mounts": mounts, "root_kind": "overlay", "private": True},
        },
    )
    judged = technique("containerd-stargz").verify(seen)
    assert not judged.engaged and "pull" in judged.how


def test_a_pull_that_fails_says_so_in_containerds_words(tmp_path, workspace, registry_root):
    with (
        Ledger.open(workspace, watch=False) as ledger,
        serving("registry", registry_root[0], ledger=ledger) as served,
    ):
        with (
            containerd.running(workspace.nodes / "ctd", ledger, registry=served.address) as node,
            pytest.raises(TransferError) as failed,
        ):
            node.pull(f"{served.address}/lab/none:latest")
    assert "not found" in failed.value.why


def test_the_arms_refuse_what_they_cannot_mean():
    arm = technique("containerd-pull")
    with pytest.raises(BadInput, match="fresh node"):
        arm.apply(
            LaunchPlan({}, scenario="warm-node"),
            Artifact("containerd-pull", facts={"size_bytes": 1}),
        )
    plan = arm.apply(
        LaunchPlan({"image": "containerd-pull"}),
        Artifact("containerd-pull", facts={"size_bytes": 1}),
    )
    assert (
        technique("runc")
        .apply(plan, Artifact("runc"))
        .steps[-1]
        .call.endswith("containerd_steps:start")
    )
    with pytest.raises(BadInput, match="process=runc"):
        technique("userns").apply(plan, Artifact("userns"))


def test_a_secret_reaches_the_container_and_is_in_nobodys_command_line(
    tmp_path, workspace, registry_root, monkeypatch
):
    import stat

    said: list[str] = []
    whole = containerd.Node.ctr
    monkeypatch.setattr(
        containerd.Node,
        "ctr",
        lambda node, *args, **more: said.extend(args) or whole(node, *args, **more),
    )
    tell = [
        "/usr/local/bin/python3",
        "-c",
        (
            "import os, time; print('got', os.environ['HF_TOKEN'], os.environ['LANG'], flush=True);"
            " time.sleep(600)"
        ),
    ]
    with (
        Ledger.open(workspace, watch=False) as ledger,
        serving("registry", registry_root[0], ledger=ledger) as served,
    ):
        with containerd.running(workspace.nodes / "ctd", ledger, registry=served.address) as node:
            image = f"{served.address}/{NAME}"
            node.pull(image)
            containerd.run_command(
                node,
                image,
                "keyed",
                tell,
                {"HF_TOKEN": "sesame = 'x' 77", "LANG": "C"},
                [],
                tmp_path / "log",
            )
            _wait_for(tmp_path / "log", "got sesame = 'x' 77 C")
            assert stat.S_IMODE((node.run / "keyed.env").stat().st_mode) == 0o600
    assert "LANG=C" in said and not [a for a in said if "sesame" in a]
