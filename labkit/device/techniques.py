"""The device layer's techniques: importing this module registers them.

    compile-cold    torch.compile with an empty cache: the price of the first compilation, the arm
        to compare with
    compile-cache   the same with inductor's caches carried along as an artifact; the hit is proven,
        not assumed
    no-compile      eager mode: nothing to compile, and slower tokens for ever
    all-graphs      a CUDA graph recorded for every batch size an engine may meet: the arm to
        compare with     (needs a GPU)
    fewer-graphs    one for the first request's batch only; what is not recorded runs eagerly
        (needs a GPU)
    warm-standby    resident before t0, its weights asleep in pinned host memory, woken by a copy
        (needs a GPU)

Keys of a compile cache break on small things: a version, an environment variable, a shape. So
evidence is looked for from outside: the server has mapped a library of the carried cache, and not
one file was compiled anew. A GPU's code is no mapped library: there the compiler's own count stands
for it, beside the files. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from labkit.core import interpreter
from labkit.core.capabilities import capability
from labkit.core.host import package_version
from labkit.core.plan import LaunchPlan, Step, StepContext
from labkit.core.units import show_bytes
from labkit.core.workspace import Workspace
from labkit.technique import (
    YES,
    Artifact,
    Availability,
    Claim,
    Evidence,
    Observation,
    Subject,
    Technique,
    register,
)


def compiled_files(folder: str | os.PathLike[str]) -> dict[str, int]:
    """Libraries and kernels in a cache directory: path below it -> modification time in ns."""
    root = Path(folder)
    return {
        str(p.relative_to(root)): p.stat().st_mtime_ns
        for p in root.rglob("*")
        if p.is_file() and p.suffix in (".so", ".cubin", ".main", ".o")
    }


def gpu_code(files: Mapping[str, int]) -> list[str]:
    return [f for f in files if f.endswith(".cubin")]


def compiler_s_count(seen: Observation) -> dict[str, Any]:
    """What the compiler counted in the server, from its span of the warm-up; {} where it said
    nothing."""
    names = ("graphs_from_cache", "graphs_made_anew", "cuda_graphs_given_up")
    return next(
        (
            {n: s.detail[n] for n in names if n in s.detail}
            for s in seen.spans
            if s.name == "warmup" and s.source == "server"
        ),
        {},
    )


def cache_environment(folder: str) -> dict[str, str]:
    return {
        "TORCHINDUCTOR_CACHE_DIR": folder,
        "TRITON_CACHE_DIR": f"{folder}/triton",
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
        # On a CPU the headers of torch would be compiled first, for longer than the code itself;
        # nothing here is compiled often enough for that.
        "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
    }


class _Compiled(Technique):
    layer, lesson = "device", "06_gpu_init"
    claims: tuple[Claim, ...] = ()
    requires_layers: ClassVar[Mapping[str, str]] = {"image": "host-env", "process": "process"}

    def available(self, host: Any) -> Availability:
        found = capability("command:g++")
        if not found.ok and not capability("gpu").ok:
            return Availability(
                False, "g++", "inductor compiles for the CPU with it", "apt-get install g++"
            )
        return YES


@register
class CompileCold(_Compiled):
    name = "compile-cold"
    title = "torch.compile with an empty cache"

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        return Artifact(self.name, facts={"prepare_s": 0.0, "size_bytes": 0})

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        return plan.with_server("--compile").with_steps(
            Step("start", "labkit.device.techniques:empty_cache")
        )

    def verify(self, seen: Observation) -> Evidence:
        mapped = [m for m in seen.proc.get("maps", []) if "/inductor-cold/" in m]
        cache, counted = seen.facts.get("start", {}).get("empty_cache", ""), compiler_s_count(seen)
        facts = {"mapped": mapped[:5], **counted}
        if not seen.plan.on_gpu:
            return Evidence(
                self.name,
                bool(mapped),
                f"{len(mapped)} libraries compiled in this trial are mapped",
                facts,
            )
        # a GPU's code is no mapped library
        kernels = gpu_code(compiled_files(cache) if cache else {})
        return Evidence(
            self.name,
            bool(kernels) and not counted.get("graphs_from_cache"),
            f"{len(kernels)} kernels were compiled for the GPU in this trial,"
            f" {counted.get('graphs_from_cache', 0)} graphs came from a cache",
            {**facts, "kernels": len(kernels)},
        )


def empty_cache(ctx: StepContext) -> dict[str, Any]:
    """The step: a cache directory on the node's disk, which was empty at t0."""
    folder = ctx.node / "inductor-cold"
    folder.mkdir()
    ctx.server_env.update(cache_environment(str(folder)))
    return {"empty_cache": str(folder)}


