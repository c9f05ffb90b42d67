"""The snapshot layer's techniques: importing this module registers them.

    criu-process         the server as a process; its weights stay in the model's file, mapped,
        outside of the CRIU image
    criu-process-whole   the same with everything in the CRIU image, as a loader leaves it that
        copied the weights

`labkit.snapshot.container_technique` has the same for a runc container, `labkit.snapshot.unpacking`
both with a packed snapshot. A snapshot replaces the layers below it from `start` on: nothing is
imported, built, loaded or warmed up. What it needs of them stays: the OCI image's files (libraries
are mapped, not dumped) and the model's. Limit: the CRIU image and what is mapped ÷ read rate.
Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from labkit.core.beside import build_once, one_at_a_time
from labkit.core.capabilities import capability
from labkit.core.json_types import JsonObject
from labkit.core.plan import LaunchPlan, Step
from labkit.core.units import show_bytes
from labkit.core.workspace import Workspace
from labkit.objects.access import BUCKET
from labkit.snapshot.identity import (
    code_identity,
    digest_of,
    model_identity,
)
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

if TYPE_CHECKING:
    from labkit.snapshot.store import Snapshot

#: After these phases nothing of a plan is left to do.
REPLACED = ("start", "import", "context", "build", "load", "warmup")
MAPPED = "labkit.weights.loaders.safe:load"
COPIED = "labkit.weights.loaders.safe:load_pread"


def missing_capability(*names: str) -> Availability:
    for name in names:
        found = capability(name)
        if not found.ok:
            return Availability(False, f"{name}: {found.missing}", found.why, found.fix)
    return YES


class CriuProcess(Technique):
    """What the variants share. `loader`: how the subject that is dumped gets its weights."""

    name, layer, lesson = "criu-process", "snapshot", "07_checkpoints"
    rung, step, claims_row = 7, "process checkpoint", "CUDA checkpoint + CRIU"
    advice = Option(
        "snapshot",
        "restore a running server in place of starting one",
        ("start", "import", "context", "build", "load", "warmup", "ready"),
        5,
        "root on the nodes, CRIU and driver versions, images the size of memory",
        "holds secrets; the same GPU model and driver",
        "07_checkpoints",
        skips=True,
    )
    title = "restore the server process with CRIU, weights mapped from the model's file"
    claims: tuple[Claim, ...] = ()
    requires_layers: ClassVar[Mapping[str, str]] = {"image": "host-env", "process": "process"}
    # layers whose choice changes nothing any more
    replaces_layers: tuple[str, ...] = ("image", "process", "weights", "init", "device")
    loader = MAPPED

    def available(self, host: JsonObject) -> Availability:
        return missing_capability("root", "criu")

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        from labkit.snapshot import store

        model = self._checkpoint(subject, workspace)
        digest = digest_of(
            self.name,
            self.loader,
            str(model),
            model_identity(model),
            store.host_fingerprint(),
            store.SCHEMA,
            code_identity(),
            self._image_digest(subject),
        )
        target = workspace.artifacts / f"{self.name}-{digest}"
        with one_at_a_time(target):
            try:
                snapshot = store.open_snapshot(target)
                if snapshot.missing_files():
                    raise store.SnapshotRefused("damaged")
            except store.SnapshotRefused:
                snapshot = self._create(subject, workspace, model, target)
        return self._artifact(snapshot, digest, model, subject)

    def _checkpoint(self, subject: Subject, workspace: Workspace) -> Path:
        """The model as safetensors: the loaders that are dumped read it."""
        from labkit.weights.prepared import checkpoint_in

        return Path(checkpoint_in("safetensors", subject, workspace).directory).resolve()

    def _image_digest(self, subject: Subject) -> str:
        """Of the OCI image that the snapshot's files are in; "" where they are the host's."""
        return ""

    def _create(
        self, subject: Subject, workspace: Workspace, model: Path, target: Path
    ) -> Snapshot:
        from labkit.snapshot import create

        return create.make_process(model, target, loader=self.loader)

    def _artifact(self, snapshot: Snapshot, digest: str, model: Path, subject: Subject) -> Artifact:
        from labkit.snapshot import readahead
        from labkit.snapshot.process import pages_bytes

        manifest = snapshot.manifest
        whole = (
            readahead.piece_bytes(readahead.pieces_of(snapshot))
            + manifest.size_bytes
            - pages_bytes(snapshot)
        )
        libraries = [r for p, r in manifest.working_set.items() if p not in manifest.mapped]
        return Artifact(
            self.name,
            digest,
            {"snapshot": str(snapshot.path), "model_dir": str(model)},
            {
                "prepare_s": manifest.facts.get("prepare_s", 0.0),
                "size_bytes": manifest.size_bytes,
                "pages_bytes": pages_bytes(snapshot),
                "restore_bytes": whole,
                "library_bytes": sum(length for ranges in libraries for _, length in ranges),
                "model_key": f"models/{subject.preset}-safetensors-{digest[:8]}",
                "mapped": dict(manifest.mapped),
                "nonce": manifest.nonce,
                "secrets": list(manifest.secrets),
                "working_set": sorted(manifest.working_set),
            },
        )

    def publish(self, artifact: Artifact, subject: Subject, roots: Mapping[str, Path]) -> None:
        """Put the snapshot, and its model packed, where a fresh node finds them (the harness
        publishes the model as it is under `model_key`)."""
        from labkit.snapshot import packing, store

        compression = os.environ.get("LABKIT_SNAPSHOT_COMPRESSION", "zstd")
        stored = packing.publish(
            store.open_snapshot(artifact.paths["snapshot"]),
            roots["store"],
            self._key(artifact),
            compression=compression,
        )
        # what crosses the link: known only now, and asked for by `apply`
        artifact.facts["stored_bytes"] = stored["stored_bytes"]
        if compression != "none" and artifact.facts["mapped"]:
            artifact.facts["model_stored_bytes"] = self._publish_packed(artifact, roots["store"])

    def _publish_packed(self, artifact: Artifact, root: Path) -> int:
        """The mapped files in fewer bytes, made once for a snapshot. Returns what crosses the
        link."""
        from labkit.objects.publish import publish_model
        from labkit.weights import packed

        folder = Path(artifact.paths["snapshot"] + "-model-packed")
        names = [Path(p).name for p in artifact.facts["mapped"]]
        model_dir = Path(artifact.paths["model_dir"])
        build_once(folder, lambda part: packed.pack(model_dir, names, part), mode=0o700)
        publish_model(root, folder, self._model_key(artifact, packed_model=True))
        return sum((folder / name).stat().st_size for name in names)

    def _model_key(self, artifact: Artifact, packed_model: bool) -> str:
        return str(artifact.facts["model_key"]) + ("-packed" if packed_model else "")

    def _key(self, artifact: Artifact) -> str:
        return f"snapshots/{self.name}-{artifact.digest}"

    def _before(self, plan: LaunchPlan) -> tuple[Step, ...]:
        """Steps of the layers below that are still needed."""
        return ()

    def _beside(self, before: tuple[Step, ...]) -> tuple[Step, ...]:
        """The same steps, while the snapshot is on its way over the link."""
        return before

    def _on_disk_bytes(self, artifact: Artifact) -> int:
        """Of the working set, what a fresh node has on its disk: the host's own libraries."""
        return int(artifact.facts["library_bytes"])

    restore_call = "labkit.snapshot.process:restore"

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        remote = plan.scenario == "fresh-node" and bool(plan.state.bucket)
        steps = self._before(plan)
        floors = {k: v for k, v in plan.floors_bytes.items() if k not in REPLACED}
        crossing: dict[str, int] = {}
        if not remote:
            floors["restore"] = artifact.facts["restore_bytes"]
        else:
            # What has just crossed the link is in the page cache: only what was here before is read
            # from the disk.
            floors["restore@memcpy"] = artifact.facts["restore_bytes"]
            floors["restore"] = self._on_disk_bytes(artifact)
            mapped = artifact.facts["mapped"]
            packed_model = "model_stored_bytes" in artifact.facts
            model_key = self._model_key(artifact, packed_model)
            begin = Step(
                "pull.begin",
                "labkit.snapshot.transport:start",
                {
                    "url": f"s3://{BUCKET}/{self._key(artifact)}",
                    "model_url": f"s3://{BUCKET}/{model_key}" if mapped else "",
                    "packed_model": packed_model,
                },
                pre_start="labkit.snapshot.transport:know_libraries",
            )
            steps = (begin, *self._beside(steps), Step("pull", "labkit.snapshot.transport:wait"))
            stored_bytes = int(artifact.facts.get("stored_bytes") or artifact.facts["size_bytes"])
            crossing = {
                self._key(artifact): stored_bytes,
                model_key: (
                    artifact.facts["model_stored_bytes"] if packed_model else sum(mapped.values())
                ),
            }
            floors["pull"] = floors.get("pull", 0) + crossing[self._key(artifact)]
            # the model comes while the process is restored, and held until it is whole
            floors["restore@link@t0"] = crossing[model_key]
        steps += (
            Step(
                "restore",
                self.restore_call,
                {
                    "snapshot": artifact.paths["snapshot"],
                    "lazy": bool(os.environ.get("LABKIT_LAZY_PAGES")),
                },
                pre_start="labkit.snapshot.process:know_criu",
            ),
        )
        plan = replace(
            plan,
            steps=steps,
            floors_bytes=floors,
            replaces=(*plan.replaces, *CriuProcess.replaces_layers),
            state=replace(
                plan.state,
                snapshot_nonce=artifact.facts["nonce"],
                snapshot_bytes=artifact.facts["size_bytes"],
                snapshot_crossing=crossing,
            ),
        )
        if not remote:
            # Its working set of libraries is made cold by the layer that owns them (host-env, the
            # OCI image).
            plan = plan.with_cold(artifact.paths["snapshot"], *artifact.facts["mapped"])
        return plan

    def verify(self, seen: Observation) -> Evidence:
        """The process that answered is the one that was dumped: its boot nonce, which no start
        could draw again, and the masks that it has now."""
        from labkit.snapshot import xstate

        want, who = seen.plan.state.snapshot_nonce, seen.facts.get("identity", {})
        step = seen.facts.get("restore", {})
        own = [s.name for s in seen.spans if s.source == "server" and s.phase in REPLACED]
        facts = {
            "nonce": who.get("nonce"),
            "expected": want,
            "image_bytes": step.get("image_bytes"),
            "server_pid": step.get("server_pid"),
            "pid_inside": who.get("pid"),
            "pages_bytes": step.get("pages_bytes"),
            "working_set_bytes": step.get("working_set_bytes"),
            "secrets_inside": step.get("secrets", ""),
            "reseeded": who.get("reseeded"),
        }

        def no(how: str) -> Evidence:
            return Evidence(self.name, False, how, facts)

        if not want or who.get("nonce") != want:
            return no("another process answered than the one in the snapshot")
        if own:
            return no(f"the server went through {', '.join(own)} after all")
        if not who.get("reseeded"):
            return no("the restored process still has the random state of its snapshot")
        handed = xstate.Handed.from_facts(step.get("permissions") or {})
        facts["permissions"] = handed.as_facts()
        if handed.lacking:
            lacking = ", ".join(map(xstate.names, handed.lacking.values()))
            return no(f"the restored process lacks what it had before the dump: {lacking}")
        crossed = self._crossed(seen, facts)
        if crossed.startswith("only"):
            return no(crossed)
        handed_on = f"; {handed.handed_on}" if handed.handed_on else ""
        return Evidence(
            self.name,
            True,
            "the dumped process itself answered (same boot nonce, new random state); its CRIU"
            f" image has {show_bytes(float(step.get('image_bytes') or 0))}{crossed}{handed_on}",
            facts,
        )

    def _crossed(self, seen: Observation, facts: JsonObject) -> str:
        """Fresh node: what the bucket itself counted as sent, of snapshot and model; "only …" where
        that is less than all."""
        want = seen.plan.state.snapshot_crossing
        if not want:
            return ""
        counters = seen.stores.get("bucket", {}).get("by_path", {})
        sent = {
            key: sum(c.get("bytes_sent", 0) for path, c in counters.items() if f"/{key}/" in path)
            for key in want
        }
        facts["bytes_over_link"], facts["link"] = sent, seen.plan.link
        packed_model = any(key.endswith("-packed") for key in want)
        crossed = (
            f"{show_bytes(sum(sent.values()))} of {show_bytes(sum(want.values()))} of it and its"
            f" model{' (both packed)' if packed_model else ''} crossed the link ({seen.plan.link})"
        )
        less = any(sent[key] < size for key, size in want.items())
        return f"only {crossed}" if less else f"; {crossed}"


register(CriuProcess)


@register
class CriuProcessWhole(CriuProcess):
    name = "criu-process-whole"
    rung, claims_row = 0, ""
    title = "restore the server process with CRIU, weights inside the CRIU image"
    loader = COPIED
