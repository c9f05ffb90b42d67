"""Run a command as an ordinary user, from a test that runs as root.

The interpreter may live below a home directory that only root may enter (CI images put it under /root). In a mount
namespace of its own that directory is covered by an empty one, with only the needed trees bound back – permissions of the
real machine stay as they are, and the command gets no capability.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

UID = 47110  # nobody's number: no account of this host is used

_ENTER = r"""
set -e
mount --make-rprivate /
keep=$(mktemp -d)
for closed in $CLOSED; do
    mount --bind "$closed" "$keep"
    mount -t tmpfs -o mode=755 tmpfs "$closed"
    for tree in $TREES; do
        case "$tree" in "$closed"/*) mkdir -p "$tree"; mount --bind "$keep${tree#"$closed"}" "$tree";; esac
    done
done
exec setpriv --reuid UID --regid UID --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs -- "$@"
""".replace("UID", str(UID))


def closed_directories(path: Path) -> list[str]:
    """Directories above `path` that others may not pass."""
    return [str(p) for p in reversed(path.parents) if not p.stat().st_mode & 0o001]


def as_ordinary_user(argv: Sequence[str], *, home: Path, env: Mapping[str, str] | None = None, may_gain: bool = True, **options) -> subprocess.CompletedProcess[str]:
    """`subprocess.run(argv)` as a user without privileges. `home` is given to that user.

    may_gain: set-uid tools such as fusermount3 work (no_new_privs off), as they do for a user who logged in."""
    trees = sorted({str(Path(sys.base_prefix).resolve()), str(Path(sys.prefix).resolve()), str(Path(__file__).resolve().parents[2])})
    closed = sorted({c for t in trees for c in closed_directories(Path(t))})
    for directory, _, files in os.walk(home):
        for name in ("", *files):
            os.chown(os.path.join(directory, name), UID, UID, follow_symlinks=False)
    script = _ENTER
    if may_gain:
        script = script.replace(" --bounding-set=-all --no-new-privs", "")
    clean = {"PATH": os.environ["PATH"], "HOME": str(home), "LABKIT_HOME": str(home / "lab"), "LANG": "C.UTF-8", "TMPDIR": str(home), **(env or {})}
    return subprocess.run(["unshare", "--mount", "bash", "-c", script, "as-user", *argv], text=True, capture_output=True,
                          env={**clean, "CLOSED": " ".join(closed), "TREES": " ".join(trees)}, **options)
