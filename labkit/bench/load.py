"""`labkit bench load`: every loader installed here, from disk in each cache state or from a bucket, against the floor.

    labkit bench load --preset 1b --cache cold,warm,tmpfs --blocks 5
    labkit bench load --preset 1b --from s3 --link 4gbit-bucket
    labkit bench load --preset 1b --store s3://my-bucket/lab         # a real bucket: no link is emulated, no floor is known

One fresh process a measurement. Its clock starts when torch is imported, the model stands on the meta device (or
initialised, where that is the loader's way) and the bench has laid free memory (`labkit.core.free_memory`: else a trial
is as fast as what happened to run before it), before the loader's own library is imported, and stops when **all bytes are
in place**: load() has returned and one byte of every page of every parameter has been read, for views of a mapping as
for everything else. Then one token. Interpreter exit is not in it. Afterwards every parameter is summed: two loaders of
one format must agree to the bit.

Floors: cold, the fastest plain read of the same files (`labkit.bench.roads`), just before and after · warm and tmpfs, one
copy of the bytes in memory (a loader that maps pages instead of copying comes below it) · s3, the emulated link's own.

Goals: labkit-streamer_vs_floor.cold ≤ 1.05, labkit-streamer_vs_best_other.{cold,warm,tmpfs} ≤ 1.0 within noise,
labkit-streamer_vs_floor.s3 ≤ 1.05, …_faulty_vs_clean.s3 ≤ 1.2. Lesson: notebooks/05_streaming.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from labkit.bench import roads
from labkit.bench.engine import Measured, document, interleave
from labkit.cli.arguments import bucket_url, directory, link, names, preset
from labkit.core import cold, floor, free_memory, stats
from labkit.core.interpreter import module
from labkit.core.ledger import Ledger
from labkit.core.workspace import Workspace
from labkit.errors import BadInput, LabError
from labkit.technique import Seen, Subject
from labkit.weights.catalog import LOADERS, Loader

OURS = "labkit-streamer"
STATES = ("cold", "warm", "tmpfs")
READY = "ready\n"
FROM_S3 = ("safetensors", "sdk-download", "runai-streamer", OURS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", type=preset, default="1b", help="checkpoint: tiny, small, 1b (default), 8b")
    parser.add_argument("--model-dir", default="", help="a public model directory in place of the preset")
    parser.add_argument("--cache", type=names("--cache", STATES), default="cold,warm,tmpfs", help="cache states, comma-separated (default: all three)")
    parser.add_argument("--from", dest="origin", choices=("disk", "s3"), default="disk")
    parser.add_argument("--link", type=link, default="4gbit-bucket", help="emulated link of the bucket (with --from s3)")
    parser.add_argument("--store", type=bucket_url, default="", metavar="URL", help="s3://BUCKET/PREFIX or gs://…, with this environment's credentials, in place of the embedded store")
    parser.add_argument("--loaders", type=names("--loaders", LOADERS), default=None, help="only these, comma-separated")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cpu or cuda")


def compare_loaders(*names: str, preset: str = "small", states: tuple[str, ...] = ("cold",), blocks: int = 3, origin: str = "disk", link: str = "4gbit-bucket",
                    progress: Any = None) -> dict[str, Any]:
    """The same from Python, for the notebooks: the document of the last line. `progress(line)` is called a measurement."""
    return run(argparse.Namespace(preset=preset, model_dir="", cache=",".join(states), origin=origin, link=link, loaders=",".join(names), device="cpu", store="",
                                  blocks=blocks, seed=0, progress=progress or (lambda line: None)))


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.store:
        args.origin = "s3"
    states = [s.strip() for s in args.cache.split(",") if s.strip()]
    unknown = [s for s in states if s not in STATES]
    names = [n.strip() for n in (args.loaders or "").split(",") if n.strip()] or (list(FROM_S3) if args.origin == "s3" else [n for n in LOADERS if n != "sdk-download"])
    unknown += [n for n in names if n not in LOADERS]
    if unknown:
        raise BadInput(f"neither a cache state nor a loader: {', '.join(unknown)}", fix=f"states {', '.join(STATES)}; loaders {', '.join(LOADERS)}")
    if args.model_dir:
        directory(args.model_dir, "--model-dir", "labkit model make --preset small DIR makes one")
    workspace = Workspace.default()
    from labkit.subject.checkpoint import ensure

    # As pip did for every rival: from a checkout, under PYTHONDONTWRITEBYTECODE, each of our children would compile the lab's own modules anew.
    compileall.compile_dir(Path(__file__).resolve().parents[1], quiet=2)
    subject = Subject(model_dir=Path(args.model_dir) if args.model_dir else ensure(workspace, args.preset), preset=args.preset)
    with Ledger.open(workspace) as ledger:
        if args.origin == "s3":
            from labkit.bench import load_remote

            made = (load_remote.from_store if args.store else load_remote.from_bucket)(args, names, subject, workspace, ledger)
        else:
            made = _from_disk(args, names, states, subject, workspace, ledger)
    _agree(made["results_raw"])
    results = made.pop("results_raw")
    return document("load", results, made.pop("ratios"), preset=args.preset, origin=args.origin, device=args.device, **made)


# -- one measurement -----------------------------------------------------------------------------------------------------

def measure(loader: Loader, model: str, config_dir: str, device: str, weights_bytes: int, env: dict[str, str], about: dict[str, Any],
            stores: Any = None, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the child, lay memory when it is ready, ask the kernel about it while it lives, let it go. Raises LabError with its own words."""
    argv = [*module("labkit.bench.load"), loader.name, model, config_dir, device, json.dumps({**loader.options, **(options or {})})]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **dict(loader.environment), **env}, text=True)
    try:
        assert child.stdout and child.stdin and child.stderr
        line = child.stdout.readline()
        if line == READY:
            free_memory.lay(roads.needed_bytes(weights_bytes))
            child.stdin.write("go\n")
            child.stdin.flush()
            line = child.stdout.readline()
        if not line.startswith("{"):
            raise LabError(f"{loader.name} did not load: {(child.stderr.read().strip().splitlines() or ['it said nothing'])[-1][:300]}")
        doc = json.loads(line)
        from labkit.core.observe import process_facts
        from labkit.core.plan import LaunchPlan
        from labkit.weights.techniques import engaged

        seen = Seen(plan=LaunchPlan(stack={"weights": loader.name}, state={"weights": {"bytes": weights_bytes, **about}}), proc=process_facts(child.pid),
                    stores=stores() if stores else {})
        evidence = engaged(loader, seen)
        return doc | {"evidence": evidence.how, "engaged": evidence.engaged}
    finally:
        child.kill()
        child.wait()


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
    gc.collect()  # over what torch left it takes 0.2 s, and would fall on whichever loader makes the object that brings it on
    print(READY, end="", flush=True)
    sys.stdin.readline()
    before_bytes = resident_bytes()[0]
    began = time.monotonic()
    module, _, function = loader.call.partition(":")
    facts = getattr(importlib.import_module(module), function)(model, model_source, device, **json.loads(options))
    loaded = time.monotonic()
    _touch(model, device)
    placed = time.monotonic()
    peak_bytes = resident_bytes()[1]
    placement = model.placement()  # before the token: a cache and its workspaces are no loader's
    token = next(iter(generate(model.finish(), [1, 2, 3, 4], 1)))[0]
    answered = time.monotonic()
    print(json.dumps({"load_s": loaded - began, "touch_s": placed - loaded, "seconds": placed - began, "first_token_s": answered - began, "token": token,
                      "peak_bytes": peak_bytes, "peak_extra_bytes": peak_bytes - before_bytes - _parameter_bytes(model, device), "sum": _sum(model), "placement": placement, "facts": facts}, default=str), flush=True)
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
            floor.look_at(memoryview((ctypes.c_ubyte * (p.numel() * p.element_size())).from_address(p.data_ptr())))


