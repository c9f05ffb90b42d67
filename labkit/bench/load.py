"""`labkit bench load`: every loader installed here, from disk in each cache state or from a bucket,
against the floor.

    labkit bench load --preset 1b --cache cold,warm,tmpfs --blocks 5
    labkit bench load --preset 1b --from s3 --link 4gbit-bucket
    labkit bench load --preset 1b --store s3://my-bucket/lab         # a real bucket: no link is
        emulated, no floor is known

One fresh process a measurement. Its clock starts when torch is imported, the model stands on the
meta device (or initialised, where that is the loader's way) and the bench has laid free memory
(`labkit.core.free_memory`: else a trial is as fast as what happened to run before it), before the
loader's own library is imported, and stops when **all bytes are in place**: load() has returned and
one byte of every page of every parameter has been read, for views of a mapping as for everything
else. Then one token. Interpreter exit is not in it. Afterwards every parameter is summed: loaders
of one format must agree to the bit, and one that does not has failed. On a GPU (`--device cuda`)
the context is there before the clock starts, the parameters are on the device when it stops, and
only the files' pages are cold, not the host's other caches.

Floors: cold, the fastest plain read of the same files (`labkit.bench.read_paths`), just before and
after · warm and tmpfs, one copy of the bytes in memory (a loader that maps pages instead of copying
comes below it) · on a GPU the slower of disk and bus (cold), the bus from pinned memory (warm) ·
s3, the emulated link's own.

Goals: labkit-streamer_vs_floor.cold ≤ 1.05, labkit-streamer_vs_best_other.{cold,warm,tmpfs} ≤ 1.0
within noise, labkit-streamer_vs_floor.s3 ≤ 1.05, …_faulty_vs_clean.s3 ≤ 1.2. Lesson:
notebooks/05_streaming."""

from __future__ import annotations

import argparse
import compileall
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from labkit.bench import read_paths
from labkit.bench.engine import Measured, document, interleave
from labkit.core import cold, floor, free_memory, stats
from labkit.core.arguments import bucket_url, directory, names
from labkit.core.interpreter import module
from labkit.core.ledger import Ledger
from labkit.core.timeline import Span
from labkit.core.workspace import Workspace
from labkit.errors import BadInput, LabError
from labkit.net.arguments import link
from labkit.subject.arguments import preset
from labkit.technique import Observation, Subject
from labkit.weights.catalog import LOADERS, Loader

