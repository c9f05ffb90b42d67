"""What the kernel is set to do with the disk below a file.

    read_ahead_bytes(os.stat(path).st_dev)      # 131072, the kernel's default; some distributions
        and clouds set up to 8 MiB

Lesson: notebooks/05_streaming.
"""

from __future__ import annotations

import os
from pathlib import Path


def read_ahead_bytes(device: int) -> int:
    """How far the kernel reads ahead of who touches mapped pages in order, by st_dev; 0 where the
    file system has no disk of its own (FUSE, overlay, network, memory)."""
    if not os.major(device):
        return 0
    try:
        return (
            int(
                Path(
                    f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
                ).read_text()
            )
            << 10
        )
    except (OSError, ValueError):
        return 0
