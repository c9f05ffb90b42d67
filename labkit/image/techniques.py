"""The image layer's techniques: importing this module registers them. Each brings the files of the image to the node.

    host-env    no image: the interpreter and packages that run the lab
    full-pull   the whole image over the wire, then unpacked (the article's starting point)

Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from labkit.core.plan import LaunchPlan
from labkit.core.workspace import Workspace
from labkit.technique import YES, Artifact, Availability, Claim, Evidence, Seen, Subject, register

#: Packages of the host that only the server maps: what the lab itself has open cannot be made cold.
_SERVER_PACKAGES = ("torch", "tokenizers", "safetensors", "runai_model_streamer")


@register
class HostEnv:
    name, layer = "host-env", "image"
    title = "no image: the host's own interpreter and packages"
    lesson = "01_anatomy"
    claims: tuple[Claim, ...] = ()

    def available(self, host: Any) -> Availability:
        return YES

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        found = {}
        for name in _SERVER_PACKAGES:
            spec = importlib.util.find_spec(name)
            if spec and spec.origin:
                found[name] = str(Path(spec.origin).parent)
        return Artifact(self.name, paths=found, facts={"prepare_s": 0.0, "size_bytes": 0})

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        return plan.with_cold(*artifact.paths.values())

    def engaged(self, seen: Seen) -> Evidence:
        import sys

        started = seen.facts.get("start", {})
        exe = seen.proc.get("exe", "")
        ok = not started.get("rootfs") and os.path.realpath(exe) == os.path.realpath(sys.executable)
        return Evidence(self.name, ok, f"the server runs {exe or 'an unknown program'}, no image", {"exe": exe})
