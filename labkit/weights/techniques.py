"""The weights layer's techniques: importing this module registers them.

Each is a row of `catalog.LOADERS` seen as a technique: `prepare` converts the checkpoint to the
format the loader reads (off the clock, its cost recorded), `apply` tells the server which loader to
call and where the model is – a bucket for a fresh node, a cold local directory for a warm one – and
`verify` looks at what the kernel and the store counted.

Lesson: notebooks/04_model_formats, notebooks/05_streaming.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from labkit.core import plugins
from labkit.core.json_types import JsonObject
from labkit.core.node_state import WeightsState
from labkit.core.plan import LaunchPlan
from labkit.core.residency import residency
from labkit.core.units import show_bytes
from labkit.core.workspace import Workspace
from labkit.errors import LabError
from labkit.objects.access import proxy_to
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
from labkit.weights.catalog import LOADERS, Loader

ARTICLE = "the article"
_FASTER = Claim(
    "40–60 % faster load (safetensors and a direct GPU stream; 13B, A100)",
    ARTICLE,
    0.4,
    0.6,
    "load",
)
CLAIMS: dict[str, tuple[Claim, ...]] = {
    "safetensors": (_FASTER,),
    "runai-streamer": (
        _FASTER,
        Claim(
            "Llama-3-8B, A10G: from S3 28.2 s at concurrency 4, 4.9 s at 32; from GP3 47.6 s at 1,"
            " 14.3 s at 16, safetensors 48.0 s",
            "run-ai/runai-model-streamer, docs/src/benchmarks.md",
            of="load",
        ),
    ),
    "instanttensor": (
        Claim(
            "Qwen3-30B, H200: safetensors 57.4 s, fastsafetensors 22.2 s, Run:ai 9.29 s,"
            " InstantTensor 1.77 s",
            "InstantTensor, docs/benchmark.md",
            of="load",
        ),
    ),
}
_FORMAT = Option(
    "format",
    "store weights as safetensors, build the model on meta",
    ("build", "load"),
    1,
    "a conversion and a loader's flag; most hubs have the files already",
    "none known: the tokens are checked",
    "04_model_formats",
)
_STREAM = Option(
    "stream",
    "stream weights with many requests in flight",
    ("load",),
    2,
    "a library and a setting for its concurrency",
    "settings that win cold can lose warm",
    "05_streaming",
)
_STREAM_ROW = "safetensors + direct GPU stream"
#: What the rest of the lab says of a loader; of those not named here, nothing.
STANDING: dict[str, JsonObject] = {
    "safetensors": {
        "rung": 3,
        "step": "safetensors",
        "claims_row": _STREAM_ROW,
        "advice": _FORMAT,
    },
    "safetensors-pread": {"advice": _FORMAT},
    "safetensors-lazy": {"advice": _FORMAT},
    "safetensors-device": {"advice": _FORMAT},
    "labkit-streamer": {
        "rung": 4,
        "step": "streaming",
        "claims_row": _STREAM_ROW,
        "advice": _STREAM,
    },
    "runai-streamer": {
        "step": "Run:ai Model Streamer",
        "claims_row": _STREAM_ROW,
        "advice": _STREAM,
    },
}


class WeightsTechnique(Technique):
    """One loader as a technique. Subclasses only name their row of the catalog."""

    layer = "weights"
    name = ""
    title = ""
    lesson = "notebooks/05_streaming"
    claims: tuple[Claim, ...] = ()

    @property
    def loader(self) -> Loader:
        return LOADERS[self.name]

    def available(self, host: JsonObject) -> Availability:
        missing = self.loader.missing()
        if missing:
            return Availability(
                False,
                missing,
                f"{self.name} loads with it",
                self.loader.fix or "run on a GPU host; in a container: --gpus all",
            )
        return YES

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        """The checkpoint in this loader's format, converted once. Facts: model_key, prepare_s,
        size_bytes, weights_bytes, weight_files and files (what a start may read, without links)."""
        from labkit.weights.prepared import checkpoint_in

        prepared = checkpoint_in(self.loader.format, subject, workspace)
        format = self.loader.format.replace(":", "-").lower()
        key = f"models/{subject.preset}-{format}-{prepared.digest[:8]}"
        return Artifact(
            self.name,
            prepared.digest,
            # without links, as its files are: in a container there may be none of them
            {"model_dir": os.path.realpath(prepared.directory)},
            {
                "model_key": key,
                "prepare_s": prepared.prepare_s,
                "size_bytes": prepared.added_bytes,
                "weights_bytes": prepared.weights_bytes,
                "weight_files": [str(path) for path in prepared.weights.paths],
                "files": prepared.files,
            },
        )

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        loader, directory = self.loader, artifact.paths["model_dir"]
        arguments = ["--loader", loader.call]
        if not plan.stack.get("init"):  # a technique of its own says it
            arguments += ["--init", loader.init]
        if loader.options:
            arguments += ["--loader-options", json.dumps(dict(loader.options))]
        store = plan.state.store
        remote = plan.scenario == "fresh-node" and bool(store)
        model = f"{store}/{artifact.facts['model_key']}" if remote else directory
        plan = plan.with_server(
            *arguments,
            "--model",
            self.model_argument(model, remote),
            binds=() if remote else _binds(directory, artifact.facts["files"]),
            env=loader.environment,
        )
        if not remote:
            plan = plan.with_cold(*artifact.facts["files"])
        size_bytes = artifact.facts["weights_bytes"]
        floors = {"load": size_bytes}
        # of disk and bus the slower; what is in memory crosses the bus only
        if plan.on_gpu:
            floors = {"load@h2d": size_bytes, **({} if plan.scenario == "hot-node" else floors)}
        return replace(
            plan,
            floors_bytes={**plan.floors_bytes, **floors},
            state=replace(
                plan.state,
                weights=WeightsState(
                    model=model,
                    bytes=artifact.facts["weights_bytes"],
                    remote=remote,
                    store=store if plan.pass_env else "",
                    key=artifact.facts["model_key"],
                    files=tuple(artifact.facts["weight_files"]),
                ),
            ),
        )

    def model_argument(self, model: str, remote: bool) -> str:
        """Where the server is told to look."""
        return model

    def verify(self, seen: Observation) -> Evidence:
        return verify_loader(self.loader, seen)


def verify_loader(loader: Loader, seen: Observation) -> Evidence:
    """Seen from outside: the loader's library is mapped, and the store sent the bytes, or the
    process read or mapped the files. On a GPU also that the parameters are there."""
    about = seen.plan.state.weights
    want, maps = about.bytes, seen.proc.get("maps", [])
    facts: JsonObject = {}
    if loader.library:
        facts["library"] = next((m for m in maps if loader.library in m), "")
        if not facts["library"]:
            return Evidence(
                loader.name,
                False,
                f"no mapping of {loader.library} in the server: another loader did the work",
                facts,
            )
    if about.remote:
        return _from_store(loader, seen, facts)
    io = seen.proc.get("io", {})
    facts["mapped"] = [Path(m).name for m in maps if m in about.files]
    facts["read_by_calls"], facts["read_from_storage"] = io.get("rchar", 0), io.get("read_bytes", 0)
    if seen.plan.on_gpu:
        return _on_device(loader, seen, want, facts)
    moved = max(facts["read_by_calls"], facts["read_from_storage"])
    how = (
        f"{show_bytes(facts['read_by_calls'])} read by calls,"
        f" {show_bytes(facts['read_from_storage'])} from storage, {len(facts['mapped'])} weight"
        f" files mapped, for {show_bytes(want)} of weights"
    )
    copied = seen.plan.stack.get("init") == "random"
    if loader.reads == "map" and copied and not facts["mapped"]:
        # copied into initialised storage, the mapping is let go; pages in memory move no counter
        facts["resident_share"] = resident_share(about.files)
        enough = bool(want) and max(moved / want, facts["resident_share"]) >= NEARLY
        how += f", {facts['resident_share']:.0%} of the files in memory"
    elif loader.reads == "map":
        enough = bool(facts["mapped"])
    elif loader.reads == "read":
        enough = bool(want) and moved >= want and not facts["mapped"]
        how += "; mapped files mean that something else loaded them" if facts["mapped"] else ""
    else:
        enough = bool(facts["mapped"]) or (bool(want) and moved >= want)
    return Evidence(loader.name, enough, how, facts)


def _from_store(loader: Loader, seen: Observation, facts: JsonObject) -> Evidence:
    """The store sent the model's bytes, or this host's interfaces received as many."""
    about, counters = seen.plan.state.weights, seen.stores.get("bucket", {})
    want = about.bytes
    if about.store:
        # the image came over loopback
        image_bytes = seen.stores.get("registry", {}).get("bytes_sent", 0)
        moved = facts["received"] = counters.get("bytes_sent", 0) - image_bytes
        how = (
            f"this host's interfaces received {show_bytes(moved)} for {show_bytes(want)} of weights"
            f" in {about.store}"
        )
        if proxy := proxy_to(about.store, os.environ):
            facts["proxy"], how = proxy, f"{how}, through the proxy {proxy}"
    else:
        of_model = [c for p, c in counters.get("by_path", {}).items() if about.key in p]
        moved = facts["bytes_sent"] = sum(c.get("bytes_sent", 0) for c in of_model)
        facts["requests"] = sum(c.get("requests", 0) for c in of_model)
        how = (
            f"the bucket sent {show_bytes(moved)} of {show_bytes(want)} in {facts['requests']}"
            " requests"
        )
    return Evidence(loader.name, bool(want) and moved >= want, how, facts)


#: Of the files' bytes: headers need not be read, and up to `cold.TOLERANCE` of a cold file may have
#: stayed in memory.
NEARLY = 0.98


def _on_device(loader: Loader, seen: Observation, want: int, facts: JsonObject) -> Evidence:
    """A copy to the device lets the mapping of the files go, and pages that were in memory are read
    without a counter moving.

    So: the driver is mapped and every parameter is on the device, as the server says (nothing else
    can look inside its memory) · and the bytes came: by calls, from storage, or out of files that
    lie in the page cache as a whole."""
    there = device_facts(seen)
    facts |= there
    facts["driver"] = next((m for m in seen.proc.get("maps", []) if "libcuda.so" in m), "")
    facts["resident_share"] = resident_share(seen.plan.state.weights.files)
    moved = max(facts["read_by_calls"], facts["read_from_storage"])
    came = bool(want) and (moved >= NEARLY * want or facts["resident_share"] >= NEARLY)
    parameters, on_device, size_bytes = (
        int(there.get(k) or 0) for k in ("parameters", "device_parameters", "device_bytes")
    )
    placed = bool(facts["driver"]) and parameters > 0 and on_device == parameters and size_bytes > 0
    how = (
        f"{on_device} of {parameters} parameters on the device ({show_bytes(size_bytes)}),"
        f" {show_bytes(facts['read_by_calls'])} read by calls,"
        f" {show_bytes(facts['read_from_storage'])} from storage, {facts['resident_share']:.0%} of"
        f" the files in memory, for {show_bytes(want)} of weights"
    )
    if not facts["driver"]:
        how += "; no CUDA driver is mapped in the server"
    return Evidence(loader.name, came and placed, how, facts)


def device_facts(seen: Observation) -> JsonObject:
    """What the server's `load` span says about its parameters on the device."""
    detail = next(
        (s.detail for s in seen.spans if s.name == "load" and "device_bytes" in s.detail), {}
    )
    return {
        k: detail[k]
        for k in (
            "parameters",
            "device_parameters",
            "device_bytes",
            "allocated_bytes",
            "peak_allocated_bytes",
        )
        if k in detail
    }


