"""`object-pull` as techniques of the stack layer `image`: the image comes from a bucket, in
parallel ranges, unpacked as it arrives.

    object-pull        image layers as they were built (gzip)
    object-pull-zstd   image layers recompressed: the same files, another limit
    object-pull-none   plain tar: nothing to decompress, more to carry

Which of link, decompression and disk is the limit decides which one wins. Lesson:
notebooks/02_image_pull."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from labkit.core.beside import build_once
from labkit.core.json_types import JsonObject
from labkit.core.plan import LaunchPlan, Step, StepContext
from labkit.core.workspace import Workspace
from labkit.image import oci
from labkit.image.oci_layout import Layout
from labkit.image.techniques import ImageTechnique
from labkit.image.traffic import blob_traffic
from labkit.technique import Artifact, Claim, Evidence, Observation, Option, Subject, register

PREFIX = "images"


def object_pull(ctx: StepContext, image: str) -> JsonObject:
    """Step `pull`: fetch and unpack at once. `image`: s3://BUCKET/PREFIX#NAME:TAG, endpoint and
    keys from the server's environment."""
    import os

    from labkit.image.image_source import source_of
    from labkit.image.objectpull import pull

    with source_of(image, {**os.environ, **ctx.server_env}) as source:
        facts = pull(source, ctx.node / "rootfs", scratch=ctx.node / "blobs")
    ctx.state.rootfs, ctx.state.image_config = str(ctx.node / "rootfs"), facts.pop("config")
    return facts


class ObjectPull(ImageTechnique):
    codec = ""
    step = "object storage"
    advice = Option(
        "recompress",
        "pull layers in parallel ranges, decompress faster",
        ("pull", "unpack"),
        3,
        "layers in a bucket, and a node that pulls from it",
        "one more place that must be up to date",
        "02_image_pull",
    )

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        artifact = super().prepare(subject, workspace)
        layout = Layout(artifact.paths["layout"])
        manifest, began_s = layout.manifest(subject.image_reference), time.monotonic()
        if self.codec:
            layout, manifest = _recompressed(
                layout, subject.image_reference, self.codec, workspace.artifacts, artifact.digest
            )
        return replace(
            artifact,
            paths={**artifact.paths, "object_layout": str(layout.path)},
            facts={
                **artifact.facts,
                "prepare_s": time.monotonic() - began_s,
                "size_bytes": manifest.layers_bytes,
                "prefix": f"{PREFIX}-{self.codec or 'built'}",
            },
        )

    def publish(self, artifact: Artifact, subject: Subject, roots: Mapping[str, Path]) -> None:
        """Into the embedded store, before the trial: what a build pipeline did long ago."""
        from labkit.image.push import publish_objects

        publish_objects(
            roots["store"],
            Layout(artifact.paths["object_layout"]),
            artifact.facts["reference"],
            prefix=artifact.facts["prefix"],
        )

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        if plan.scenario != "fresh-node":
            return self.on_warm_node(plan, artifact)
        facts = artifact.facts
        floors = {
            **plan.floors_bytes,
            "pull@link": facts["size_bytes"],
            "pull@decompress_*": facts["unpacked_bytes"],
            "pull@memcpy": facts["unpacked_bytes"],
        }
        if self.codec == "none":
            del floors["pull@decompress_*"]
        image = f"s3://lab/{facts['prefix']}#{facts['reference']}"
        return replace(plan, floors_bytes=floors).with_steps(
            Step("pull", "labkit.image.object_techniques:object_pull", {"image": image})
        )

    def verify(self, seen: Observation) -> Evidence:
        if seen.plan.scenario != "fresh-node":
            return self.engaged_on_warm_node(seen)
        sent, requests, blobs = blob_traffic(seen.stores.get("bucket", {}))
        whole, pulled = seen.plan.floors_bytes.get("pull@link", 0), seen.facts.get("pull", {})
        registry = blob_traffic(seen.stores.get("registry", {})).bytes_sent
        ok = (
            sent >= whole > 0
            and requests > blobs
            and not registry
            and pulled.get("connections", 0) > 1
            and pulled.get("written_bytes", 0) > 0
        )
        return Evidence(
            self.name,
            ok,
            f"the bucket sent {sent / 1e6:.1f} MB of an image of {whole / 1e6:.1f} MB in {requests}"
            f" requests over {pulled.get('connections', 0)} connections, the registry no blob",
            {"bucket_bytes": sent, "requests": requests, "registry_blob_bytes": registry},
        )


def _recompressed(
    layout: Layout, name: str, codec: str, folder: Path, digest: str
) -> tuple[Layout, oci.Manifest]:
    """Once for each image and codec."""
    from labkit.image.push import recompress

    recompressed = Layout(
        build_once(
            folder / f"image-{digest[7:19]}-{codec}",
            lambda part: recompress(layout, name, Layout.create(part), codec),
        )
    )
    return recompressed, recompressed.manifest(name)


@register
class ObjectPullAsBuilt(ObjectPull):
    name, rung = "object-pull", 1
    claims_row = "object storage in place of a registry"
    title = "pull from a bucket in parallel ranges, unpacking as it arrives (gzip)"
    claims = (
        Claim(
            "2-4 times the pull throughput of a registry",
            "the article, phase 1; no hardware or method given",
            0.25,
            0.5,
            "pull",
        ),
        Claim(
            "95 s became 62 s with parallel pull and unpack (SOCI)",
            "AWS workshop; its own image and instance",
            0.65,
            0.65,
            "pull",
        ),
    )


@register
class ObjectPullZstd(ObjectPull):
    name, codec = "object-pull-zstd", "zstd"
    title = "the same with zstd layers"


@register
class ObjectPullNone(ObjectPull):
    name, codec = "object-pull-none", "none"
    title = "the same with layers that are not compressed"
    claims = (
        Claim(
            "no gzip: 1.35 times faster for llama.cpp images, 1.02 for vLLM's (A100)",
            "Microsoft techcommunity 2026-04",
            0.74,
            0.98,
            "total",
        ),
    )