OURS = "labkit-streamer"
REFERENCE = "safetensors"
STATES = ("cold", "warm", "tmpfs")
READY = "ready\n"
#: Of a traceback the line that names the error; libraries say more after it.
_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Input|Capability)\b")
#: A loader that hangs is a failed measurement, not the end of the bench. On a GPU time is dear: so
#: long for a start, and this rate for the load.
PATIENCE_S, DEVICE_PATIENCE_S, SLOWEST_BYTES_PER_S = 300.0, 40.0, 400e6
#: A load to a GPU needs a shard and its staging buffers of the host's memory, not the model's size.
DEVICE_LAID_BYTES = 4 << 30
#: Up to this size a device's parameters are summed by the host, which needs none of the device's
#: arithmetic; above it that takes seconds.
HOST_SUM_BYTES = 256 << 20
FROM_S3 = ("safetensors", "sdk-download", "runai-streamer", OURS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", type=preset, default="1b", help="checkpoint: tiny, small, 1b (default), 8b"
    )
    parser.add_argument(
        "--model-dir", default="", help="a public model directory in place of the preset"
    )
    parser.add_argument(
        "--cache",
        type=names("--cache", STATES),
        default="cold,warm,tmpfs",
        help="cache states, comma-separated (default: all three)",
    )
    parser.add_argument("--from", dest="origin", choices=("disk", "s3"), default="disk")
    parser.add_argument(
        "--link",
        type=link,
        default="4gbit-bucket",
        help="emulated link of the bucket (with --from s3)",
    )
    parser.add_argument(
        "--store",
        type=bucket_url,
        default="",
        metavar="URL",
        help=(
            "s3://BUCKET/PREFIX or gs://…, with this environment's credentials, in place of the"
            " embedded store"
        ),
    )
    parser.add_argument(
        "--loaders",
        type=names("--loaders", LOADERS),
        default=None,
        help="only these, comma-separated",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cpu or cuda")


def compare_loaders(
    *names: str,
    preset: str = "small",
    states: tuple[str, ...] = ("cold",),
    blocks: int = 3,
    origin: str = "disk",
    link: str = "4gbit-bucket",
    device: str = "cpu",
    progress: Any = None,
) -> dict[str, Any]:
    """The same from Python, for the notebooks: the document of the last line. `progress(line)` is
    called a measurement."""
    return run(
        argparse.Namespace(
            preset=preset,
            model_dir="",
            cache=",".join(states),
            origin=origin,
            link=link,
            loaders=",".join(names),
            device=device,
            store="",
            blocks=blocks,
            seed=0,
            progress=progress or (lambda line: None),
        )
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The document. LABKIT_CUMULATIVE=1, or --json on a GPU, prints a line with all that was
    measured so far after each measurement: a bench that is ended keeps it."""
    if args.store:
        args.origin = "s3"
    states = [s.strip() for s in args.cache.split(",") if s.strip()]
    unknown = [s for s in states if s not in STATES]
    names = [n.strip() for n in (args.loaders or "").split(",") if n.strip()] or (
        list(FROM_S3) if args.origin == "s3" else [n for n in LOADERS if n != "sdk-download"]
    )
    unknown += [n for n in names if n not in LOADERS]
    if unknown:
        raise BadInput(
            f"neither a cache state nor a loader: {', '.join(unknown)}",
            fix=f"states {', '.join(STATES)}; loaders {', '.join(LOADERS)}",
        )
    if args.model_dir:
        directory(args.model_dir, "--model-dir", "labkit model make --preset small DIR makes one")
    workspace = Workspace.default()
    from labkit.subject.checkpoint import ensure

    # As pip did for every rival: from a checkout, under PYTHONDONTWRITEBYTECODE, each of our
    # children would compile the lab's own modules anew.
    compileall.compile_dir(Path(__file__).resolve().parents[1], quiet=2)
    subject = Subject(
        model_dir=Path(args.model_dir) if args.model_dir else ensure(workspace, args.preset),
        preset=args.preset,
    )
    with Ledger.open(workspace) as ledger:
        if args.origin == "s3":
            from labkit.bench import load_remote

            made = (load_remote.from_store if args.store else load_remote.from_bucket)(
                args, names, subject, workspace, ledger
            )
        else:
            made = _from_disk(args, names, states, subject, workspace, ledger)
    return _document(args, **made)


def _document(
    args: argparse.Namespace,
    *,
    results_raw: dict[str, Any],
    ratios: dict[str, tuple[str, str]],
    **more: Any,
) -> dict[str, Any]:
    return document(
        "load",
        results_raw,
        ratios,
        preset=args.preset,
        origin=args.origin,
        device=args.device,
        **more,
    )


def _keeping(args: argparse.Namespace, made: Any) -> Any:
    """For `interleave`: `made(results)` as a document on a line of its own, where somebody asked
    for that. None: nobody did."""
    if not (
        os.environ.get("LABKIT_CUMULATIVE")
        or (getattr(args, "json", False) and args.device != "cpu")
    ):
        return None
    from labkit.core.host import card
    from labkit.core.stdout import last_line

    here = card()
    return lambda results: last_line(_document(args, **made(results), host=here, partial=True))


# -- one measurement -------------------------------------------------------------------------------


def measure(
    loader: Loader,
    model: str,
    config_dir: str,
    device: str,
    weights_bytes: int,
    env: dict[str, str],
    about: dict[str, Any],
    stores: Any = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the child, lay memory when it is ready, ask the kernel about it while it lives, let it
    go. Raises LabError with its own words."""
    argv = [
        *module("labkit.bench.load"),
        loader.name,
        model,
        config_dir,
        device,
        json.dumps({**loader.options, **(options or {})}),
    ]
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, **dict(loader.environment), **env},
            text=True,
        )
        late = threading.Timer(
            (
                PATIENCE_S
                if device == "cpu"
                else DEVICE_PATIENCE_S + weights_bytes / SLOWEST_BYTES_PER_S
            ),
            child.kill,
        )
        late.start()
        try:
            return _measured_in(child, said, loader, device, weights_bytes, about, stores)
        finally:
            late.cancel()
            child.kill()
            child.wait()


