"""The reference server, as its clients see it: a real process, asked over a socket."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labkit.core import timeline
from labkit.core.workspace import Workspace
from labkit.errors import BadInput
from labkit.net.guard import CONTROL
from labkit.subject import checkpoint, reference


class Running:
    def __init__(self, model: str, *args: str, **env: str):
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "labkit.subject.server",
                "--model",
                model,
                "--port",
                "0",
                "--name",
                "tiny",
                *args,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.stderr.read())
        self.port = int(line.split(":")[2].split(" ")[0])

    def ask(
        self, method: str, path: str, body: object = None, raw: bytes | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(
                method,
                path,
                raw if raw is not None else None if body is None else json.dumps(body),
                CONTROL,
            )
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def complete(self, **body: object) -> dict:
        status, data = self.ask("POST", "/v1/completions", body)
        assert status == 200, data
        return json.loads(data)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    checkpoint.make_checkpoint(directory, "tiny")
    return directory


@pytest.fixture(scope="module")
def timeline_path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("spans") / "timeline.jsonl"


@pytest.fixture(scope="module")
def server(model, timeline_path):
    running = Running(str(model), LABKIT_TIMELINE=str(timeline_path), LABKIT_SOURCE="server")
    yield running
    assert running.end() == 0


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory) -> dict:
    return reference.reference(
        model, "The first token", 8, workspace=Workspace.at(tmp_path_factory.mktemp("lab"))
    )


def events(data: bytes) -> list[dict]:
    lines = [line[6:] for line in data.decode().split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_the_phases_are_written_in_order_and_leave_no_gap(server, timeline_path):
    spans = [s for s in timeline.read(timeline_path) if s.is_phase]
    assert [s.name for s in spans] == ["import", "context", "build", "load", "warmup", "ready"]
    assert timeline.union_s(spans, spans[0].start_s, spans[-1].end_s) > 0.98 * (
        spans[-1].end_s - spans[0].start_s
    )


def test_the_answer_is_the_references(server, expected):
    choice = server.complete(prompt="The first token", max_tokens=8)["choices"][0]
    assert (
        choice["token_ids"] == expected["tokens"]
        and choice["text"] == expected["text"]
        and choice["finish_reason"] == "length"
    )


def test_streaming_gives_the_same_tokens_and_text_one_by_one(server, expected):
    status, data = server.ask(
        "POST",
        "/v1/completions",
        {
            "prompt": "The first token",
            "max_tokens": 8,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    )
    found = events(data)
    choices = [e["choices"][0] for e in found if e["choices"]]
    assert status == 200 and all(len(c["token_ids"]) == 1 for c in choices)
    assert [c["token_ids"][0] for c in choices] == expected["tokens"] and "".join(
        c["text"] for c in choices
    ) == expected["text"]
    assert found[-1]["usage"] == {"prompt_tokens": 4, "completion_tokens": 8, "total_tokens": 12}


def test_token_ids_as_prompt_mean_the_same_as_their_text(server, expected):
    assert (
        server.complete(prompt=expected["prompt_tokens"], max_tokens=8)["choices"][0]["token_ids"]
        == expected["tokens"]
    )


def test_log_probabilities_are_the_references(server, expected):
    found = server.complete(prompt="The first token", max_tokens=8, logprobs=1)["choices"][0][
        "logprobs"
    ]["token_logprobs"]
    assert found == pytest.approx(expected["logprobs"], abs=1e-3)


def test_a_seed_repeats_an_answer_drawn_at_a_temperature(server):
    drawn = [
        server.complete(prompt="The first token", temperature=2, seed=seed)["choices"][0]["text"]
        for seed in (7, 7, 8)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_alternatives_are_read_in_their_place_and_hold_the_token_itself(server, expected):
    found = server.complete(prompt="The first token", max_tokens=8, logprobs=3)["choices"][0]
    assert "".join(found["logprobs"]["tokens"]) == found["text"] == expected["text"]
    for token, chance, top in zip(
        found["logprobs"]["tokens"],
        found["logprobs"]["token_logprobs"],
        found["logprobs"]["top_logprobs"],
        strict=True,
    ):
        assert top[token] == chance == max(top.values()) and len(top) == 3


def test_a_bias_decides_which_token_comes(server):
    found = server.complete(prompt="x", max_tokens=3, logit_bias={"100": 100})
    assert found["choices"][0]["token_ids"] == [100] * 3


def test_stop_strings_end_the_text_before_themselves(server, expected):
    word = expected["text"].split()[2]
    choice = server.complete(prompt="The first token", max_tokens=8, stop=[word])["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["text"] == expected["text"].split(word)[0]


@pytest.mark.parametrize(
    "method, path, body, status",
    [
        ("POST", "/v1/completions", {}, 400),
        ("POST", "/v1/completions", {"prompt": [4096]}, 400),
        ("POST", "/v1/completions", {"prompt": "x", "max_tokens": 0}, 400),
        ("POST", "/v1/completions", {"prompt": "x " * 2000}, 400),
        ("POST", "/v1/completions", {"prompt": "x", "n": 2}, 400),
        ("GET", "/v1/completions", None, 405),
        ("POST", "/nowhere", {}, 404),
        ("GET", "/", None, 404),
    ],
)
def test_a_clients_mistake_is_a_4xx_in_openais_shape(server, method, path, body, status):
    found, data = server.ask(method, path, body)
    assert found == status and json.loads(data)["error"]["type"] == "invalid_request_error"


@given(st.binary(max_size=400))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_body_ends_the_server(server, raw):
    status, _ = server.ask("POST", "/v1/completions", raw=raw)
    assert 400 <= status < 500


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\xff\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 50\r\n\r\n{",
    ],
)
def test_no_bytes_on_the_socket_end_the_server(server, raw):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(4096)
    assert server.ask("GET", "/health")[0] == 200


def test_a_client_that_leaves_in_mid_stream_does_not_hold_the_next_one_up(server):
    body = json.dumps(
        {"prompt": "x", "max_tokens": 900, "stream": True, "ignore_eos": True}
    ).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        connection.recv(100)
    assert server.complete(prompt="y", max_tokens=1)["usage"]["completion_tokens"] == 1


def test_many_clients_at_once_all_get_the_same_answer(server, expected):
    found: list[list[int]] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(
                server.complete(prompt="The first token", max_tokens=8)["choices"][0]["token_ids"]
            )
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected["tokens"]] * 8


def test_identity_names_the_process(server):
    found = json.loads(server.ask("GET", "/_labkit/identity")[1])
    assert (
        found["pid"] == server.process.pid
        and len(found["nonce"]) == 32
        and found["start_monotonic_s"] < timeline.now_s()
    )


def test_shrinking_frees_the_cache_and_changes_no_answer(server, expected):
    server.complete(prompt="The first token", max_tokens=1)
    assert json.loads(server.ask("POST", "/_labkit/shrink")[1])["kv_cache_bytes"] > 1_000_000
    assert json.loads(server.ask("POST", "/_labkit/shrink")[1])["kv_cache_bytes"] == 0
    assert (
        server.complete(prompt="The first token", max_tokens=8)["choices"][0]["token_ids"]
        == expected["tokens"]
    )


def test_reseeding_is_counted(server):
    before = json.loads(server.ask("GET", "/_labkit/identity")[1])["reseeded"]
    assert json.loads(server.ask("POST", "/_labkit/reseed")[1])["reseeded"] == before + 1


def test_the_naive_start_gives_the_same_tokens(model, expected):
    naive = Running(str(model), "--init", "random", "--prefault")
    try:
        assert (
            naive.complete(prompt="The first token", max_tokens=8)["choices"][0]["token_ids"]
            == expected["tokens"]
        )
    finally:
        naive.end()


def test_config_and_tokenizer_come_from_a_bucket_and_the_loader_gets_its_url(model, tmp_path):
    """The stand-in loader ignores the bucket for the weights: that is the loaders' own matter."""
    import functools
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    (tmp_path / "lab" / "models").mkdir(parents=True)
    (tmp_path / "lab" / "models" / "tiny").symlink_to(model)
    (tmp_path / "stand_in.py").write_text(
        "def load(model, source, device):\n    from labkit.subject import plain\n    assert source"
        f" == 's3://lab/models/tiny'\n    return plain.load(model, {str(model)!r}, device)\n"
    )
    store = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    )
    threading.Thread(target=store.serve_forever, daemon=True).start()
    try:
        running = Running(
            "s3://lab/models/tiny",
            "--loader",
            "stand_in:load",
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{store.server_port}",
            PYTHONPATH=str(tmp_path),
        )
        assert running.ask("GET", "/health")[0] == 200
        running.end()
    finally:
        store.shutdown()