@register
class CompileCache(_Compiled):
    name = "compile-cache"
    rung, advice = 5, "compile-cache"
    title = "torch.compile with inductor's caches carried along"

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        import shutil

        from labkit.core import timeline
        from labkit.core.ledger import Ledger
        from labkit.device.standalone import one_token

        identity = [
            str(subject.model_dir),
            package_version("torch"),
            subject.device,
            sorted(p.name for p in subject.model_dir.iterdir()),
            os.uname().machine,
        ]
        digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
        folder = workspace.artifacts / f"compile-cache-{digest}"
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            with Ledger.open(workspace) as ledger:
                # compiled code names its place: it cannot be made beside it
                half = ledger.note("dir", folder)
                (folder / "cache").mkdir(mode=0o700, parents=True)
                began = timeline.now_s()
                one_token(
                    subject.model_dir,
                    extra=("--compile", "--device", subject.device),
                    environment=cache_environment(str(folder / "cache")),
                )
                (folder / "whole").write_text(str(timeline.now_s() - began))
                ledger.done(half)
        cache = folder / "cache"
        return Artifact(
            self.name,
            digest,
            {"cache": str(cache)},
            {
                "prepare_s": float((folder / "whole").read_text()),
                "files": compiled_files(cache),
                "size_bytes": sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()),
            },
        )

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        cache = artifact.paths["cache"]
        plan = plan.with_server(
            "--compile", binds=((cache, cache),), env=cache_environment(cache)
        ).with_cold(cache)
        return replace(
            plan,
            state=replace(
                plan.state,
                compile_cache=cache,
                compile_cache_files=artifact.facts["files"],
                compile_cache_bytes=artifact.facts["size_bytes"],
            ),
        )

    def verify(self, seen: Observation) -> Evidence:
        cache, before = seen.plan.state.compile_cache, seen.plan.state.compile_cache_files
        now = compiled_files(cache) if cache else {}
        new = sorted(set(now) - set(before))
        mapped = [m for m in seen.proc.get("maps", []) if cache and m.startswith(cache + "/")]
        facts: dict[str, Any] = {
            "mapped": [Path(m).name for m in mapped][:5],
            "compiled_anew": new[:5],
            "cache_bytes": seen.plan.state.compile_cache_bytes,
        }
        if new:
            return Evidence(
                self.name, False, f"a cache miss: {len(new)} files were compiled anew", facts
            )
        # a GPU's code is no mapped library: the compiler's own count stands beside the files
        if seen.plan.on_gpu:
            counted, kernels = compiler_s_count(seen), gpu_code(before)
            good = (
                bool(kernels)
                and counted.get("graphs_from_cache", 0) > 0
                and not counted.get("graphs_made_anew")
            )
            return Evidence(
                self.name,
                good,
                f"{counted.get('graphs_from_cache', 0)} graphs came from the carried cache"
                f" ({show_bytes(float(facts['cache_bytes'] or 0))}, {len(kernels)} kernels),"
                f" {counted.get('graphs_made_anew', 0)} were made anew",
                {**facts, **counted, "kernels": len(kernels)},
            )
        if not mapped:
            return Evidence(self.name, False, "the server mapped no library of the cache", facts)
        return Evidence(
            self.name,
            True,
            f"{len(mapped)} libraries of the carried cache"
            f" ({show_bytes(float(facts['cache_bytes'] or 0))}) are mapped, none was compiled anew",
            facts,
        )