def _measured_in(
    child: Any,
    said: Any,
    loader: Loader,
    device: str,
    weights_bytes: int,
    about: dict[str, Any],
    stores: Any,
) -> dict[str, Any]:
    line = child.stdout.readline()
    if line == READY:
        free_memory.prefault(
            read_paths.needed_bytes(weights_bytes)
            if device == "cpu"
            else min(read_paths.needed_bytes(weights_bytes), DEVICE_LAID_BYTES)
        )
        child.stdin.write("go\n")
        child.stdin.flush()
        line = child.stdout.readline()
    if not line.startswith("{"):
        child.kill()
        status = child.wait()
        said.seek(0)
        words = said.read()[-20_000:].strip()
        lines = [w for w in words.splitlines() if w.strip()]
        reason = next(
            (w for w in reversed(lines) if _RAISED.match(w)),
            lines[-1] if lines else "it said nothing",
        )
        raise LabError(
            f"{loader.name} did not load: {reason[:300]} (exit {status})", why=words[-1500:]
        )
    doc = json.loads(line)
    from labkit.core.observe import process_facts
    from labkit.core.plan import LaunchPlan
    from labkit.weights.techniques import verify_loader

    seen = Observation(
        plan=LaunchPlan(
            stack={"weights": loader.name},
            server_args=("--device", device),
            state={"weights": {"bytes": weights_bytes, **about}},
        ),
        spans=(Span("load", 0.0, doc["seconds"], "child", doc["placement"]),),
        proc=process_facts(child.pid),
        stores=stores() if stores else {},
    )
    evidence = verify_loader(loader, seen)
    return doc | {"evidence": evidence.how, "engaged": evidence.engaged}


def child(loader_name: str, model_source: str, config_dir: str, device: str, options: str) -> None:
    """In the fresh process: build, load, touch, answer, sum – and wait to be looked at."""
    import gc
    import importlib
    import time

    import torch

    from labkit.core.observe import resident_bytes
    from labkit.subject.config import LlamaConfig
    from labkit.subject.llama import Llama, generate

    loader = LOADERS[loader_name]
    config = LlamaConfig.from_dir(config_dir)
    with torch.device(loader.init if loader.init == "meta" else device):
        model = Llama(config, dtype=getattr(torch, config.dtype))
    if device != "cpu":
        torch.zeros(1, device=device)  # the context is another phase
    # over what torch left it takes 0.2 s, and would fall on whichever loader makes the object that
    # brings it on
    gc.collect()
    print(READY, end="", flush=True)
    sys.stdin.readline()
    before_bytes = resident_bytes()[0]
    began = time.monotonic()
    module, _, function = loader.call.partition(":")
    facts = getattr(importlib.import_module(module), function)(
        model, model_source, device, **json.loads(options)
    )
    loaded = time.monotonic()
    _touch(model, device)
    placed = time.monotonic()
    peak_bytes = resident_bytes()[1]
    placement = model.placement()  # before the token: a cache and its workspaces are no loader's
    if device != "cpu":
        free, whole = torch.cuda.mem_get_info()
        # also what torch's allocator knows nothing of: the context, a library's own buffers
        placement["device_used_bytes"] = whole - free
    try:
        answer: dict[str, Any] = {
            "token": next(iter(generate(model.finish(), [1, 2, 3, 4], 1)))[0],
            "first_token_s": time.monotonic() - began,
        }
    except RuntimeError as error:  # of the device's kernels: the load was measured all the same
        answer = {"token_failed": f"no token came: {error}"[:300]}
    print(
        json.dumps(
            {
                "load_s": loaded - began,
                "touch_s": placed - loaded,
                "seconds": placed - began,
                **answer,
                "peak_bytes": peak_bytes,
                "peak_extra_bytes": peak_bytes - before_bytes - _parameter_bytes(model, device),
                "sum": _sum(model),
                "placement": placement,
                "facts": facts,
            },
            default=str,
        ),
        flush=True,
    )
    sys.stdin.read()


def _touch(model: Any, device: str) -> None:
    """As a floor ends: the bench's own cost is alike in both."""
    import ctypes

    if device != "cpu":
        import torch

        torch.cuda.synchronize()
        return
    for p in model.parameters():
        if p.numel():
            floor.look_at(
                memoryview(
                    (ctypes.c_ubyte * (p.numel() * p.element_size())).from_address(p.data_ptr())
                )
            )


def _parameter_bytes(model: Any, device: str) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters()) if device == "cpu" else 0


def _sum(model: Any) -> int:
    """Of all parameters' bits, each weighted by its place: outside the clock."""
    import torch

    total, mine = 0, sorted(model.named_parameters())
    near = sum(p.nbytes for _, p in mine) <= HOST_SUM_BYTES
    for i, (_, p) in enumerate(mine, 1):
        raw = (p.detach().cpu() if near else p.detach()).reshape(-1)
        raw = raw.view(torch.int16) if raw.element_size() == 2 else raw.view(torch.uint8)
        total = (total + i * int(raw.sum(dtype=torch.int64))) % (1 << 61)
    return total


# -- arms ------------------------------------------------------------------------------------------


