"""What stands in for a measurement is sound, says where it is from, and by what it differs from
what was asked for."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.core import records
from labkit.errors import BadInput, MissingCapability
from labkit.lessons import facts
from labkit.stack import replay
from tests.support.record_mutations import EVIL, ROOT

NAIVE = ROOT / "data" / "recorded" / "epyc-2" / "naive-small.json"


def missing():
    raise MissingCapability("no FUSE here", fix="install it")


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    (tmp_path / "host" / "facts").mkdir(parents=True)
    monkeypatch.setenv(replay.ENV, str(tmp_path))
    return tmp_path / "host"


def test_a_stand_in_of_another_link_says_so(recorded):
    run = records.read(NAIVE)
    records.write(run, recorded / "naive.json")
    asked = {**run.experiment, "arms": [{**run.experiment["arms"][0], "link": "1gbit"}]}
    gone = replace(
        run,
        experiment=asked,
        trials=(
            replace(run.trials[0], outcome="unavailable", total_s=None, error={"what": "no FUSE"}),
        ),
    )
    said: list[str] = []
    replay.live_or_recorded(lambda: gone, "naive", said.append)
    assert "link: 1gbit against loopback" in said[0]
    said.clear()
    replay.live_or_recorded(lambda: replace(gone, experiment=run.experiment), "naive", said.append)
    assert "against" not in said[0]


def test_a_replayed_record_shows_nothing_that_a_terminal_obeys(recorded):
    run = records.read(NAIVE)
    records.write(replace(run, host={**run.host, "title": EVIL}), recorded / "naive.json")
    assert (
        "\x1b" not in replay.replay("naive").experiment["replayed_from"]
        and "\\x1b[2J" in replay.replay("naive").host["title"]
    )


@given(
    st.one_of(
        st.binary(max_size=40),
        st.recursive(
            st.none() | st.integers() | st.floats() | st.text(max_size=5),
            lambda x: (
                st.lists(x, max_size=3)
                | st.dictionaries(st.sampled_from(["host", "key", "x"]), x, max_size=3)
            ),
        ).map(lambda doc: json.dumps(doc).encode()),
    )
)
def test_facts_of_any_bytes_are_facts_or_a_bad_input(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("facts")
    (folder / "h" / "facts").mkdir(parents=True)
    (folder / "h" / "facts" / "n.json").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(replay.ENV, str(folder))
        try:
            found, stamp = facts.live_or_recorded(missing, "n", "key")
        except BadInput as error:
            assert error.fix
        else:
            assert isinstance(found, dict) and stamp.startswith("replayed from ")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "data" / "recorded").glob("*/facts/*.json")), ids=lambda p: p.stem
)
def test_every_fact_of_the_repository_is_sound(path, capsys):
    for key, value in json.loads(path.read_text(encoding="utf-8")).items():
        if isinstance(value, dict):  # the host and a note are words
            assert facts.live_or_recorded(missing, path.stem, key)[0] == value