def _binds(directory: str, files: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The model's directory, and where its links lead, each under its own name: in a container
    links mean the same files."""
    parents = {str(Path(file).parent) for file in files} - {directory, "/"}
    around = [path for path in parents if not path.startswith(directory + "/")]
    return tuple((path, path) for path in (directory, *sorted(around)))


def resident_share(files: Sequence[str]) -> float:
    try:
        found = residency(files)
    except (OSError, LabError):
        return 0.0
    return 0.0 if found.unprovable_files else found.share


def _take_in_loaders() -> None:
    """Loaders of other packages, beside the lab's own: rows of the same catalog."""
    for name, loader in plugins.found(plugins.LOADERS).items():
        if isinstance(loader, Loader) and loader.name not in LOADERS:
            LOADERS[loader.name] = loader
        else:
            why = "a second loader of that name" if isinstance(loader, Loader) else "not a Loader"
            plugins.complain(name, plugins.LOADERS, why)


_take_in_loaders()
for _loader in LOADERS.values():
    register(
        type(
            f"Weights_{_loader.name}",
            (WeightsTechnique,),
            {
                "name": _loader.name,
                "title": _loader.title,
                "lesson": _loader.lesson,
                "claims": CLAIMS.get(_loader.name, ()),
                **STANDING.get(_loader.name, {}),
            },
        )
    )
