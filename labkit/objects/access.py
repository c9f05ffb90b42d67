"""Where a bucket answers and how its requests are signed, from the environment and the files that
the cloud's own tools read.

    access = Access("s3", os.environ)            # AWS_ENDPOINT_URL, else the region's own
    access.url("lab", "images/manifest")         # of an object, path-style
    with access.client() as client: …            # signs, where there are keys

Without keys requests go unsigned, which public buckets and the embedded store's reads accept.
`gs://` takes HMAC keys (GS_ACCESS_KEY_ID, GS_SECRET_ACCESS_KEY) or none. Requests are path-style
unless the profile says `addressing_style = virtual`. A bucket that answers that it is in another
region is asked there. Nothing but hashing is imported: a server reads its weights through this.
Lesson: notebooks/05_streaming."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from labkit.errors import BadInput
from labkit.net.outbound import CA_BUNDLES, PROXY_NAMES, Outbound, is_loopback
from labkit.net.place import Place, split
from labkit.objects import sigv4
from labkit.objects.profile import ADDRESSING_STYLE, completed

if TYPE_CHECKING:
    from labkit.net.client import Client
    from labkit.net.http import Answer

#: The embedded store's bucket.
BUCKET = "lab"
#: What a server needs of the user's environment to reach a bucket outside of the lab. Values never
#: enter a record.
PASSED = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_CA_BUNDLE",
    *CA_BUNDLES,
    *PROXY_NAMES,
    "GS_ACCESS_KEY_ID",
    "GS_SECRET_ACCESS_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "CLOUD_STORAGE_EMULATOR_ENDPOINT",
    "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING",
    "RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS",
)
ENDPOINTS = {
    "gs": ("CLOUD_STORAGE_EMULATOR_ENDPOINT", "STORAGE_EMULATOR_HOST"),
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
}
_AWS = re.compile(r"(?:.+\.)?amazonaws\.com(?:\.cn)?")
_REGION = re.compile(r"[a-z0-9-]{1,63}")
_REGION_OF = re.compile(rb"<Region>([a-z0-9-]{1,63})</Region>")
_NUMERIC = re.compile(r"[0-9.]+|.*:.*")


def split_url(url: str) -> tuple[str, str, str]:
    """`s3://bucket/prefix` → scheme, bucket, prefix. Raises BadInput."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme not in ("s3", "gs") or not bucket:
        raise BadInput(f"not a bucket URL: {url!r}", fix="write it like s3://lab/images")
    return scheme, bucket, prefix.strip("/")


