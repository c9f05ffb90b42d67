"""What a completions request may ask for: honoured, or refused with OpenAI's error; ignored only
where it changes nothing."""

from __future__ import annotations

import http.client
import json
import math

import pytest

from labkit.subject import api
from tests.support.servers import serving


def parsed(**fields: object) -> api.Completion:
    return api.parse(json.dumps({"prompt": "x", **fields}).encode(), vocabulary=100)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"best_of": 3},
        {"suffix": " end"},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -1},
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function"}]},
        {"stop_token_ids": [5]},
        {"guided_json": {}},
        {"a_name_of_tomorrow": 1},
        {"logprobs": True},
        {"logprobs": 21},
        {"echo": True, "logprobs": 1},
        {"max_tokens": 0},
        {"max_tokens": 5, "max_completion_tokens": 6},
        {"top_p": 1.5},
        {"top_k": -2},
        {"seed": 1.5},
        {"seed": 2**70},
        {"logit_bias": {"100": 1}},
        {"logit_bias": {"5": 101}},
        {"logit_bias": {"five": 1}},
        {"logit_bias": [5]},
        {"model": 5},
        {"stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        {"prompt": ["a", "b"]},
        {"prompt": [[1], [2]]},
        {"prompt": []},
        {"prompt": [1, "a"]},
        {"temperature": math.nan},
    ],
)
def test_what_would_change_the_answer_and_is_not_done_is_refused_by_its_name(fields):
    with pytest.raises(api.APIError) as caught:
        parsed(**fields)
    error = caught.value.body()["error"]
    assert caught.value.status == 400 and error["type"] == "invalid_request_error"
    assert error["param"] in fields and error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "best_of": 1, "suffix": None, "presence_penalty": 0.0, "tools": []},
        {"user": "somebody", "metadata": {"a": "b"}, "store": False},
        {"response_format": {"type": "text"}, "tool_choice": "none", "logprobs": None},
        {"temperature": 0, "top_p": 0.9, "top_k": -1, "seed": 7},
        {"a_name_of_tomorrow": None},
        {"prompt": ["x"]},
    ],
)
def test_what_changes_nothing_is_taken(fields):
    assert parsed(**fields).is_greedy


def test_what_is_asked_for_is_read():
    request = parsed(
        max_completion_tokens=3,
        temperature=0.5,
        top_p=0.25,
        top_k=4,
        seed=-1,
        logit_bias={"7": -100},
        logprobs=0,
        echo=False,
        prompt=[[1, 2]],
    )
    assert (request.max_tokens, request.temperature, request.top_p, request.top_k) == (
        3,
        0.5,
        0.25,
        4,
    )
    assert (request.seed, request.logit_bias, request.logprobs) == (-1, ((7, -100.0),), 0)
    assert request.prompt == (1, 2) and not request.is_greedy


def test_log_probabilities_are_in_openais_shape():
    pieces = [
        api.Piece(1, "a", -0.5, (("a", -0.5), ("b", -1.0))),
        api.Piece(2, "bc", -2.0, (("x", -1.0), ("bc", -2.0), ("x", -3.0))),
    ]
    found = api.chunk(parsed(logprobs=2), "m", "abc", pieces, offset=10)["choices"][0]["logprobs"]
    assert found == {
        "tokens": ["a", "bc"],
        "token_logprobs": [-0.5, -2.0],
        "top_logprobs": [{"a": -0.5, "b": -1.0}, {"x": -1.0, "bc": -2.0}],
        "text_offset": [10, 11],
    }


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    with serving("subject", tmp_path_factory.mktemp("subject")) as served:
        yield served


def ask(subject, method: str, path: str, body: bytes | None = None, **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", subject.server.port, timeout=10)
    try:
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def completion(subject, **fields: object):
    status, headers, body = ask(
        subject, "POST", "/v1/completions", json.dumps({"prompt": "x", **fields}).encode()
    )
    return status, headers, body


def events(body: bytes) -> list[dict]:
    lines = body.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_a_model_is_found_under_its_name_and_no_other(subject):
    status, _, body = ask(subject, "GET", "/v1/models/tiny")
    listed = json.loads(ask(subject, "GET", "/v1/models")[2])["data"]
    assert status == 200 and listed == [json.loads(body)]
    status, _, body = ask(subject, "GET", "/v1/models/other")
    assert status == 404 and json.loads(body)["error"]["code"] == "model_not_found"


def test_a_completion_of_a_model_that_is_not_here_is_a_404(subject):
    assert completion(subject, model="tiny")[0] == completion(subject, model="")[0] == 200
    status, _, body = completion(subject, model="other")
    assert status == 404 and json.loads(body)["error"]["param"] == "model"


def test_chat_is_refused_with_the_way_that_there_is(subject):
    status, _, body = ask(subject, "POST", "/v1/chat/completions", b"{}")
    assert status == 404 and "/v1/completions" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    "method, path, allowed",
    [("OPTIONS", "/v1/completions", "POST"), ("POST", "/v1/models", "GET, HEAD")],
)
def test_another_method_is_told_which_there_are(subject, method, path, allowed):
    status, headers, _ = ask(subject, method, path)
    assert (status, headers["Allow"]) == (405, allowed)


def test_a_compressed_body_is_refused_by_its_coding(subject):
    status, _, body = ask(subject, "POST", "/v1/completions", b"\x1f\x8b", Content_Encoding="gzip")
    assert status == 415 and "Content-Encoding" in json.loads(body)["error"]["message"]


def test_a_body_too_large_is_refused_before_it_is_sent(subject):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9437184\r\n"
    for more in (b"", b"Expect: 100-continue\r\n"):
        assert subject.ask(head + more + b"\r\n")[0] == 413


def test_nothing_is_answered_to_an_echo_of_no_tokens_but_the_prompt(subject):
    doc = json.loads(completion(subject, echo=True, max_tokens=0)[2])
    assert doc["choices"][0]["text"] == "x" and doc["choices"][0]["finish_reason"] == "length"
    assert doc["usage"] == {"prompt_tokens": 1, "completion_tokens": 0, "total_tokens": 1}
    (event,) = events(completion(subject, echo=True, max_tokens=0, stream=True)[2])
    assert event["choices"][0]["text"] == "x" and event["choices"][0]["finish_reason"] == "length"


def test_an_echoed_prompt_comes_first_in_a_stream_and_in_a_whole_answer(subject):
    whole = json.loads(completion(subject, echo=True)[2])["choices"][0]
    streamed = [e["choices"][0] for e in events(completion(subject, echo=True, stream=True)[2])]
    assert whole["text"] == "x" + "é\r\n" * 3 == "".join(c["text"] for c in streamed)
    assert whole["token_ids"] == [0, 1, 2]
    assert [t for c in streamed for t in c["token_ids"]] == [0, 1, 2]


def test_usage_asked_for_is_in_the_last_event_and_null_in_the_others(subject):
    body = completion(subject, stream=True, stream_options={"include_usage": True})[2]
    *others, last = events(body)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 3
    assert [e["usage"] for e in others] == [None] * 3