@register
class NoCompile(Technique):
    name, layer, lesson = "no-compile", "device", "06_gpu_init"
    title = "eager mode: nothing to compile"
    claims: tuple[Claim, ...] = ()

    def available(self, host: Any) -> Availability:
        return YES

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        return Artifact(self.name, facts={"prepare_s": 0.0, "size_bytes": 0})

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        return plan

    def verify(self, seen: Observation) -> Evidence:
        maps = seen.proc.get("maps", [])
        made = [m for m in maps if "inductor" in m]
        return Evidence(
            self.name,
            bool(maps) and not made,
            f"{len(made)} compiled libraries are among {len(maps)} mapped files",
            {},
        )


class _Gpu(Technique):
    """What the techniques of a GPU share: where there is none they say so, and a record of another
    host stands in."""

    name = ""
    layer, lesson = "device", "06_gpu_init"
    claims: tuple[Claim, ...] = ()
    requires_layers: ClassVar[Mapping[str, str]] = {"image": "host-env", "process": "process"}

    def available(self, host: Any) -> Availability:
        found = capability("gpu")
        return (
            YES
            if found.ok
            else Availability(
                False,
                f"gpu: {found.missing}",
                "it acts on a GPU's memory and on what is launched there; nothing of it can be"
                " measured without one",
                "run it on a GPU host; `make gpu` there makes a record that notebooks replay"
                " elsewhere",
            )
        )

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        return Artifact(self.name, facts={"prepare_s": 0.0, "size_bytes": 0})


def gpu_device() -> str:
    """Where the server of a GPU technique is: cuda, or cpu under the simulated driver that tests
    use (LABKIT_FAKE_CUDA)."""
    return "cpu" if os.environ.get("LABKIT_FAKE_CUDA") else "cuda"


class _Graphs(_Gpu):
    """`sizes`: the batch sizes whose decode step is recorded before the server is ready."""

    sizes: tuple[int, ...] = ()

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        return replace(plan, device=gpu_device()).with_server(
            "--graphs",
            ",".join(map(str, self.sizes)),
            env={n: os.environ[n] for n in ("LABKIT_FAKE_CUDA",) if os.environ.get(n)},
        )

    def verify(self, seen: Observation) -> Evidence:
        """The recordings' spans came before the server was ready, for these sizes and no others; on
        a GPU its driver is mapped."""
        spans = [s for s in seen.spans if s.name == "warmup.graph"]
        ready_s = min((s.start_s for s in seen.spans if s.name == "ready"), default=0.0)
        recorded = sorted(int(s.detail.get("batch", 0)) for s in spans if s.end_s <= ready_s)
        simulated = next(
            (
                str(s.detail["recorder"])
                for s in spans
                if "simulated" in str(s.detail.get("recorder"))
            ),
            "",
        )
        driver = next((m for m in seen.proc.get("maps", []) if "libcuda" in m), "")
        facts = {
            "recorded": recorded,
            "recording_s": sum(s.duration_s for s in spans),
            "driver": driver or simulated,
        }
        if recorded != sorted(self.sizes):
            return Evidence(
                self.name,
                False,
                f"graphs were recorded before ready for batches {recorded}, asked for were"
                f" {sorted(self.sizes)}",
                facts,
            )
        if not driver and not simulated:
            return Evidence(
                self.name,
                False,
                "the server has mapped no CUDA driver: nothing was recorded",
                facts,
            )
        return Evidence(
            self.name,
            True,
            f"{len(recorded)} of the decode step's graphs were recorded before ready (batches"
            f" {', '.join(map(str, recorded))})" + (f" – {simulated}" if simulated else ""),
            facts,
        )


#: Batch sizes an engine with continuous batching prepares up to 32 requests at a time.
BATCHES = (1, 2, 4, 8, 16, 24, 32)


@register
class AllGraphs(_Graphs):
    name = "all-graphs"
    title = "CUDA graphs for every batch size, recorded before the server is ready"
    sizes = BATCHES


@register
class FewerGraphs(_Graphs):
    name = "fewer-graphs"
    title = "one CUDA graph, for the first request's batch"
    sizes = (1,)