def _parameter_bytes(model: Any, device: str) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters()) if device == "cpu" else 0


def _sum(model: Any) -> int:
    """Of all parameters' bits, each weighted by its place: outside the clock."""
    import torch

    total = 0
    for i, (_, p) in enumerate(sorted(model.named_parameters()), 1):
        raw = p.detach().reshape(-1)
        raw = raw.view(torch.int16) if raw.element_size() == 2 else raw.view(torch.uint8)
        total = (total + i * int(raw.sum(dtype=torch.int64))) % (1 << 61)
    return total


# -- arms ------------------------------------------------------------------------------------------------------------------

def _from_disk(args: argparse.Namespace, names: list[str], states: list[str], subject: Subject, workspace: Workspace, ledger: Ledger) -> dict[str, Any]:
    from labkit.weights.prepared import checkpoint_in

    memory_rate = floor.memory(256 << 20)["memcpy_bytes_per_s"]
    disk = roads.DiskFloor(subject.model_dir, ledger)
    arms: dict[str, Any] = {}
    with _Tmpfs(workspace, ledger) as tmpfs:
        for name in names:
            loader = LOADERS[name]
            missing = loader.missing()
            prepared = None if missing else checkpoint_in(loader.format, subject, workspace)
            for state in states:
                arms[f"{name}.{state}"] = (f"{missing}: {loader.fix}" if loader.fix else missing) if missing else _disk_arm(args, loader, prepared, state, disk, memory_rate, tmpfs)
        results = interleave(arms, args.blocks, args.seed, getattr(args, "progress", None))
    ratios: dict[str, tuple[str, str]] = {}
    for state in states:
        ratios[f"{OURS}_vs_floor.{state}"] = (f"{OURS}.{state}", "floor")
        best = best_other(results, state)
        if best:
            ratios[f"{OURS}_vs_best_other.{state}"] = (f"{OURS}.{state}", best)
    return {"results_raw": results, "ratios": ratios, "best_other": {s: best_other(results, s) for s in states}, "floor_by": disk.road}


