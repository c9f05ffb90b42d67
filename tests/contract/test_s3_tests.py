"""Ceph's suite for servers of S3, run against the store: those of its tests that the store is meant
to pass, and why not the others (`s3_tests.json`; both are node ids of the suite).

The suite is not part of this repository: `git clone https://github.com/ceph/s3-tests`, check out
the commit that the list names, and say where: `LABKIT_S3_TESTS=DIR`. What these tests found is held
by `tests/unit/objects`, which need no checkout."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from labkit.net.server import HTTPServer
from labkit.objects.documents import OWNER_ID, OWNER_NAME
from labkit.objects.store import KEYS, Store

LIST = json.loads(Path(__file__).with_name("s3_tests.json").read_text())
MEANT: list[str] = LIST["meant"]
NOT_MEANT: dict[str, list[str]] = LIST["not_meant"]
#: Of the suite's sections: who of them are users of this store, and with which secret.
OTHERS = {
    name: f"{name.replace(' ', '-')}-secret"
    for name in ("s3 alt", "s3 tenant", "iam", "iam root", "iam alt root")
}
NEEDED = ("boto3", "dateutil", "isodate", "munch", "pytz", "requests")


def test_every_test_of_the_suite_is_meant_or_is_not_for_a_reason():
    left_out = [node for nodes in NOT_MEANT.values() for node in nodes]
    every = MEANT + left_out
    assert len(every) == len(set(every)) and sorted(MEANT) == MEANT
    assert all(len(reason.split()) > 2 and nodes for reason, nodes in NOT_MEANT.items())
    assert all(node.startswith("s3tests/functional/test_") and "::" in node for node in every)


def test_as_many_tests_are_meant_as_was_promised():
    assert len(MEANT) >= 185


@pytest.fixture(scope="module")
def checkout() -> Path:
    named = os.environ.get("LABKIT_S3_TESTS")
    if not named:
        pytest.skip(
            f"no checkout of the suite (git clone {LIST['suite']}; git checkout {LIST['commit']};"
            " LABKIT_S3_TESTS=DIR)"
        )
    if missing := [name for name in NEEDED if not importlib.util.find_spec(name)]:
        pytest.skip(f"the suite needs {', '.join(missing)} (pip install {' '.join(missing)})")
    return Path(named).resolve(strict=True)


def config(port: int) -> str:
    ((access, secret),) = KEYS.items()
    users = {"s3 main": (access, secret)}
    users |= {name: (name.replace(" ", "-"), secret) for name, secret in OTHERS.items()}
    sections = "".join(
        f"[{name}]\ndisplay_name = {OWNER_NAME}\nuser_id = {OWNER_ID}\nemail = x@example.com\n"
        f"api_name =\ntenant = tenant\naccess_key = {access}\nsecret_key = {secret}\n"
        for name, (access, secret) in users.items()
    )
    return (
        f"[DEFAULT]\nhost = 127.0.0.1\nport = {port}\nis_secure = False\nssl_verify = False\n"
        f"[fixtures]\nbucket prefix = lab-{{random}}-\n{sections}"
    )


def test_the_store_passes_what_it_is_meant_to_of_cephs_suite(checkout, tmp_path):
    keys = {**KEYS, **{name.replace(" ", "-"): secret for name, secret in OTHERS.items()}}
    store = Store(tmp_path / "store", buckets=(), keys=keys, open_reads=False)
    report = tmp_path / "report.xml"
    with HTTPServer(store) as server:
        (tmp_path / "s3.conf").write_text(config(server.port))
        command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, f"--junitxml={report}", *MEANT],
            cwd=checkout,
            env={**os.environ, "S3TEST_CONF": str(tmp_path / "s3.conf"), "AWS_MAX_ATTEMPTS": "2"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("skipped")) == (str(len(MEANT)), "0")
