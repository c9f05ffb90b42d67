"""The device layer's techniques of torch.compile: importing this module registers them.

    compile-cold    torch.compile with an empty cache: the price of the first compilation, the arm
        to compare with
    compile-cache   the same with inductor's caches carried along as an artifact; the hit is proven,
        not assumed
    no-compile      eager mode: nothing to compile, and slower tokens for ever

Keys of a compile cache break on small things: a version, an environment variable, a shape. So
evidence is looked for from outside: the server has mapped a library of the carried cache, and not
one file was compiled anew. A GPU's code is no mapped library: there the compiler's own count stands
for it, beside the files. Limit: tracing and loading. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from labkit.core.capabilities import capability
from labkit.core.host import package_version
from labkit.core.json_types import JsonObject
from labkit.core.plan import LaunchPlan, Step, StepContext
from labkit.core.units import show_bytes
from labkit.core.workspace import Workspace
from labkit.device.compile_cache import cache_environment, compiled_files
from labkit.technique import (
    YES,
    Artifact,
    Availability,
    Claim,
    Evidence,
    Observation,
    Option,
    Subject,
    Technique,
    register,
)


def gpu_code(files: Iterable[str]) -> list[str]:
    return [f for f in files if f.endswith(".cubin")]


def compiler_counts(seen: Observation) -> JsonObject:
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


class _Compiled(Technique):
    layer, lesson = "device", "06_gpu_init"
    claims: tuple[Claim, ...] = ()
    requires_layers: ClassVar[Mapping[str, str]] = {"image": "host-env", "process": "process"}

    def available(self, host: JsonObject) -> Availability:
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
            Step("start", "labkit.device.compile_techniques:empty_cache")
        )

    def verify(self, seen: Observation) -> Evidence:
        mapped = [m for m in seen.proc.get("maps", []) if "/inductor-cold/" in m]
        cache, counted = seen.facts.get("start", {}).get("empty_cache", ""), compiler_counts(seen)
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


def empty_cache(ctx: StepContext) -> JsonObject:
    """The step: a cache directory on the node's disk, which was empty at t0."""
    folder = ctx.node / "inductor-cold"
    folder.mkdir()
    ctx.server_env.update(cache_environment(str(folder)))
    return {"empty_cache": str(folder)}


@register
class CompileCache(_Compiled):
    name = "compile-cache"
    rung, step = 6, "compile cache"
    advice = Option(
        "compile-cache",
        "keep compiled kernels and graphs",
        ("warmup",),
        2,
        "a cache directory that travels with the image",
        "its keys break on small things: a miss is silent",
        "06_gpu_init",
    )
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
        facts: JsonObject = {
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
            counted, kernels = compiler_counts(seen), gpu_code(before)
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

    def available(self, host: JsonObject) -> Availability:
        return YES

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        return Artifact(self.name, facts={"prepare_s": 0.0, "size_bytes": 0})

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        return plan

    def verify(self, seen: Observation) -> Evidence:
        maps = seen.proc.get("maps", [])
        compiled = [m for m in maps if "inductor" in m]
        return Evidence(
            self.name,
            bool(maps) and not compiled,
            f"{len(compiled)} compiled libraries are among {len(maps)} mapped files",
            {},
        )
