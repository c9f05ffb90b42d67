"""The workshop pack and the syllabi: complete, verifiable, and within the hours they promise."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from labkit.errors import BadInput
from labkit.lessons import pack, syllabus

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    from labkit.core.workspace import Workspace

    folder = tmp_path_factory.mktemp("pack")
    made = pack.pack(
        folder / "w.tar",
        presets=["tiny"],
        image=False,
        wheels=False,
        records=[ROOT / "data" / "fixtures" / "fixture_naive.json"],
        workspace=Workspace.at(folder / "home"),
        say=lambda _: None,
    )
    assert made.size_bytes == (folder / "w.tar").stat().st_size
    with tarfile.open(folder / "w.tar") as archive:
        archive.extractall(folder / "out", filter="data")
    return folder / "out" / pack.TOP


def test_an_unpacked_archive_verifies_and_holds_the_lab(unpacked):
    assert pack.verify(unpacked) > 100
    for name in (
        "unpack.sh",
        "lab/pyproject.toml",
        "lab/labkit/__init__.py",
        "lab/notebooks/01_anatomy.ipynb",
        "records/fixture_naive.json",
    ):
        assert (unpacked / name).exists(), name
    assert list((unpacked / "models").glob("tiny*/*.safetensors"))
    assert not list(unpacked.rglob("__pycache__")) and not list(unpacked.rglob(".git"))


def test_the_set_up_script_parses_and_is_executable(unpacked):
    script = unpacked / "unpack.sh"
    assert script.stat().st_mode & 0o100
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def test_the_set_up_script_refuses_another_python_in_words(unpacked, tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    done = subprocess.run(
        ["bash", str(unpacked / "unpack.sh")],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(fake)},
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and f"packed for Python {sys.version_info[0]}.{sys.version_info[1]}" in done.stdout
    )


def test_a_changed_or_missing_file_is_named(unpacked):
    manifest = json.loads((unpacked / "MANIFEST.json").read_text())
    target = unpacked / "lab" / "README.md"
    text = target.read_bytes()
    try:
        target.write_bytes(text + b"x")
        with pytest.raises(BadInput, match="README.md: changed"):
            pack.verify(unpacked)
        target.unlink()
        with pytest.raises(BadInput, match="README.md: missing"):
            pack.verify(unpacked)
    finally:
        target.write_bytes(text)
    assert "lab/README.md" in manifest["files"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"files": {"a": {}}}',
        '{"files": {"../x": {"sha256": "0", "size_bytes": 0}}}',
        '{"files": {"/etc/passwd": {"sha256": "0", "size_bytes": 1}}}',
    ],
)
def test_a_hostile_or_torn_manifest_is_refused(tmp_path, text):
    (tmp_path / "MANIFEST.json").write_text(text)
    with pytest.raises(BadInput):
        pack.verify(tmp_path)


def test_a_record_that_is_none_is_refused_before_anything_is_written(tmp_path):
    from labkit.core.workspace import Workspace

    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(BadInput):
        pack.pack(
            tmp_path / "w.tar",
            presets=[],
            image=False,
            wheels=False,
            records=[tmp_path / "bad.json"],
            workspace=Workspace.at(tmp_path / "home"),
        )
    assert not (tmp_path / "w.tar").exists()


def test_a_packed_image_is_used_as_it_is(tmp_path, monkeypatch):
    from labkit.core.workspace import Workspace
    from labkit.image import build
    from labkit.image.oci_layout import Layout

    home, there = Workspace.at(tmp_path / "home"), Workspace.at(tmp_path / "there")
    layout = Layout.create(home.images / "subject").path
    (layout / "built").mkdir()
    (layout / "built" / "app-1.json").write_text("{}")
    monkeypatch.setattr(
        build,
        "ensure_image",
        lambda space, keep=build.ensure_image, **k: (
            (layout, build.REFERENCE) if space is home else keep(space, **k)
        ),
    )
    pack.pack(
        tmp_path / "w.tar", presets=[], image=True, wheels=False, workspace=home, say=lambda _: None
    )
    with tarfile.open(tmp_path / "w.tar") as archive:
        archive.extractall(tmp_path / "out", filter="data")
    packed = tmp_path / "out" / pack.TOP / "images"
    assert (packed / "subject" / build.AS_PACKED).exists() and not (
        packed / "subject" / "built"
    ).exists()
    packed.rename(there.root / "images-packed")
    there.images.rmdir()
    (there.root / "images-packed").rename(there.root / "images")
    assert build.ensure_image(there) == (there.images / "subject", build.REFERENCE)
    assert not (there.images / "subject" / "built").exists()


@pytest.mark.parametrize("name", syllabus.SYLLABI)
def test_a_syllabus_fits_its_hours_with_slack(name):
    parts, most = syllabus.SYLLABI[name]
    assert syllabus.total_minutes(parts, 0.1) <= most
    assert {p.rank for p in parts if isinstance(p, syllabus.SyllabusPart)} <= set(syllabus.RANKS)
    assert any(getattr(p, "rank", "") == "must" for p in parts)


def test_minutes_come_from_the_notebook_itself():
    assert syllabus.minutes_of("01_anatomy") == 40
    with pytest.raises(BadInput, match="no notebook"):
        syllabus.minutes_of("99_nothing")


def test_a_schedule_reads_as_a_table():
    text = syllabus.schedule(
        (syllabus.SyllabusPart("00_start_here", "must"), syllabus.Pause(10)),
        start="13:30",
        slack=0.0,
    ).text
    assert "13:30" in text and "14:00" in text and "break" in text


def _result(name: str, seconds: float, outcome: str = "ok"):
    from labkit.lessons.execute import Result

    return Result(name, outcome, seconds)


def test_measured_seconds_of_one_host_add_up_and_the_defaults_count_before_a_preset(
    tmp_path, monkeypatch
):
    (tmp_path / "syllabi").mkdir()
    path = tmp_path / "syllabi" / "measured.json"
    monkeypatch.setattr(syllabus, "folder", lambda: tmp_path)
    syllabus.save_measured(
        path,
        [
            _result("00_start_here", 20.04),
            _result("01_anatomy", 30.0),
            _result("02_image_pull", 9, "failed"),
        ],
        "ci",
    )
    syllabus.save_measured(path, [_result("01_anatomy", 200.0)], "")
    assert [syllabus.machine_s(n) for n in ("00_start_here", "01_anatomy", "02_image_pull")] == [
        (20.0, "ci"),
        (200.0, "defaults"),
        (None, ""),
    ]
    monkeypatch.setattr("labkit.core.host.card", lambda: {"title": "another machine"})
    syllabus.save_measured(path, [_result("00_start_here", 5.0)], "ci")
    assert syllabus.machine_s("01_anatomy") == (None, "") and syllabus.machine_s(
        "00_start_here"
    ) == (5.0, "ci")


def test_a_whole_notebook_never_gets_fewer_minutes_than_its_machine_took(monkeypatch):
    monkeypatch.setattr(syllabus, "machine_s", lambda name: (3600.0, syllabus.DEFAULTS))
    whole, part = (
        syllabus.SyllabusPart("00_start_here", "must"),
        syllabus.SyllabusPart("00_start_here", "must", "section 1", 10),
    )
    assert [m for _, m in syllabus.planned((whole, part), 0.1)] == [66, 11]
