"""The snapshot layer's techniques: importing this module registers them.

    criu-process         the server as a process; its weights stay in the model's file, mapped,
        outside of the image
    criu-process-whole   the same with everything in the image, as CRIU finds it where a loader
        copied the weights
    criu-container       the server as a runc container

A snapshot makes the layers below it moot from `start` on: nothing is imported, built, loaded or
warmed up. What it needs of them stays: the image's files (libraries are mapped, not dumped) and the
model's. Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from labkit.core import interpreter, shipped
from labkit.core.beside import becoming
from labkit.core.capabilities import capability
from labkit.core.plan import LaunchPlan, Step
from labkit.core.units import show_bytes
from labkit.core.workspace import Workspace
from labkit.objects.access import BUCKET
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

#: After these phases nothing of a plan is left to do.
REPLACED = ("start", "import", "context", "build", "load", "warmup")
MAPPED = "labkit.weights.loaders.safe:load"
COPIED = "labkit.weights.loaders.safe:load_pread"


def _missing(*names: str) -> Availability:
    for name in names:
        found = capability(name)
        if not found.ok:
            return Availability(False, f"{name}: {found.missing}", found.why, found.fix)
    return YES


def digest_of(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_identity(directory: Path) -> list[Any]:
    return [
        [p.name, p.stat().st_size, p.stat().st_mtime_ns]
        for p in sorted(directory.iterdir())
        if p.is_file()
    ]


def code_identity() -> list[Any]:
    """The server's own code is in the snapshot: another version needs another snapshot."""
    # metadata only: the harness must not map torch's libraries itself
    from labkit.core.host import package_version

    files = [
        *sorted((shipped.PACKAGE / "subject").glob("*.py")),
        *sorted((shipped.PACKAGE / "weights" / "loaders").glob("*.py")),
        shipped.PACKAGE / "core" / "timeline.py",
    ]
    return [
        sys.executable,
        package_version("torch"),
        hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest(),
    ]


