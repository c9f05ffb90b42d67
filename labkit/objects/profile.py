"""What the files of AWS's tools add to the environment: keys, region, endpoint, authorities and
addressing style of a profile.

    env = completed(os.environ)        # the same names; what the environment itself says wins

Read as boto3 reads them: ~/.aws/credentials before ~/.aws/config (AWS_SHARED_CREDENTIALS_FILE,
AWS_CONFIG_FILE), the profile of AWS_PROFILE or `default`. Keys are taken as a whole from one place.
Sources that have to be asked (SSO, roles, processes, instance metadata) are not: their keys are
exported first. Limit: two small files. Source: AWS SDKs and Tools Reference Guide, "Shared config
and credentials files", "Service-specific endpoints". Lesson: notebooks/02_image_pull."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from labkit.errors import BadInput

#: This module's own name for `s3 = addressing_style = …`, which the tools read from files only.
ADDRESSING_STYLE = "AWS_S3_ADDRESSING_STYLE"
_KEYS = {
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
}
_ASKED = (
    "sso_session",
    "sso_start_url",
    "role_arn",
    "credential_process",
    "web_identity_token_file",
)


def completed(env: Mapping[str, str]) -> dict[str, str]:
    """Raises BadInput for a file that cannot be read, a profile that is not there, and one whose
    keys have to be asked for."""
    profile = env.get("AWS_PROFILE") or env.get("AWS_DEFAULT_PROFILE") or ""
    paths = (
        _file(env, "AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
        _file(env, "AWS_CONFIG_FILE", ".aws/config"),
    )
    if not any(paths):
        if profile:
            raise _no_profile(profile, "no file of profiles is there")
        return dict(env)
    credentials, config = map(_parsed, paths)
    name = profile or "default"
    in_config = config.get(name if name == "default" else f"profile {name}", {})
    in_credentials = credentials.get(name, {})
    if profile and not in_config and not in_credentials:
        raise _no_profile(
            profile, "none of that name in " + " and ".join(str(path) for path in paths if path)
        )
    return _merged(env, name, in_credentials, in_config, config)


def _merged(
    env: Mapping[str, str],
    name: str,
    in_credentials: Mapping[str, str],
    in_config: Mapping[str, str],
    config: Mapping[str, Mapping[str, str]],
) -> dict[str, str]:
    found: dict[str, str] = {}
    if not env.get("AWS_ACCESS_KEY_ID"):
        keys = next((s for s in (in_credentials, in_config) if s.get("aws_access_key_id")), {})
        found |= {variable: keys.get(option, "") for variable, option in _KEYS.items()}
        asked = [option for option in _ASKED if option in in_config or option in in_credentials]
        if asked and not keys:
            raise BadInput(
                f"the profile {name} takes its keys from {asked[0]}",
                why="only keys that stand in a file or in the environment are read",
                fix=f'eval "$(aws configure export-credentials --profile {name} --format env)"',
            )
    if not env.get("AWS_REGION") and not env.get("AWS_DEFAULT_REGION"):
        found["AWS_REGION"] = in_config.get("region") or in_credentials.get("region") or ""
    found["AWS_CA_BUNDLE"] = in_config.get("ca_bundle", "")
    found[ADDRESSING_STYLE] = _nested(in_config.get("s3", "")).get("addressing_style", "")
    if not env.get("AWS_ENDPOINT_URL") and not env.get("AWS_ENDPOINT_URL_S3"):
        services = config.get(f"services {in_config.get('services', '')}", {})
        found["AWS_ENDPOINT_URL_S3"] = _nested(services.get("s3", "")).get(
            "endpoint_url", ""
        ) or in_config.get("endpoint_url", "")
    missing = {k: v.strip() for k, v in found.items() if v.strip() and not env.get(k)}
    return {**env, **missing}


def _file(env: Mapping[str, str], name: str, usual: str) -> Path | None:
    """The file, where there is one; without HOME in `env` nothing of anybody's home is read."""
    home, named = env.get("HOME", ""), env.get(name, "")
    if not named and not home:
        return None
    path = Path(home, named.removeprefix("~/")) if named.startswith("~/") else Path(named)
    path = path if named else Path(home, usual)
    return path if path.is_file() else None


def _parsed(path: Path | None) -> dict[str, dict[str, str]]:
    if path is None:
        return {}
    from configparser import ConfigParser, Error

    parser = ConfigParser(interpolation=None, default_section="\0", strict=False, delimiters=("=",))
    try:
        parser.read_string(path.read_text())
    except (OSError, ValueError, Error) as error:
        raise BadInput(
            f"{path} cannot be read as a file of profiles: {type(error).__name__}",
            why="keys or region of the bucket may stand there",
            fix="aws configure writes it, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ) from None
    return {section.strip(): dict(parser[section]) for section in parser.sections()}


def _nested(text: str) -> dict[str, str]:
    """`s3 =` with indented lines of its own."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _no_profile(name: str, why: str) -> BadInput:
    return BadInput(
        f"AWS_PROFILE={name} names no profile",
        why=why,
        fix="aws configure list-profiles says which there are; or unset AWS_PROFILE",
    )