def _from_disk(
    args: argparse.Namespace,
    names: list[str],
    states: list[str],
    subject: Subject,
    workspace: Workspace,
    ledger: Ledger,
) -> dict[str, Any]:
    from labkit.weights.prepared import checkpoint_in

    floors = _Floors(args.device, subject.model_dir, ledger)
    arms: dict[str, Any] = {}

    def made(results: dict[str, Any]) -> dict[str, Any]:
        results = agreed(results)
        best = {state: best_other(results, state) for state in states}
        ratios = {f"{OURS}_vs_floor.{state}": (f"{OURS}.{state}", "floor") for state in states}
        ratios |= {
            f"{OURS}_vs_best_other.{state}": (f"{OURS}.{state}", arm)
            for state, arm in best.items()
            if arm
        }
        return {
            "results_raw": results,
            "ratios": ratios,
            "best_other": best,
            "floor_by": floors.by(states),
            "rates": floors.rates,
        }

    with _Tmpfs(workspace, ledger) as tmpfs:
        for name in names:
            loader = LOADERS[name]
            missing = loader.missing()
            prepared = None
            try:
                prepared = None if missing else checkpoint_in(loader.format, subject, workspace)
            except (LabError, OSError, ImportError, MemoryError) as error:
                # the other formats are there
                missing = f"the checkpoint could not be made in {loader.format}: {error}"
            for state in states:
                arms[f"{name}.{state}"] = (
                    (f"{missing}: {loader.fix}" if loader.fix else missing)
                    if missing
                    else _disk_arm(args, loader, prepared, state, floors, tmpfs)
                )
        results = interleave(
            arms, args.blocks, args.seed, getattr(args, "progress", None), _keeping(args, made)
        )
    return made(results)


class _Floors:
    """What bounds a load in each cache state, by the device that it goes to."""

    def __init__(self, device: str, directory: Path, ledger: Ledger):
        self.on_device = device != "cpu"
        self.rates: dict[str, Any] = floor.device() if self.on_device else floor.memory(256 << 20)
        self.disk: Any = (read_paths.BufferFloor if self.on_device else read_paths.DiskFloor)(
            directory, ledger
        )

    def look(self, again: bool = False) -> None:
        self.disk.look(again)

    def rate(self, state: str) -> float:
        """Bytes per second; 0.0 where it is not known."""
        if not self.on_device:
            return float(self.disk.rate if state == "cold" else self.rates["memcpy_bytes_per_s"])
        bus = float(self.rates.get("h2d_pinned_bytes_per_s") or 0)
        return min(self.disk.rate, bus) if state == "cold" and bus else bus

    def by(self, states: list[str]) -> str:
        if not self.on_device:
            return str(self.disk.road)
        bus = float(self.rates.get("h2d_pinned_bytes_per_s") or 0)
        if not bus:
            return f"the bus was not measured: {self.rates.get('h2d_failed', 'no GPU found')}"
        slower = (
            f"the disk ({self.disk.road})" if self.disk.rate < bus else "the bus from pinned memory"
        )
        return "; ".join(
            f"{state}: " + (slower if state == "cold" else "the bus from pinned memory")
            for state in states
        )


def _disk_arm(
    args: argparse.Namespace,
    loader: Loader,
    prepared: Any,
    state: str,
    floors: _Floors,
    tmpfs: _Tmpfs,
) -> Any:
    def arm() -> Measured:
        directory = prepared.directory
        ours = state == "cold" and loader.name == OURS
        if ours or (state == "cold" and not floors.disk.rate):
            floors.look()
        if state == "tmpfs":
            directory = tmpfs.holding(directory)
        if state == "warm" and not floors.on_device:
            # Pages lie in folios as large as whoever read them asked for, and touching 2 GB in
            # small ones takes six times as long: laid anew, alike for all arms.
            cold.evict([directory], caches=False)
        for _ in range(3):  # another process of the host may drop caches meanwhile
            proof = (
                cold.verify_cache_state([directory], "warm")
                if state == "tmpfs"
                else cold.set_cache_state(
                    [directory],
                    state,
                    caches=not floors.on_device,
                    tolerance=0.0 if state == "warm" else cold.TOLERANCE,
                )
            )
            if proof.state != "unverified":
                break
        if proof.state == "unverified":
            return Measured(float("nan"), failed=f"cache not {state}: {proof.note}")
        doc = measure(
            loader,
            str(directory),
            str(directory),
            args.device,
            prepared.weights_bytes,
            {},
            {"directory": str(directory)},
        )
        if ours:
            floors.look(again=True)
        rate = floors.rate(state)
        return measured(
            doc, state, prepared.weights_bytes, prepared.weights_bytes / rate if rate else None
        )

    return arm


