"""Bring your own server: moments become phases, log lines become marks, and a real server comes out
measured."""

from __future__ import annotations

import itertools
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.byo import phases, servers
from labkit.byo.observe import (
    Event,
    ProcSample,
    StartObserver,
    first_library,
    listening,
    weight_files,
)
from labkit.byo.own_server import OwnServer
from labkit.byo.start import Rehearsal, Start, cold_trees
from labkit.byo.trials import OwnOptions, TrialSetup, judged, run
from labkit.core import timeline
from labkit.core.client import Answer
from labkit.core.records import Trial
from labkit.core.trial import free_port
from labkit.errors import BadInput, TrialError

NAMES = ("exec", "libraries", "config", "device", "weights", "weights_in", "listening", "health")


def moments(**at: float) -> dict[str, Event]:
    return {name: Event(t, f"saw {name}") for name, t in at.items()}


def names(spans) -> list[str]:
    return [s.name for s in spans]


def test_a_plain_start_has_its_phases_in_the_order_of_the_words():
    seen = moments(
        exec=0.01,
        libraries=0.1,
        device=2,
        config=3,
        weights=4,
        weights_in=6,
        listening=7,
        health=7.5,
    )
    assert names(phases.attribute(seen, [], 0, 8)) == [
        "start",
        "import",
        "context",
        "build",
        "load",
        "warmup",
        "ready",
        "first_token",
    ]


def test_a_server_that_loads_on_the_first_request_pays_for_load_after_health():
    seen = moments(
        exec=0.01, libraries=0.1, listening=2, health=2.1, config=2.5, weights=3, weights_in=5
    )
    spans = phases.attribute(seen, [], 0, 6)
    assert (
        names(spans) == ["start", "import", "build", "load", "first_token"]
        and spans[3].duration_s == 2
    )


def test_imports_go_on_while_libraries_are_still_mapped_after_the_config_was_opened():
    samples = [ProcSample(t, library_bytes=int(t * 100 * 2**20)) for t in (0.1, 1, 2, 3)] + [
        ProcSample(t, library_bytes=300 * 2**20) for t in (3.5, 4)
    ]
    spans = {
        s.name: s
        for s in phases.attribute(
            moments(
                exec=0, libraries=0.1, config=0.5, weights=5, weights_in=6, listening=6.5, health=7
            ),
            samples,
            0,
            8,
        )
    }
    assert spans["import"].end_s == 3 == spans["build"].start_s


def test_a_server_whose_health_was_not_asked_is_at_work_on_the_request_from_its_port_on():
    spans = phases.attribute(
        moments(exec=0, libraries=0.1, config=1, weights=2, weights_in=3, listening=4, health=9),
        [],
        0,
        6,
    )
    assert names(spans)[-2:] == ["warmup", "first_token"] and spans[-1].start_s == 4


def test_weights_that_nobody_saw_leave_unaccounted_time_and_no_guess():
    spans = phases.attribute(moments(exec=0, libraries=0.1, listening=5, health=5.5), [], 0, 6)
    assert names(spans) == ["start", "ready", "first_token"] and sum(
        s.duration_s for s in spans
    ) == pytest.approx(1.1)


@given(st.dictionaries(st.sampled_from(NAMES), st.floats(0, 12)), st.floats(1, 10))
def test_spans_never_overlap_and_stay_within_the_start(at, first_token_s):
    spans = phases.attribute(moments(**at), [], 0.0, first_token_s)
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(spans))
    assert all(
        0 <= s.start_s <= s.end_s <= first_token_s and s.name in timeline.PHASES for s in spans
    )


