"""Which device the servers of a run are on: the GPU where there is one that this torch can use, the
CPU elsewhere – and why.

    place(stacks).device                   # "cuda" on a GPU host with a CUDA build of torch, else
        "cpu"
    place(stacks, requested="cpu").why          # "asked for"

All arms of a run are on one device: a snapshot is of a server on the CPU, so the arms beside it are
there too. LABKIT_DEVICE says it for every run of a process, as `labkit report --device` does for
the notebooks. The choice and its reason are in the record, `experiment.placement`; the device
itself is a condition of the run (labkit.core.question), so records of different devices are never
compared. Limit: it is chosen from what is installed, without a context; a GPU that does not work
fails its trials. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from labkit.core import driver, host
from labkit.errors import BadInput
from labkit.stack.compose import Stack

ENV = "LABKIT_DEVICE"
DEVICES = ("cpu", "cuda")
OF_THE_CPU = "what is dumped and restored here is a server on the CPU"


@dataclass(frozen=True)
class Placement:
    """`chosen`: the lab chose, nobody asked. `name`: the GPU's, where it is one."""

    device: str
    why: str
    chosen: bool = True
    name: str = ""

    def as_json(self) -> dict[str, str | bool]:
        return {"device": self.device, "name": self.name, "why": self.why, "chosen": self.chosen}


def place(stacks: Iterable[Stack], requested: str = "") -> Placement:
    """The device of a run's servers. `requested` decides; else LABKIT_DEVICE; else what is here.

    Raises BadInput for a device that is none, and for cuda beside an arm whose server cannot be on
    it."""
    source = "asked for" if requested else f"{ENV} says so"
    wanted = requested or os.environ.get(ENV, "")
    if wanted and wanted.partition(":")[0] not in DEVICES:
        raise BadInput(
            f"no device {wanted[:40]!r}",
            why="" if requested else f"{ENV} names it",
            fix="cpu, cuda or cuda:N",
        )
    gpus = host.gpus()
    name = str(gpus[0]["name"]) if gpus else ""
    dumped = next((s.layers["snapshot"] for s in stacks if s.layers.get("snapshot")), "")
    if wanted == "cpu":
        return Placement("cpu", source, chosen=False)
    if dumped and requested:
        raise BadInput(
            f"{dumped} on {requested}",
            why=f"{OF_THE_CPU}, and arms on two devices are not compared",
            fix="--device cpu, or the other arms alone",
        )
    if dumped and (wanted or gpus):
        return Placement("cpu", f"{dumped}: {OF_THE_CPU}, and all arms of a run are on one device")
    if wanted:
        return Placement(wanted, source, chosen=False, name=name)
    if not gpus:
        return Placement("cpu", "no GPU is here")
    built_for = host.torch_cuda()
    if not built_for:
        return Placement("cpu", f"{name} is here, but torch is built without CUDA")
    if lacking := driver.too_old(str(gpus[0]["driver"]), built_for):
        return Placement("cpu", f"{name} is here, but {lacking}")
    return Placement("cuda", f"a GPU is here, and torch is built for CUDA {built_for}", name=name)


def not_on(device: str, layer: str) -> str:
    """Why techniques of a layer are no candidates on a device, or ""."""
    return (
        f"{OF_THE_CPU} (--device cpu)" if device.startswith("cuda") and layer == "snapshot" else ""
    )
