"""`estargz-lazy`: the image is mounted, not pulled; its bytes arrive when the start touches them,
most of them just before.

`prepare` writes the image once: convert it, start the server once from a lazy mount of it and write
down what it touches, convert it again with that order. Evidence: the server's files are on a FUSE
mount of ours, and less than half of the image had come when the server started (a fraction of a per
cent, in fact); a pull under that name is a failed trial. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from labkit.core.beside import build_once, scratch
from labkit.core.control_call import call_json
from labkit.core.json_types import JsonObject
from labkit.core.ledger import MARK
from labkit.core.plan import LaunchPlan, Step, StepContext
from labkit.core.trial import free_port
from labkit.core.workspace import Workspace
from labkit.errors import TrialError
from labkit.image import access_record
from labkit.image.estargz import layer_cache
from labkit.image.estargz.convert import convert
from labkit.image.lazyfs import stats
from labkit.image.lazyfs.lone_mount import mounted
from labkit.image.oci_layout import Layout
from labkit.image.runtimes import process
from labkit.image.runtimes.techniques import availability
from labkit.image.techniques import ImageTechnique
from labkit.image.traffic import blob_traffic
from labkit.technique import (
    Artifact,
    Availability,
    Claim,
    Evidence,
    Observation,
    Option,
    Subject,
    register,
)

CHUNK_BYTES = 1 << 20
TAG = "-esgz"
START_S = 240.0  # a server has this long for its first token


def lazy_name(reference: str) -> str:
    """`lab/subject:latest` -> `lab/subject:latest-esgz`."""
    return reference + TAG


def record_start(
    layout: Layout,
    name: str,
    model_dir: Path,
    workspace: Workspace,
) -> list[access_record.Access]:
    """Start the subject's server once from a lazy mount of the layout; what it touched up to its
    first token, in order."""
    port = free_port()
    reference, options = f"oci:{layout.path}:{name}", ("--no-background", "--read-ahead-kb", "128")
    with mounted(reference, *options, workspace=workspace) as mount:
        ctx = mount.ctx
        ctx.port, ctx.server_env = port, {MARK: ctx.ledger.mark}
        ctx.server_args = ["--model", str(model_dir), "--host", "127.0.0.1", "--port", str(port)]
        process.start(ctx)
        _first_token(port, ctx)
        return mount.end()[0]


def _first_token(port: int, ctx: StepContext) -> None:
    body = json.dumps({"prompt": "The first token", "max_tokens": 2}).encode()
    url, headers = f"http://127.0.0.1:{port}/v1/completions", {"Content-Type": "application/json"}
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            call_json(url, method="POST", body=body, headers=headers, timeout_s=START_S)
            return
        server = ctx.state.server_process
        if server is not None and server.poll() is not None:
            break
        time.sleep(0.05)
    raise TrialError(
        "the server did not answer from the lazy mount",
        why=ctx.state.log_tail(1500),
    )


def lazy_layout(
    layout: Layout, reference: str, model_dir: Path, workspace: Workspace
) -> tuple[Layout, JsonObject]:
    """The image as optimised eStargz, once for each manifest, from image layers converted before
    where they still fit; facts say what that cost."""
    digest = layout.manifest(reference).digest
    target = workspace.artifacts / f"estargz-{digest[7:19]}"
    build_once(target, lambda part: _write_lazy(layout, reference, model_dir, workspace, part))
    return Layout(target), json.loads((target / "made.json").read_text())


def _write_lazy(
    layout: Layout, reference: str, model_dir: Path, workspace: Workspace, part: Path
) -> None:
    began_s = time.monotonic()
    before = list(workspace.artifacts.glob("estargz-*"))
    with scratch(".plain-", workspace.artifacts) as folder:
        plain = Layout.create(folder)
        # only to be read once, from here
        convert(
            layout,
            reference,
            plain,
            options=layer_cache.Options(CHUNK_BYTES, level=1),
            cached=layer_cache.search(before, any_order=True),
        )
        plain_s = time.monotonic() - began_s
        record = record_start(plain, reference, model_dir, workspace)
        record_s = time.monotonic() - began_s - plain_s
    lazy = Layout.create(part)
    converted = convert(
        layout,
        reference,
        lazy,
        record=record,
        target_name=lazy_name(reference),
        options=layer_cache.Options(CHUNK_BYTES),
        cached=layer_cache.search(before),
    )
    access_record.write(part / "access.jsonl", record)
    layer_cache.note(lazy, layout.manifest(reference), converted)
    facts = {
        "prepare_s": time.monotonic() - began_s,
        "convert_s": converted.convert_s,
        "record_s": record_s,
        "plain_s": plain_s,
        "size_bytes": converted.size_bytes,
        "source_bytes": converted.source_bytes,
        "files_touched": len(record),
        "layers_kept": converted.facts["layers_kept"],
    }
    (part / "made.json").write_text(json.dumps(facts))


@register
class EstargzLazy(ImageTechnique):
    name = "estargz-lazy"
    rung, step, claims_row = 2, "lazy pull", "stargz lazy pulling"
    advice = Option(
        "lazy",
        "start from a lazy image",
        ("pull", "unpack"),
        3,
        "convert in CI, a snapshotter on every node",
        "the registry becomes a run-time dependency; loses when most of the image is read",
        "03_lazy_pull",
        fewer_bytes=True,
    )
    title = "mount the image, fetch what is touched (our own FUSE mount of eStargz layers)"
    lesson = "03_lazy_pull"
    claims = (
        Claim(
            "lazy pulling starts containers before the image is here: 60-80 % less pull time",
            "the article, phase 1; no hardware given",
            0.2,
            0.4,
            "pull",
        ),
    )

    def available(self, host: JsonObject) -> Availability:
        return availability("fuse")

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        artifact = super().prepare(subject, workspace)
        layout, facts = lazy_layout(
            Layout(artifact.paths["layout"]), subject.image_reference, subject.model_dir, workspace
        )
        return replace(
            artifact,
            paths={**artifact.paths, "lazy_layout": str(layout.path)},
            facts={**artifact.facts, **facts, "lazy_reference": lazy_name(subject.image_reference)},
        )

    def publish(self, artifact: Artifact, subject: Subject, roots: Mapping[str, Path]) -> None:
        from labkit.image.publish import publish_image

        publish_image(
            roots["registry"], artifact.paths["lazy_layout"], artifact.facts["lazy_reference"]
        )

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        if plan.scenario != "fresh-node":
            return self.on_warm_node(plan, artifact)
        # What the trial is judged by; no floor: how much must move is what the technique changes.
        size_bytes = artifact.facts["size_bytes"]
        plan = replace(plan, state=replace(plan.state, lazy_image_bytes=size_bytes))
        reference = f"{plan.state.registry}/{artifact.facts['lazy_reference']}"
        return plan.with_steps(
            Step(
                "mount",
                "labkit.image.lazyfs.step:mount_image",
                {"reference": reference},
                pre_start="labkit.image.lazyfs.step:resident",
            )
        )

    def verify(self, seen: Observation) -> Evidence:
        if seen.plan.scenario != "fresh-node":
            return self.engaged_on_warm_node(seen)
        whole = seen.plan.state.lazy_image_bytes
        sent = blob_traffic(seen.stores.get("registry", {})).bytes_sent
        fuse = [line for line in seen.proc.get("mounts", []) if " fuse.labkit " in line]
        counted = stats.read(seen.facts.get("mount", {}).get("stats", ""))
        facts = {
            "registry_bytes": sent,
            "image_bytes": whole,
            "mounts": len(fuse),
            "mount": counted,
        }
        if not fuse:
            return Evidence(self.name, False, "no lazy mount in the server's mount table", facts)
        before = seen.facts.get("mount", {}).get("fetched_bytes", whole)
        facts["bytes_before_start"] = before
        if not sent or before >= whole / 2:
            return Evidence(
                self.name,
                False,
                f"{before / 1e6:.1f} MB of {whole / 1e6:.1f} MB were here before the server"
                " started: that is a pull",
                facts,
            )
        by = counted.get("bytes", {})
        return Evidence(
            self.name,
            True,
            f"{before / 1e6:.1f} MB of {whole / 1e6:.1f} MB before the server started,"
            f" {sent / 1e6:.1f} MB by its first token (prefetch {by.get('prefetch', 0) / 1e6:.1f},"
            f" demand {by.get('demand', 0) / 1e6:.1f}); readers waited"
            f" {counted.get('blocked_s', 0):.2f} s",
            facts,
        )
