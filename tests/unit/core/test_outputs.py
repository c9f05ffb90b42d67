"""Nothing that the lab did not make is replaced by what it makes, and no record by another
unasked."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from labkit.cli import main
from labkit.core import records
from labkit.errors import BadInput, LabError
from tests.support.record_mutations import ROOT, VALID

NAIVE = ROOT / "data" / "recorded" / "epyc-2" / "naive-small.json"


@pytest.fixture
def nothing_is_prepared(monkeypatch, workspace):
    """A workspace in which anything that begins to prepare fails the test."""
    import importlib

    # the package has a function of this name
    module = importlib.import_module("labkit.stack.experiment")

    def begun(*_, **__):
        raise AssertionError("preparation began before the output was looked at")

    monkeypatch.setenv("LABKIT_HOME", str(workspace.root))
    monkeypatch.setattr(module.ExperimentRunner, "ready", begun)
    return workspace


def same(path: Path, before: bytes) -> bool:
    return path.read_bytes() == before


@pytest.mark.parametrize(
    "command",
    [
        ["run", "naive"],
        ["ablate", "--only", "safetensors"],
        [
            "run",
            "--command",
            "sleep 1",
            "--url",
            "http://127.0.0.1:8000",
            "--weights",
            str(ROOT / "data"),
        ],
    ],
    ids=lambda c: " ".join(c[:2]),
)
def test_a_record_is_not_overwritten_unasked_and_the_fix_is_named(
    nothing_is_prepared, tmp_path, capsys, command
):
    path = tmp_path / "r.json"
    path.write_bytes(before := NAIVE.read_bytes())
    assert main([*command, "--out", str(path)]) == 2
    assert (
        "--resume" in (said := capsys.readouterr().err)
        and "--overwrite" in said
        and same(path, before)
    )


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: p.write_text("my thesis"),
        lambda p: p.write_text("{}"),
        lambda p: p.mkdir(),
        lambda p: os.mkfifo(p),
        lambda p: p.symlink_to("/dev/null"),
        lambda p: p.symlink_to(p.parent / "nowhere"),
        lambda p: p.write_text(NAIVE.read_text()[:500]),
    ],
    ids=["text", "json", "directory", "pipe", "device", "dangling", "torn"],
)
def test_what_is_no_record_is_not_replaced_even_when_asked(
    nothing_is_prepared, tmp_path, capsys, option, make
):
    path = tmp_path / "r.json"
    make(path)
    before = os.lstat(path)
    assert main(["run", "naive", "--out", str(path), option]) == 2
    said = capsys.readouterr().err
    assert ("move it away" in said or "that is a directory" in said) and os.lstat(path)[
        :3
    ] == before[:3]


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_an_option_about_a_record_needs_one(nothing_is_prepared, capsys, option):
    assert main(["run", "naive", option]) == 2 and "--out" in capsys.readouterr().err


def test_a_record_is_written_where_nothing_is_and_where_it_was_asked_to(tmp_path):
    path = tmp_path / "new" / "r.json"
    records.refuse_overwriting(path)
    path.parent.mkdir()
    path.write_bytes(NAIVE.read_bytes())
    records.refuse_overwriting(path, resume=True)
    records.refuse_overwriting(path, overwrite=True)
    with pytest.raises(BadInput, match="--resume and --overwrite"):
        records.refuse_overwriting(path, resume=True, overwrite=True)
    with pytest.raises(BadInput, match="cannot be written"):
        records.refuse_overwriting(path / "below-a-file.json")


def test_a_report_does_not_take_the_place_of_a_stranger(nothing_is_prepared, tmp_path, capsys):
    for name, inside in (
        ("index.html", "<html>my site"),
        ("study/ladder.json", "mine"),
        ("notebooks/index.html", "mine"),
    ):
        folder = tmp_path / name.replace("/", "-").partition(".")[0]
        target = folder / name
        target.parent.mkdir(parents=True)
        target.write_text(inside)
        assert main(["report", "--out", str(folder), "--notebook", "01_anatomy"]) == 2
        assert "it would be lost" in (said := capsys.readouterr().err) or "not a run record" in said
        assert target.read_text() == inside and sorted(
            p.name for p in folder.rglob("*") if p.is_file()
        ) == [target.name]


def test_the_lab_replaces_its_own_pages(tmp_path):
    from labkit.lessons import pages

    pages.write(tmp_path / "index.html", pages.page("one", "1"))
    pages.write(tmp_path / "index.html", pages.page("two", "2"))
    assert "<title>two" in (tmp_path / "index.html").read_text()
    (tmp_path / "index.html").write_text(
        pages.page("old", "").replace('<meta name="generator" content="labkit">', "")
    )
    pages.write(tmp_path / "index.html", pages.page("three", "3"))


def test_a_gallery_does_not_take_the_place_of_a_site(tmp_path, capsys):
    (tmp_path / "index.html").write_text("<!doctype html><title>mine")
    assert main(["site", "--out", str(tmp_path), "--executed", str(tmp_path / "none")]) == 2
    assert (
        "not a page of the lab" in capsys.readouterr().err
        and (tmp_path / "index.html").read_text() == "<!doctype html><title>mine"
    )


def test_an_executed_notebook_never_takes_the_place_of_the_notebook(tmp_path, capsys):
    source = tmp_path / "01_anatomy.ipynb"
    source.write_bytes(before := (ROOT / "notebooks" / "01_anatomy.ipynb").read_bytes())
    assert main(["notebooks", "run", str(source), "--out", str(tmp_path)]) == 2
    assert "not an executed notebook" in capsys.readouterr().err and same(source, before)


@pytest.mark.parametrize("option", ["--save-baseline", "--save-seconds"])
@pytest.mark.parametrize(
    "inside", ["my notes", "{}", "[]", '{"seconds": 3, "host": "x", "baseline": 1}']
)
def test_baselines_and_seconds_take_the_place_of_their_kind_alone(tmp_path, capsys, option, inside):
    (tmp_path / "mine").write_text(inside)
    assert (
        main(
            [
                "notebooks",
                "run",
                "01_anatomy",
                "--out",
                str(tmp_path / "out"),
                option,
                str(tmp_path / "mine"),
            ]
        )
        == 2
    )
    assert (
        "fix:" in capsys.readouterr().err
        and (tmp_path / "mine").read_text() == inside
        and not (tmp_path / "out").exists()
    )


def test_a_pack_takes_the_place_of_a_pack_alone(tmp_path, capsys):
    other = tmp_path / "backup.tar"
    with tarfile.open(other, "w") as archive:
        archive.add(NAIVE, "home/me/record.json")
    before = other.read_bytes()
    assert (
        main(
            [
                "workshop",
                "pack",
                "--out",
                str(other),
                "--preset",
                "tiny",
                "--no-image",
                "--no-wheels",
            ]
        )
        == 2
    )
    assert "not a pack of the lab" in capsys.readouterr().err and same(other, before)


@pytest.mark.parametrize("name", ["x.png", "x.svg"])
def test_a_figure_takes_the_place_of_a_figure_of_the_lab_alone(tmp_path, capsys, name):
    target = tmp_path / name
    assert main(["show", str(VALID[0]), "--figure", str(target)]) == 0
    assert main(["show", str(VALID[0]), "--figure", str(target), "--theme", "dark"]) == 0
    capsys.readouterr()
    target.write_bytes(b"\x89PNG a photograph" if name.endswith("png") else b"<svg>a drawing</svg>")
    before = target.read_bytes()
    assert main(["show", str(VALID[0]), "--figure", str(target)]) == 2
    assert "not a figure of the lab" in capsys.readouterr().err and same(target, before)


def test_a_snapshot_never_removes_a_folder_that_is_none(tmp_path):
    from labkit.snapshot import store

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    with pytest.raises(LabError, match="not a snapshot"), store.writing(tmp_path / "thesis"):
        raise AssertionError("nothing is begun")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "x"
    store.refuse_stranger(tmp_path / "new")


def test_a_layout_is_not_spread_over_another_folder(tmp_path):
    from labkit.image.oci_layout import Layout

    (tmp_path / "index.json").write_text(json.dumps({"mine": 1}))
    with pytest.raises(BadInput, match="holds something else"):
        Layout.create(tmp_path)
    with pytest.raises(BadInput, match="not a directory"):
        Layout.create(tmp_path / "index.json")
    Layout.create(Layout.create(tmp_path / "new").path)


def test_an_access_record_takes_the_place_of_one_alone(tmp_path):
    from labkit.image import access_record

    access_record.write(tmp_path / "a", [access_record.Access("usr/bin/x", 0, "", 0.1, ())])
    access_record.refuse_stranger(tmp_path / "a")
    (tmp_path / "b").write_text("#!/bin/sh\n")
    with pytest.raises(BadInput, match="not an access record"):
        access_record.refuse_stranger(tmp_path / "b")