@register
class WarmStandby(_Gpu):
    name = "warm-standby"
    title = "a resident server, its weights asleep in pinned host memory, woken by a copy"
    excluded_scenarios = ("fresh-node",)
    #: The resident server is the process and has loaded the weights: neither layer has a step of
    #: its own, or evidence.
    replaces_layers = ("process", "weights", "init")

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        from labkit.errors import BadInput

        if plan.scenario in self.excluded_scenarios:
            raise BadInput(
                "a warm standby is resident before t0, and on a fresh node nothing of the stack is",
                why="it would be compared with arms that bring everything over the link",
                fix="--scenario warm-node or hot-node",
            )
        if plan.stack.get("image") not in (None, "", "host-env"):
            raise BadInput(
                "a warm standby is the lab's own interpreter, and this stack has an image",
                why="the image's files would not be used",
                fix="image=host-env,device=warm-standby",
            )
        # What it has mapped before t0 cannot be cold: left out of the cold set, in the open.
        mapped = set(interpreter.packages())
        kept = tuple(
            p for p in plan.cold_paths if p not in mapped and "/site-packages/" not in p + "/"
        )
        asleep = plan.state.weights.bytes
        floors = {
            **{k: v for k, v in plan.floors_bytes.items() if k.partition("@")[0] != "load"},
            "load@h2d": asleep,
        }
        plan = replace(
            plan,
            cold_paths=kept,
            floors_bytes=floors,
            replaces=(*plan.replaces, *self.replaces_layers),
            device=gpu_device(),
            state=replace(
                plan.state,
                resident_before_t0=tuple(p for p in plan.cold_paths if p not in kept),
            ),
        )
        return plan.with_steps(
            Step(
                "start",
                "labkit.device.standby:start",
                pre_start="labkit.device.standby:start_standby",
            )
        )

    def verify(self, seen: Observation) -> Evidence:
        """The process that answered stood there before t0, read no weights after it, and its device
        memory had been given up."""
        step, who = seen.facts.get("start", {}), seen.facts.get("identity", {})
        woken = next((s for s in seen.spans if s.name == "load" and s.source == "server"), None)
        asleep = int(step.get("asleep_bytes") or 0)
        read = seen.proc.get("io", {}).get("rchar", 0) - int(step.get("read_before_t0_bytes") or 0)
        simulated, held = str(step.get("driver") or ""), step.get("device_bytes_asleep")
        facts = {
            "asleep_bytes": asleep,
            "wake_s": woken.duration_s if woken else None,
            "read_since_t0_bytes": read,
            "device_bytes_asleep": held,
            "allocated_bytes": step.get("allocated_bytes"),
            "host_memory": step.get("host_memory"),
            "arena_bytes": step.get("arena_bytes"),
            "driver": simulated,
            "resident_before_t0": list(seen.plan.state.resident_before_t0),
        }
        if (
            step.get("runtime") != "standby"
            or not woken
            or not asleep
            or who.get("nonce") != step.get("nonce")
        ):
            return Evidence(
                self.name, False, "no standby that stood there before t0 answered", facts
            )
        if started := [
            s.name
            for s in seen.spans
            if s.source == "server" and s.phase in ("import", "context", "build")
        ]:
            return Evidence(
                self.name, False, f"the server went through {', '.join(started)} after t0", facts
            )
        if read >= asleep:
            return Evidence(
                self.name,
                False,
                f"{show_bytes(read)} were read after t0: the weights came from a file, not from"
                " memory",
                facts,
            )
        if not simulated and str(step.get("host_memory")).startswith("pageable"):
            return Evidence(
                self.name,
                False,
                f"the host memory it slept in is not pinned: {step['host_memory']}",
                facts,
            )
        allocated = step.get("allocated_bytes") or {}
        if not simulated and allocated.get("awake", 0) - allocated.get("asleep", 0) < 0.9 * asleep:
            return Evidence(self.name, False, "its weights were on the device all the time", facts)
        return Evidence(
            self.name,
            True,
            f"{show_bytes(asleep)} of weights, asleep in host memory before t0, were woken by a"
            f" copy in {woken.duration_s * 1e3:.1f} ms"
            + (
                f" – {simulated}: its seconds mean nothing"
                if simulated
                else (
                    f"; the process held {show_bytes(held)} of the device while asleep"
                    if held
                    else ""
                )
            ),
            facts,
        )