class CriuProcess(Technique):
    """What the variants share. `loader`: how the subject that is dumped gets its weights."""

    name, layer, lesson = "criu-process", "snapshot", "07_checkpoints"
    rung, claims_row, advice = 6, "CUDA checkpoint + CRIU", "snapshot"
    title = "restore the server process with CRIU, weights mapped from the model's file"
    claims: tuple[Claim, ...] = ()
    requires_layers: ClassVar[Mapping[str, str]] = {"image": "host-env", "process": "process"}
    # layers whose choice changes nothing any more
    replaces_layers: tuple[str, ...] = ("image", "process", "weights", "init", "device")
    loader = MAPPED

    def available(self, host: Any) -> Availability:
        return _missing("root", "criu")

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        from labkit.snapshot import create, store

        model = self._checkpoint(subject, workspace)
        digest = digest_of(
            self.name,
            self.loader,
            str(model),
            model_identity(model),
            store.host_fingerprint(),
            store.SCHEMA,
            code_identity(),
            self._more(subject),
        )
        target = workspace.artifacts / f"{self.name}-{digest}"
        with one_at_a_time(target):
            try:
                snapshot = store.open_snapshot(target)
                if snapshot.missing_files():
                    raise store.SnapshotRefused("damaged")
            except store.SnapshotRefused:
                snapshot = self._make(create, subject, workspace, model, target)
        return self._artifact(snapshot, digest, model, subject)

    def _checkpoint(self, subject: Subject, workspace: Workspace) -> Path:
        """The model as safetensors: the loaders that are dumped read it."""
        from labkit.weights.prepared import checkpoint_in

        return Path(checkpoint_in("safetensors", subject, workspace).directory).resolve()

    def _more(self, subject: Subject) -> Any:
        return ""

    def _make(
        self, create: Any, subject: Subject, workspace: Workspace, model: Path, target: Path
    ) -> Any:
        return create.make_process(model, target, loader=self.loader)

    def _artifact(self, snapshot: Any, digest: str, model: Path, subject: Subject) -> Artifact:
        from labkit.snapshot import readahead
        from labkit.snapshot.process import pages_bytes

        manifest = snapshot.manifest
        whole = (
            readahead.piece_bytes(readahead.pieces_of(snapshot))
            + manifest.size_bytes
            - pages_bytes(snapshot)
        )
        libraries = sum(
            length
            for path, ranges in manifest.working_set.items()
            if path not in manifest.mapped
            for _, length in ranges
        )
        return Artifact(
            self.name,
            digest,
            {"snapshot": str(snapshot.path), "model_dir": str(model)},
            {
                "prepare_s": manifest.facts.get("prepare_s", 0.0),
                "size_bytes": manifest.size_bytes,
                "pages_bytes": pages_bytes(snapshot),
                "restore_bytes": whole,
                "library_bytes": libraries,
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
        from labkit.snapshot import store, transport

        compression = os.environ.get("LABKIT_SNAPSHOT_COMPRESSION", "zstd")
        stored = transport.publish(
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

        folder, names = (
            Path(artifact.paths["snapshot"] + "-model-packed"),
            [Path(p).name for p in artifact.facts["mapped"]],
        )
        made_once(folder, lambda part: packed.pack(Path(artifact.paths["model_dir"]), names, part))
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
            floors["restore@memcpy"], floors["restore"] = (
                artifact.facts["restore_bytes"],
                self._on_disk_bytes(artifact),
            )
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
            crossing = {
                self._key(artifact): artifact.facts.get(
                    "stored_bytes", artifact.facts["size_bytes"]
                ),
                model_key: (
                    artifact.facts["model_stored_bytes"] if packed_model else sum(mapped.values())
                ),
            }
            floors["pull"] = floors.get("pull", 0) + crossing[self._key(artifact)]
            # the model comes while the process is restored, and held until it is whole
            floors["restore@link"] = crossing[model_key]
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
            # image).
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
        if not want or who.get("nonce") != want:
            return Evidence(
                self.name, False, "another process answered than the one in the snapshot", facts
            )
        if own:
            return Evidence(
                self.name, False, f"the server went through {', '.join(own)} after all", facts
            )
        if not who.get("reseeded"):
            return Evidence(
                self.name,
                False,
                "the restored process still has the random state of its snapshot",
                facts,
            )
        handed = xstate.Handed.from_facts(step.get("permissions") or {})
        facts["permissions"] = handed.as_facts()
        if handed.lacking:
            return Evidence(
                self.name,
                False,
                "the restored process lacks what it had before the dump:"
                f" {', '.join(map(xstate.names, handed.lacking.values()))}",
                facts,
            )
        crossed = self._crossed(seen, facts)
        if crossed.startswith("only"):
            return Evidence(self.name, False, crossed, facts)
        handed_on = f"; {handed.handed_on}" if handed.handed_on else ""
        return Evidence(
            self.name,
            True,
            "the dumped process itself answered (same boot nonce, new random state); its image has "
            f"{show_bytes(float(step.get('image_bytes') or 0))}{crossed}{handed_on}",
            facts,
        )

    def _crossed(self, seen: Observation, facts: dict[str, Any]) -> str:
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
        said = (
            f"{show_bytes(sum(sent.values()))} of {show_bytes(sum(want.values()))} of it and its"
            f" model{' (both packed)' if packed_model else ''} crossed the link ({seen.plan.link})"
        )
        return (
            f"only {said}" if any(sent[key] < size for key, size in want.items()) else f"; {said}"
        )


@contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Two preparations of one snapshot: the second finds what the first made."""
    import fcntl

    with open(target.with_name(f".{target.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made_once(folder: Path, make: Callable[[Path], Any]) -> None:
    """`make(part)` fills a directory beside `folder`, which becomes it when it is whole; what is
    there already is kept."""
    with one_at_a_time(folder):
        if not folder.exists():
            with becoming(folder, mode=0o700) as part:
                make(part)


register(CriuProcess)


@register
class CriuProcessWhole(CriuProcess):
    name = "criu-process-whole"
    rung, claims_row = 0, ""
    title = "restore the server process with CRIU, weights inside the image"
    loader = COPIED


@register
class CriuContainer(CriuProcess):
    name = "criu-container"
    rung = 7
    title = "restore the server's container with CRIU, through runc"
    requires_layers: ClassVar[Mapping[str, str]] = {"process": "runc"}
    replaces_layers = ("process", "weights", "init", "device")  # it still runs on the image's files
    restore_call = "labkit.snapshot.container:restore"

    def available(self, host: Any) -> Availability:
        found = _missing("root", "criu", "runc")
        if found.missing.startswith("runc: no runc") and shutil.which("podman"):
            return Availability(
                False,
                f"{found.missing}; podman is here, but the lab checkpoints containers through runc"
                " only",
                "podman's runtime is crun, whose checkpoints need a build with CRIU in it, and its"
                " containers live in a store of its own",
                "apt-get install runc (it may stand beside podman); or snapshot=criu-process",
            )
        return found

    def _rootfs(self, subject: Subject, workspace: Workspace) -> tuple[Path, dict[str, Any]]:
        from labkit.errors import BadInput
        from labkit.image.pull import ensure_rootfs

        if subject.image_layout is None:
            raise BadInput(
                "criu-container restores a container, and this stack has no image",
                why="host-env means there is none",
                fix="image=full-pull,snapshot=criu-container; or snapshot=criu-process",
            )
        return ensure_rootfs(
            subject.image_layout, subject.image_reference, workspace.artifacts / "rootfs"
        )

    def _more(self, subject: Subject) -> Any:
        from labkit.image.oci_layout import Layout

        return (
            Layout(subject.image_layout).manifest_descriptor(subject.image_reference).digest
            if subject.image_layout
            else ""
        )

    def _make(
        self, create: Any, subject: Subject, workspace: Workspace, model: Path, target: Path
    ) -> Any:
        from labkit.snapshot.container import make_container

        rootfs, config = self._rootfs(subject, workspace)
        return make_container(
            Path(rootfs),
            config,
            model,
            target,
            loader=self.loader,
            scratch=workspace.nodes / f"{target.name}-work",
        )

    def _before(self, plan: LaunchPlan) -> tuple[Step, ...]:
        return tuple(s for s in plan.steps if s.phase in ("pull", "unpack", "mount"))

    def _beside(self, before: tuple[Step, ...]) -> tuple[Step, ...]:
        """A lazy mount fetches what the restored process touches, not what a start would; that,
        too, while the snapshot comes."""
        lazy = [s for s in before if s.phase == "mount"]
        if not lazy:
            return before
        return (
            *(
                (
                    replace(
                        s, args={**s.args, "options": [*s.args.get("options", []), "--no-prefetch"]}
                    )
                    if s in lazy
                    else s
                )
                for s in before
            ),
            Step("mount.touched", "labkit.snapshot.container:ask_ahead"),
        )

    def _on_disk_bytes(self, artifact: Artifact) -> int:
        return 0  # the libraries came with the image

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        if plan.state.started_by:
            from labkit.errors import BadInput

            raise BadInput(
                f"{plan.stack.get('image')} starts its containers itself, and a snapshot is"
                " restored by runc on a root directory",
                why="containerd keeps its own",
                fix="image=full-pull,snapshot=criu-container",
            )
        return super().apply(plan, artifact)

    def verify(self, seen: Observation) -> Evidence:
        found = super().verify(seen)
        rootfs = str(seen.facts.get("restore", {}).get("rootfs", ""))
        own = [
            k
            for k in ("mnt", "pid")
            if seen.proc.get("ns", {}).get(k)
            and seen.proc["ns"][k] != os.readlink(f"/proc/self/ns/{k}")
        ]
        facts = {**found.facts, "namespaces": own, "rootfs": rootfs}
        if found.engaged and len(own) < 2:
            return Evidence(
                self.name,
                False,
                "the restored process shares the host's namespaces: it is in no container",
                facts,
            )
        if found.engaged and seen.plan.state.snapshot_crossing:
            served = sum(store.get("bytes_sent", 0) for store in seen.stores.values())
            facts["image_bytes_over_link"] = served - sum(found.facts["bytes_over_link"].values())
            if facts["image_bytes_over_link"] <= 0:
                return Evidence(
                    self.name,
                    False,
                    "nothing of the image crossed the link: its files were on this node before t0",
                    facts,
                )
        return replace(found, facts=facts)


@register
class Zygote(Technique):
    name, layer, lesson = "zygote", "process", "07_checkpoints"
    title = "fork a process that has imported everything (resident before t0)"
    claims: tuple[Claim, ...] = ()
    requires_layers: ClassVar[Mapping[str, str]] = {"image": "host-env"}
    excluded_scenarios = ("fresh-node",)

    def available(self, host: Any) -> Availability:
        return YES

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        return Artifact(self.name, facts={"prepare_s": 0.0, "size_bytes": 0})

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        from labkit.errors import BadInput

        if plan.scenario in self.excluded_scenarios:
            raise BadInput(
                "a zygote is resident before t0, and on a fresh node nothing of the stack is",
                why="it would be compared with arms that bring everything over the link",
                fix="--scenario warm-node or hot-node",
            )
        if plan.stack.get("image") not in (None, "", "host-env"):
            raise BadInput(
                "a zygote forks the lab's own interpreter, and this stack has an image",
                why="the image's files would not be used",
                fix="image=host-env,process=zygote",
            )
        # Its libraries are mapped before t0: that is what a zygote is. They are left out of the
        # cold set, in the open.
        mapped = set(interpreter.packages())
        kept = tuple(
            p for p in plan.cold_paths if p not in mapped and "/site-packages/" not in p + "/"
        )
        left = [p for p in plan.cold_paths if p not in kept]
        return replace(
            plan, cold_paths=kept, state=replace(plan.state, resident_before_t0=tuple(left))
        ).with_steps(
            Step(
                "start",
                "labkit.snapshot.zygote:start",
                pre_start="labkit.snapshot.zygote:start_zygote",
            )
        )

    def verify(self, seen: Observation) -> Evidence:
        step = seen.facts.get("start", {})
        imported = seen.phase_s("import")
        maps = seen.proc.get("maps", [])
        facts = {
            "zygote_rss_bytes": step.get("zygote_rss_bytes"),
            "resident_before_t0": list(seen.plan.state.resident_before_t0),
            "import_s": imported,
        }
        if step.get("runtime") != "zygote" or not any("libtorch" in m for m in maps):
            return Evidence(self.name, False, "no fork of a zygote answered", facts)
        if imported > 0.2:
            return Evidence(
                self.name,
                False,
                f"the fork imported for {imported:.2f} s: it was not ready before t0",
                facts,
            )
        return Evidence(
            self.name,
            True,
            "a fork of a process that was resident before t0 with"
            f" {show_bytes(float(step['zygote_rss_bytes']))}; {len(facts['resident_before_t0'])}"
            " library directories were warm by that",
            facts,
        )
