"""Probes: one function a capability, each asking the machine by doing the smallest real thing that
would fail without it.

    PROBES["userns"].look()     # runs `unshare --user --map-root-user --mount true`

A probe changes nothing that outlives it, takes well under a second, makes no CUDA context, and
reads no secret's value. What is missing comes with the command that fixes it. Read through
`labkit.core.capabilities.capability`, which caches. Lesson: notebooks/00_start_here."""

from __future__ import annotations

import array
import ctypes
import functools
import importlib.util
import mmap
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from labkit.core import driver, host, proc
from labkit.core.beside import scratch

OK, DEGRADED, MISSING = "OK", "DEGRADED", "MISSING"


@dataclass(frozen=True)
class Capability:
    """`ok`, or what is `missing`, `why` it matters and the `fix`: a command. `state` DEGRADED means
    ok, with a limit named in `detail`."""

    name: str
    ok: bool
    missing: str = ""
    why: str = ""
    fix: str = ""
    detail: str = ""
    degraded: bool = False

    def __bool__(self) -> bool:
        return self.ok

    @property
    def state(self) -> str:
        if not self.ok:
            return MISSING
        return DEGRADED if self.degraded else OK

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "state": self.state}


@dataclass(frozen=True)
class Probe:
    """One question to the machine. `look` answers it afresh each time; `capability` caches."""

    name: str
    title: str  # one line for the doctor's table
    why: str  # what it unlocks
    look: Callable[[], Capability]


PROBES: dict[str, Probe] = {}


@functools.cache
def probed(name: str) -> Capability:
    """What a probe finds, looked for once a process: for probes that need another's answer, and for
    `labkit.core.capabilities`."""
    return PROBES[name].look()


CAP_SYS_ADMIN = 21
_APT = "apt-get install --no-install-recommends "
_HOST_TOOLS = "make host-tools"


def probe(
    name: str, title: str, why: str
) -> Callable[[Callable[[], Capability]], Callable[[], Capability]]:
    """Register `look` under a name. What it returns gets the probe's name and why."""

    def add(look: Callable[[], Capability]) -> Callable[[], Capability]:
        def named() -> Capability:
            found = look()
            return Capability(
                name, found.ok, found.missing, why, found.fix, found.detail, found.degraded
            )

        PROBES[name] = Probe(name, title, why, named)
        return named

    return add


def _yes(detail: str = "", *, limit: bool = False, fix: str = "") -> Capability:
    return Capability("", True, detail=detail, degraded=limit, fix=fix)


def _no(missing: str, fix: str) -> Capability:
    return Capability("", False, missing, fix=fix)


