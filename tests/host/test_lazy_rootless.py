"""The lazy mount without root: through fusermount3, seen by its user alone, and as the root of a
container of that user's own."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from labkit.core.ledger import remove_tree
from labkit.image.estargz.convert import convert
from labkit.image.oci_layout import Layout
from labkit.image.tiny import REFERENCE, tiny_layout
from tests.conftest import REQUIRED
from tests.support.ordinary import UID, as_ordinary_user

pytestmark = pytest.mark.needs("root", "fuse")
LABKIT = [sys.executable, "-m", "labkit"]

#: What a user would type, as a program: mount, look, unmount, look again.
BY_HAND = textwrap.dedent("""
    import json, os, subprocess, sys
    layout, target = sys.argv[1:]
    os.mkdir(target)
    mount = subprocess.Popen([sys.executable, "-m", "labkit", "image", "mount", f"oci:{layout}:lab/tiny:latest", target, "--cache", target + "-cache"],
                             stdout=subprocess.PIPE, text=True)
    mounted = json.loads(mount.stdout.readline())
    line = next(l for l in open("/proc/self/mountinfo") if l.split()[4] == target)
    about = os.stat(target + "/etc/hostname")
    inside = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "cat", target + "/etc/hostname"], capture_output=True, text=True)
    seen = {"text": open(target + "/etc/hostname").read(), "big": len(open(target + "/usr/lib/libbig.so", "rb").read()), "line": line,
            "owner": about.st_uid, "inside": inside.stdout, "mounted": mounted.get("mounted")}
    try:
        open(target + "/etc/hostname", "w")
    except OSError as error:
        seen["write"] = error.errno
    done = subprocess.run(["fusermount3", "-u", target], capture_output=True, text=True)
    seen |= {"unmount": done.returncode, "said": done.stderr, "exit": mount.wait(15), "left": os.listdir(target)}
    print(json.dumps(seen))
""")  # noqa: E501 - a program's own lines


@pytest.fixture
def home():
    """A home that an ordinary user may enter: pytest's own directories are closed to others."""
    tool = shutil.which("fusermount3")
    if not tool or not os.stat(tool).st_mode & stat.S_ISUID:
        reason = (
            "fusermount3 is not set-uid root: users cannot mount here (chmod u+s"
            " /usr/bin/fusermount3)"
        )
        (pytest.fail if "fuse" in REQUIRED else pytest.skip)(reason)
    made = Path(tempfile.mkdtemp(prefix="labkit-rootless-"))
    made.chmod(0o755)
    yield made
    with open("/proc/self/mountinfo") as lines:
        assert not [line for line in lines if str(made) in line]
    remove_tree(made)


def copied(lab_home: Path, home: Path) -> None:
    """What root prepared before this test, copied (never linked: it changes owner): the same bytes
    as a user's own, and minutes less."""
    (home / "lab/artifacts").mkdir(parents=True)
    for room in ("images", "models"):
        if (lab_home / room).exists():
            shutil.copytree(lab_home / room, home / "lab" / room, symlinks=True)
    made = sorted((lab_home / "artifacts").glob("estargz-*"), key=lambda p: p.stat().st_mtime)
    if made:
        shutil.copytree(made[-1], home / "lab/artifacts" / made[-1].name)


@pytest.mark.needs("userns")
def test_a_user_mounts_reads_and_unmounts(home):
    tiny_layout(home / "plain", 1_500_000)
    convert(Layout(home / "plain"), REFERENCE, Layout.create(home / "lazy"))
    done = as_ordinary_user(
        [sys.executable, "-c", BY_HAND, str(home / "lazy"), str(home / "mnt")],
        home=home,
        fuse=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["text"] == "tiny\n" and seen["big"] == 750_000 and seen["inside"] == "tiny\n"
    assert (
        " - fuse.labkit " in seen["line"]
        and f"user_id={UID}" in seen["line"]
        and "allow_other" not in seen["line"]
    )
    assert seen["owner"] == UID and seen["write"]
    assert (seen["unmount"], seen["exit"], seen["left"]) == (0, 0, []), seen


@pytest.mark.needs("userns")
def test_a_container_in_the_users_own_namespace_starts_from_the_lazy_mount(lab_home, home):
    copied(lab_home, home)
    done = as_ordinary_user(
        [
            *LABKIT,
            "run",
            "image=estargz-lazy,process=userns",
            "--preset",
            "tiny",
            "--blocks",
            "1",
            "--json",
        ],
        home=home,
        fuse=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    doc = json.loads(done.stdout.strip().splitlines()[-1])
    assert doc["failed"] == 0 and doc["trials"] == 1 and doc["host"]["rootness"] != "root"
    arm = doc["results"][0]
    assert (
        arm["cache"] == "cold"
        and {"mount", "start", "import", "first_token"} <= set(arm["phases"])
        and "pull" not in arm["phases"]
    )
    assert (
        "before the server started" in arm["evidence"]
        and "own namespaces (user, mnt, pid)" in arm["evidence"]
    )
    assert not list((home / "lab/nodes").iterdir())


def test_without_fuse_the_stack_is_refused_with_the_reason_and_the_fix(home):
    if os.stat("/dev/fuse").st_mode & 0o006 == 0o006:
        pytest.skip("/dev/fuse is open to every user here")
    done = as_ordinary_user(
        [*LABKIT, "run", "image=estargz-lazy,process=userns", "--preset", "tiny", "--blocks", "1"],
        home=home,
        timeout=120,
    )
    said = done.stderr + done.stdout
    assert done.returncode and "Traceback" not in said, said
    assert "estargz-lazy: fuse: /dev/fuse does not open" in said and "chmod 666 /dev/fuse" in said
