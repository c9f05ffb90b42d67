"""The CUDA + CRIU trial over the simulated driver and the real CRIU: one image, restored cold and
warm, and every failure with its reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.core import interpreter

pytestmark = pytest.mark.needs("root", "criu")


@pytest.fixture
def trial(lab_home, tmp_path):
    def run(*options: str, module: str = "labkit.snapshot.cuda", **environment: str):
        env = {
            **os.environ,
            **interpreter.environment(),
            "LABKIT_HOME": str(lab_home),
            "LABKIT_FAKE_CUDA": str(tmp_path / "gpu.json"),
            **environment,
        }
        done = subprocess.run(
            [*interpreter.module(module), "--preset", "tiny", *options],
            env=env,
            capture_output=True,
            text=True,
            timeout=200,
        )
        documents = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert documents, done.stderr
        return done.returncode, documents, done.stderr

    yield run
    assert not [
        p
        for name in ("gpu-criu-*", "import-warm-*")
        for p in Path(lab_home, "artifacts").glob(name)
    ]


def test_one_image_is_restored_cold_and_then_warm_and_each_answers_with_the_same_tokens(trial):
    status, documents, errors = trial("--cold", "1", "--warm", "1")
    found = documents[-1]
    assert status == 0, errors
    assert (
        found["driver"].startswith("simulated")
        and [d["outcome"] for d in found["dumps"]] == ["ok"]
        and found["dumps"][0]["image_bytes"] > 1_000_000
    )
    assert [(r["want"], r["outcome"], r["equal_tokens"]) for r in found["restores"]] == [
        ("cold", "ok", True),
        ("warm", "ok", True),
    ]
    assert all(
        {"criu_restore_s", "cuda", "gone_to_first_token_s", "cache"} <= set(r)
        for r in found["restores"]
    )
    assert (
        found["restores"][0]["cache"]["image"]["method"]
        and found["restores"][1]["cache"]["image"]["state"] == "warm"
    )
    # each line is more of the same
    assert len(documents) >= 4 and len(documents[0]["restores"]) == 0
    assert found["start_s"] > 0 and "held_parked" in found["dumps"][0]


def test_descriptors_are_closed_for_the_dump_and_open_again_after_the_restore(trial):
    status, documents, errors = trial(
        "--close-descriptors", "--descriptors", os.devnull, "--warm", "0"
    )
    found = documents[-1]
    assert status == 0, errors
    assert (
        found["dumps"][0]["closed"][0]["path"] == os.devnull
        and found["dumps"][0]["closed"][0]["number"] == 0
    )
    assert (
        found["restores"][0]["descriptors"] == "opened again"
        and found["restores"][0]["outcome"] == "ok"
    )


def test_a_dump_that_criu_refuses_leaves_a_server_that_answers_and_the_reason(trial, tmp_path):
    criu = tmp_path / "bin" / "criu"
    criu.parent.mkdir()
    criu.write_text(
        f"#!{sys.executable}\nimport sys\nif '--version' in sys.argv: print('Version: 4.2');"
        " sys.exit(0)\nwork = sys.argv[sys.argv.index('-W') + 1]\nopen(work + '/dump.log',"
        " 'w').write(\"(00.1) Error (criu/files-ext.c:96): Can't dump file 9 of that type [20600]"
        ' (chr 195:255)\\n")\nsys.exit(1)\n'
    )
    criu.chmod(0o755)
    status, documents, errors = trial(PATH=f"{criu.parent}:{os.environ['PATH']}")
    found = documents[-1]
    assert status == 1 and found["served_after_refusal"] is True and found["restores"] == []
    assert (
        [d["outcome"] for d in found["dumps"]] == ["refused"]
        and "chr 195:255" in found["dumps"][0]["criu"][0]
        and "chr 195:255" in errors
    )


def test_a_process_that_has_only_imported_is_restored_again_and_again_and_then_loads_and_serves(
    trial,
):
    status, documents, errors = trial(
        "--cold", "1", "--warm", "1", module="labkit.snapshot.import_warm"
    )
    found = documents[-1]
    assert status == 0, errors
    assert [(r["want"], r["outcome"]) for r in found["restores"]] == [
        ("cold", "ok"),
        ("warm", "ok"),
    ] and found["dump"]["held"] == {"descriptors": {}, "mappings": []}
    assert {"context", "build", "load", "warmup"} <= set(found["restores"][1]["phases_s"]) and set(
        found["restores"][0]["cache"]
    ) == {"image", "mapped_files", "model"}
