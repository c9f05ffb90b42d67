"""A GPU process as a whole: CUDA checkpoint, then CRIU; CRIU restore, then CUDA restore. One state machine.

    running → locked → checkpointed → dumped (gone) → restored by CRIU → checkpointed → locked → running → first token

CRIU cannot see a GPU, and need not: a parked process holds none. A dump that is refused brings the process back to running.

    python -m labkit.snapshot.cuda --preset 1b         # on a GPU host, as root: one JSON line

Limit: GPU bytes ÷ PCIe rate twice, and the image ÷ disk rate, which now holds the GPU's memory. Lesson: notebooks/07_checkpoints.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.core import timeline
from labkit.core.beside import scratch
from labkit.device import cuda_checkpoint as cuda
from labkit.snapshot import criu


def dump(driver: cuda.Driver, pid: int, images: Path, work: Path) -> tuple[cuda.Steps, dict[str, Any]]:
    """Park, dump; the process is gone afterwards. Raises SnapshotError or CudaCheckpointError; then it runs on."""
    with cuda.parked_for_dump(driver, pid) as steps:
        return steps, criu.dump(pid, images, work)


def restore(driver: cuda.Driver, images: Path, work: Path, permissions: Mapping[str, int]) -> tuple[int, cuda.Steps, float]:
    """CRIU, then the GPU. A process whose GPU state cannot come back is ended: half of it would serve wrong tokens."""
    began = timeline.now_s()
    pid, _ = criu.restore(images, work, permissions=permissions)
    criu_s = timeline.now_s() - began
    try:
        return pid, cuda.wake(driver, pid), criu_s
    except BaseException:
        criu.end([pid])
        raise


def trial(preset: str, work: Path) -> dict[str, Any]:
    from labkit.device import gpu_parts

    driver, images = cuda.CudaCore(), work / "images"
    images.mkdir(parents=True)
    with gpu_parts.server(preset) as (process, port, answer):
        parked, dumped = dump(driver, process.pid, images, work)
        process.wait()
        began = timeline.now_s()
        pid, woken, criu_s = restore(driver, images, work, dumped.pop("permissions"))
        try:
            after = gpu_parts.again(port)
            return {"preset": preset, **dumped, "criu_restore_s": criu_s, "seconds": {**parked.seconds, **woken.seconds}, "equal_tokens": after.tokens == answer.tokens,
                    "gone_to_first_token_s": (after.first_token_s or float("nan")) - began, "start_s": (answer.first_token_s or float("nan")) - answer.t0_s}
        finally:
            criu.end([pid])


def main() -> int:
    from labkit.device.gpu_parts import say

    parser = argparse.ArgumentParser(prog="python -m labkit.snapshot.cuda")
    parser.add_argument("--preset", default="1b")
    args = parser.parse_args()
    with scratch("labkit-gpu-") as work:
        return say(lambda: trial(args.preset, work))


if __name__ == "__main__":
    sys.exit(main())
