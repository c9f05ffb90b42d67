"""The GPU parts over the simulated driver, with the served model on the CPU: each line is more of
the same, and a failed arm takes no other with it."""

from __future__ import annotations

import json

import pytest

from labkit.core import client
from labkit.device import gpu_parts, served, trial_output
from labkit.errors import TrialError


@pytest.fixture
def part(lab_home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_HOME", str(lab_home))
    monkeypatch.setenv("LABKIT_FAKE_CUDA", str(tmp_path / "gpu.json"))

    def run(*arguments: str):
        status = gpu_parts.main([*arguments, "--preset", "tiny"])
        said = capsys.readouterr()
        return (
            status,
            [json.loads(line) for line in said.out.splitlines() if line.startswith("{")],
            said.err,
        )

    return run


def test_a_server_is_parked_and_woken_again_and_again_with_the_same_tokens(part):
    status, documents, errors = part("checkpoint", "--times", "2")
    found = documents[-1]
    assert status == 0, errors
    assert [t["equal_tokens"] for t in found["times"]] == [True, True] and found[
        "driver"
    ].startswith("simulated")
    assert found["times"][0]["device_bytes"] > 0 == found["times"][0][
        "device_parked_bytes"
    ] and set(found["times"][0]["rates_bytes_per_s"]) == {"park", "wake"}
    assert (
        found["held_parked"] == {"descriptors": {}, "mappings": []}
        and found["start_phases_s"]["import"] > 0
    )
    assert [len(d["times"]) for d in documents] == sorted(
        len(d["times"]) for d in documents
    ) and len(documents) >= 5


def test_each_arm_s_server_tells_its_start_and_the_pace_of_its_tokens(part):
    status, documents, errors = part("decode", "--arms", "eager,fewer-graphs", "--tokens", "12")
    found = documents[-1]
    assert status == 0, errors
    assert (
        found["equal_tokens"] == {"eager": True, "fewer-graphs": True} and found["cache"]["method"]
    )
    for arm in ("eager", "fewer-graphs"):
        one = found["arms"][arm][0]
        assert (
            one["tokens"] == 12
            and one["start_s"] > one["third_request"]["first_token_s"] > 0
            and one["third_request"]["decode_median_s"] > 0
        )


def test_an_arm_whose_server_died_says_so_and_the_others_are_measured(part, monkeypatch):
    whole = served.server

    def server(preset, arguments=(), environment=None, **more):
        return whole(
            preset,
            [*arguments, "--no-such-option"] if "--graphs" in arguments else arguments,
            environment,
            **more,
        )

    monkeypatch.setattr(served, "server", server)
    status, documents, errors = part("decode", "--arms", "fewer-graphs,eager", "--tokens", "4")
    found = documents[-1]
    assert (
        status == 1
        and found["arms"]["fewer-graphs"] == []
        and found["arms"]["eager"][0]["tokens"] == 4
    )
    assert (
        "exit code 2" in found["failed"][0]
        and "--no-such-option" in found["failed"][0]
        and "--no-such-option" in errors
    )


def test_the_served_model_sleeps_and_wakes_with_the_same_weights(part):
    status, documents, errors = part("wake", "--times", "2")
    found = documents[-1]
    assert status == 0, errors
    assert (
        found["equal"] is True
        and len(found["times"]) == 2
        and found["driver"].startswith("simulated")
        and found["bytes"] <= found["arena_bytes"]
    )


def test_what_was_measured_before_an_error_is_printed_and_the_error_with_it(
    lab_home, monkeypatch, capsys
):
    monkeypatch.setenv("LABKIT_HOME", str(lab_home))

    def work(found, tell):
        found["first"] = 1
        tell()
        raise TrialError("the second did not work", "why")

    assert trial_output.report(work) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["first"] == 1 and "the second did not work" in last["failed"][0]


def test_the_pace_is_the_median_of_what_came_after_the_first_decoded_token():
    answer = client.Answer(10.0, 11.0, times_s=[11.0, 11.5, 11.6, 11.7, 11.9])
    pace = gpu_parts._pace(answer)
    assert (
        pace["first_token_s"] == 1.0
        and pace["first_decode_s"] == 0.5
        and round(pace["decode_median_s"], 6) == 0.1
    )
    assert gpu_parts._pace(client.Answer(0.0))["first_token_s"] is None


def test_cudnn_s_attention_comes_last_in_every_arm_but_its_own():
    assert served.CUDNN_LAST == {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"} and gpu_parts.DECODE_ARMS[
        "cudnn"
    ][1] == {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "0"}
    assert all(
        not environment for arm, (_, environment) in gpu_parts.DECODE_ARMS.items() if arm != "cudnn"
    )