def test_an_early_bound_server_says_503_until_a_token_can_be_served(model, tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, time\ndef load(model, source, device):\n    from labkit.subject import plain\n "
        "   while not os.path.exists(os.environ['GO']):\n        time.sleep(0.01)\n    return"
        " plain.load(model, source, device)\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "labkit.subject.server",
            "--model",
            str(model),
            "--port",
            str(port),
            "--early-bind",
            "--loader",
            "slow:load",
        ],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "GO": str(tmp_path / "go")},
        stdout=subprocess.PIPE,
    )
    try:
        seen = []
        until = time.monotonic() + 60
        while 200 not in seen and time.monotonic() < until:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", "/health")
                seen.append(connection.getresponse().status)
                (tmp_path / "go").touch()
            except OSError:
                time.sleep(0.02)
            finally:
                connection.close()
        assert seen[0] == 503 and seen[-1] == 200
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "args, said",
    [
        (["--loader", "labkit.nothing:load"], "--loader labkit.nothing:load"),
        (["--loader-options", "[1]"], "a JSON object"),
        (["--device", "tpu"], "--device tpu"),
    ],
)
def test_a_wrong_option_is_one_clear_line_and_exit_2(model, args, said):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "labkit.subject.server",
            "--model",
            str(model),
            "--port",
            "0",
            *args,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_reference_of_a_damaged_model_is_a_bad_input(model, workspace, tmp_path):
    import shutil

    broken = shutil.copytree(model, tmp_path / "broken")
    os.truncate(broken / "model.safetensors", 1000)
    with pytest.raises(BadInput, match="model.safetensors"):
        reference.reference(broken, "x", 1, workspace=workspace)