DEVICE_FACTS = ("device_bytes", "allocated_bytes", "peak_allocated_bytes", "device_used_bytes")


def measured(
    doc: dict[str, Any], cache: str, size_bytes: int, floor_s: float | None, link: str = "loopback"
) -> Measured:
    seconds = doc["seconds"]
    extra: dict[str, Any] = {
        k: doc[k]
        for k in (
            "load_s",
            "touch_s",
            "first_token_s",
            "peak_bytes",
            "peak_extra_bytes",
            "sum",
            "token",
            "token_failed",
        )
        if k in doc
    }
    extra |= {k: doc["placement"][k] for k in DEVICE_FACTS if k in doc.get("placement", {})}
    extra |= {
        "gb_per_s": size_bytes / seconds / 1e9,
        "weights_bytes": size_bytes,
        **({"share_of_floor": floor_s / seconds} if floor_s else {}),
    }
    return Measured(
        seconds,
        cache,
        link,
        floor_s,
        doc["evidence"],
        "" if doc["engaged"] else f"no evidence: {doc['evidence']}",
        extra,
    )


class _Tmpfs:
    """One checkpoint at a time in memory, beside nothing else that big; laid anew for each trial.
    Once the host's caches have been dropped (a cold trial does that), pages of a tmpfs stay, but
    mapping and touching them takes six times as long, for good."""

    def __init__(self, workspace: Workspace, ledger: Ledger):
        self.ledger, self.entry = ledger, ""
        self.root: Path | None = None

    def __enter__(self) -> _Tmpfs:
        return self

    def holding(self, directory: Path) -> Path:
        if self.root is None:
            self.root = Path(f"/dev/shm/labkit-tmpfs-{self.ledger.token}-{os.getpid()}")
            self.entry = self.ledger.note("dir", self.root)
            self.root.mkdir(mode=0o700)
        for old in self.root.iterdir():
            shutil.rmtree(old)
        shutil.copytree(directory, self.root / directory.name)
        return self.root / directory.name

    def __exit__(self, *_: object) -> None:
        if self.root:
            shutil.rmtree(self.root, ignore_errors=True)
            self.ledger.done(self.entry)


def best_other(results: dict[str, Any], state: str) -> str:
    """The rival with the lowest median, chosen once for all blocks."""
    medians = {}
    for arm, runs in results.items():
        good = [] if isinstance(runs, str) else [m.seconds for m in runs if not m.failed]
        if good and arm.endswith("." + state) and not arm.startswith(OURS):
            medians[arm] = stats.median(good)
    return min(medians, key=lambda a: medians[a]) if medians else ""


def agreed(results: dict[str, Any]) -> dict[str, Any]:
    """The same results; a measurement whose parameters are not those of the others of its format
    has failed: fast with wrong bytes is not fast.

    What is right is what the plain `safetensors` loader gave, else what most loaders gave; where
    two stand against each other neither counts."""
    made = {arm: runs if isinstance(runs, str) else list(runs) for arm, runs in results.items()}
    for kind in {_kind(arm) for arm in made}:
        sums: dict[str, Counter[int]] = {}
        for arm, runs in made.items():
            if _kind(arm) == kind and not isinstance(runs, str):
                sums.setdefault(_loader_of(arm), Counter()).update(
                    m.extra["sum"] for m in runs if not m.failed
                )
        right, by = _right(sums)
        for arm, runs in made.items():
            if _kind(arm) == kind and not isinstance(runs, str):
                made[arm] = [
                    (
                        replace(m, failed=f"wrong bytes: its parameters are not those of {by}")
                        if not m.failed and m.extra["sum"] != right
                        else m
                    )
                    for m in runs
                ]
    return made


def _loader_of(arm: str) -> str:
    return arm.partition(".")[0].partition("+")[0]


def _kind(arm: str) -> str:
    return "gguf" if LOADERS[_loader_of(arm)].format.startswith("gguf") else "exact"


def _right(sums: dict[str, Counter[int]]) -> tuple[int | None, str]:
    """(the sum that counts, whose it is)."""
    plain = sums.get(REFERENCE)
    if plain and len(plain) == 1:
        return next(iter(plain)), REFERENCE
    votes = Counter(value for of_loader in sums.values() for value in of_loader).most_common(2)
    if not votes:
        return None, ""
    if len(votes) > 1 and votes[0][1] == votes[1][1]:
        return None, "any other: as many loaders gave one sum as another"
    return votes[0][0], "most other loaders"


if __name__ == "__main__":
    child(*sys.argv[1:6])
