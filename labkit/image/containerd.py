"""A private containerd, with the stargz snapshotter where asked for, beside any other containerd on
the host.

Everything it keeps lies in one folder (content, snapshots, metadata, logs), its sockets in a
second, short-named one; both go when it ends, after its containers, shims and mounts. Nothing of
/etc/containerd or /var/lib/containerd is read or written. It is what a node has running before t0:
start it before the clock, pull and run on the clock.

    with running(folder, ledger, registry="127.0.0.1:5000", stargz=True) as node:
        node.pull("127.0.0.1:5000/lab/subject:latest-esgz")     # rpull: mounted lazily
        node.fuse_mounts()          # of the kernel: what was mounted, and not pulled

Trap: state under a running snapshotter must not be wiped (EIO on the next mount); it is removed
after both have ended. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from labkit.core import secrets
from labkit.core.json_types import JsonObject
from labkit.core.ledger import MARK, Ledger, remove_tree, unmount
from labkit.core.proc import mounts
from labkit.core.workspace import spread
from labkit.errors import TransferError, TrialError
from labkit.image.oci import Manifest, parse_config
from labkit.image.platforms import find_manifest

START_S = 20.0
_runs = itertools.count(1)
_OFF = (
    "io.containerd.grpc.v1.cri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
)


@dataclass
class Node:
    """Addresses of a running containerd. `snapshotter`: overlayfs, or stargz."""

    home: Path
    run: Path
    snapshotter: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    # strikes what was taken down off the ledger
    forget: list[Callable[[], None]] = field(default_factory=list)

    def note(self, ledger: Ledger, kind: str, target: int | Path) -> None:
        entry = ledger.note(kind, target)
        self.forget.append(lambda: ledger.done(entry))

    @property
    def address(self) -> str:
        return str(self.run / "c.sock")

    def ctr(self, *args: str, program: str = "ctr", timeout_s: float = 300) -> str:
        """Run ctr (or ctr-remote) against this containerd. Raises TransferError with its
        message."""
        done = subprocess.run(
            [program, "--address", self.address, *args],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise TransferError(
                f"{program} {' '.join(args[:2])} failed (exit {done.returncode})",
                why=(done.stderr or done.stdout).strip()[-800:],
                fix="the logs of containerd are beside it; labkit doctor",
            )
        return done.stdout

    def manifest(self, digest: str, name: str) -> Manifest:
        """Of an image that was pulled, from containerd's own content store."""
        return find_manifest(self._content, digest, name, self.config)

    def config(self, manifest: Manifest) -> JsonObject:
        return parse_config(self._content(manifest.config.digest))

    def _content(self, digest: str) -> bytes:
        return self.ctr("content", "get", digest).encode()

    def pull(self, image: str) -> None:
        """`ctr images pull`: fetch everything and unpack it; with stargz `ctr-remote images rpull`:
        mount what can be."""
        if self.snapshotter == "stargz":
            self.ctr("images", "rpull", "--plain-http", image, program="ctr-remote")
        else:
            self.ctr("images", "pull", "--plain-http", "--snapshotter", self.snapshotter, image)

    def holds_all(self) -> bool:
        """Whether every image here is complete and unpacked (`ctr images check`)."""
        listed = self.ctr("images", "check", timeout_s=60)
        return "complete" in listed and " true" in listed

    def fuse_mounts(self) -> list[str]:
        """Mount points of the snapshotter's own FUSE file systems."""
        return [
            mount.point
            for mount in mounts()
            if mount.point.startswith(f"{self.home}/") and mount.kind.startswith("fuse")
        ]

    def log(self) -> str:
        return "\n".join(
            p.read_text(errors="replace")[-1500:] for p in sorted(self.home.glob("*.log"))
        )


