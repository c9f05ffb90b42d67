"""Nothing found is an error: what had nothing to run, check, compare, pack or publish never reads
as success."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labkit import cli
from labkit.cli import notebooks
from labkit.cli.bench import outcome
from labkit.core.records import Run, Trial
from labkit.errors import BadInput, IncomparableRecords, MissingCapability
from labkit.image import oci
from labkit.image.oci_layout import Layout
from labkit.lessons import baseline, batch, execute, gallery, pack, report

ROOT = Path(__file__).resolve().parents[3]
NOTEBOOK = ROOT / "notebooks/01_anatomy.ipynb"


@pytest.fixture
def no_notebooks(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "notebooks run",
        "notebooks check",
        "notebooks check --fix",
        "notebooks run 01_anatomy",
        "report",
        "report --notebook 01",
        "site",
        "site --execute",
    ],
)
def test_a_folder_without_notebooks_is_no_success(line, no_notebooks, capsys):
    assert cli.main(line.split()) == 2
    assert "no notebook" in capsys.readouterr().err


def test_a_check_says_how_many_it_looked_at(capsys):
    assert cli.main(["notebooks", "check", "01_anatomy", "01", str(NOTEBOOK)]) == 0
    assert capsys.readouterr().out.strip().endswith("in canonical form")
    assert len(notebooks.find(["01_anatomy", "01"])) == 1, "one that is named twice is run once"


def test_no_notebook_given_to_the_engine_is_refused(tmp_path):
    for call in (
        lambda: batch.run_all([], tmp_path),
        lambda: report.report(tmp_path, [], say=lambda _: None),
        lambda: gallery.build(tmp_path / "site", tmp_path),
    ):
        with pytest.raises(BadInput, match="notebook"):
            call()
    assert batch.Batch((), tmp_path / "index.html").code == 1
    assert not (tmp_path / "site").exists()


def test_a_preset_no_notebook_has_is_refused_and_one_that_some_lack_is_said(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="no notebook has a preset 'c1'"):
        batch.run_all([NOTEBOOK], tmp_path, preset="c1")
    bare = tmp_path / "bare.ipynb"
    doc = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    doc["metadata"]["labkit"]["presets"] = {}
    bare.write_text(json.dumps(doc), encoding="utf-8")
    ran: list[str] = []
    monkeypatch.setattr(
        execute,
        "run_one",
        lambda path, *_: ran.append(path.stem) or execute.Result(path.stem, "ok", 1.0),
    )
    said: list[str] = []
    assert batch.run_all([NOTEBOOK, bare], tmp_path / "out", preset="ci", say=said.append).code == 0
    assert ran == ["01_anatomy", "bare"] and any("own defaults: bare" in line for line in said)


@pytest.mark.parametrize(
    "cells",
    [
        [],
        [{"cell_type": "markdown", "source": "words"}],
        [{"cell_type": "code", "source": "  ", "execution_count": None, "outputs": []}],
    ],
)
def test_an_executed_notebook_without_code_did_not_come_through(cells, tmp_path):
    path = tmp_path / "empty.ipynb"
    path.write_text(
        json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells})
    )
    assert "nothing was executed" in execute._unfinished(path)


def run_of(*arms: tuple[str, str], n: int = 5) -> Run:
    trials = tuple(
        Trial(
            name,
            block,
            0,
            outcome=how,
            total_s=1.0 + block / 100,
            unaccounted_s=0.01,
            phases={"load": 1.0 + block / 100},
            cache={"state": "cold"},
        )
        for name, how in arms
        for block in range(n)
    )
    described = [
        {"name": name, "stack": {}, "scenario": "warm-node", "link": "loopback"} for name, _ in arms
    ]
    return Run(
        "x",
        "2024-01-01",
        {"id": "one"},
        {"arms": described, "preset": "small", "blocks": n},
        {},
        trials,
    )


@pytest.mark.parametrize("runs", [[], [run_of()], [run_of(("naive", "failed"))]])
def test_a_baseline_of_nothing_is_not_written(runs, tmp_path):
    with pytest.raises(IncomparableRecords, match="no stack was measured"):
        baseline.write(runs, tmp_path / "baseline.json")
    assert not list(tmp_path.iterdir())


def test_a_stack_of_the_baseline_that_was_not_measured_again_is_said():
    judged = baseline.judge(
        [run_of(("naive", "ok"), ("other", "ok"))], [run_of(("naive", "ok"), ("other", "failed"))]
    )
    assert (
        len(judged.left_out) == 1
        and judged.left_out[0].startswith("other")
        and judged.as_json()["left_out"]
    )


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([{"arm": "a", "missing": "no such package"}, {"arm": "b", "missing": "no GPU"}], 3),
        ([], 3),
        ([{"arm": "a", "n": 0, "failed": 3, "missing": "every trial failed: x"}], 1),
        ([{"arm": "a", "n": 2, "failed": 1, "median_s": 1.0}], 1),
        (
            [{"arm": "a", "n": 3, "failed": 0, "median_s": 1.0}, {"arm": "b", "missing": "no GPU"}],
            0,
        ),
    ],
)
def test_a_bench_that_measured_nothing_is_no_success_and_what_it_left_out_is_said(
    rows, code, capsys
):
    assert outcome({"results": rows}) == code
    said = capsys.readouterr().err
    assert all(r["missing"] in said for r in rows if "missing" in r)


def test_a_bench_goes_on_where_the_system_refuses_an_arm():
    from labkit.bench.engine import Measured, document, interleave

    def full():
        raise OSError(28, "No space left on device", "/data/x")

    results = interleave(
        {"full": full, "sound": lambda: Measured(1.0)}, blocks=2, progress=lambda _: None
    )
    rows = {r["arm"]: r for r in document("x", results, {}, host={})["results"]}
    assert (
        rows["full"]["failed"] == 2
        and "/data/x: No space left" in rows["full"]["missing"]
        and rows["sound"]["n"] == 2
    )


def test_an_ablation_with_no_technique_beside_the_naive_stack_is_no_success(
    monkeypatch, capsys, tmp_path
):
    from labkit.cli import ablate
    from labkit.stack import search
    from labkit.stack.ablate import candidates

    with pytest.raises(BadInput, match="no technique called 'safetensor'"):
        candidates({}, only=("safetensor",))
    monkeypatch.setattr(
        "labkit.stack.ablate.candidates", lambda *a, **k: ([], {"estargz-lazy": "no FUSE"})
    )
    monkeypatch.setattr(search, "candidates", lambda *a, **k: ([], {"estargz-lazy": "no FUSE"}))
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    assert cli.main(["ablate", "--only", "estargz-lazy"]) == 3
    assert "no FUSE" in capsys.readouterr().err
    with pytest.raises(MissingCapability, match="nothing but the naive"):
        search.search(search.SearchOptions())
    assert (
        ablate._report(run_of(("naive", "ok"), ("safetensors", "unavailable")), only_json=True) == 1
    )
    assert ablate._report(run_of(("naive", "ok"), ("safetensors", "ok")), only_json=True) == 0


@pytest.mark.parametrize(("stacks", "blocks"), [([], 5), (["naive"], 0), (["naive"], -1)])
def test_an_experiment_without_a_trial_is_refused(stacks, blocks, workspace):
    from labkit.stack import experiment

    with pytest.raises(BadInput, match="stacks in"):
        experiment(stacks, blocks=blocks, workspace=workspace)


def test_a_run_without_a_trial_is_no_success(monkeypatch, capsys):
    from labkit.cli import run

    monkeypatch.setattr(run, "_stacks", lambda args: run_of(("naive", "ok"), n=0))
    assert cli.main(["run", "naive", "--json"]) == 1


def test_a_checkpoint_without_a_tensor_is_not_verified(tmp_path):
    from labkit.subject import verify
    from labkit.subject.directory import Directory

    (tmp_path / verify.DIGESTS).write_text('{"tensors": {}}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            verify, "open_directory", lambda _: Directory(tmp_path, None, "safetensors", (), {})
        )
        with pytest.raises(BadInput, match="no tensor"):
            verify.verify(tmp_path)


def test_a_workshop_archive_that_names_no_file_is_not_as_packed(tmp_path):
    (tmp_path / "MANIFEST.json").write_text('{"files": {}}')
    with pytest.raises(BadInput, match="names no file"):
        pack.verify(tmp_path)


def test_a_part_that_was_asked_for_and_is_empty_is_not_packed(tmp_path, monkeypatch, workspace):
    monkeypatch.setattr(pack, "_model", lambda space, preset: [])
    with pytest.raises(BadInput, match="nothing to pack as models"):
        pack.pack(
            tmp_path / "w.tar",
            presets=["tiny"],
            image=False,
            wheels=False,
            workspace=workspace,
            say=lambda _: None,
        )
    assert not (tmp_path / "w.tar").exists()


def test_a_snapshot_listing_of_none_is_an_answer_but_none_is_verified(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    assert cli.main(["snapshot", "list"]) == 0
    assert "no snapshots here" in capsys.readouterr().out
    assert cli.main(["snapshot", "list", "--verify"]) == 2
    broken = tmp_path / "artifacts/broken"
    (broken / "images").mkdir(parents=True)
    (broken / "manifest.json").write_text("{}")
    assert cli.main(["snapshot", "list", "--verify"]) == 1


@pytest.fixture
def without_layers(tmp_path):
    layout = Layout.create(tmp_path / "scratch")
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
    ).encode()
    layout.add(oci.Manifest(layout.write_blob(config, oci.CONFIG), ()), "lab/scratch:latest")
    return layout


def test_an_image_of_no_layer_is_not_converted_recompressed_or_measured(without_layers, tmp_path):
    from labkit.bench.pull_setup import floors
    from labkit.image import push
    from labkit.image.estargz.convert import convert
    from labkit.net.link import parse

    target = Layout.create(tmp_path / "target")
    for call in (
        lambda: convert(without_layers, "lab/scratch:latest", target),
        lambda: push.recompress(without_layers, "lab/scratch:latest", target, "none"),
        lambda: floors(without_layers, "lab/scratch:latest", parse("loopback"), 1, tmp_path),
    ):
        with pytest.raises(BadInput, match="has no layer"):
            call()


def test_a_layout_of_no_image_has_no_first_one(tmp_path, capsys):
    layout = Layout.create(tmp_path / "none")
    (layout.path / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    with pytest.raises(BadInput, match="holds no image"):
        layout.first_name()
    for line in (
        "image recompress {0} --codec none --out {0}-2",
        "image convert {0} {0}-2",
        "image inspect {0}",
        "image unpack {0} {0}-2",
        "image push {0} --to s3://lab/x",
    ):
        assert cli.main(line.format(layout.path).split()) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_an_empty_folder_is_not_published(tmp_path):
    from labkit.objects.publish import publish_model, upload_model

    (tmp_path / "model").mkdir()
    for call in (
        lambda: publish_model(tmp_path / "store", tmp_path / "model", "models/x"),
        lambda: upload_model("s3://lab", tmp_path / "model", "models/x", {}),
    ):
        with pytest.raises(BadInput, match="no file"):
            call()


def test_weights_of_no_file_are_not_called_cold(tmp_path):
    from labkit.byo.own_server import OwnServer

    with pytest.raises(BadInput, match="no file with anything in it"):
        OwnServer.of("true", "http://127.0.0.1:8000", str(tmp_path))