def _run(argv: list[str], timeout_s: float = 10) -> tuple[int, str]:
    """Exit status and both streams together; a program that does not exist or does not end is
    status 127 or 124."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return 124, f"no end after {timeout_s:.0f} s"
    except OSError as error:
        return 127, str(error)
    return done.returncode, done.stdout.decode(errors="replace").strip()


def _lacking(*names: str) -> list[str]:
    return [n for n in names if shutil.which(n) is None]


def package(name: str) -> Capability:
    try:
        there = importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        there = False
    why = "an arm of a bench, or an optional part"
    if there:
        return Capability(f"package:{name}", True, why=why, detail=host.package_version(name) or "")
    return Capability(
        f"package:{name}",
        False,
        f"no Python package {name}",
        why,
        f"pip install {name.replace('_', '-')}",
    )


def command(name: str) -> Capability:
    path = shutil.which(name)
    return Capability(
        f"command:{name}",
        bool(path),
        "" if path else f"no program {name} on PATH",
        "an arm of a bench, or an optional part",
        "" if path else _APT + name,
        path or "",
    )


def _has_sys_admin() -> bool:
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", proc.read_text("/proc/self/status"), re.M)
    return bool(match and int(match[1], 16) >> CAP_SYS_ADMIN & 1)


@probe(
    "root",
    "root",
    "dropping all caches, mounts, containers and CRIU need it; without it the lab uses user"
    " namespaces and per-file eviction",
)
def _root() -> Capability:
    if os.geteuid() != 0:
        return _no("not root", "sudo -E labkit …")
    if not _has_sys_admin():
        return _no(
            "root without CAP_SYS_ADMIN (an unprivileged container)",
            "run the container with --privileged",
        )
    return _yes()


@probe(
    "userns",
    "user namespaces",
    "the image starts in its own root without root rights (runtime `userns`)",
)
def _userns() -> Capability:
    if _lacking("unshare"):
        return _no("no unshare program", _APT + "util-linux")
    status, text = _run(
        ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "true"]
    )
    if status == 0:
        return _yes()
    if proc.read_text("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return _no(
            "the kernel forbids them to users", "sysctl -w kernel.unprivileged_userns_clone=1"
        )
    if proc.read_text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return _no(
            "AppArmor restricts them", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        )
    if proc.read_text("/proc/sys/user/max_user_namespaces") == "0":
        return _no("their number is limited to 0", "sysctl -w user.max_user_namespaces=15000")
    return _no(
        f"unshare failed: {text.splitlines()[-1] if text else status}",
        "run on the host, or give the container --security-opt seccomp=unconfined",
    )


@probe(
    "fuse",
    "FUSE",
    "lazy images are mounted through it (`estargz-lazy`); without it the lazy arms replay recorded"
    " runs",
)
def _fuse() -> Capability:
    if not os.path.exists("/dev/fuse"):
        return _no(
            "no /dev/fuse", "modprobe fuse (in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
        )
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return _no(
            f"/dev/fuse does not open: {error.strerror}",
            "chmod 666 /dev/fuse, or run the container with --device /dev/fuse",
        )
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if helper:
        trouble = _mount_with(helper)
        return (
            _no(
                f"{os.path.basename(helper)} cannot mount: {trouble}",
                _APT + "fuse3 (its fusermount3 must be setuid root)",
            )
            if trouble
            else _yes()
        )
    if os.geteuid() == 0 and _has_sys_admin():
        return _yes(
            "root mounts directly; ordinary users need fusermount3", limit=True, fix=_APT + "fuse3"
        )
    return _no("no fusermount3", _APT + "fuse3")


def _mount_with(helper: str) -> str:
    """Mount an empty FUSE through the setuid helper and unmount it. Returns what went wrong, ""
    when nothing."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs, scratch("labkit-fuse-", needed=False) as folder:
        point = str(folder)
        ours.settimeout(5)
        try:
            done = subprocess.run(
                [helper, "-o", "nosuid,nodev,fsname=labkit-probe", "--", point],
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=5,
            )
            if done.returncode:
                return done.stderr.decode(errors="replace").strip().split("\n")[-1]
            _, control, *_ = ours.recvmsg(1, socket.CMSG_SPACE(4))
            fds = array.array("i")
            for _level, _kind, data in control:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            for fd in fds:  # closing it aborts the connection: nothing can hang on this mount
                os.close(fd)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        finally:
            _run([helper, "-u", "-q", point], 5)
            if os.path.ismount(point):
                _run([helper, "-u", "-q", "-z", point], 5)
    return ""


@probe("runc", "runc", "the runtime `runc`: the image starts as a container under root")
def _runc() -> Capability:
    if _lacking("runc"):
        return _no("no runc", _APT + "runc")
    if not probed("root").ok:
        return _no("runc is here, root is not", "sudo -E labkit …; or the runtime userns")
    if not os.access("/sys/fs/cgroup", os.W_OK):
        return _no(
            "control groups cannot be written",
            "run the container with --privileged --cgroupns=host",
        )
    return _yes(_run(["runc", "--version"])[1].split("\n")[0].replace("runc version ", ""))


