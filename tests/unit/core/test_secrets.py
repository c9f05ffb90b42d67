"""Secrets are masked by name and by value wherever they could leave the process, and what is no
secret stays readable."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from unittest import mock
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from labkit.byo.own_server import OwnServer
from labkit.core import observe, records, secrets
from labkit.core.records import Run, Trial
from labkit.core.secret_names import is_secret_name
from labkit.errors import BadInput
from labkit.net.credentials import Credentials, credentials

ROOT = Path(__file__).resolve().parents[3]
PRINTABLE = "".join(map(chr, range(33, 127)))
#: At least a letter and a digit: a value of letters alone may be a word of the record itself.
SECRETS = st.tuples(
    st.text("abcdefghXYZ", min_size=3),
    st.text(PRINTABLE, min_size=4, max_size=24),
    st.text("0123456789", min_size=3, max_size=6),
).map("".join)
#: Such as stand in a URL, a header or a shell word as they are.
PLAIN = st.tuples(
    st.text("abcdefghXYZ", min_size=3),
    st.text("abcXYZ0189-_.~", min_size=4, max_size=24),
    st.text("0123456789", min_size=3, max_size=6),
).map("".join)


@contextlib.contextmanager
def fresh(**environment: str):
    """A process that has learned nothing yet."""
    with (
        mock.patch.object(secrets, "_known", frozenset()),
        mock.patch.dict(os.environ, environment),
    ):
        yield


def forms(value: str) -> set[str]:
    return {
        value,
        quote(value),
        quote(value, safe=""),
        quote_plus(value),
        json.dumps(value)[1:-1],
        html.escape(value),
        base64.b64encode(value.encode()).decode(),
        base64.b64encode(f"user:{value}".encode()).decode(),
    }


def leaks(text: str | bytes, value: str) -> list[str]:
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return [f for f in forms(value) if f in text]


BY_OPTION = [
    "--api-key {}",
    "--api-key={}",
    "--token {}",
    "--password {}",
    "--secret-value {}",
    "--hf-token {}",
    "--aws-secret-access-key {}",
    "-token {}",
    "env HF_TOKEN={} serve",
    "docker run -e NGC_API_KEY={} image",
    "docker run --env=OPENAI_API_KEY={} image",
    "curl -H 'Authorization: Bearer '{}",
    "curl --header='X-Api-Key: '{}",
]
BY_URL = [
    "http://user:{}@host/x",
    "https://host/x?X-Amz-Signature={}",
    "https://host/x?a=1&X-Amz-Security-Token={}&b=2",
    "https://host/?sig={}#f",
    "https://host/?token={}",
    "https://h/?AWSAccessKeyId={}",
    "https://host/?X-Amz-Credential={}",
    "Authorization: Bearer {}",
    "Proxy-Authorization: {}",
    "Cookie: session={}",
    "X-Auth-Token: {}",
    '{{"api_key": "{}"}}',
    "config(api_key='{}')",
    "HF_TOKEN={} serve",
]


@pytest.mark.parametrize("place", BY_OPTION)
@given(value=SECRETS)
@settings(max_examples=40)
def test_an_argument_that_is_secret_by_name_is_masked_and_its_value_wherever_it_returns(
    place, value
):
    with fresh():
        command = "program " + place.format(shlex.quote(value)) + " --port 8000"
        argv = shlex.split(command)
        shown = secrets.mask_argv(argv)
        assert (
            not leaks(" ".join(shown), value)
            and shown[0] == "program"
            and shown[-2:] == ["--port", "8000"]
            and len(shown) == len(argv)
        )
        secrets.learn_command(command)
        for form in forms(value):
            assert not leaks(secrets.mask(f"it said {form}, twice: ({form})"), value)


@pytest.mark.parametrize("place", BY_URL)
@given(value=PLAIN)
@settings(max_examples=40)
def test_a_secret_within_a_text_is_masked_by_its_place_alone(place, value):
    with fresh():
        assert value not in secrets.mask("before " + place.format(value) + "\nafter")
        assert secrets.mask("before " + place.format(value) + "\nafter").endswith("\nafter")


@given(value=SECRETS, position=st.sampled_from(["command", "shell", "environment", "url", "argv"]))
@settings(max_examples=150)
def test_no_byte_of_a_record_holds_a_secret_however_it_was_learned(
    value, position, tmp_path_factory
):
    with fresh(**({"MY_SERVICE_TOKEN": value} if position == "environment" else {})):
        if position == "command":
            secrets.learn_command(f"serve --api-key {shlex.quote(value)}")
        elif position == "shell":
            secrets.learn_command(
                "sh -c " + shlex.quote(f"exec serve --api-key {shlex.quote(value)}")
            )
        elif position == "url":
            secrets.learn_command(f"http://user:{quote(value, safe='')}@127.0.0.1:8000")
        elif position == "argv":
            secrets.learn_argv(
                ["labkit", "run", "--command", f"serve --api-key={shlex.quote(value)}"]
            )
        said = f"listening; key {value}, " + " ".join(sorted(forms(value)))
        trial = Trial(
            "own",
            0,
            0,
            outcome="crashed",
            total_s=1.0,
            log_tail=said,
            error={"kind": "E", "what": said, "why": said, "fix": "x"},
            facts={"text": said, "deep": [{"argv": ["--x", value]}, said]},
            evidence=[
                {
                    "technique": "own",
                    "engaged": True,
                    "how": said,
                    "facts": {"url": f"http://h/?q={quote(value)}"},
                }
            ],
            spans=[
                {
                    "name": "load",
                    "start_s": 0.0,
                    "end_s": 1.0,
                    "source": "server",
                    "detail": {"line": said},
                }
            ],
            samples={"by": {f"/{value}": 1}},
            cache={"note": said, "paths": (Path("/tmp") / "x",)},
        )
        path = records.write(
            Run(
                "id",
                "2026-01-01",
                experiment={"arms": [{"name": "own", "stack": {"image": said}}]},
                trials=(trial,),
            ),
            tmp_path_factory.mktemp("r") / "run.json",
        )
        assert not leaks(path.read_bytes(), value)
        read = records.read(path)
        assert (read.trials[0].outcome, read.trials[0].total_s, read.trials[0].error["kind"]) == (
            "crashed",
            1.0,
            "E",
        ) and "listening; key ***" in read.trials[0].log_tail
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        records.write(read, path)
        assert records.read(path) == read


@given(value=PLAIN)
def test_a_credential_read_from_a_file_is_masked_from_then_on(value, tmp_path_factory):
    file = tmp_path_factory.mktemp("auth") / "auth.json"
    file.write_text(
        json.dumps(
            {"auths": {"ghcr.io": {"auth": base64.b64encode(f"team:{value}".encode()).decode()}}}
        )
    )
    with fresh():
        assert not leaks(json.dumps(secrets.masked(json.loads(file.read_text()))), value)
        found = credentials("ghcr.io", env={"REGISTRY_AUTH_FILE": str(file)})
        assert found.password == value
        assert not leaks(secrets.mask(f"GET …: {found.basic}; {value}"), value)
        for other in (Credentials(refresh=value + "r"), Credentials(bearer=value + "b")):
            assert secrets.mask(f"{other.refresh}{other.bearer}") == "***"


@given(st.text(PRINTABLE + " \n", max_size=200), SECRETS)
def test_masking_twice_changes_nothing(text, value):
    with fresh():
        secrets.learn(value)
        once = secrets.mask(f"{text} {value} --api-key {text}")
        assert secrets.mask(once) == once


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["a", "token", "HF_TOKEN", "phases"]), JSON), SECRETS)
def test_the_last_line_stays_one_line_of_json_without_the_secret(doc, value):
    from labkit.core.stdout import last_line

    with fresh(), contextlib.redirect_stdout(io.StringIO()) as out, secrets.screened():
        secrets.learn(value)
        last_line({**doc, "said": f"key {value}", "first_token_s": 1.25})
    line = out.getvalue()
    assert line.count("\n") == 1 and not leaks(line, value)
    assert json.loads(line)["first_token_s"] == 1.25 and json.loads(line)["said"] == "key ***"


@pytest.mark.parametrize(
    "call",
    [
        [
            "run",
            "--command",
            "no-such-program --api-key {q}",
            "--url",
            "http://127.0.0.1:1",
            "--weights",
            "/",
        ],
        ["run", "--command", "HF_TOKEN={q} serve", "--url", "http://127.0.0.1:1", "--weights", "/"],
        ["run", "--command", "true", "--url", "ftp://user:{u}@host/{u}", "--weights", "/"],
        [
            "run",
            "--command",
            "true --password {q}",
            "--url",
            "http://127.0.0.1:1",
            "--weights",
            "/nowhere/{u}",
        ],
        ["run", "naive", "--api-key", "{v}"],
        ["show", "/nowhere?sig={u}"],
        ["snapshot", "pull", "s4://me:{u}@bucket/{u}", "/nowhere/{u}"],
    ],
)
@given(value=SECRETS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_a_mistake_in_the_call_is_told_without_the_secret_in_it(call, value, tmp_path_factory):
    from labkit.cli import main

    argv = [part.format(q=shlex.quote(value), u=quote(value, safe=""), v=value) for part in call]
    out, err = io.StringIO(), io.StringIO()
    with (
        fresh(LABKIT_HOME=str(tmp_path_factory.mktemp("home"))),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = main(argv)
        except SystemExit as ended:
            code = ended.code
    assert code == 2 and err.getvalue() and not leaks(out.getvalue() + err.getvalue(), value)


@given(value=SECRETS)
@settings(max_examples=8)
def test_the_program_gets_its_secret_whole_while_the_record_has_none(value, tmp_path_factory):
    got = tmp_path_factory.mktemp("child") / "got"
    got.write_text("not yet")  # the weights of a server must be there
    code = "import os, sys; open(sys.argv[1], 'w').write(sys.argv[3] + os.environ['HF_TOKEN'])"
    with fresh():
        server = OwnServer.of(
            f"env HF_TOKEN={shlex.quote(value)} {sys.executable} -c {shlex.quote(code)} {got}"
            f" --api-key {shlex.quote(value)}",
            "http://127.0.0.1:9",
            str(got.parent),
        )
        subprocess.run(server.argv, check=True)
        assert got.read_text() == value + value
        assert not leaks(" ".join(secrets.mask_argv(server.argv)), value)


def test_two_commands_that_differ_in_their_key_alone_are_recorded_alike():
    with fresh():
        assert (
            secrets.mask_argv(["serve", "DIR", "--api-key", "abc-12345"])
            == secrets.mask_argv(["serve", "DIR", "--api-key", "another-678"])
            == ["serve", "DIR", "--api-key", "***"]
        )


INNOCENT = [
    "serve DIR --max-tokens 5",
    "--tokenizer DIR/tokenizer --tokenizer-mode auto",
    "--key-frames 12",
    "MODEL_KEY=models/small-pickle",
    "--max-num-batched-tokens 8192",
    "--bos-token <s> --pad-token <|endoftext|>",
    "TOKENIZERS_PARALLELISM=false",
    "--ssl-keyfile /etc/x.pem --token-file /run/x",
    "--sort-key created --cache-key lru",
    "PWD=/root OLDPWD=/tmp",
    "first_token=0.91 tokens=7",
    "SSH_AUTH_SOCK=/run/agent.sock",
    "AWS_REGION=eu-west-1 AWS_PROFILE=lab AWS_ENDPOINT_URL=http://127.0.0.1:9000",
    "--api-key EMPTY",
    "--api-key $OPENAI_API_KEY --hf-token ${HF_TOKEN}",
    "AWS_ACCESS_KEY_ID=labkit AWS_SECRET_ACCESS_KEY=labkit-not-a-secret",
    "http://127.0.0.1:8000/v1?list-type=2&continuation-token=abc",
    "git clone ssh://git@host/team/repo",
    "docker run --user 1000:1000 -p 8000:8000",
    "sha256:0123456789abcdef",
    "the first token: 1.3 s, a token a 3 ms",
    "python -m llama_cpp.server --model M.gguf --n_ctx 2048",
    "lab/models/small@v1:latest",
    "Basic authentication is wanted",
    "unexpected token: something",
    "GPG_KEY=A035C8C19219BA821ECEA86B64E628F8D684696D",
    "vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 2 --kv-cache-dtype auto",
    "--auth-type none --passes 3 --passthrough --compass north",
    "public_key=abc primary_key=id1",
]


@pytest.mark.parametrize("text", INNOCENT)
def test_what_is_no_secret_stays_readable(text):
    with fresh():
        secrets.learn_command(text)
        assert (
            secrets.mask(text) == text
            and secrets.mask_argv(text.split()) == text.split()
            and not secrets._known
        )


@pytest.mark.parametrize(
    "name",
    [
        "api-key",
        "apiKey",
        "APIKEY",
        "OPENAI_API_KEY",
        "NGC_API_KEY",
        "HF_TOKEN",
        "hugging_face_hub_token",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "DB_PASSWORD",
        "MYSQL_PWD",
        "PGPASSWORD",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "client-secret",
        "GITHUB_PAT",
        "private_key",
        "WANDB_API_KEY",
        "X-Amz-Signature",
        "identitytoken",
        "secret_key_base",
        "VLLM_API_KEY_2",
    ],
)
def test_names_of_secrets_are_known(name):
    assert is_secret_name(name)


def test_what_was_recorded_before_is_read_and_written_unchanged():
    found = sorted((ROOT / "data" / "recorded").rglob("*.json"))
    with fresh():
        assert found and all(
            secrets.masked(doc) == doc for doc in (json.loads(p.read_text()) for p in found)
        )


def test_no_line_of_our_own_help_is_masked():
    from labkit.cli import COMMANDS, parser

    with fresh():
        for command in COMMANDS:
            text = (
                parser(command).parse_args([command])._get_kwargs()
                if command == "doctor"
                else parser(command).format_help()
            )
            assert secrets.mask(str(text)) == str(text)


def test_the_embedded_stores_published_keys_are_no_secret():
    from labkit.core.secret_names import OPEN
    from labkit.objects.store import KEYS

    assert {*KEYS, *KEYS.values()} <= OPEN


def test_a_file_that_is_here_is_no_secret_and_one_that_is_not_may_be(tmp_path):
    (tmp_path / "key.json").write_text("{}")
    with fresh():
        assert (
            secrets.mask(f"GOOGLE_APPLICATION_CREDENTIALS={tmp_path}/key.json")
            == f"GOOGLE_APPLICATION_CREDENTIALS={tmp_path}/key.json"
        )
        assert secrets.mask(f"SOME_CREDENTIALS={tmp_path}/gone") == "SOME_CREDENTIALS=***"


@given(value=SECRETS, kept=st.integers(8, 40))
def test_a_secret_that_was_cut_off_does_not_show_what_is_left_of_it(value, kept):
    assume(8 <= kept < len(value))
    with fresh():
        secrets.learn(value)
        assert value[:kept] not in secrets.mask(f"the key is {value[:kept]}") and value[
            -kept:
        ] not in secrets.mask(f"{value[-kept:]} is the key")


def test_a_private_key_of_several_lines_is_masked_line_by_line():
    key = (
        "-----BEGIN PRIVATE"
        " KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\nEFAASCBKcwggSjAgEAAoIBAQC7\n-----END PRIVATE"
        " KEY-----"
    )
    with fresh(TLS_PRIVATE_KEY=key):
        assert (
            "MIIEvQ" not in secrets.mask(f"loaded:\n{key}")
            and secrets.mask("EFAASCBKcwggSjAgEAAoIBAQC7") == "***"
        )


@pytest.mark.parametrize(
    "token",
    [
        "hf_" + "a1B2" * 8,
        "sk-" + "proj-" + "x9" * 12,
        "ghp_" + "Ab3" * 12,
        "nvapi-" + "Zz9_" * 8,
        "AKIA" + "IOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0x.c2lnbmF0dXJl",
    ],
)
def test_a_secret_of_a_known_shape_needs_no_name(token):
    with fresh():
        assert token not in secrets.mask(f"using {token} now")


def test_environment_and_command_line_of_a_process_are_read_without_their_secrets():
    value = "seen-in-proc-8861"
    with fresh():
        child = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()", "--api-key", value],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "HF_TOKEN": value + "-t", "LANG": "C"},
        )
        try:
            # right after its exec a process shows no environment yet
            assert child.stdout.readline()
            facts = observe.process_facts(child.pid)
        finally:
            child.communicate(b"\n")
        assert (
            facts["environ"]["HF_TOKEN"] == "***"
            and facts["environ"]["LANG"] == "C"
            and facts["cmdline"][-2:] == ["--api-key", "***"]
        )
        assert secrets.mask(f"{value} {value}-t") == "*** ***"


def test_pages_and_executed_notebooks_show_no_value_that_is_known(tmp_path):
    from labkit.lessons import pages
    from labkit.lessons.execute import _mask_outputs

    value = "a<b>&'\"c-99421"
    doc = {
        "cells": [
            {
                "cell_type": "code",
                "source": "",
                "outputs": [{"output_type": "stream", "text": [f"key {value}\n"]}],
            },
            {"cell_type": "markdown", "source": "x"},
        ],
        "nbformat": 4,
    }
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps(doc))
    with fresh(HF_TOKEN=value):
        assert not leaks(
            pages.page(f"t {html.escape(value)}", f"<pre>{html.escape(value)}</pre>"), value
        )
        assert "<title>t ***</title>" in pages.page(f"t {value}", "")
        _mask_outputs(path)
    assert json.loads(path.read_text())["cells"][0]["outputs"][0]["text"] == [
        "key ***\n"
    ] and not leaks(path.read_text(), value)


def test_a_record_without_secrets_is_everybodys_and_one_of_a_command_its_owners(tmp_path):
    with fresh():
        plain = records.write(
            Run(
                "id",
                "2026-01-01",
                experiment={"arms": [{"name": "a", "stack": {"image": "full-pull"}}]},
            ),
            tmp_path / "a.json",
        )
        own = records.write(
            Run(
                "id",
                "2026-01-01",
                experiment={"arms": [{"name": "a", "stack": {"server": "serve DIR"}}]},
            ),
            tmp_path / "b.json",
        )
    assert [stat.S_IMODE(p.stat().st_mode) for p in (plain, own)] == [0o644, 0o600]


def test_a_traceback_of_the_lab_itself_is_masked(capsys):
    with fresh():
        secrets.learn("broken-key-7713")
        try:
            raise RuntimeError("cannot use broken-key-7713")
        except RuntimeError as error:
            secrets.excepthook(type(error), error, error.__traceback__)
    told = capsys.readouterr().err
    assert "RuntimeError: cannot use ***" in told and "broken-key-7713" not in told.splitlines()[-1]


def test_a_url_that_is_refused_is_cut_after_it_was_masked():
    from labkit.net.place import split

    with fresh(), pytest.raises(ValueError) as caught:
        split("s3://" + "x" * 180 + ":secret-password-123456@host/x")
    assert "secret-pass" not in str(caught.value)


def test_a_command_with_variables_in_front_is_told_how_to_pass_them(tmp_path):
    with fresh(), pytest.raises(BadInput) as caught:
        OwnServer.of("HF_TOKEN=abc-99123 serve", "http://127.0.0.1:8000", str(tmp_path))
    assert "env NAME=VALUE" in caught.value.fix and "abc-99123" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["x" * 1_000_000, "token=" * 100_000, "key=a' " * 100_000, "a-" * 300_000 + "key"],
    ids=["a picture's base64", "pairs", "quotes", "one long name"],
)
def test_a_long_text_is_gone_through_once(text):
    with fresh():
        secrets.learn("abc-12345")
        # with the square of its length this would take hours
        assert len(secrets.mask(text)) <= len(text)
