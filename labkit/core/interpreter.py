"""The lab's own modules in a process of their own, whatever lies in the directory the lab was
called from.

`python -m` looks for modules in the working directory first, so a learner's json.py or torch.py
there would be imported in place of the real one – by the sampler, a server, a trial. `-P` leaves
that directory out (Python 3.11; 3.10 has no such switch, and looks there still). Only a checkout
that is not installed needs it: there the directory is the lab's own.

    subprocess.Popen([*module("labkit.core.sampler"), path])
    subprocess.Popen([sys.executable, "-m", "labkit.subject.server"], env=marked({**environment(),
        **more}), cwd="/")

Lesson: none.
"""

from __future__ import annotations

import os
import sys

from labkit.core import shipped


def module(name: str) -> list[str]:
    """The head of a command line that runs one of the lab's modules with this interpreter."""
    return [sys.executable, *safe(), "-m", name]


def safe() -> list[str]:
    try:
        here = os.path.realpath(os.getcwd()) == os.fspath(shipped.IMPORTED_FROM)
    except OSError:  # the working directory is gone
        here = False
    return [] if here or sys.version_info < (3, 11) else ["-P"]


#: What a server keeps of the environment that the lab was called in: where programs and libraries
#: are, and how CUDA and torch were told to behave.
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD")
KEPT_OF = ("CUDA_", "TORCH_", "PYTORCH_")


def environment(*kept: str) -> dict[str, str]:
    """For a server on this interpreter, started elsewhere: the lab's own folder in front of the
    caller's PYTHONPATH (packages that were carried to a host lie there), and of the rest KEPT,
    KEPT_OF and the names given. TMPDIR is not of them: a run's own ends with it."""
    found = {k: v for k, v in os.environ.items() if k in (*KEPT, *kept) or k.startswith(KEPT_OF)}
    return {
        **found,
        "PYTHONPATH": shipped.import_path(os.environ.get("PYTHONPATH", "")),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


#: What a server maps or reads of the environment it runs in and the lab itself does not: what the
#: lab has mapped cannot be made cold. So numpy is left out (it lies under every plot of a notebook;
#: 60 MB).
SERVED_WITH = (
    "torch",
    "torchgen",
    "functorch",
    "nvidia",
    "triton",
    "tokenizers",
    "safetensors",
    "sympy",
    "mpmath",
    "networkx",
    "runai_model_streamer",
    "fastsafetensors",
    "instanttensor",
)


def packages() -> list[str]:
    """Folders of SERVED_WITH on sys.path, wherever they are: CUDA's libraries (nvidia/, some GB)
    may be spread over several folders."""
    found = [
        os.path.realpath(os.path.join(folder or ".", name))
        for folder in dict.fromkeys(sys.path)
        for name in SERVED_WITH
    ]
    return [path for path in dict.fromkeys(found) if os.path.isdir(path)]
