"""A virtual environment that sees the packages of this one and can take an installation of its own,
without any index."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

#: For pip: nothing is fetched, and what builds the lab is what is installed.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def sibling(path: Path) -> Path:
    """Make it at `path`. The lab itself is not in it: editable installations are not seen through a
    .pth."""
    subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
    theirs = next((path / "lib").glob("python*/site-packages"))
    for old in [
        *theirs.glob("setuptools*"),
        *theirs.glob("_distutils_hack"),
        *theirs.glob("distutils-precedence.pth"),
    ]:
        # ensurepip's is older, and would hide this environment's
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    (theirs / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return path
