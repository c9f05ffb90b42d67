"""What an NVIDIA driver can do, by its version: what the lab asks of it, and since when there is
that.

    has("575.57.08"); lacks("575.57.08")    # lines for a person
    too_old("575.57.08", "13.0")            # "driver 575.57.08 is older than 580, which CUDA 13.0
        needs"

From the version, not tried: a call that the driver exports is looked for beside it
(`labkit.core.probes`). Sources: NVIDIA/cuda-checkpoint's README (550: the utility; "570 Features":
the calls, a lock with a time-out, NVML, process trees with CRIU 4), CUcheckpointRestoreArgs of the
CUDA 12.9 and 13 driver API (pairs of GPUs from 13 on),
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html (oldest driver of
a CUDA line). Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import re

#: The oldest driver of each CUDA line; its minor versions need no newer one.
OLDEST = {11: 450, 12: 525, 13: 580}
FEATURES: tuple[tuple[int, str], ...] = (
    (525, "programs built for CUDA 12"),
    (550, "CUDA checkpoints by NVIDIA's cuda-checkpoint utility"),
    (
        570,
        (
            "CUDA checkpoints by its own calls (cuCheckpointProcess*, CUDA 12.8), also of a process"
            " that uses NVML"
        ),
    ),
    (580, "programs built for CUDA 13; a restore onto another GPU of the same kind"),
)


def major(version: str) -> int:
    """580 of "580.159.04"; 0 of what is no version."""
    found = re.match(r"\d{1,5}", version)
    return int(found[0]) if found else 0


def has(version: str) -> list[str]:
    return [what for since, what in FEATURES if major(version) >= since]


def lacks(version: str) -> list[str]:
    """What came later, each with its driver; [] of a version that is none, as nobody knows."""
    return [f"{what} (driver {since})" for since, what in FEATURES if 0 < major(version) < since]


def too_old(version: str, cuda: str) -> str:
    """What is wrong with a driver for a program of this CUDA version ("13.0"), in words; "" where
    it fits, or nobody knows."""
    needed = OLDEST.get(major(cuda), 0)
    return (
        f"driver {version} is older than {needed}, which CUDA {cuda} needs"
        if 0 < major(version) < needed
        else ""
    )