def test_a_mapping_is_in_when_its_pages_are_in_memory_not_when_it_was_opened():
    size = 100 << 20
    samples = [
        ProcSample(1, rss_bytes=0),
        ProcSample(2, rss_bytes=0, read_bytes=size),
        ProcSample(3, rss_bytes=size // 2, read_bytes=size),
        ProcSample(4, rss_bytes=size, read_bytes=size),
    ]
    found = phases.weights_in(moments(weights=1), samples, size, 5)
    assert found.at_s == 4 and "memory" in found.how


def test_small_weights_are_timed_by_the_log_or_by_their_closing():
    seen = moments(weights=1)
    assert phases.weights_in(seen, [], 5 << 20, 5, [("load.weights", 1, 2, "loaded")]).at_s == 2
    assert phases.weights_in(seen, [], 5 << 20, 5, (), 3.0).at_s == 3
    assert phases.weights_in(seen, [], 5 << 20, 5) is None


@pytest.mark.parametrize(
    "command, name",
    [
        ("transformers serve DIR", "transformers-serve"),
        ("python -m llama_cpp.server --model M", "llama-cpp-python"),
        ("vllm serve DIR", "vllm"),
        ("python -m sglang.launch_server --model DIR", "sglang"),
        ("llama-server -m M", "llama.cpp"),
        ("text-generation-launcher --model-id DIR", "tgi"),
        ("./mine", "own-server"),
    ],
)
def test_a_server_is_recognised_by_its_command_line(command, name):
    assert servers.recognise(command.split()).name == name


def test_what_was_never_seen_at_work_is_not_called_tested():
    assert {k.name for k in servers.KINDS if k.tested} <= {
        "transformers-serve",
        "llama-cpp-python",
        "labkit",
    }


LOGS = {
    "vllm": (
        [
            (5.0, "INFO Loading weights took 1.50 seconds"),
            (9.0, "INFO Graph capturing finished in 3 secs, took 0.21 GiB"),
            (9.5, "INFO:     Application startup complete."),
        ],
        {
            "load.weights": (3.5, 5.0),
            "warmup.cuda_graphs": (6.0, 9.0),
            "ready.application": (9.5, 9.5),
        },
    ),
    "sglang": (
        [
            (2.0, "Load weight begin. avail mem=78.6 GB"),
            (4.0, "Load weight end. type=LlamaForCausalLM"),
            (7.0, "The server is fired up and ready to roll!"),
        ],
        {"load.weights": (2.0, 4.0), "ready.fired_up": (7.0, 7.0)},
    ),
    "tgi": (
        [(6.0, "INFO text_generation_launcher: Shard ready in 4.5s rank=0")],
        {"load.shard": (1.5, 6.0)},
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_log_lines_become_marks_with_their_own_durations(name):
    log, expected = LOGS[name]
    kind = next(k for k in servers.KINDS if k.name == name)
    assert {span: (a, b) for span, a, b, _ in servers.read_marks(kind, log)} == expected


@given(st.lists(st.tuples(st.floats(0, 100), st.text(max_size=60)), max_size=20))
def test_no_log_breaks_the_reader(log):
    for kind in servers.KINDS:
        assert all(a <= b for _, a, b, _ in servers.read_marks(kind, log))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"command": "no-such-server-here"}, "is not a program"),
        ({"command": "sh 'x"}, "--command"),
        ({"url": "ftp://x"}, "--url"),
        ({"url": "http://127.0.0.1:99999"}, "--url"),
        ({"weights": "/no/such/dir"}, "--weights"),
        ({"weights": ""}, "--weights"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(tmp_path, change, said):
    with pytest.raises(BadInput, match=said):
        OwnServer.of(
            **{
                "command": "sh -c true",
                "url": "http://127.0.0.1:8000",
                "weights": str(tmp_path),
                **change,
            }
        )


@pytest.mark.parametrize(
    "path, base",
    [
        ("", "/v1"),
        ("/v1/", "/v1"),
        ("/v1/completions", "/v1"),
        ("/v1/chat/completions", "/v1"),
        ("/models/tiny", "/models/tiny/v1"),
    ],
)
def test_a_url_may_name_the_server_its_base_or_what_is_asked(path, base):
    url = f"http://127.0.0.1:8000{path}"
    assert OwnServer.of("sh -c true", url, __file__).base == base


def test_a_port_that_is_taken_is_refused(tmp_path, workspace):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert listening(taken.getsockname()[1])
        with pytest.raises(BadInput, match="listens on port"):
            run(
                OwnOptions(
                    command="sh -c true",
                    url=f"http://127.0.0.1:{taken.getsockname()[1]}",
                    weights=__file__,
                    blocks=1,
                ),
                workspace=workspace,
            )


def test_a_server_that_ends_is_a_trial_error_with_its_last_words(tmp_path, workspace):
    with pytest.raises(TrialError, match="did not come to a whole answer") as caught:
        run(
            OwnOptions(
                command="sh -c 'echo out of cheese; exit 3'",
                url=f"http://127.0.0.1:{free_port()}",
                weights=__file__,
                blocks=1,
            ),
            workspace=workspace,
        )
    assert "out of cheese" in caught.value.why


def test_weights_are_found_through_the_links_of_a_cache(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc").write_bytes(b"x")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/abc")
    assert weight_files(tmp_path / "snapshot") == [tmp_path / "blobs" / "abc"]


def test_files_without_a_known_ending_may_hold_weights_too(tmp_path):
    (tmp_path / "sha256-0123").write_bytes(b"GGUF")
    assert weight_files(tmp_path) == [tmp_path / "sha256-0123"]


@pytest.mark.parametrize("link", ["../blobs/gone", "/gone"])
def test_a_directory_in_which_nothing_can_be_read_is_refused_with_its_link(tmp_path, link):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "empty.bin").touch()
    (tmp_path / "m" / "model.safetensors").symlink_to(link)
    with pytest.raises(BadInput, match=f"no file with anything in it.* is a link to {link}"):
        OwnServer.of("sh -c true", "http://127.0.0.1:1", str(tmp_path / "m"))


@pytest.fixture
def quantised(tmp_path):
    """Two quantisations in one directory, through links, and a start that opened the second."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "model").mkdir()
    for name, size in (("Q4_0.gguf", 400), ("Q8_0.gguf", 800), ("config.json", 10)):
        (tmp_path / "blobs" / name[:4]).write_bytes(bytes(size))
        (tmp_path / "model" / name).symlink_to(f"../blobs/{name[:4]}")
    server = OwnServer.of("sh -c true", "http://127.0.0.1:1", str(tmp_path / "model"))
    with StartObserver(server.weights, server.host, server.port, server.kind) as observer:
        (tmp_path / "model" / "Q8_0.gguf").read_bytes()
        (tmp_path / "model" / "config.json").read_bytes()
        until_s = timeline.now_s() + 10
        while not all(observer.opened.values()) and timeline.now_s() < until_s:
            pass
    return server, observer, tmp_path / "blobs"


def test_the_weights_of_a_start_are_the_files_that_were_opened(quantised):
    _, observer, blobs = quantised
    assert observer.opened == {"weights": {blobs / "Q8_0"}, "config": {blobs / "conf"}}


@pytest.mark.parametrize("rehearsed, outcome", [("Q8_0", "ok"), ("Q4_0", "cache_unproven")])
def test_a_trial_counts_what_it_opened_and_is_none_where_that_was_not_proven(
    quantised, rehearsed, outcome
):
    server, observer, blobs = quantised
    rehearsal = Rehearsal({}, "x", [], [], frozenset({blobs / rehearsed}))
    setup = TrialSetup(server, rehearsal, "warm-node", 10.0, {})
    now_s = timeline.now_s()
    answer = Answer(t0_s=now_s - 60, first_token_s=now_s, text="x")
    found = judged(Trial(arm="a", block=0, order=0, cache={}), Start(answer, observer), setup)
    assert found.outcome == outcome
    assert found.evidence[0]["facts"]["weights_bytes"] == 800


def test_what_is_proven_cold_is_what_the_server_mapped_and_the_trees_around_it_are_evicted_too(
    tmp_path,
):
    packages = tmp_path / "lib/python3.11/site-packages"
    (packages / "torch/lib").mkdir(parents=True)
    (packages / "torch/lib/a.so").touch()
    (packages / "torch/b.so").touch()
    weights = tmp_path / "model.safetensors"
    maps = [str(packages / "torch/lib/a.so"), str(packages / "torch/b.so"), "/dev/zero", "/gone.so"]
    assert cold_trees([weights], maps) == ([str(weights), str(packages / "torch")], [str(packages)])


def test_this_process_has_mapped_a_library_and_a_shell_has_not():
    import select  # noqa: F401 – a shared object of the standard library

    assert ".so" in first_library([os.getpid()])
    shell = subprocess.Popen(["sleep", "60"])
    try:
        assert first_library([shell.pid]) == ""
    finally:
        shell.kill()
        shell.wait()
