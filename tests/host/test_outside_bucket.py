"""Weights from a bucket that is not the lab's own: private, with the user's credentials, counting
nothing for us."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from labkit.core import records
from labkit.errors import LabError
from labkit.net.server import HTTPServer
from labkit.objects.client import open_bucket
from labkit.objects.publish import upload_model
from labkit.objects.store import Store
from labkit.weights.source import open_source

KEYS = {"somebody": "keeps-this-to-themselves"}


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    with HTTPServer(
        Store(tmp_path_factory.mktemp("private"), buckets=("team",), keys=KEYS, open_reads=False)
    ) as server:
        yield server


@pytest.fixture
def environment(private):
    ((access, secret),) = KEYS.items()
    return {
        "AWS_ENDPOINT_URL": private.url,
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "eu-central-1",
    }


def labkit(home, environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "labkit", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment, "LABKIT_HOME": str(home)},
    )


def test_a_private_bucket_refuses_who_has_no_keys_and_answers_who_has(environment, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    upload_model("s3://team/lab", tmp_path / "m", "models/x", environment)
    assert open_source("s3://team/lab/models/x", environment).read("config.json") == b"{}"
    assert (
        open_source(
            "s3://team/lab/models/x", {"AWS_ENDPOINT_URL": environment["AWS_ENDPOINT_URL"]}
        ).read("config.json")
        is None
    )
    wrong = {**environment, "AWS_SECRET_ACCESS_KEY": "a guess"}
    with open_bucket("s3://team/lab", wrong) as bucket, pytest.raises(LabError, match="403"):
        bucket.get("models/x/config.json")


def test_what_is_there_already_is_not_uploaded_again(environment, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights").write_bytes(b"w" * 1000)
    first, again = (
        upload_model("s3://team/again", tmp_path / "m", "models/y", environment) for _ in range(2)
    )
    assert (first["kept"], again["kept"]) == (0, 1)


def test_a_cold_start_takes_its_weights_from_there_and_the_record_holds_no_secret(
    lab_home, environment, tmp_path
):
    out = tmp_path / "run.json"
    done = labkit(
        lab_home,
        environment,
        "run",
        "--stack",
        "weights=labkit-streamer",
        "--stack",
        "weights=overlap",
        "--preset",
        "tiny",
        "--blocks",
        "1",
        "--store",
        "s3://team/lab",
        "--out",
        str(out),
        "--json",
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    run = records.read(out)
    assert run.experiment["store"] == "s3://team/lab"
    for trial in run.trials:
        weights = next(e for e in trial.evidence if e["layer"] == "weights")
        assert "s3://team/lab" in weights["how"] and weights["facts"]["received"] > 4e6
    assert next(iter(KEYS.values())) not in out.read_text()


def test_the_bench_measures_loaders_from_there(lab_home, environment):
    done = labkit(
        lab_home,
        environment,
        "bench",
        "load",
        "--preset",
        "tiny",
        "--store",
        "s3://team/bench",
        "--loaders",
        "labkit-streamer,sdk-download,runai-streamer",
        "--blocks",
        "1",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    doc = json.loads(done.stdout.splitlines()[-1])
    assert {r["arm"]: r["n"] for r in doc["results"]} == {
        "labkit-streamer.store": 1,
        "sdk-download.store": 1,
        "runai-streamer.store": 1,
    }
    assert all(
        "not emulated" in r["link"] and "interfaces received" in r["evidence"]
        for r in doc["results"]
    )


@pytest.mark.parametrize(
    "options, match",
    [
        (["no-image", "--link", "1gbit"], "emulated link"),
        (["no-image", "--scenario", "warm-node"], "nothing comes from"),
        (["image=object-pull"], "cannot take its bytes"),
    ],
)
def test_what_means_nothing_with_such_a_bucket_is_refused(lab_home, environment, options, match):
    done = labkit(
        lab_home,
        environment,
        "run",
        *options,
        "--preset",
        "tiny",
        "--blocks",
        "1",
        "--store",
        "s3://team/lab",
    )
    assert done.returncode != 0 and match in done.stderr, done.stderr[-1500:]
