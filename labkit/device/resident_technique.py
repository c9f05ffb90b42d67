"""`weights=device-resident`: importing this module registers it. The mechanism is
`labkit.device.resident`.

The price is in no phase of a start: as many bytes of the device as the model has, held by a daemon
around the clock, and not to be parked. So it stands beside a warm standby, which gives the device's
memory up and pays for that with a copy, and a zygote; on a fresh node there is no daemon and no
such technique. Limit: one exchange and one mapping. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from labkit.core.capabilities import capability
from labkit.core.json_types import JsonObject
from labkit.core.plan import LaunchPlan, Step
from labkit.core.units import show_bytes
from labkit.device.resident_plan import leave_out_resident, refuse_fresh_node
from labkit.errors import BadInput
from labkit.technique import YES, Artifact, Availability, Evidence, Observation, register
from labkit.weights.catalog import Loader
from labkit.weights.techniques import WeightsTechnique, device_facts, resident_share

LOADER = Loader(
    "device-resident",
    "on the device already, in a daemon's memory, mapped over CUDA IPC",
    "labkit.device.resident:load",
    "safetensors",
    "none",
    "notebooks/06_gpu_init",
    needs_gpu=True,
    fix="run it on a GPU host; `make gpu` there makes a record that notebooks replay elsewhere",
)
#: Of the weights' bytes, what a server may read after t0 and still be one that did not load them;
#: what its own imports read is 30 MB and more.
LITTLE, IMPORTS_BYTES = 0.05, 128 << 20


@register
class DeviceResident(WeightsTechnique):
    name, title, lesson = LOADER.name, LOADER.title, LOADER.lesson
    excluded_scenarios = ("fresh-node",)
    requires_layers: ClassVar[Mapping[str, str]] = {"image": "host-env", "process": "process"}

    @property
    def loader(self) -> Loader:
        return LOADER

    def available(self, host: JsonObject) -> Availability:
        found = capability("gpu")
        if found.ok:
            return YES
        return Availability(
            False,
            f"gpu: {found.missing}",
            "a daemon holds the weights in a GPU's memory",
            LOADER.fix,
        )

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        refuse_fresh_node(plan, "a daemon that holds the weights")
        if plan.stack.get("image") not in (None, "", "host-env"):
            raise BadInput(
                "the daemon is the lab's own interpreter, and this stack has an OCI image",
                why="CUDA IPC wants both processes to see one device and each other",
                fix="image=host-env",
            )
        if not plan.on_gpu and not os.environ.get("LABKIT_FAKE_CUDA"):
            raise BadInput(
                "weights that stay on the device, and a server that is told to run on a CPU",
                fix="--device cuda",
            )
        directory = artifact.paths["model_dir"]
        plan = leave_out_resident(super().apply(plan, artifact))
        # no byte has to move
        floors = {k: v for k, v in plan.floors_bytes.items() if k.partition("@")[0] != "load"}
        return replace(plan, floors_bytes=floors).with_steps(
            Step(
                "start",
                "labkit.device.resident:offer",
                {"model": directory, "device": plan.device},
                pre_start="labkit.device.resident:start_daemon",
            )
        )

    def verify(self, seen: Observation) -> Evidence:
        """The daemon held the bytes before t0; the server read none of them, maps no weight file,
        and allocated no memory for them."""
        weights, held = seen.plan.state.weights, seen.facts.get("start", {}).get("resident", {})
        want = weights.bytes
        load = next(
            (
                s.detail
                for s in seen.spans
                if s.name == "load" and s.source == "server" and "mapped_bytes" in s.detail
            ),
            {},
        )
        there, read = device_facts(seen), int(seen.proc.get("io", {}).get("rchar", 0))
        files = [Path(m).name for m in seen.proc.get("maps", []) if m in weights.files]
        label = str(load.get("label") or held.get("label") or "")
        read_share = (
            resident_share(weights.files)
            if weights.files and seen.plan.scenario == "warm-node"
            else None
        )
        facts = {
            "daemon_pid": held.get("pid"),
            "daemon_load_s": held.get("load_s"),
            "daemon_device_bytes": held.get("device_bytes_held"),
            "mapped_bytes": load.get("mapped_bytes"),
            "copied_bytes": load.get("copied_bytes"),
            "read_in_load_bytes": load.get("read_in_load_bytes"),
            "read_since_t0_bytes": read,
            "files_in_page_cache": read_share,
            "driver": label,
            "resident_before_t0": list(seen.plan.state.resident_before_t0),
            **there,
        }

        def no(how: str) -> Evidence:
            return Evidence(self.name, False, how, facts)

        if not want or not held.get("pid") or held.get("pid") != load.get("daemon_pid"):
            return no("no daemon that stood there before t0 gave the server its weights")
        if (
            int(held.get("weights_bytes", 0)) < (1 - LITTLE) * want
            or int(load.get("mapped_bytes", 0)) < (1 - LITTLE) * want
            or load.get("copied_bytes")
        ):
            return no(
                f"{show_bytes(int(load.get('mapped_bytes', 0)))} of {show_bytes(want)} were mapped,"
                f" {show_bytes(int(load.get('copied_bytes', 0)))} copied"
            )
        if (
            files
            or int(load.get("read_in_load_bytes", 0)) >= LITTLE * want
            or read >= max(LITTLE * want, IMPORTS_BYTES)
        ):
            return no(
                f"{show_bytes(read)} were read after t0,"
                f" {show_bytes(int(load.get('read_in_load_bytes', 0)))} of them in the load, and"
                f" {len(files)} weight files are mapped: they came from a file"
            )
        if read_share is not None and read_share >= LITTLE:
            return no(
                f"{read_share:.0%} of the weight files came into the page cache after t0: somebody"
                " read them"
            )
        own = int(there.get("allocated_bytes", 0))
        if not label:
            device_bytes = held.get("device_bytes_held")
            if (
                own >= LITTLE * want + IMPORTS_BYTES
                or not there
                or there.get("device_parameters") != there.get("parameters")
            ):
                return no(
                    f"the server allocated {show_bytes(own)} of the device itself:"
                    f" {there.get('device_parameters', 0)} of {there.get('parameters', 0)}"
                    " parameters are there"
                )
            if device_bytes and device_bytes < (1 - LITTLE) * want:
                return no(
                    f"the daemon held {show_bytes(device_bytes)} of the device, the weights are"
                    f" {show_bytes(want)}"
                )
        note = f" and allocated {show_bytes(own)} of the device itself"
        if label:
            note = f" – {label}: its seconds mean nothing"
        return Evidence(
            self.name,
            True,
            f"{show_bytes(int(load['mapped_bytes']))} of weights, on the device before t0 in a"
            f" daemon (pid {held['pid']}), were mapped; the server read {show_bytes(read)} after t0"
            f"{note}",
            facts,
        )
