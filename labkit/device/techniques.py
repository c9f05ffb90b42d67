"""The device layer's techniques: importing this module registers them.

    compile-cold    torch.compile with an empty cache: the price of the first compilation, the arm to compare with
    compile-cache   the same with inductor's caches carried along as an artifact; the hit is proven, not assumed
    no-compile      eager mode: nothing to compile, and slower tokens for ever

CUDA graphs and weights asleep in pinned memory need a GPU: `labkit.device.gpu_trials` measures them there.
Keys of a compile cache break on small things: a version, an environment variable, a shape. So evidence is looked for from
outside: the server has mapped a library of the carried cache, and not one file was compiled anew. Lesson: notebooks/06_gpu_init.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from labkit.core.host import capability, package_version
from labkit.core.plan import LaunchPlan, Step, StepContext
from labkit.core.units import show_bytes
from labkit.core.workspace import Workspace
from labkit.technique import YES, Artifact, Availability, Claim, Evidence, Seen, Subject, register


def compiled_files(folder: str | os.PathLike[str]) -> dict[str, int]:
    """Libraries and kernels in a cache directory: path below it -> modification time in ns."""
    root = Path(folder)
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and p.suffix in (".so", ".cubin", ".main", ".o")}


def cache_environment(folder: str) -> dict[str, str]:
    return {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": f"{folder}/triton", "TORCHINDUCTOR_FX_GRAPH_CACHE": "1", "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
            # On a CPU the headers of torch would be compiled first, for longer than the code itself; nothing here is compiled often enough for that.
            "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"}


class _Compiled:
    layer, lesson = "device", "06_gpu_init"
    claims: tuple[Claim, ...] = ()
    brings = {"image": "host-env", "process": "process"}

    def available(self, host: Any) -> Availability:
        found = capability("command:g++")
        if not found.ok and not capability("gpu").ok:
            return Availability(False, "g++", "inductor compiles for the CPU with it", "apt-get install g++")
        return YES


@register
class CompileCold(_Compiled):
    name = "compile-cold"
    title = "torch.compile with an empty cache"

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        return Artifact(self.name, facts={"prepare_s": 0.0, "size_bytes": 0})

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        return plan.with_server("--compile").with_steps(Step("start", "labkit.device.techniques:empty_cache"))

    def engaged(self, seen: Seen) -> Evidence:
        mapped = [m for m in seen.proc.get("maps", []) if "/inductor-cold/" in m]
        ok = bool(mapped) or bool(capability("gpu").ok)
        return Evidence(self.name, ok, f"{len(mapped)} libraries compiled in this trial are mapped", {"mapped": mapped[:5]})


def empty_cache(ctx: StepContext) -> dict[str, Any]:
    """The step: a cache directory on the node's disk, which was empty at t0."""
    folder = ctx.node / "inductor-cold"
    folder.mkdir()
    ctx.server_env.update(cache_environment(str(folder)))
    return {}


@register
class CompileCache(_Compiled):
    name = "compile-cache"
    title = "torch.compile with inductor's caches carried along"

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        import shutil

        from labkit.core import timeline
        from labkit.device.standalone import one_token

        identity = [str(subject.model_dir), package_version("torch"), capability("gpu").ok, sorted(p.name for p in subject.model_dir.iterdir()), os.uname().machine]
        digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
        folder = workspace.artifacts / f"compile-cache-{digest}"
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "cache").mkdir(mode=0o700, parents=True)
            began = timeline.now_s()
            one_token(subject.model_dir, extra=("--compile",), environment=cache_environment(str(folder / "cache")))
            (folder / "whole").write_text(str(timeline.now_s() - began))
        cache = folder / "cache"
        return Artifact(self.name, digest, {"cache": str(cache)}, {"prepare_s": float((folder / "whole").read_text()), "files": compiled_files(cache),
                                                                   "size_bytes": sum(p.stat().st_size for p in cache.rglob("*") if p.is_file())})

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        cache = artifact.paths["cache"]
        plan = plan.with_server("--compile", binds=((cache, cache),), **cache_environment(cache)).with_cold(cache)
        return replace(plan, state={**plan.state, "compile_cache": cache, "compile_cache_files": artifact.facts["files"], "compile_cache_bytes": artifact.facts["size_bytes"]})

    def engaged(self, seen: Seen) -> Evidence:
        cache, before = str(seen.plan.state.get("compile_cache", "")), seen.plan.state.get("compile_cache_files", {})
        now = compiled_files(cache) if cache else {}
        new = sorted(set(now) - set(before))
        mapped = [m for m in seen.proc.get("maps", []) if cache and m.startswith(cache + "/")]
        facts = {"mapped": [Path(m).name for m in mapped][:5], "compiled_anew": new[:5], "cache_bytes": seen.plan.state.get("compile_cache_bytes")}
        if new:
            return Evidence(self.name, False, f"a cache miss: {len(new)} files were compiled anew", facts)
        if not mapped and not capability("gpu").ok:
            return Evidence(self.name, False, "the server mapped no library of the cache", facts)
        return Evidence(self.name, True, f"{len(mapped)} libraries of the carried cache ({show_bytes(float(facts['cache_bytes'] or 0))}) are mapped, none was compiled anew", facts)


@register
class NoCompile:
    name, layer, lesson = "no-compile", "device", "06_gpu_init"
    title = "eager mode: nothing to compile"
    claims: tuple[Claim, ...] = ()

    def available(self, host: Any) -> Availability:
        return YES

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        return Artifact(self.name, facts={"prepare_s": 0.0, "size_bytes": 0})

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        return replace(plan, server_args=tuple(a for a in plan.server_args if a != "--compile"))

    def engaged(self, seen: Seen) -> Evidence:
        maps = seen.proc.get("maps", [])
        made = [m for m in maps if "inductor" in m]
        return Evidence(self.name, bool(maps) and "--compile" not in seen.plan.server_args and not made,
                        f"{len(made)} compiled libraries are among {len(maps)} mapped files", {})
