"""A workshop pack on a machine without a network: unpacked, set up and started from zero by what is
in the archive alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from labkit.core.ledger import remove_tree
from labkit.core.workspace import Workspace
from labkit.image.build import REFERENCE
from labkit.image.oci_layout import Layout
from labkit.lessons import pack
from tests.support.environment import OFFLINE, sibling

pytestmark = pytest.mark.needs("root")

#: Loopback is there, nothing else: a connection outwards fails at once.
WITHOUT_NETWORK = ["unshare", "--net", "bash", "-c", 'ip link set lo up; exec "$@"', "offline"]
OUTWARDS = "import socket; socket.create_connection(('192.0.2.1', 443), 3)"


@pytest.fixture
def place():
    path = Path(tempfile.mkdtemp(prefix="labkit-offline-"))
    yield path
    remove_tree(path)


def test_a_machine_without_a_network_starts_from_the_packed_archive(place, lab_home):
    made = pack.pack(
        place / "w.tar",
        presets=["tiny"],
        wheels=False,
        workspace=Workspace.at(lab_home),
        say=lambda _: None,
    )
    assert made.parts_bytes["images"] > 100e6 and made.parts_bytes["models"] > 1e6
    with tarfile.open(place / "w.tar") as archive:
        archive.extractall(place, filter="data")
    (place / "w.tar").unlink()
    room = place / pack.TOP
    # The packages are this interpreter's (a pack with wheels is 430 MB and needs an index to be
    # made); the set-up is the script's own.
    sibling(room / "lab" / ".venv")
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "LABKIT_HOME": str(place / "home"),
        "PYTHON": sys.executable,
        "LANG": "C.UTF-8",
        **OFFLINE,
    }

    def offline(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*WITHOUT_NETWORK, *argv],
            cwd=room,
            env=env,
            capture_output=True,
            text=True,
            timeout=280,
        )

    assert "unreachable" in offline(sys.executable, "-c", OUTWARDS).stderr
    done = offline("bash", "./unpack.sh")
    assert (
        done.returncode == 0
        and "files are as they were packed" in done.stdout
        and "Ready" in done.stdout
    ), done.stdout[-2000:] + done.stderr[-2000:]

    labkit = str(room / "lab" / ".venv" / "bin" / "labkit")
    done = offline(
        labkit,
        "run",
        "naive",
        "--preset",
        "tiny",
        "--blocks",
        "1",
        "--out",
        str(place / "run.json"),
        "--json",
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["failed"] == 0
    trial = json.loads((place / "run.json").read_text())["trials"][0]
    assert trial["outcome"] == "ok" and trial["cache"]["state"] == "cold"
    digests = [
        Layout(home / "images" / "subject").manifest(REFERENCE).digest
        for home in (lab_home, place / "home")
    ]
    assert digests[0] == digests[1], "the packed image was built anew"
