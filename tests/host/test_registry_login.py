"""The reference registry with a login in front: the lab's clients pull from it with what podman
would have stored."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from labkit.errors import TransferError
from labkit.image.lazyfs.remote import RegistrySource
from labkit.image.oci_layout import Layout
from labkit.image.pull import pull_into
from labkit.image.reference import parse_reference
from labkit.image.tiny import REFERENCE, tiny_layout
from labkit.net.message import text
from labkit.net.server import HTTPServer

pytestmark = pytest.mark.needs("docker-registry", "skopeo")

USER, PASSWORD = "ada", "s3cret"
# bcrypt of the password
HTPASSWD = "ada:$2b$04$abcdefghijklmnopqrstuuLZYjhNQAOdpbzt4WxWlUHjv1wsyH5DG\n"


@contextmanager
def registry(folder, auth: str):
    """docker-registry on a free port, its storage in `folder`. Yields HOST:PORT."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: warn}}\nhttp: {{addr: '{address}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: '{folder}/storage'}}}}\nauth: {auth}\n"
    )
    program = shutil.which("docker-registry") or "registry"
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(
            [program, "serve", str(folder / "config.yml")], stdout=log, stderr=log
        ) as process,
    ):
        try:
            until = time.monotonic() + 20
            while status(f"http://{address}/v2/") != 401:
                assert process.poll() is None and time.monotonic() < until, (
                    folder / "log"
                ).read_text()
                time.sleep(0.02)
            yield address
        finally:
            process.kill()


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


class Realm:
    """Signs what the reference registry believes: a JWT that grants the asked scope to whoever has
    the password."""

    def __init__(self, folder):
        self.folder, self.scopes = folder, []
        subprocess.run(
            [
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-subj",
                "/CN=lab",
                "-days",
                "2",
                "-keyout",
                str(folder / "key.pem"),
                "-out",
                str(folder / "cert.pem"),
            ],
            check=True,
            capture_output=True,
        )
        self.certificate = "".join((folder / "cert.pem").read_text().split("-----")[2].split())

    def __call__(self, request):
        if (
            request.header("authorization")
            != "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        ):
            return text(401, "who are you")
        self.scopes.append(request.query["scope"])
        kind, name, actions = request.query["scope"].split(":")
        now = int(time.time())
        claims = {
            "iss": "lab",
            "sub": USER,
            "aud": request.query["service"],
            "exp": now + 60,
            "nbf": now - 60,
            "iat": now,
            "jti": str(len(self.scopes)),
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        signed = b".".join(
            _packed(json.dumps(d).encode())
            for d in ({"typ": "JWT", "alg": "RS256", "x5c": [self.certificate]}, claims)
        )
        made = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self.folder / "key.pem")],
            input=signed,
            check=True,
            capture_output=True,
        ).stdout
        return text(
            200, json.dumps({"token": (signed + b"." + _packed(made)).decode()}), "application/json"
        )


def _packed(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def pulls_both_ways(address: str, tmp_path, monkeypatch) -> None:
    """skopeo pushes with a password; the lab pulls whole and by ranges with the stored one, and
    nothing without it."""
    tiny_layout(tmp_path / "plain", 200_000)
    Layout(tmp_path / "plain").add(Layout(tmp_path / "plain").manifest(REFERENCE), "latest")
    done = subprocess.run(
        [
            "skopeo",
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            f"--dest-creds={USER}:{PASSWORD}",
            f"oci:{tmp_path}/plain:latest",
            f"docker://{address}/{REFERENCE}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    with pytest.raises(TransferError, match="40[13]|wants a login"):
        pull_into(Layout(tmp_path / "nothing"), f"http://{address}/{REFERENCE}")
    (tmp_path / "auth.json").write_text(
        json.dumps(
            {"auths": {address: {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}}}
        )
    )
    manifest, facts = pull_into(Layout(tmp_path / "content"), f"http://{address}/{REFERENCE}")
    want = Layout(tmp_path / "plain").manifest(REFERENCE)
    assert [d.digest for d in manifest.layers] == [d.digest for d in want.layers] and facts[
        "bytes_fetched"
    ] >= want.layers_bytes
    source = RegistrySource(parse_reference(f"http://{address}/{REFERENCE}"))
    layer = source.manifest().layers[0]
    whole = Layout(tmp_path / "plain").blob_path(layer.digest).read_bytes()
    assert b"".join(bytes(p) for p in source.stream(layer.digest, 100, 5000)) == whole[100:5000]
    source.close()


def test_the_reference_registry_with_passwords(tmp_path, monkeypatch):
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    with registry(
        tmp_path, f"{{htpasswd: {{realm: lab, path: '{tmp_path}/htpasswd'}}}}"
    ) as address:
        pulls_both_ways(address, tmp_path, monkeypatch)


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl to sign tokens with")
def test_the_reference_registry_with_tokens(tmp_path, monkeypatch):
    realm = Realm(tmp_path)
    with (
        HTTPServer(realm) as server,
        registry(
            tmp_path,
            f"{{token: {{realm: '{server.url}/token', service: fake, issuer: lab, rootcertbundle:"
            f" '{tmp_path}/cert.pem'}}}}",
        ) as address,
    ):
        pulls_both_ways(address, tmp_path, monkeypatch)
    assert f"repository:{REFERENCE.partition(':')[0]}:pull" in realm.scopes
