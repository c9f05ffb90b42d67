"""Give a file a second name where a server looks for it, without moving its bytes.

    link_or_copy(Path("model.safetensors"), Path("/srv/bucket/lab/models/small/model.safetensors"))
        == "linked"

A hard link costs one directory entry; across file systems a clone (FICLONE) or, last, a copy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from labkit.core.beside import replacing

FICLONE = 0x40049409


def link_or_copy(source: Path, target: Path) -> str:
    """Give `source` a second name without copying where the file system can. Returns "kept",
    "linked", "cloned" or "copied"."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        if target.samefile(source):
            return "kept"
        target.unlink()
    source = source.resolve()
    with contextlib.suppress(OSError):
        os.link(source, target)
        return "linked"
    how = "copied"
    with (
        replacing(target) as temporary,
        open(source, "rb") as inp,
        open(temporary, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out,
    ):
        # as a hard link has it: a snapshot stays its owner's
        os.fchmod(out.fileno(), os.fstat(inp.fileno()).st_mode & 0o7777)
        try:
            import fcntl

            fcntl.ioctl(out.fileno(), FICLONE, inp.fileno())
            how = "cloned"
        except OSError:
            shutil.copyfileobj(inp, out, 1 << 20)
    return how
