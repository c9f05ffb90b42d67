"""The host's NVIDIA driver in an image: its libraries belong to the host's kernel module, never to
the image.

    driver.present(); driver.libraries()        # {"libcuda.so.1": "/usr/lib/…/libcuda.so.550.54"}

Limit: one call of ldconfig, ~5 ms. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os
import shutil
import subprocess

#: Where the driver's libraries appear in a container.
FOLDER = "/run/labkit-driver"
_LIBRARIES = (
    "libcuda.so.",
    "libnvidia-ml.so.",
    "libnvidia-ptxjitcompiler.so.",
    "libnvidia-nvvm.so.",
    "libnvidia-gpucomp.so.",
)


def present() -> bool:
    return os.path.exists("/dev/nvidiactl")


def device_nodes() -> list[str]:
    """/dev/nvidia0, /dev/nvidiactl, …; [] without a GPU."""
    if not present():
        return []
    nodes = (f"/dev/{name}" for name in sorted(os.listdir("/dev")) if name.startswith("nvidia"))
    return [node for node in nodes if not os.path.isdir(node)]


def libraries() -> dict[str, str]:
    """soname -> host path of the NVIDIA driver's libraries, from the dynamic linker's own cache;
    empty without a GPU."""
    if not present():
        return {}
    program = (
        shutil.which("ldconfig", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin") or "ldconfig"
    )
    listed = subprocess.run([program, "-p"], capture_output=True, text=True).stdout
    pairs = (line.strip().partition(" => ") for line in listed.splitlines() if "i386" not in line)
    return {
        left.split(" ")[0]: os.path.realpath(path)
        for left, _, path in pairs
        if left.startswith(_LIBRARIES) and os.path.exists(path)
    }
