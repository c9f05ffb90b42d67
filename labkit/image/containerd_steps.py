"""The node agent's steps with the real thing: containerd pulls or mounts the image, and starts the
server in it.

    Step("pull", "labkit.image.containerd_steps:pull")      # ctr images pull: fetch, then unpack
    Step("mount", "labkit.image.containerd_steps:pull")     # with stargz: ctr-remote images rpull
    Step("start", "labkit.image.containerd_steps:start")    # ctr run

The daemons are resident before t0, as on any node (`pre_start`). Facts are taken between the steps,
so that bytes sent before the start are counted apart from those sent after. Lesson:
notebooks/03_lazy_pull."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labkit.core.control_call import call_json
from labkit.core.json_types import JsonObject
from labkit.core.plan import StepContext
from labkit.core.proc import mounts
from labkit.errors import TrialError
from labkit.image import containerd
from labkit.image.runtimes.server import host_binds
from labkit.image.traffic import blob_traffic


class _FileLines:
    """Lines of a file that grows, as the agent's log wants them."""

    def __init__(self, path: Path):
        self.path = path

    def __iter__(self) -> Iterator[str]:
        with contextlib.suppress(OSError):
            yield from self.path.read_text(errors="replace").splitlines(keepends=True)[-400:]


@dataclass
class _Pulling:
    """The node's daemons, what the registry had sent before t0, and the image that was pulled."""

    node: containerd.Node
    registry_bytes_at_t0: int
    image: str = ""


def _sent_bytes(ctx: StepContext) -> int:
    with contextlib.suppress(OSError, ValueError):
        return blob_traffic(call_json(ctx.state.registry + "/_labkit/stats")).bytes_sent
    return -1


def _make_ready(ctx: StepContext, stargz: bool) -> None:
    host = ctx.state.registry.partition("://")[2]
    # Beside the node's disk: a daemon's own metadata is on a node without replicas, the image is
    # not.
    node = containerd.start(
        ctx.node.parent / "containerd", ctx.ledger, registry=host, stargz=stargz
    )
    ctx.on_stop(lambda: containerd.stop(node))
    ctx.state.hand_on(_Pulling(node, _sent_bytes(ctx)))


def _image(ctx: StepContext, reference: str) -> str:
    host = ctx.state.registry.partition("://")[2]
    return f"{host}/{reference or ctx.state.image_reference}"


def pull(ctx: StepContext, reference: str = "") -> JsonObject:
    pulling = ctx.state.handed(_Pulling)
    node, pulling.image = pulling.node, _image(ctx, reference)
    node.pull(pulling.image)
    return {
        "snapshotter": node.snapshotter,
        "registry_bytes": _sent_bytes(ctx) - pulling.registry_bytes_at_t0,
        "fuse_mounts": len(node.fuse_mounts()),
    }


def start_containerd(ctx: StepContext, **_: object) -> None:
    _make_ready(ctx, stargz=False)


def start_stargz(ctx: StepContext, **_: object) -> None:
    _make_ready(ctx, stargz=True)


def _command(node: containerd.Node, image: str) -> list[str]:
    """Entrypoint of the pulled image."""
    listed = node.ctr("images", "ls", f"name=={image}").splitlines()[1:]
    manifest = node.manifest(next(line.split()[2] for line in listed), image)
    config = node.config(manifest)["config"]
    return list(config.get("Entrypoint") or config.get("Cmd") or [])


def start(ctx: StepContext) -> JsonObject:
    pulling = ctx.state.handed(_Pulling)
    node, image, name = pulling.node, pulling.image, f"labkit-{os.getpid()}-{ctx.port}"
    log = ctx.node.parent / "server.log"
    env = {"HOME": "/tmp", **ctx.server_env}
    pid = containerd.run_command(
        node, image, name, [*_command(node, image), *ctx.server_args], env, host_binds(ctx), log
    )
    ctx.state.server_pid, ctx.state.server_log_file = pid, _FileLines(log)
    root = next((m for m in reversed(mounts(pid)) if m.point == "/"), None)
    if root is None:
        raise TrialError("the container ended at once", why="".join(_FileLines(log))[-1200:])
    return {
        "runtime": "containerd",
        "server_pid": pid,
        "container": name,
        "snapshotter": node.snapshotter,
        "root_kind": root.kind,
        "private": str(node.home) in root.options or str(node.run) in root.options,
        "registry_bytes": _sent_bytes(ctx) - pulling.registry_bytes_at_t0,
        "fuse_mounts": len(node.fuse_mounts()),
        "rootfs": "",
    }