def _disk_arm(args: argparse.Namespace, loader: Loader, prepared: Any, state: str, disk: roads.DiskFloor, memory_rate: float, tmpfs: _Tmpfs) -> Any:
    def arm() -> Measured:
        directory = prepared.directory
        ours = state == "cold" and loader.name == OURS
        if ours or (state == "cold" and not disk.rate):
            disk.look()
        if state == "tmpfs":
            directory = tmpfs.holding(directory)
        if state == "warm":
            # Pages lie in folios as large as whoever read them asked for, and touching 2 GB in small ones takes six times as long: laid anew, alike for all arms.
            cold.evict([directory], caches=False)
        for _ in range(3):  # another process of the host may drop caches meanwhile
            proof = cold.prove([directory], "warm") if state == "tmpfs" else cold.settle([directory], state, tolerance=0.0 if state == "warm" else cold.TOLERANCE)
            if proof.state != "unverified":
                break
        if proof.state == "unverified":
            return Measured(float("nan"), failed=f"cache not {state}: {proof.note}")
        doc = measure(loader, str(directory), str(directory), args.device, prepared.weights_bytes, {}, {"directory": str(directory)})
        if ours:
            disk.look(again=True)
        rate = disk.rate if state == "cold" else memory_rate
        return measured(doc, state, prepared.weights_bytes, prepared.weights_bytes / rate)

    return arm


def measured(doc: dict[str, Any], cache: str, size_bytes: int, floor_s: float | None, link: str = "loopback") -> Measured:
    seconds = doc["seconds"]
    extra = {k: doc[k] for k in ("load_s", "touch_s", "first_token_s", "peak_bytes", "peak_extra_bytes", "sum", "token")}
    extra |= {"gb_per_s": size_bytes / seconds / 1e9, "weights_bytes": size_bytes, **({"share_of_floor": floor_s / seconds} if floor_s else {})}
    return Measured(seconds, cache, link, floor_s, doc["evidence"], "" if doc["engaged"] else f"no evidence: {doc['evidence']}", extra)


class _Tmpfs:
    """One checkpoint at a time in memory, beside nothing else that big; laid anew for each trial. Once the host's caches have been
    dropped (a cold trial does that), pages of a tmpfs stay, but mapping and touching them takes six times as long, for good."""

    def __init__(self, workspace: Workspace, ledger: Ledger):
        self.ledger, self.root, self.entry = ledger, None, ""

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


def _agree(results: dict[str, Any]) -> None:
    """Same format, same bits. Raises LabError: a fast loader with wrong bytes is not fast."""
    sums: dict[str, set[int]] = {}
    for arm, runs in results.items():
        for m in runs if not isinstance(runs, str) else []:
            if not m.failed:
                exact = "exact" if not LOADERS[arm.partition(".")[0].partition("+")[0]].format.startswith("gguf") else "gguf"
                sums.setdefault(exact, set()).add(m.extra["sum"])
    if any(len(s) > 1 for s in sums.values()):
        raise LabError("two loaders of this bench gave different parameters", why="one of them loads wrong bytes", fix="pytest tests/contract/test_loaders.py")


if __name__ == "__main__":
    child(*sys.argv[1:6])
