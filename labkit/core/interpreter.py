"""The lab's own modules in a process of their own, whatever lies in the directory the lab was called from.

`python -m` looks for modules in the working directory first, so a learner's json.py or torch.py there would be imported in
place of the real one – by the sampler, a server, a trial. `-P` leaves that directory out (Python 3.11; 3.10 has no such
switch, and looks there still). Only a checkout that is not installed needs it: there the directory is the lab's own.

    subprocess.Popen([*module("labkit.core.sampler"), path])

Lesson: none.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def module(name: str) -> list[str]:
    """The head of a command line that runs one of the lab's modules with this interpreter."""
    return [sys.executable, *safe(), "-m", name]


def safe() -> list[str]:
    try:
        here = os.path.realpath(os.getcwd()) == os.fspath(_ROOT)
    except OSError:  # the working directory is gone
        here = False
    return [] if here or sys.version_info < (3, 11) else ["-P"]
