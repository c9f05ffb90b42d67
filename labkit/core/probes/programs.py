"""Programs and credentials beside the lab: a browser, servers that others wrote, buckets.

Lesson: notebooks/00_start_here."""

from __future__ import annotations

import os

from labkit.core import host
from labkit.core.probes.probe import (
    Capability,
    no,
    package,
    probe,
    program,
    yes,
)


@probe(
    "chromium",
    "Chromium",
    "reports, widgets and notebooks are looked at in a real browser by the tests",
)
def _chromium() -> Capability:
    return program("chromium", "chromium-browser", "google-chrome", "chrome")


@probe("llamacpp", "llama-cpp-python", "a server we did not write, loading GGUF")
def _llamacpp() -> Capability:
    found = package("llama_cpp")
    return (
        yes(host.package_version("llama-cpp-python") or "")
        if found.ok
        else no(
            "no llama_cpp package",
            "pip install 'labkit[llamacpp]'  (compiles for minutes; docs/host-tools.md)",
        )
    )


@probe("xllamacpp", "llama.cpp (xllamacpp)", "tokens and answers of what the lab writes as GGUF")
def _xllamacpp() -> Capability:
    found = package("xllamacpp")
    return (
        yes(host.package_version("xllamacpp") or "")
        if found.ok
        else no("no xllamacpp package", "pip install -c constraints.txt xllamacpp")
    )


@probe(
    "transformers-serve", "transformers serve", "a server we did not write, measured from outside"
)
def _transformers_serve() -> Capability:
    for name in ("transformers", "fastapi", "uvicorn"):
        if not package(name).ok:
            return no(f"no {name} package", "pip install 'labkit[servers]'")
    return yes(f"transformers {host.package_version('transformers')}")


@probe(
    "aws-credentials",
    "S3 credentials",
    "the same loaders against a real bucket; values are never read, only seen to be set",
)
def _aws() -> Capability:
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    ):
        if os.environ.get(name):
            return yes(f"{name} is set")
    if os.path.exists(
        os.path.expanduser(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials")
    ):
        return yes("a shared credentials file")
    return no(
        "none found; the embedded store needs none",
        "export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…",
    )


@probe("gcs-credentials", "GCS credentials", "the same loaders against a real bucket")
def _gcs() -> Capability:
    if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return yes("GOOGLE_APPLICATION_CREDENTIALS is set")
    if os.path.exists(os.path.expanduser("~/.config/gcloud/application_default_credentials.json")):
        return yes("application default credentials")
    return no("none found; the embedded store needs none", "gcloud auth application-default login")