@probe(
    "containers",
    "containerd",
    "the container runtime's own pull and start, to set beside the lab's",
)
def _containers() -> Capability:
    lacking = _lacking("containerd", "runc", "ctr")
    if lacking:
        return _no("no " + ", ".join(lacking), _APT + "containerd runc")
    if not probed("runc").ok:
        return _no(probed("runc").missing, probed("runc").fix)
    words = _run(["containerd", "--version"])[1].split()
    return _yes(words[2] if len(words) > 2 else "")


@probe(
    "stargz", "stargz snapshotter", "containerd's real lazy pull, the reference for the lab's own"
)
def _stargz() -> Capability:
    lacking = _lacking("containerd-stargz-grpc", "ctr-remote")
    if lacking:
        return _no(
            "no " + ", ".join(lacking),
            f"{_HOST_TOOLS}  (or the release of containerd/stargz-snapshotter, on PATH)",
        )
    for need in ("containers", "fuse"):
        if not probed(need).ok:
            return _no(probed(need).missing, probed(need).fix)
    return _yes()


def _program(*names: str, package_name: str = "") -> Capability:
    for name in names:
        if shutil.which(name):
            return _yes(shutil.which(name) or "")
    return _no(f"no {names[0]}", _APT + (package_name or names[0]))


@probe(
    "skopeo", "skopeo", "a client we did not write pulls from and pushes to the embedded registry"
)
def _skopeo() -> Capability:
    return _program("skopeo")


@probe("umoci", "umoci", "a tool we did not write unpacks the images that the lab builds")
def _umoci() -> Capability:
    return _program("umoci")


@probe(
    "docker-registry",
    "docker-registry",
    "the reference registry, to check the embedded one against",
)
def _registry() -> Capability:
    return _program("docker-registry", "registry")


@probe("rclone", "rclone", "an object-store client we did not write reads from the embedded store")
def _rclone() -> Capability:
    return _program("rclone")


@probe("criu", "CRIU", "checkpoint and restore of the whole server process or container")
def _criu() -> Capability:
    if _lacking("criu"):
        return _no("no criu", f"{_HOST_TOOLS}  (CRIU 4 or newer; see docs/host-tools.md)")
    match = re.search(r"Version:\s*v?(\d+)(?:\.(\d+))?", _run(["criu", "--version"])[1])
    version = match[0].split(":")[1].strip() if match else "unknown"
    if not match or int(match[1]) < 4:
        return _no(
            f"CRIU {version} is older than 4, and fails on new kernels",
            f"{_HOST_TOOLS}  (see docs/host-tools.md)",
        )
    if not probed("root").ok:
        return _no(f"CRIU {version} is here, root is not", "sudo -E labkit …")
    status, text = _run(["criu", "check"], 20)
    if status or "looks good" not in text.lower():
        return _no(
            f"criu check: {text.splitlines()[-1] if text else status}",
            "criu check --all, and see docs/host-tools.md",
        )
    return _yes(version)


@probe(
    "amx",
    "AMX",
    "bfloat16 products in tiles on the CPU; a snapshot carries the permission for them over, which"
    " CRIU does not",
)
def _amx() -> Capability:
    if "amx_tile" not in proc.read_text("/proc/cpuinfo"):
        return _no(
            "this CPU has no AMX, or its hypervisor hides it",
            "an Intel Xeon from Sapphire Rapids on",
        )
    tile_data = 18
    if not host.grantable_cpu_state() >> tile_data & 1:
        return _no("the kernel grants no AMX tile data", "Linux 5.16 or newer")
    return _yes()


@probe(
    "gpu", "NVIDIA GPU", "the device layer: contexts, transfers, compile caches, CUDA checkpoints"
)
def _gpu() -> Capability:
    if importlib.util.find_spec("pynvml") is None:
        return _no("no NVML binding", "pip install nvidia-ml-py")
    found = host.gpus()
    if not found:
        return _no(
            "no NVIDIA driver, or no GPU visible", "run on a GPU host; in a container: --gpus all"
        )
    if not (host.package_version("torch") or "").endswith("+cpu"):
        return _yes(", ".join(g["name"] for g in found) + f", driver {found[0]['driver']}")
    return _no("a GPU is here, but torch is built for CPU only", "make gpu")


