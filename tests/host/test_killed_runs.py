"""Commands killed at drawn moments leave nothing: no process, mount, namespace, port, container or
half-made file; every record is readable.

Every command, and every preparation of a technique, by SIGINT, SIGTERM, SIGKILL, and by SIGKILL
together with its watchdog (then the next start of the lab cleans up). A moment is drawn from the
command's own milestones – the lines of its ledger – or from its time. A few a run;
`LABKIT_KILLS=200 pytest tests/host/test_killed_runs.py` goes through a long series, and says in the
end what was killed; LABKIT_KILLS_ONLY=criu,lazy keeps to commands with these words in their name,
LABKIT_KILLS_SEED draws the same again."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from labkit.core import capabilities, records
from labkit.core.workspace import Workspace
from labkit.image.estargz.convert import convert
from labkit.image.oci_layout import Layout
from labkit.image.tiny import REFERENCE, tiny_layout

KILLS = int(os.environ.get("LABKIT_KILLS", "8"))
HOW = ("SIGINT", "SIGTERM", "SIGKILL", "SIGKILL with the watchdog")
# what labkit.core.beside calls what is not whole, or only for a while
MARKED = re.compile(r"[0-9a-f]{16}[.-]\d+-\d+")
PATIENCE_S = 60
LABKIT = (sys.executable, "-m", "labkit")


@dataclass(frozen=True)
class Case:
    """A command. `span_s`: until when a moment is drawn; `fresh`: what is removed from the
    workspace before, so that it is prepared again."""

    name: str
    argv: str
    span_s: float = 12.0
    fresh: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    milestones: int = 20


RUN = "run --preset tiny --blocks 2 --out {out}/run.json"
CASES = [
    Case("naive", f"{RUN} naive", 25),
    Case("warm node", f"{RUN} no-image --scenario warm-node", 15),
    Case(
        "criu-process",
        f"{RUN} snapshot=criu-process --scenario warm-node",
        25,
        ("artifacts/*criu-process-*",),
        ("root", "criu"),
        40,
    ),
    Case(
        "criu-process-whole",
        f"{RUN} snapshot=criu-process-whole --scenario fresh-node",
        25,
        ("artifacts/*criu-process-whole-*",),
        ("root", "criu"),
        40,
    ),
    Case(
        "criu-container",
        f"{RUN} image=full-pull,snapshot=criu-container",
        40,
        ("artifacts/*criu-container-*",),
        ("root", "criu", "runc"),
        40,
    ),
    Case("estargz-lazy", f"{RUN} image=estargz-lazy", 40, ("artifacts/*estargz-*",), ("fuse",), 40),
    Case("object-pull-zstd", f"{RUN} image=object-pull-zstd", 20, ("artifacts/*image-*-zstd",)),
    Case(
        "weights converted",
        f"{RUN} no-image,weights=gguf --scenario warm-node",
        15,
        ("artifacts/weights/*gguf*",),
    ),
    Case(
        "compile-cache",
        f"{RUN} no-image,device=compile-cache --scenario warm-node",
        30,
        ("artifacts/compile-cache-*",),
    ),
    Case("containerd-pull", f"{RUN} image=containerd-pull", 20, (), ("root", "containers"), 40),
    Case(
        "containerd-stargz",
        f"{RUN} image=containerd-stargz",
        25,
        ("artifacts/*estargz-*",),
        ("root", "containers", "stargz", "fuse"),
        40,
    ),
    Case(
        "criu-container-packed",
        f"{RUN} image=full-pull,snapshot=criu-container-packed --scenario warm-node",
        40,
        ("artifacts/*criu-container-packed-*",),
        ("root", "criu", "runc"),
        40,
    ),
    Case("image mount", "image mount oci:{lazy}:{tiny} {out}/at", 4, (), ("fuse",), 4),
    Case(
        "bench lazy", "bench lazy --blocks 1 --links 1gbit --arms full,lazy", 30, (), ("fuse",), 40
    ),
    Case("zygote", f"{RUN} no-image,process=zygote --scenario warm-node", 15),
    Case("image build", "image build --out {out}/built", 25),
    Case("image convert", "image convert {image} {out}/lazy", 12),
    Case("image recompress", "image recompress {image} --codec zstd --out {out}/zstd", 10),
    Case("model make", "model make --bytes 1GB {out}/model", 8),
    Case("model convert", "model convert {model} {out}/converted --to gguf:Q8_0", 5),
    Case("snapshot dump", "snapshot dump {out}/dumped --preset tiny", 12, (), ("root", "criu")),
    Case("snapshot soak", "snapshot soak --preset tiny --cycles 4", 20, (), ("root", "criu"), 60),
    Case("bench pull", "bench pull --image tiny --blocks 1", 20),
    Case("bench convert", "bench convert --image tiny --blocks 1", 12),
    Case("bench load", "bench load --preset tiny --blocks 1 --cache cold,warm", 15),
    Case("notebooks run", "notebooks run 00 --preset ci --out {out}/notebooks", 30),
    Case("study", "study --preset tiny --minutes 1 --sizes 30MB --out {out}/study", 60, (), (), 60),
    Case("report", "report --preset tiny --minutes 1 --notebook 00 --out {out}/report", 40),
    Case(
        "ablate",
        "ablate --preset tiny --blocks 1 --kinds add-one --scenario warm-node --out"
        " {out}/ablate.json",
        25,
    ),
    Case("registry", "registry serve --root {out}/registry", 3),
    Case("store", "store serve --root {out}/store", 3),
    Case("workshop", "workshop pack --no-wheels --no-image --preset tiny --out {out}/pack.tar", 4),
    Case("doctor", "doctor", 5),
]


def line_above(pid: int) -> set[int]:
    """This process and everything it was started by: CI gives the workspace to all of them."""
    found = set()
    while pid > 1:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def ours(home: Path) -> list[tuple[int, str]]:
    """Processes that have this workspace, or the directory around it, in their environment,
    arguments or open files."""
    found, above = [], line_above(os.getpid())
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in above:
            try:
                about = (
                    Path(f"/proc/{name}/environ").read_bytes()
                    + Path(f"/proc/{name}/cmdline").read_bytes()
                )
                state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
                maps = Path(f"/proc/{name}/maps").read_bytes()
            except OSError:
                continue
            if (str(home).encode() in about or str(home).encode() in maps) and state != "Z":
                found.append(
                    (int(name), about.replace(b"\0", b" ").decode(errors="replace")[-200:])
                )
    return found


def listening(pids: list[int] | None = None) -> set[int]:
    """Ports that are listened on here; of these processes only."""
    sockets = set()
    for pid in pids or ():
        try:
            sockets |= {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        except OSError:
            continue
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        int(r[1].rpartition(":")[2], 16)
        for r in rows
        if r[3] == "0A" and (pids is None or f"socket:[{r[9]}]" in sockets)
    }


def namespaces() -> set[str]:
    return set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()


def half_made(top: Path) -> list[str]:
    """Hidden or marked names down to the third level. Locks are empty and stay: removing one would
    race with who waits for it."""
    found, folders = [], [str(top)]
    for _ in range(3):
        below = []
        for folder in folders:
            try:
                below += [entry.path for entry in os.scandir(folder)]
            except OSError:
                # a file; or a mount whose server was killed, which is found among the mounts
                continue
        found += [
            path
            for path in below
            if (MARKED.search(name := os.path.basename(path)) or name.startswith("."))
            and not name.endswith(".lock")
            and name != ".labkit"
        ]
        folders = [path for path in below if "/rootfs" not in path]
    return found


@dataclass
class Place:
    """Where it all happens: `top` holds a workspace, a temporary directory and a directory for what
    commands write elsewhere."""

    top: Path
    bystanders: set[int]
    image: Path

    def __post_init__(self) -> None:
        self.home, self.tmp, self.out = self.top / "lab", self.top / "tmp", self.top / "out"
        self.space, self.netns = Workspace.at(self.home), namespaces()
        self.hidden_before = set(half_made(self.home))

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "LABKIT_HOME": str(self.home), "TMPDIR": str(self.tmp)}

    def left(self, ports: set[int]) -> dict[str, object]:
        return {
            k: v
            for k, v in {
                "processes": [found for found in ours(self.top) if found[0] not in self.bystanders],
                "mounts": [
                    line
                    for line in (
                        Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
                    )
                    if str(self.top) in line
                ],
                "nodes": [str(p) for p in self.space.nodes.iterdir()],
                "ledgers": [p.name for p in self.space.ledger.iterdir()],
                "half made": sorted(set(half_made(self.home)) - self.hidden_before),
                "half made elsewhere": half_made(self.out),
                "temporary files": sorted(os.listdir(self.tmp)),
                "soaked": [p.name for p in self.space.artifacts.glob("soak-*")],
                "in memory": [
                    p.name
                    for p in Path("/dev/shm").iterdir()
                    if MARKED.search(p.name)
                    and p.owner() == self.home.owner()
                    and p.name.startswith("labkit")
                    and p.stat().st_mtime > self.began
                ],
                "network namespaces": sorted(namespaces() - self.netns),
                "ports": sorted(ports & listening()),
                "containers": (
                    [
                        str(p)
                        for p in Path("/sys/fs/cgroup/labkit").glob("labkit-*")
                        if self.is_ours(p)
                    ]
                    if Path("/sys/fs/cgroup/labkit").exists()
                    else []
                ),
            }.items()
            if v
        }

    began = 0.0

    def is_ours(self, group: Path) -> bool:
        """Another run on this host may have containers, too: those made since, without a stranger
        in them."""
        try:
            members = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
            return group.stat().st_ctime > self.began and all(
                str(self.top).encode() in Path(f"/proc/{pid}/mountinfo").read_bytes()
                for pid in members
            )
        except OSError:
            return False


def copied(source: Path, target: Path) -> None:
    if subprocess.run(
        ["cp", "-al", str(source), str(target)], capture_output=True, check=False
    ).returncode:
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def place(home_with_image, tmp_path_factory):
    """A workspace of its own whose image and checkpoint are made, so that kills meet trials and not
    only preparations; and the bystanders."""
    top = tmp_path_factory.mktemp("killed")
    for name in ("lab", "tmp", "out"):
        (top / name).mkdir(mode=0o700)
    for room in ("images", "models"):
        copied(home_with_image / room, top / "lab" / room)
    space = Workspace.at(top / "lab")
    tiny_layout(top / "tiny")
    convert(Layout(top / "tiny"), REFERENCE, Layout.create(top / "lazy"))
    image = next(p.parent for p in space.images.glob("*/index.json"))
    made = Place(top, {pid for pid, _ in ours(top)}, image)
    assert made.left(set()) == {}
    return made


def possible(case: Case) -> bool:
    return all(capabilities.capability(name).ok for name in case.needs)


def ledger_lines(home: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (home / "ledger").glob("*.jsonl"))


def wait_for_the_moment(
    process: subprocess.Popen, home: Path, draw: random.Random, case: Case
) -> tuple[str, set[int]]:
    """Until so many lines are on the ledger, or so much time is over. What it then is, and what its
    processes listen on."""
    began, by_time = time.monotonic(), draw.random() < 0.4
    moment_s, lines = draw.uniform(0.2, case.span_s), draw.randint(2, case.milestones)
    until = began + (moment_s if by_time else case.span_s)
    while (
        process.poll() is None
        and time.monotonic() < until
        and (by_time or ledger_lines(home) < lines)
    ):
        time.sleep(0.002)
    said = (
        f"{time.monotonic() - began:.2f} s"
        if by_time
        else f"{ledger_lines(home)} lines on its ledger"
    )
    return said + (", already over" if process.poll() is not None else ""), listening(
        [pid for pid, _ in ours(home.parent)]
    )


def kill(process: subprocess.Popen, how: str) -> None:
    if process.poll() is None:
        if how.endswith("watchdog"):
            os.kill(process.pid, signal.SIGSTOP)  # or it would start another
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                for child in map(int, (task / "children").read_text().split()):
                    if b"labkit.core.watchdog" in Path(f"/proc/{child}/cmdline").read_bytes():
                        os.kill(child, signal.SIGKILL)
            process.kill()
        else:
            process.send_signal(getattr(signal, how))
    process.wait(60)


@pytest.mark.timeout(900 + 90 * KILLS)
def test_commands_killed_at_drawn_moments_leave_nothing(place, capsys):
    seed = int(os.environ.get("LABKIT_KILLS_SEED") or random.randrange(1 << 32))
    draw, met, hits = random.Random(seed), Counter(), 0
    cases = [case for case in CASES if possible(case)]
    only = os.environ.get("LABKIT_KILLS_ONLY", "")
    order: list[Case] = []
    while len(order) < KILLS:
        order += [
            c
            for c in draw.sample(cases, len(cases))
            if any(word in c.name for word in only.split(","))
        ]
    turn = draw.randrange(len(HOW))
    for i, case in enumerate(order[:KILLS]):
        how = HOW[(turn + i) % len(HOW)]
        place.began = time.time()
        for pattern in case.fresh:
            for old in place.home.glob(pattern):
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        model = place.home / "models" / "tiny-safetensors"
        (place.out / "at").mkdir()
        argv = [
            *LABKIT,
            *case.argv.format(
                out=place.out,
                image=place.image,
                model=model,
                lazy=place.top / "lazy",
                tiny=REFERENCE,
            ).split(),
        ]
        process = subprocess.Popen(
            argv,
            env=place.env,
            cwd=place.out,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        moment, ports = wait_for_the_moment(process, place.home, draw, case)
        hits += process.poll() is None
        assert process.poll() in (None, 0, 1), f"{case.name} ended by itself: {' '.join(argv)}"
        kill(process, how)
        if how.endswith("watchdog"):
            code = (
                "from labkit.core.ledger import sweep; from labkit.core.workspace import Workspace;"
                " sweep(Workspace.default())"
            )
            subprocess.run([sys.executable, "-c", code], env=place.env, check=True, timeout=120)
        until = time.monotonic() + PATIENCE_S
        while place.left(ports) and time.monotonic() < until:
            time.sleep(0.1)
        assert place.left(ports) == {}, (
            f"kill {i} (LABKIT_KILLS_SEED={seed}): {case.name} by {how} at {moment}"
        )
        for record in [*place.space.runs.glob("*.json"), *place.out.glob("run.json")]:
            assert records.read(record).experiment["preset"] == "tiny"
        for made in place.out.iterdir():
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        met[case.name, how] += 1
        if KILLS > 20:
            with capsys.disabled():
                print(f"\n{i + 1}/{KILLS} {case.name} by {how} at {moment}", end="", flush=True)
    with capsys.disabled():
        print(
            "\n"
            + json.dumps(
                {
                    "kills": KILLS,
                    "in_flight": hits,
                    "commands": len({n for n, _ in met}),
                    "left": 0,
                    "seed": seed,
                }
            )
        )


def test_a_record_that_was_interrupted_can_be_resumed(place):
    out = place.home / "runs" / "resumed.json"
    command = [
        *LABKIT,
        "run",
        "no-image",
        "--preset",
        "tiny",
        "--scenario",
        "warm-node",
        "--out",
        str(out),
        "--json",
    ]
    subprocess.run(
        [*command, "--blocks", "1"], env=place.env, check=False, capture_output=True, timeout=300
    )
    first = records.read(out)
    subprocess.run(
        [*command, "--blocks", "2", "--resume"],
        env=place.env,
        check=False,
        capture_output=True,
        timeout=300,
    )
    both = records.read(out)
    assert both.id == first.id
    assert both.trials[0] == first.trials[0]
    assert [t.block for t in both.trials] == [0, 1]