class Access:
    """One cloud's buckets. Raises BadInput for an environment that names no server or no keys."""

    def __init__(self, scheme: str, env: Mapping[str, str]):
        self.scheme = scheme
        self.env = completed(env) if scheme == "s3" else env
        self.keys = _keys(scheme, self.env)
        self.region = (
            "auto"
            if scheme == "gs"
            else self.env.get("AWS_REGION") or self.env.get("AWS_DEFAULT_REGION") or "us-east-1"
        )
        self.endpoint = _endpoint(scheme, self.env) or (
            "https://storage.googleapis.com"
            if scheme == "gs"
            else f"https://s3.{self.region}.amazonaws.com"
            + (".cn" if self.region.startswith("cn-") else "")
        )
        place = split(self.endpoint)[0]
        self.virtual = (
            self.env.get(ADDRESSING_STYLE) == "virtual"
            and not _NUMERIC.fullmatch(place.host)
            and not is_loopback(place.host)
        )
        self.outbound = Outbound(
            self.env, ("AWS_CA_BUNDLE", *CA_BUNDLES) if scheme == "s3" else CA_BUNDLES
        )

    @property
    def named(self) -> bool:
        """Whether the environment says which S3 is meant."""
        return self.scheme == "gs" or any(
            self.env.get(n)
            for n in (*ENDPOINTS["s3"], "AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_DEFAULT_REGION")
        )

    def url(self, bucket: str, key: str = "") -> str:
        """Of an object, or of the bucket."""
        base = self.endpoint
        if self.virtual and "." not in bucket:  # certificates cover one name below the endpoint
            base = base.replace("://", f"://{sigv4.encode(bucket)}.", 1)
        else:
            base = f"{base}/{sigv4.encode(bucket)}"
        return f"{base}/{sigv4.encode(key, '/')}" if key else base

    def client(self, **options: Any) -> Client:
        """Signs with the keys there are; a bucket without keys is no registry: there is nobody to
        log in to. `options`: `Client`'s."""
        from labkit.net.client import Client

        return Client(
            authorize=self.sign, relocate=self.elsewhere, outbound=self.outbound, **options
        )

    def sign(self, method: str, url: str, headers: dict[str, str]) -> dict[str, str]:
        """The headers of a signed request; as they are without keys, and for a server that is none
        of this cloud's: one that a redirect led to has its own permission in its URL."""
        payload = headers.pop("x-amz-content-sha256", "")
        if self.keys is None or not self._ours(split(url)[0]):
            return headers
        return sigv4.sign(
            method,
            url,
            headers,
            self.keys,
            region=self.region,
            payload=payload or sigv4.UNSIGNED,
        )

    def _ours(self, place: Place) -> bool:
        own = split(self.endpoint)[0]
        below = place.host == own.host or place.host.endswith(f".{own.host}")
        aws = _AWS.fullmatch(own.host) and _AWS.fullmatch(place.host)
        return place.scheme == own.scheme and ((below and place.port == own.port) or bool(aws))

    def elsewhere(self, url: str, refused: Answer) -> str:
        """The URL to ask again, where a refusal names the bucket's region; "" where it does not.
        From then on this access is of that region."""
        if refused.status not in (301, 307, 400, 403) or self.scheme != "s3":
            return ""
        in_body = _REGION_OF.search(refused.body)
        region = refused.headers.get("x-amz-bucket-region") or (
            in_body[1].decode() if in_body else ""
        )
        if not _REGION.fullmatch(region) or region == self.region:
            return ""
        old, self.region = self.region, region
        if _AWS.fullmatch(split(self.endpoint)[0].host):
            self.endpoint = self.endpoint.replace(f".{old}.", f".{region}.", 1)
            return url.replace(f".{old}.amazonaws.com", f".{region}.amazonaws.com", 1)
        return url if self.keys else ""


def proxy_to(url: str, env: Mapping[str, str]) -> str:
    """The proxy between this host and a bucket, which belongs into a record; "" for none. Raises
    BadInput."""
    access = Access(split_url(url)[0], env)
    proxy = access.outbound.proxy(split(access.endpoint)[0])
    return proxy.name if proxy else ""


def _endpoint(scheme: str, env: Mapping[str, str]) -> str:
    from labkit.core.arguments import web_url

    if env.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true" and scheme == "s3":
        return ""
    for name in ENDPOINTS[scheme]:
        if value := env.get(name):
            if scheme == "gs" and "://" not in value:  # as Google's own libraries take it
                value = f"http://{value}"
            try:
                split(value)
                return web_url(value).rstrip("/")
            except (BadInput, ValueError):
                raise BadInput(
                    f"{name}={value} is not an address of a server",
                    why="the bucket would be asked for there",
                    fix=(
                        f"export {name}=http://HOST:PORT (labkit store serve prints one), or unset"
                        f" {name}"
                    ),
                ) from None
    return ""


def _keys(scheme: str, env: Mapping[str, str]) -> sigv4.Keys | None:
    prefix, token = ("GS", "") if scheme == "gs" else ("AWS", env.get("AWS_SESSION_TOKEN", ""))
    access, secret = env.get(f"{prefix}_ACCESS_KEY_ID"), env.get(f"{prefix}_SECRET_ACCESS_KEY")
    return sigv4.Keys(access, secret, token) if access and secret else None


def access_of(url: str, env: Mapping[str, str]) -> Access:
    """Raises BadInput where the environment does not say which S3 is meant."""
    access = Access(split_url(url)[0], env)
    if not access.named:
        raise BadInput(
            f"{url}: no endpoint to ask",
            why=(
                "s3:// names a bucket, not a host: neither AWS_ENDPOINT_URL nor credentials nor a"
                " region are set"
            ),
            fix=(
                "export AWS_ENDPOINT_URL=http://HOST:PORT (labkit store serve prints one), or your"
                " bucket's credentials and region"
            ),
        )
    return access
