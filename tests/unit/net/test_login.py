"""Registries that ask for a login: what is sent to whom, and what is refused."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import BadInput, TransferError
from labkit.image.lazyfs.remote import RegistrySource
from labkit.image.oci_layout import Layout
from labkit.image.publish import publish_image
from labkit.image.pull import pull_into
from labkit.image.reference import parse_reference
from labkit.image.registry import Registry
from labkit.image.tiny import REFERENCE, tiny_layout
from labkit.net.client import Client, Retry
from labkit.net.credentials import Credentials, auth_files, credentials
from labkit.net.login import Login, challenges
from labkit.net.message import text
from labkit.net.server import HTTPServer

USER = Credentials("ada", "s3cret:with:colons")
EAGER = Retry(attempts=3, first_s=0.001, most_s=0.01)


class Guarded:
    """A registry that asks for a login, and the realm that gives its tokens, each a server of its
    own. Notes what each was sent."""

    def __init__(self, root, *, scheme="Bearer", realm="", secret=USER.basic):
        self.registry, self.scheme, self.realm, self.secret = Registry(root), scheme, realm, secret
        self.seen: list[tuple[str, str, str]] = []  # (who, request, Authorization)
        self.bodies: list[dict] = []
        self.valid = {"token-1"}
        self.given = 0
        self._lock = threading.Lock()

    def serve_registry(self, request):
        sent = request.header("authorization")
        with self._lock:
            self.seen.append(("registry", request.path, sent))
        if self.scheme == "Basic":
            if sent == self.secret:
                return self.registry(request)
            return text(401, "log in", WWW_Authenticate='Basic realm="here"')
        if sent.removeprefix("Bearer ") in self.valid:
            return self.registry(request)
        wanted = (
            "Bearer"
            f' realm="{self.realm or self.realm_url}",service="fake",'
            'scope="repository:somebody/else:pull,push",'
            ' Basic realm="old"'
        )
        return text(401, "log in", WWW_Authenticate=wanted)

    def serve_realm(self, request):
        sent = request.header("authorization")
        with self._lock:
            self.seen.append(("realm", request.target, sent))
            self.given += 1
            number = self.given
        body = request.body.read(1 << 16)
        if body:
            self.bodies.append({k: v[0] for k, v in parse_qs(body.decode()).items()})
        elif self.secret and sent != self.secret:
            return text(401, "who are you", WWW_Authenticate=f'Bearer realm="{self.realm_url}"')
        return text(
            200, json.dumps({"token": f"token-{number}", "expires_in": 60}), "application/json"
        )

    def __enter__(self):
        self._realm = HTTPServer(self.serve_realm).start()
        self.realm_url = self._realm.url + "/token?account=x"
        self._server = HTTPServer(self.serve_registry).start()
        self.url = self._server.url
        return self

    def __exit__(self, *_):
        self._server.stop()
        self._realm.stop()

    def sent_to(self, who):
        return [(target, sent) for name, target, sent in self.seen if name == who]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    base = tmp_path_factory.mktemp("guarded")
    tiny_layout(base / "plain", 30_000)
    publish_image(base / "registry", base / "plain", REFERENCE)
    return base / "registry"


def client_with(found):
    return Client(timeout_s=5, retry=EAGER, login=Login(lambda netloc, repository: found))


def pulled(guarded, tmp_path, found, streams=3):
    with client_with(found) as client:
        return pull_into(
            Layout(tmp_path / "content"),
            f"{guarded.url}/{REFERENCE}",
            streams=streams,
            client=client,
        )[0]


def test_a_registry_that_gives_tokens_to_everybody_is_pulled_from(image, tmp_path):
    with Guarded(image, secret="") as guarded:
        assert len(pulled(guarded, tmp_path, None).layers) == 3
        ((target, sent),) = guarded.sent_to("realm")
    # what is needed, not what was named
    assert (
        sent == ""
        and target == "/token?account=x&service=fake&scope=repository%3Alab%2Ftiny%3Apull"
    )


def test_stored_credentials_buy_one_token_for_all_layers_and_go_to_the_realm_alone(image, tmp_path):
    with Guarded(image) as guarded:
        pulled(guarded, tmp_path, USER)
        assert guarded.sent_to("realm") == [
            ("/token?account=x&service=fake&scope=repository%3Alab%2Ftiny%3Apull", USER.basic)
        ]
        assert {sent for _, sent in guarded.sent_to("registry")} == {"", "Bearer token-1"}


def test_a_token_that_expires_in_the_middle_is_replaced(image, tmp_path):
    with Guarded(image) as guarded:
        source = RegistrySource(
            parse_reference(f"{guarded.url}/{REFERENCE}"), client=client_with(USER)
        )
        layer = source.manifest().layers[0]
        assert b"".join(bytes(p) for p in source.stream(layer.digest, 0, 100))
        guarded.valid = {"token-2"}
        assert len(b"".join(bytes(p) for p in source.stream(layer.digest, 100, 200))) == 100
        assert len(guarded.sent_to("realm")) == 2
        source.close()


def test_basic_is_answered_with_stored_credentials(image, tmp_path):
    with Guarded(image, scheme="Basic") as guarded:
        assert len(pulled(guarded, tmp_path, USER).layers) == 3
        assert not guarded.sent_to("realm")


def test_an_identity_token_is_exchanged_in_the_body(image, tmp_path):
    with Guarded(image) as guarded:
        pulled(guarded, tmp_path, Credentials(refresh="a-refresh-token"))
        assert guarded.bodies == [
            {
                "service": "fake",
                "scope": "repository:lab/tiny:pull",
                "grant_type": "refresh_token",
                "client_id": "labkit",
                "refresh_token": "a-refresh-token",
            }
        ]


@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
@pytest.mark.parametrize("found", [None, Credentials("ada", "wrong")])
def test_no_or_wrong_credentials_are_one_error_that_says_how_to_log_in(
    image, tmp_path, scheme, found
):
    with Guarded(image, scheme=scheme) as guarded:
        with pytest.raises(TransferError) as caught:
            pulled(guarded, tmp_path, found)
        assert "podman login" in caught.value.fix and "wrong" not in str(caught.value)
        assert len(guarded.seen) < 6


def test_threads_that_are_refused_at_once_fetch_one_token(image, tmp_path):
    with Guarded(image) as guarded:
        with client_with(USER) as client:
            reference = parse_reference(f"{guarded.url}/{REFERENCE}")
            source = RegistrySource(reference, client=client)
            digest = source.manifest().layers[0].digest
            guarded.valid = {"token-2"}
            threads = [
                threading.Thread(target=lambda: list(source.stream(digest, 0, 50)))
                for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(guarded.sent_to("realm")) == 2


# ---- hostile registries


def test_credentials_do_not_leave_for_another_host_where_the_registry_has_no_tls(image, tmp_path):
    with Guarded(image) as guarded:
        guarded.realm = guarded.realm_url.replace("127.0.0.1", "localhost")
        with pytest.raises(TransferError, match="asks to send its credentials to localhost"):
            pulled(guarded, tmp_path, USER)
        assert not guarded.sent_to("realm")


def test_without_credentials_another_host_may_be_asked(image, tmp_path):
    with Guarded(image, secret="") as guarded:
        guarded.realm = guarded.realm_url.replace("127.0.0.1", "localhost")
        assert pulled(guarded, tmp_path, None)


def nobody_asks(*_):
    raise AssertionError("something was sent")


BLOB = "/v2/team/image/blobs/sha256:" + "0" * 64


@pytest.mark.parametrize(
    "registry, realm, found",
    [
        # TLS is not given up, not even for nothing
        ("https://registry.example", "http://registry.example/token", None),
        ("https://registry.example", "http://auth.example/token", USER),
        ("http://registry.example:5000", "https://auth.example/token", USER),
        ("http://registry.example:5000", "http://auth.example/token", Credentials(refresh="x")),
        ("https://registry.example", "https://user:password@auth.example/token", None),
        ("https://registry.example", "https://auth.example/token#x", None),
        ("https://registry.example", "file:///etc/passwd", None),
        ("https://registry.example", "/token", USER),
        ("https://registry.example", "https://auth.example/a b", USER),
    ],
)
def test_a_hostile_realm_is_refused_before_anything_is_sent(registry, realm, found):
    with pytest.raises(TransferError):
        Login(lambda *_: found).answer(registry + BLOB, f'Bearer realm="{realm}"', "", nobody_asks)


def test_over_tls_the_realm_may_be_another_host_as_docker_hubs_is():
    asked = []

    def ask(method, url, headers, body):
        asked.append((method, url, headers))
        return b'{"access_token": "t"}'

    login = Login(lambda *_: USER)
    assert login.answer(
        "https://registry.example" + BLOB, 'Bearer realm="https://auth.example/token"', "", ask
    )
    assert asked == [
        (
            "GET",
            "https://auth.example/token?scope=repository%3Ateam%2Fimage%3Apull",
            {"Authorization": USER.basic},
        )
    ]
    assert login.headers("GET", "https://registry.example" + BLOB) == {"Authorization": "Bearer t"}
    for other in (
        "http://registry.example" + BLOB,
        "https://registry.example:8443" + BLOB,
        "https://cdn.example" + BLOB,
        "https://registry.example" + BLOB.replace("team/image", "team/other"),
        "https://registry.example/anything",
    ):
        assert login.headers("GET", other) == {}
    assert login.headers("PUT", "https://registry.example" + BLOB) == {}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b'{"token": 5}',
        b'{"token": "a\\r\\nX-Injected: 1"}',
        b'{"token": ""}',
        b"\xff",
    ],
)
def test_an_answer_without_a_sound_token_is_an_error(answer):
    with pytest.raises(TransferError):
        Login(lambda *_: None).answer(
            "https://registry.example" + BLOB,
            'Bearer realm="https://auth.example/"',
            "",
            lambda *_: answer,
        )


def test_a_challenge_outside_the_distribution_api_reads_no_credentials():
    login = Login(nobody_asks)
    assert not login.answer(
        "https://bucket.example/lab/model.safetensors", 'Basic realm="x"', "", nobody_asks
    )
    assert not Login(lambda *_: None).answer(
        "https://registry.example" + BLOB, "Negotiate", "", nobody_asks
    )


@given(st.text(max_size=200))
def test_any_header_is_read_or_ignored(header):
    for scheme, fields in challenges(header).items():
        assert scheme == scheme.lower() and all(isinstance(v, str) for v in fields.values())


def test_challenges_are_told_apart():
    header = (
        'Bearer realm="https://a/t?x=1,2",scope="a:b:pull,push",error="in\\"valid", Basic'
        " realm=plain, Digest"
    )
    assert challenges(header) == {
        "bearer": {"realm": "https://a/t?x=1,2", "scope": "a:b:pull,push", "error": 'in"valid'},
        "basic": {"realm": "plain"},
        "digest": {},
    }


# ---- stored credentials


def stored(path, **doc):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(doc))
    return path


def auth(user, password):
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_files_are_read_in_podmans_order_and_docker_last(tmp_path):
    env = {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    assert [str(p.relative_to(tmp_path)) for p in auth_files(env)] == [
        "run/containers/auth.json",
        "home/.config/containers/auth.json",
        "home/.docker/config.json",
    ]
    assert credentials("ghcr.io", "a/b", env) is None
    stored(
        tmp_path / "home/.docker/config.json",
        auths={"ghcr.io": auth("docker", "d"), "docker-only.io": auth("docker", "o")},
    )
    stored(tmp_path / "home/.config/containers/auth.json", auths={"ghcr.io": auth("podman", "p")})
    assert credentials("ghcr.io", "a/b", env) == Credentials("podman", "p")
    assert credentials("docker-only.io", "a/b", env) == Credentials("docker", "o")
    named = stored(tmp_path / "named.json", auths={"ghcr.io": {"identitytoken": "i"}})
    assert credentials("ghcr.io", "a/b", {**env, "REGISTRY_AUTH_FILE": str(named)}) == Credentials(
        refresh="i"
    )
    assert credentials("docker-only.io", "a/b", {**env, "REGISTRY_AUTH_FILE": str(named)}) is None


def test_the_most_specific_entry_wins_and_other_hosts_get_nothing(tmp_path):
    file = stored(
        tmp_path / "auth.json",
        auths={
            "r.io": auth("host", "1"),
            "r.io/team": auth("team", "2"),
            "r.io/team/image": auth("image", "3"),
            "r.io:5000": auth("port", "4"),
            "https://index.docker.io/v1/": auth("hub", "5"),
            "empty.io": {},
        },
    )
    env = {"REGISTRY_AUTH_FILE": str(file)}
    users = {
        where: (credentials(*where, env) or Credentials()).user
        for where in [
            ("r.io", "team/image"),
            ("r.io", "team/other"),
            ("r.io", "teammate/image"),
            ("r.io:5000", "team/image"),
            ("registry-1.docker.io", "library/x"),
            ("empty.io", "x"),
            ("evil-r.io", "x"),
            ("r.io.evil", "x"),
        ]
    }
    assert list(users.values()) == ["image", "team", "host", "port", "hub", "", "", ""]


def test_a_credential_helper_is_asked_and_never_a_path(tmp_path, monkeypatch):
    helper = tmp_path / "bin/docker-credential-fake"
    helper.parent.mkdir()
    helper.write_text(
        '#!/bin/sh\nread -r key\n[ "$key" = r.io ] || exit 1\necho \'{"Username": "<token>",'
        ' "Secret": "from-helper"}\'\n'
    )
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    one = {
        "REGISTRY_AUTH_FILE": str(
            stored(tmp_path / "one.json", credHelpers={"r.io": "fake", "s.io": "fake"})
        )
    }
    assert (
        credentials("r.io", "x", one) == Credentials(refresh="from-helper")
        and credentials("s.io", "x", one) is None
    )
    store = {
        "REGISTRY_AUTH_FILE": str(
            stored(tmp_path / "two.json", auths={"r.io": {}}, credsStore="fake")
        )
    }
    assert credentials("r.io", "x", store) == Credentials(refresh="from-helper")
    with pytest.raises(BadInput, match="no name of a credential helper"):
        credentials(
            "r.io",
            "x",
            {
                "REGISTRY_AUTH_FILE": str(
                    stored(tmp_path / "three.json", credHelpers={"r.io": "../../evil"})
                )
            },
        )


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "[]",
        '{"auths": [1]}',
        '{"auths": {"r.io": {"auth": "!!"}}}',
        '{"auths": {"r.io": {"auth": "bm9jb2xvbg=="}}}',
    ],
)
def test_a_damaged_file_is_named(tmp_path, body):
    file = tmp_path / "auth.json"
    file.write_text(body)
    with pytest.raises(BadInput, match="auth.json"):
        credentials("r.io", "x", {"REGISTRY_AUTH_FILE": str(file)})


def test_a_secret_is_in_no_representation():
    assert "s3cret" not in repr(USER)