@probe(
    "gpu-driver",
    "NVIDIA driver",
    "what its version can do: CUDA checkpoints by a utility (550), by its API (570), onto another"
    " GPU (580), the CUDA that torch is built for",
)
def _gpu_driver() -> Capability:
    found = host.gpus()
    if not found:
        return _no(
            "no NVIDIA driver, or no GPU visible", "run on a GPU host; in a container: --gpus all"
        )
    version, newest = str(found[0]["driver"]), f"install driver {driver.FEATURES[-1][0]} or newer"
    built_for = host.torch_cuda()
    if wrong := driver.too_old(version, built_for):
        return _no(wrong, f"{newest}, or a torch built for an older CUDA")
    lacking = driver.lacks(version)
    if lacking:
        return _yes(f"{version}; it lacks: {'; '.join(lacking)}", limit=True, fix=newest)
    return _yes(f"{version}: {'; '.join(driver.has(version)) or 'of an unknown version'}")


@probe(
    "cuda-checkpoint",
    "CUDA checkpoint",
    "a process's GPU state is moved to host memory and back (driver 550 has it, 570 has its API)",
)
def _cuda_checkpoint() -> Capability:
    found = host.gpus()
    if not found:
        return _no("no NVIDIA GPU", "run on a GPU host with driver 570 or newer")
    version = str(found[0]["driver"])
    if 0 < driver.major(version) < 550:
        return _no(f"driver {version} is older than 550", "install driver 570 or newer")
    if found[0]["mig"]:
        return _no(
            "the GPU is partitioned (MIG), which the driver does not checkpoint",
            "run on a GPU that is not partitioned",
        )
    try:
        # loading it makes no context
        exported = hasattr(ctypes.CDLL("libcuda.so.1"), "cuCheckpointProcessLock")
    except OSError as error:
        return _no(
            f"libcuda does not load: {error}",
            "in a container: --gpus all with NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        )
    if not exported:
        return _no(
            f"driver {version} has no checkpoint API (only the cuda-checkpoint program)",
            "install driver 570 or newer",
        )
    return _yes(f"driver {version}, by the calls of its API")


@probe(
    "chromium",
    "Chromium",
    "reports, widgets and notebooks are looked at in a real browser by the tests",
)
def _chromium() -> Capability:
    return _program("chromium", "chromium-browser", "google-chrome", "chrome")


@probe("llamacpp", "llama-cpp-python", "a server we did not write, loading GGUF")
def _llamacpp() -> Capability:
    found = package("llama_cpp")
    return (
        _yes(host.package_version("llama-cpp-python") or "")
        if found.ok
        else _no(
            "no llama_cpp package",
            "pip install 'labkit[llamacpp]'  (compiles for minutes; docs/host-tools.md)",
        )
    )


@probe(
    "transformers-serve", "transformers serve", "a server we did not write, measured from outside"
)
def _transformers_serve() -> Capability:
    for name in ("transformers", "fastapi", "uvicorn"):
        if not package(name).ok:
            return _no(f"no {name} package", "pip install 'labkit[servers]'")
    return _yes(f"transformers {host.package_version('transformers')}")


@probe(
    "aws-credentials",
    "S3 credentials",
    "the same loaders against a real bucket; values are never read, only seen to be set",
)
def _aws() -> Capability:
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    ):
        if os.environ.get(name):
            return _yes(f"{name} is set")
    if os.path.exists(
        os.path.expanduser(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials")
    ):
        return _yes("a shared credentials file")
    return _no(
        "none found; the embedded store needs none",
        "export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…",
    )


@probe("gcs-credentials", "GCS credentials", "the same loaders against a real bucket")
def _gcs() -> Capability:
    if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return _yes("GOOGLE_APPLICATION_CREDENTIALS is set")
    if os.path.exists(os.path.expanduser("~/.config/gcloud/application_default_credentials.json")):
        return _yes("application default credentials")
    return _no("none found; the embedded store needs none", "gcloud auth application-default login")


@probe(
    "o_direct",
    "direct I/O",
    "the disk's own rate is read past the page cache: floors are real, not memory speed",
)
def _o_direct() -> Capability:
    where = host.workspace_parent()
    fs = proc.filesystem_of(where)["fs"]
    try:
        with tempfile.TemporaryFile(dir=where) as file:
            file.write(b"\0" * 8192)
            file.flush()
            os.fsync(file.fileno())
            fd = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            try:
                with mmap.mmap(-1, 4096) as aligned:
                    os.readv(fd, [aligned])
            finally:
                os.close(fd)
    except OSError as error:
        return _no(
            f"{fs} refuses O_DIRECT: {error.strerror}", "export LABKIT_HOME=/path/on/ext4-or-xfs"
        )
    if fs in ("tmpfs", "ramfs", "overlay"):
        return _yes(
            f"{fs} accepts O_DIRECT, but may not bypass the cache",
            limit=True,
            fix="export LABKIT_HOME=/path/on/ext4-or-xfs",
        )
    return _yes(fs)


@probe(
    "page-cache-proof",
    "page residency",
    "`cold` is proven by asking the kernel which pages are in memory",
)
def _page_cache_proof() -> Capability:
    from labkit.core import cold

    where = host.workspace_parent()
    fs = proc.filesystem_of(where)["fs"]
    if fs in cold.NEVER_EVICTABLE:
        return _no(
            f"{where} is {fs}: its pages are its storage and cannot be cold",
            "export LABKIT_HOME=/path/on/a/disk",
        )
    with tempfile.TemporaryFile(dir=where) as file:
        file.write(b"\1" * (1 << 20))
        file.flush()
        os.fsync(file.fileno())
        name = f"/proc/self/fd/{file.fileno()}"
        before = cold.residency([name])
        cold.evict([name], caches=False)
        after = cold.residency([name])
    if not before.resident_bytes:
        return _no(
            f"{before.method} sees no page of a file just written",
            "use a file system of the host, not a remote one",
        )
    if after.resident_bytes:
        return _no(
            f"posix_fadvise leaves {after.resident_bytes} of {after.total_bytes} B in memory",
            "sudo -E labkit …, or another file system",
        )
    if after.method == "mincore":
        return _yes("mincore (cachestat comes with Linux 6.5)", limit=True)
    return _yes(after.method)


@probe(
    "drop_caches",
    "drop_caches",
    "names and inodes are made cold too, not only pages: opening 20 000 files costs what it costs"
    " on a fresh node",
)
def _drop_caches() -> Capability:
    if os.access("/proc/sys/vm/drop_caches", os.W_OK) and os.geteuid() == 0:
        return _yes()
    return _no(
        "not permitted",
        "sudo -E labkit …  (without it: pages are cold, directory entries may be warm)",
    )


@probe("memory", "memory", "the 1B subject needs about 6 GB, `small` under 2")
def _memory() -> Capability:
    total, machine = host.card()["memory_bytes"], proc.meminfo_bytes("MemTotal")
    text = f"{total / 2**30:.1f} GiB" + (
        f", by a control group's limit; the machine has {machine / 2**30:.1f} GiB"
        if total < machine
        else ""
    )
    return (
        _yes(text)
        if total >= 6 * 2**30
        else _yes(text + ": keep to the presets tiny and small", limit=True)
    )


@probe("disk-space", "disk space", "images, checkpoints in several formats, and snapshots")
def _disk_space() -> Capability:
    free = host.card()["disk"]["free_bytes"]
    fix = "export LABKIT_HOME=/path/with/room, or remove $LABKIT_HOME"
    if free < 4e9:
        return _no(f"{free / 1e9:.1f} GB free, a first run needs 4", fix)
    return _yes(f"{free / 1e9:.0f} GB free", limit=free < 15e9, fix=fix if free < 15e9 else "")
