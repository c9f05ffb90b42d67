"""The real arms of `labkit bench pull`: containerd, and Docker's registry on its S3 driver, with
everything they own in one folder.

Each pull gets a fresh containerd (labkit.image.containerd), as its content store keeps what an
earlier pull brought. Docker's registry answers blob requests with a redirect to a presigned URL of
the bucket, as it does in production. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from labkit.core.control_call import call
from labkit.core.ledger import Ledger, remove_tree
from labkit.errors import LabError, TransferError
from labkit.image.containerd import running

START_S = 20.0


def missing(*programs: str) -> str:
    """Reason why a rival cannot run here, or ""."""
    absent = [p for p in programs if not shutil.which(p)]
    if absent:
        return f"{', '.join(absent)} not installed (make host-tools)"
    return "" if os.geteuid() == 0 else "containerd needs root"


@contextmanager
def _process(
    argv: list[str], ledger: Ledger, log: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with open(log, "wb") as out:
        process = subprocess.Popen(
            argv,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **(env or {}), "LABKIT_RUN": ledger.mark},
        )
    entry = ledger.note("group", process.pid)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        ledger.done(entry)


def _until(
    ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, program: str
) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        if ready():
            return
        time.sleep(0.02)
    raise LabError(
        f"{program} did not start: {log.read_text(errors='replace')[-1500:]}",
        why="its arm cannot be measured",
        fix="make host-tools",
    )


def ctr_pull(image: str, ledger: Ledger, folder: Path, timeout_s: float = 300) -> float:
    """Seconds of `ctr images pull` (fetch and unpack), defaults of the tool, into a containerd that
    is empty. Raises TransferError with its words."""
    with running(folder / f"containerd-{time.monotonic_ns()}", ledger) as node:
        start_s = time.monotonic()
        node.ctr("images", "pull", "--plain-http", image, timeout_s=timeout_s)
        spent_s = time.monotonic() - start_s
        if not node.holds_all():
            raise TransferError(
                f"ctr images check: {image} is not complete",
                why="pulled and not unpacked is not a pull",
            )
    return spent_s


@contextmanager
def docker_registry(
    bucket_url: str, env: dict[str, str], ledger: Ledger, folder: Path
) -> Iterator[str]:
    """Docker's registry keeping everything in our bucket; yields HOST:PORT."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    home = folder / f"docker-registry-{time.monotonic_ns()}"
    entry = ledger.note("dir", home)
    home.mkdir(mode=0o700)
    (home / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: warn}}\nhttp: {{addr: '{address}'}}\nstorage:\n  s3:\n   "
        f" accesskey: {env['AWS_ACCESS_KEY_ID']}\n    secretkey: {env['AWS_SECRET_ACCESS_KEY']}\n  "
        f"  region: {env['AWS_REGION']}\n    regionendpoint: {bucket_url}\n    bucket: lab\n   "
        " rootdirectory: /docker\n    secure: false\n    v4auth: true\n"
    )
    # The SDK's variables must not override the file; a CA bundle is none of plain HTTP's business.
    clean = {k: "" for k in os.environ if k.startswith("AWS_")}
    try:
        with _process(
            [shutil.which("docker-registry") or "registry", "serve", str(home / "config.yml")],
            ledger,
            home / "log",
            clean,
        ) as process:
            _until(
                lambda: _answers(f"http://{address}/v2/"), process, home / "log", "docker-registry"
            )
            yield address
    finally:
        remove_tree(home)
        ledger.done(entry)


def _answers(url: str) -> bool:
    try:
        return call(url, timeout_s=2.0)[0] == 200
    except OSError:
        return False


def skopeo_copy(source: str, target: str, *options: str) -> None:
    """Copy an image between two of skopeo's places (oci:DIR:NAME, docker://…). Raises TransferError
    with its words."""
    done = subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "--quiet", *options, source, target],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    if done.returncode:
        raise TransferError(
            f"skopeo copy to {target}: {done.stderr.strip()[-500:]}", why="the rival's own failure"
        )