def test_a_reference_says_where_it_was_computed(model, workspace):
    answer = reference.reference(model, "x", 2, workspace=workspace)
    assert (
        (answer["device"], answer["dtype"]) == ("cpu", "bfloat16")
        and answer["torch"]
        and len(answer["tokens"]) == 2
    )


def test_tokens_of_a_gpus_servers_are_compared_with_a_gpus_reference_or_it_says_why_not(
    model, workspace, monkeypatch
):
    from labkit.stack.preparation import _model_and_answer

    asked = []
    monkeypatch.setattr(
        reference,
        "reference",
        lambda directory, prompt, n, *, device="cpu", workspace: (
            asked.append(device) or {"tokens": [1], "device": device}
        ),
    )
    assert _model_and_answer(str(model), workspace, "tiny", 1, "cuda")[1] == {
        "tokens": [1],
        "device": "cuda",
    }

    def no_gpu(directory, prompt, n, *, device="cpu", workspace):
        if device != "cpu":
            raise BadInput("no driver")
        return {"tokens": [1], "device": device}

    monkeypatch.setattr(reference, "reference", no_gpu)
    answer = _model_and_answer(str(model), workspace, "tiny", 1, "cuda")[1]
    assert asked == ["cuda"] and answer["device"] == "cpu" and "no driver" in answer["note"]


def test_on_a_gpu_cudnn_is_asked_last_unless_somebody_says_otherwise(model, monkeypatch):
    from labkit.subject import llama, server

    def told(*args):
        monkeypatch.setattr(
            server.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name))
        )
        with pytest.raises(BadInput):
            server.load(None, server.parser().parse_args(["--model", str(model), *args]))
        return llama.prefer_flash()

    monkeypatch.delenv(llama.CUDNN_LAST, raising=False)
    assert "cuDNN last" in told() and os.environ[llama.CUDNN_LAST] == "1"
    monkeypatch.setenv(llama.CUDNN_LAST, "0")
    assert "own choice" in told() and os.environ[llama.CUDNN_LAST] == "0", (
        "the environment's word is left alone"
    )
    assert "cuDNN last" in told("--attention", "flash")
    assert "own choice" in told("--attention", "default") and os.environ[llama.CUDNN_LAST] == "0"
