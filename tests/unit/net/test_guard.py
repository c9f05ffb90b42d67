"""Who may ask, and what a server says when it listens to more than this host."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from labkit.net.guard import Guard, exposure, foreign, host_of, is_loopback
from labkit.net.head import BadMessage
from labkit.net.message import Request
from labkit.subject.http import ModelServer
from labkit.subject.server import State


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6 loopback")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LocalHost.", "[::1]", "::ffff:127.0.0.1"],
)
def test_addresses_that_only_this_host_reaches_expose_nothing(host):
    assert is_loopback(host) and exposure(host, "x", "y") == ""


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "::",
        "",
        "192.168.0.7",
        "10.0.0.1",
        "lab.example",
        "127.0.0.1.example",
        "::ffff:10.0.0.1",
        "localhost.example",
    ],
)
def test_every_other_address_is_warned_about_with_what_is_open_and_the_fix(host):
    said = exposure(host, "its images can be read", "--read-only")
    assert (
        not is_loopback(host)
        and "its images can be read" in said
        and "--read-only" in said
        and "ssh -L" in said
    )


@pytest.mark.parametrize(
    "netloc, wanted",
    [("h:80", "h"), ("[::1]:80", "::1"), ("H.", "h"), ("", ""), ("127.0.0.1", "127.0.0.1")],
)
def test_the_name_in_a_host_header(netloc, wanted):
    assert host_of(netloc) == wanted


@pytest.mark.parametrize(
    "headers, wanted",
    [
        ({}, False),
        ({"origin": "http://h:1", "host": "h:1"}, False),
        ({"origin": "http://h:2", "host": "h:1"}, True),
        ({"origin": "null"}, True),
        ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": "same-origin"}, False),
        ({"sec-fetch-site": "same-site"}, True),
        ({"origin": ""}, True),
        ({"sec-fetch-site": "cross-site", "origin": "http://h", "host": "h"}, True),
    ],
)
def test_a_page_is_foreign_when_its_origin_is(headers, wanted):
    assert foreign(headers) is wanted


def start(*argv: str) -> tuple[dict, str, int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "labkit", *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate("")
    return json.loads(out) if out.startswith("{") else {}, err, process.returncode


@pytest.mark.parametrize(
    "argv, opened",
    [
        (["registry", "serve", "--read-only"], "images can be read,"),
        (["registry", "serve", "--open-writes"], "read, pushed and deleted"),
        (["store", "serve"], "writes want the keys"),
        (["store", "serve", "--open-writes"], "written and deleted"),
    ],
)
@pytest.mark.parametrize("host", ["0.0.0.0", pytest.param("::", marks=IPV6)])
def test_a_server_that_listens_to_the_network_says_what_is_open(tmp_path, argv, opened, host):
    doc, err, code = start(*argv, "--root", str(tmp_path), "--child", "--host", host)
    assert (
        code == 0
        and opened in err
        and f"warning: listening on {host}" in err
        and "ssh -L" in err
        and doc["port"]
    )


@pytest.mark.parametrize("argv", [["registry", "serve"], ["store", "serve"]])
def test_a_server_of_this_host_only_warns_of_nothing(tmp_path, argv):
    doc, err, code = start(*argv, "--root", str(tmp_path), "--child")
    assert (code, err) == (0, "") and doc["host"] == "127.0.0.1"


def test_a_registry_that_the_network_could_push_to_wants_that_said(tmp_path):
    _, err, code = start(
        "registry", "serve", "--root", str(tmp_path), "--child", "--host", "0.0.0.0"
    )
    assert code == 2 and "--open-writes" in err and "Traceback" not in err


def test_the_keys_of_a_store_that_the_network_reaches_are_not_the_ones_in_the_source(tmp_path):
    found = [
        start("store", "serve", "--root", str(tmp_path), "--child", *more)[0]["env"][
            "AWS_SECRET_ACCESS_KEY"
        ]
        for more in ([], ["--host", "0.0.0.0"], ["--host", "0.0.0.0"])
    ]
    assert found[0] == "labkit-not-a-secret" and len(set(found)) == 3


@pytest.mark.parametrize("host", ["0.0.0.0", pytest.param("::", marks=IPV6)])
def test_a_model_that_the_network_can_ask_is_warned_about(host, capsys):
    ModelServer(host, 0, State("tiny")).stop()
    assert "the model answers whoever asks" in capsys.readouterr().err


@pytest.mark.parametrize(
    "peer, here, allowed",
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", True),
        ("10.0.0.7", "10.0.0.7", True),
        ("10.0.0.8", "10.0.0.7", False),
        ("8.8.8.8", "127.0.0.1", False),
    ],
)
@pytest.mark.parametrize("path", ["/_labkit/faults", "/_labkit/shrink"])
def test_a_server_on_the_network_is_controlled_from_its_own_host_alone(path, peer, here, allowed):
    asked = Request(
        "POST",
        path,
        path,
        path,
        {},
        "",
        {"host": "10.0.0.7:5000", "x-labkit": "control"},
        peer=peer,
    )
    if allowed:
        Guard("0.0.0.0").check(asked, here)
    else:
        with pytest.raises(BadMessage, match="for the host itself"):
            Guard("0.0.0.0").check(asked, here)


@pytest.mark.parametrize(
    "bound, host, answered",
    [
        ("0.0.0.0", "registry.example:5000", True),
        ("lab.example", "lab.example", True),
        ("127.0.0.1", "registry.example", False),
        ("::1", "[::1]:5000", True),
    ],
)
def test_a_name_is_asked_for_only_where_strangers_could_not_reach_the_server_anyway(
    bound, host, answered
):
    asked = Request("GET", "/v2/", "/v2/", "/v2/", {}, "", {"host": host})
    if answered:
        Guard(bound).check(asked)
    else:
        with pytest.raises(BadMessage):
            Guard(bound).check(asked)


@IPV6
def test_a_server_listens_on_ipv6_too_and_its_url_says_so():
    from labkit.net.client import Client
    from labkit.net.message import text
    from labkit.net.server import HTTPServer as Plain

    with (
        Plain(lambda request: text(200, request.header("host")), host="::1") as server,
        Client() as client,
    ):
        assert (
            client.ask("GET", server.url).body.decode() == f"[::1]:{server.port}"
            and server.url == f"http://[::1]:{server.port}"
        )
