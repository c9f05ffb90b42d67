"""A list handed down names the records of whoever was given it, once each."""

from __future__ import annotations

import pytest

from labkit.core import record_list, records
from labkit.core.records import Run


def _write(path, noted, monkeypatch):
    monkeypatch.setenv(record_list.ENV, str(noted.path))
    return records.write(Run("id", "2026-01-01T00:00:00+00:00"), path)


def test_of_two_lists_each_holds_its_own_records_once(tmp_path, monkeypatch):
    with (
        record_list.handed_down(tmp_path / "a") as a,
        record_list.handed_down(tmp_path / "b") as b,
    ):
        written = {}
        for name, noted in (("1", a), ("2", b), ("3 \nä", a), ("1", a)):  # "1": resumed
            written[name] = _write(tmp_path / f"{name}.json", noted, monkeypatch)
        assert a.paths() == (written["1"], written["3 \nä"]) and b.paths() == (written["2"],)


def test_a_record_that_was_removed_again_is_not_listed(tmp_path, monkeypatch):
    with record_list.handed_down(tmp_path / "a") as noted:
        _write(tmp_path / "1.json", noted, monkeypatch).unlink()
        assert noted.paths() == ()


def test_a_record_is_written_where_whoever_handed_the_list_down_is_gone(tmp_path, monkeypatch):
    with record_list.handed_down(tmp_path / "a") as noted:
        pass
    assert _write(tmp_path / "1.json", noted, monkeypatch).exists()
    assert not noted.path.exists()


def test_a_list_is_never_another_ones_file(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(FileExistsError), record_list.handed_down(tmp_path / "a"):
        pass
