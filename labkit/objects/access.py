"""Where a bucket answers and how its requests are signed, from the environment that the cloud's own
tools read.

    endpoint_of("s3", os.environ)                # AWS_ENDPOINT_URL, else the region's own
    authorize = authorizer("s3", os.environ)     # (method, url, headers) -> signed headers; None
        without keys

Without keys requests go unsigned, which public buckets and the embedded store's reads accept.
`gs://` takes HMAC keys (GS_ACCESS_KEY_ID, GS_SECRET_ACCESS_KEY) or none. Nothing but hashing is
imported: a server reads its weights through this. Lesson: notebooks/05_streaming."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from labkit.errors import BadInput
from labkit.objects import sigv4

#: The embedded store's bucket.
BUCKET = "lab"
#: What a server needs of the user's environment to reach a bucket outside of the lab. Values never
#: enter a record.
PASSED = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "GS_ACCESS_KEY_ID",
    "GS_SECRET_ACCESS_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "CLOUD_STORAGE_EMULATOR_ENDPOINT",
    "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING",
    "RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS",
)


def split_url(url: str) -> tuple[str, str, str]:
    """`s3://bucket/prefix` → scheme, bucket, prefix. Raises BadInput."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme not in ("s3", "gs") or not bucket:
        raise BadInput(f"not a bucket URL: {url!r}", fix="write it like s3://lab/images")
    return scheme, bucket, prefix.strip("/")


def region_of(env: Mapping[str, str]) -> str:
    return env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"


ENDPOINTS = {
    "gs": ("CLOUD_STORAGE_EMULATOR_ENDPOINT", "STORAGE_EMULATOR_HOST"),
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
}


def endpoint_of(scheme: str, env: Mapping[str, str]) -> str:
    """Raises BadInput for an endpoint in the environment that is no address."""
    from labkit.core.arguments import web_url

    for name in ENDPOINTS[scheme if scheme == "gs" else "s3"]:
        if value := env.get(name):
            try:
                return web_url(value).rstrip("/")
            except BadInput:
                raise BadInput(
                    f"{name}={value} is not an address of a server",
                    why="the bucket would be asked for there",
                    fix=(
                        f"export {name}=http://HOST:PORT (labkit store serve prints one), or unset"
                        f" {name}"
                    ),
                ) from None
    return (
        "https://storage.googleapis.com"
        if scheme == "gs"
        else f"https://s3.{region_of(env)}.amazonaws.com"
    )


def http_of(url: str, env: Mapping[str, str]) -> str:
    """`s3://bucket/prefix` → the HTTP address of the same. Raises BadInput where the environment
    does not say which S3."""
    scheme, bucket, prefix = split_url(url)
    if scheme == "s3" and not any(
        env.get(n)
        for n in (
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_S3",
            "AWS_ACCESS_KEY_ID",
            "AWS_REGION",
            "AWS_DEFAULT_REGION",
        )
    ):
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
    return f"{endpoint_of(scheme, env)}/{sigv4.encode(f'{bucket}/{prefix}'.rstrip('/'), '/')}"


def keys_of(scheme: str, env: Mapping[str, str]) -> sigv4.Keys | None:
    names = (
        ("GS_ACCESS_KEY_ID", "GS_SECRET_ACCESS_KEY")
        if scheme == "gs"
        else ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    )
    if not env.get(names[0]) or not env.get(names[1]):
        return None
    return sigv4.Keys(
        env[names[0]], env[names[1]], env.get("AWS_SESSION_TOKEN", "") if scheme == "s3" else ""
    )


def authorizer(
    scheme: str, env: Mapping[str, str]
) -> Callable[[str, str, dict[str, str]], dict[str, str]] | None:
    """Signs a request's headers with the environment's keys of this scheme; None where it has
    none."""
    keys, region = keys_of(scheme, env), "auto" if scheme == "gs" else region_of(env)
    if keys is None:
        return None

    def authorize(method: str, target: str, headers: dict[str, str]) -> dict[str, str]:
        payload = headers.pop("x-amz-content-sha256", "")
        return sigv4.sign(
            method, target, headers, keys, region=region, payload=payload or sigv4.UNSIGNED
        )

    return authorize
