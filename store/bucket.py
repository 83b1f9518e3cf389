"""How a bucket is reached: its URL, the environment's settings and credentials, the connections.

Credentials come from where each cloud's own tools look for them, and are neither kept nor shown.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from obstore.store import AzureStore, GCSStore, S3Store

from wsa.store.common.errors import StorageError, UsageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

Client: TypeAlias = S3Store | GCSStore | AzureStore

# What each kind of place reads credentials from, and what else may be set.
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN where they are "
    "temporary), or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
SETTINGS = {
    "s3": "AWS_ENDPOINT_URL and AWS_REGION",
    "gs": "GOOGLE_BASE_URL",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ENDPOINT",
}
ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
# With one of these, no profile is looked for.
_GIVEN = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_PROFILES = {
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CONFIG_FILE": "~/.aws/config",
}

PATIENCE_S = 60.0
CONNECT_S = 5.0
# A request for this many bytes may take this long; a larger one in proportion.
REQUEST_S = 30.0
REQUEST_BYTES = 8 << 20

_URL = re.compile(
    r"(s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._-]{1,62})((?:/[A-Za-z0-9_][A-Za-z0-9._=+-]*)*)/?"
)


class Place(NamedTuple):
    """A bucket and the folder in it."""

    scheme: str
    bucket: str
    prefix: str


def parse(url: str) -> Place:
    """The place that a URL names.

    Raises:
        UsageError: It is not spelled like `s3://bucket/folder`, or holds what may be secret, which
            is not repeated.
    """
    if found := _URL.fullmatch(url):
        return Place(found[1], found[2], found[3].strip("/"))
    scheme, _, rest = url.partition(":")
    if any(mark in rest for mark in "@?#:"):
        raise UsageError(
            "bad-option",
            f"This {scheme} URL holds a user, a password or a query, and a store's URL is "
            f"written down with every run. Give {scheme}://BUCKET/FOLDER alone, and credentials "
            f"in the environment: {CREDENTIALS[scheme]}.",
        )
    raise UsageError(
        "bad-option",
        f"{url}: write it like {scheme}://bucket/folder, with letters, digits and - _ . = + only.",
    )


def patience() -> float:
    """`WSA_RETRY_S`: seconds after which a request that keeps failing is given up.

    Raises:
        UsageError: It is no number.
    """
    try:
        return max(0.0, float(os.environ.get("WSA_RETRY_S") or PATIENCE_S))
    except ValueError:
        raise UsageError("bad-option", "WSA_RETRY_S must be a number of seconds.") from None


def environment() -> tuple[tuple[str, str], ...]:
    """What connections depend on; they are made anew where it has changed."""
    names = ("AWS_", "GOOGLE_", "AZURE_")
    return tuple((name, value) for name, value in os.environ.items() if name.startswith(names))


@lru_cache(maxsize=32)
def connect(
    place: Place, scale: int, reading: bool, seconds: float, settings: tuple[tuple[str, str], ...]
) -> Client:
    """Connections to a place, kept for the next call. A request is made once.

    Args:
        place: The bucket.
        scale: How many times `REQUEST_S` a whole request may take.
        reading: Whether to give up where nothing comes for `REQUEST_S`; an upload hears nothing
            before its end.
        seconds: How long a command waits in all.
        settings: `environment()`.

    Raises:
        StorageError: The settings cannot be used.
        obstore.exceptions.BaseError: The same, as obstore says it.
    """
    if _forked:
        raise StorageError(
            "unavailable",
            f"This process was forked from one that uses {place.scheme}://{place.bucket}, whose "
            "connections do not survive that. Start processes by 'spawn'.",
        )
    _in_use.append(place)
    known = dict(settings)
    wait = min(REQUEST_S, max(seconds, 0.1))
    options: ClientConfig = {
        "timeout": timedelta(seconds=wait * scale),
        "connect_timeout": timedelta(seconds=min(wait, CONNECT_S)),
    }
    if reading:
        options["read_timeout"] = timedelta(seconds=wait)
    scheme, name, prefix = place
    config: dict[str, Any] = {}
    provider = None
    if scheme == "s3":
        # Bulk deletion is not known to every server, and wsa deletes one file at a time.
        config["disable_bulk_delete"] = True
        if "AWS_CA_BUNDLE" in known:
            options["root_certificate"] = _read(known["AWS_CA_BUNDLE"])
        if not any(known.get(name) for name in _GIVEN):
            provider = _profile(known, config)
    endpoint = next((known[name] for name in ENDPOINTS[scheme] if known.get(name)), None)
    if (endpoint or config.get("endpoint", "")).startswith("http://"):
        options["allow_http"] = True
    # Retries are the backend's: only there it is known whether an earlier put may have won.
    once: RetryConfig = {"max_retries": 0}
    if scheme == "gs":
        return GCSStore(name, prefix=prefix, client_options=options, retry_config=once)
    if scheme == "az":
        return AzureStore(name, prefix=prefix, client_options=options, retry_config=once)
    return S3Store(
        name,
        prefix=prefix,
        config=config,  # type: ignore[arg-type]
        client_options=options,
        retry_config=once,
        credential_provider=provider,
    )


def _profile(known: Mapping[str, str], config: dict[str, Any]) -> Any:
    """What gives the credentials of `AWS_PROFILE`, or of the default profile; None without either.

    The profile's region and endpoint are put into `config` where the environment has none.
    """
    files = (Path(known.get(name, usual)).expanduser() for name, usual in _PROFILES.items())
    if not known.get("AWS_PROFILE") and not any(file.exists() for file in files):
        return None
    try:
        boto3 = importlib.import_module("boto3")
        providers = importlib.import_module("obstore.auth.boto3")
    except ImportError:
        raise StorageError(
            "unavailable",
            "Credentials in profiles (AWS_PROFILE, ~/.aws) are read by boto3, which is not "
            f"installed: pip install boto3. Or set {CREDENTIALS['s3']}.",
        ) from None
    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            return None
        found = session._session.get_scoped_config()
    except Exception as error:  # noqa: BLE001  botocore raises many kinds.
        raise StorageError("unavailable", f"AWS_PROFILE: {error}.") from None
    if session.region_name and not {"AWS_REGION", "AWS_DEFAULT_REGION"} & known.keys():
        config["region"] = session.region_name
    if found.get("endpoint_url") and not set(ENDPOINTS["s3"]) & known.keys():
        config["endpoint"] = found["endpoint_url"]
    return providers.Boto3CredentialProvider(session)


def _read(certificates: str) -> bytes:
    try:
        return Path(certificates).read_bytes()
    except OSError as error:
        raise StorageError(
            "unavailable", f"AWS_CA_BUNDLE={certificates}: {error.strerror}."
        ) from None


# obstore's threads are not in a forked child, which would wait for them for ever.
_in_use: list[Place] = []
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = bool(_in_use)
    connect.cache_clear()


os.register_at_fork(after_in_child=_after_fork)