def listens(path: Path) -> bool:
    """Whether a daemon accepts connections on this socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
            return True
        except OSError:
            return False


def _start(node: Node, ledger: Ledger, name: str, argv: list[str], sock: Path) -> None:
    with open(node.home / f"{name}.log", "wb") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, MARK: ledger.mark},
        )
    node.note(ledger, "group", process.pid)
    node.processes.append(process)
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        if listens(sock):
            return
        time.sleep(0.01)
    raise TrialError(
        f"{name} did not start",
        why=(node.home / f"{name}.log").read_text(errors="replace")[-1200:],
        fix="labkit doctor",
    )


def _write_config(node: Node, stargz: bool, registry: str) -> None:
    lines = [
        "version = 2",
        f'root = "{node.home}/root"',
        f'state = "{node.run}/state"',
        f"disabled_plugins = [{', '.join(repr(p) for p in _OFF)}]".replace("'", '"'),
        "[grpc]",
        f'  address = "{node.address}"',
        "[ttrpc]",
        f'  address = "{node.run}/t.sock"',
        '[plugins."io.containerd.internal.v1.opt"]',
        f'  path = "{node.home}/opt"',
    ]
    if stargz:
        lines += [
            "[proxy_plugins.stargz]",
            '  type = "snapshot"',
            f'  address = "{node.run}/s.sock"',
        ]
        # Plain HTTP has to be said for each host; without it every layer is quietly pulled whole.
        (node.home / "stargz.toml").write_text(
            "\n".join(
                [
                    f'[[resolver.host."{registry}".mirrors]]',
                    f'host = "{registry}"',
                    "insecure = true",
                ]
            )
            + "\n"
        )
    (node.home / "config.toml").write_text("\n".join(lines) + "\n")


def _short(ledger: Ledger) -> Path:
    above = os.path.realpath(os.environ.get("TMPDIR") or tempfile.gettempdir())
    name = f"ctd-{os.getpid()}-{next(_runs)}"
    return Path(above) / (name if ledger.token in above else f"{name}-{ledger.token}")


def start(folder: Path, ledger: Ledger, *, registry: str = "", stargz: bool = False) -> Node:
    """Start the daemons; what they keep goes below `folder`, an empty or new directory. End with
    `stop`. Raises TrialError with their logs. registry: HOST:PORT that the snapshotter may ask in
    plain HTTP."""
    # A socket's path has at most 107 bytes: not below the workspace.
    node = Node(folder, _short(ledger), "stargz" if stargz else "overlayfs")
    node.note(ledger, "dir", node.run)
    node.run.mkdir(mode=0o700)
    folder.mkdir(parents=True, exist_ok=True)
    node.note(ledger, "dir", folder)
    _write_config(node, stargz, registry)
    snapshots = folder / "root" / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
    snapshots.mkdir(parents=True, mode=0o700)
    # each layer is unpacked far from what the trial before removed, as in the lab's own nodes
    spread(snapshots)
    try:
        if stargz:
            sock = node.run / "s.sock"
            command = ["containerd-stargz-grpc", "-address", str(sock)]
            command += ["-root", str(folder / "stargz"), "-config", str(folder / "stargz.toml")]
            _start(node, ledger, "stargz", [*command, "-log-level", "debug"], sock)
        command = ["containerd", "--config", str(folder / "config.toml")]
        _start(node, ledger, "containerd", command, node.run / "c.sock")
    except BaseException:
        stop(node)
        raise
    return node


def stop(node: Node) -> None:
    """Containers, containerd, snapshotter, mounts, files – in this order. Safe to call twice."""
    if node.processes:
        with contextlib.suppress(Exception):
            for name in node.ctr("containers", "ls", "-q", timeout_s=10).split():
                with contextlib.suppress(Exception):
                    node.ctr("tasks", "rm", "--force", name, timeout_s=20)
                with contextlib.suppress(Exception):
                    node.ctr("containers", "rm", name, timeout_s=20)
    for process in reversed(node.processes):
        with contextlib.suppress(OSError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    node.processes.clear()
    for mount in reversed(mounts()):
        if mount.point.startswith((f"{node.home}/", f"{node.run}/")):
            unmount(mount.point)
    for folder in (node.run, node.home):
        remove_tree(folder)
        shutil.rmtree(folder, ignore_errors=True)
    for strike in node.forget:
        strike()
    node.forget.clear()


@contextlib.contextmanager
def running(
    folder: Path, ledger: Ledger, *, registry: str = "", stargz: bool = False
) -> Iterator[Node]:
    node = start(folder, ledger, registry=registry, stargz=stargz)
    try:
        yield node
    finally:
        stop(node)


def run_command(
    node: Node,
    image: str,
    name: str,
    argv: list[str],
    env: dict[str, str],
    binds: list[tuple[str, str, str]],
    log: Path,
) -> int:
    """`ctr run --detach` on the host's network; returns the task's host pid. The shim writes the
    server's output to `log`."""
    pid_file = node.run / f"{name}.pid"
    options: list[str] = [
        "--detach",
        "--net-host",
        "--snapshotter",
        node.snapshotter,
        "--pid-file",
        str(pid_file),
        "--log-uri",
        f"file://{log}",
    ]
    # ctr's arguments can be read by every user of this host while it runs; a file is its owner's.
    # One line a variable is all it takes.
    private = [key for key in secrets.names_in(env) if "\n" not in env[key]]
    if private:
        secrets.write_private(
            node.run / f"{name}.env", "".join(f"{key}={env[key]}\n" for key in private)
        )
        options += ["--env-file", str(node.run / f"{name}.env")]
    for key, value in env.items():
        if key not in private:
            options += ["--env", f"{key}={value}"]
    for host, inside, mode in binds:
        options += ["--mount", f"type=bind,src={host},dst={inside},options=rbind:{mode}"]
    node.ctr("run", *options, image, name, *argv)
    return int(pid_file.read_text())
