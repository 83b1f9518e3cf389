"""Store in a bucket: Amazon S3 and compatible servers, Google Cloud Storage, Azure.

A put publishes a file, and the bucket refuses it if the name is taken, so of two writers one wins.
Each put stores a random write id in the object's metadata. If the reply to a put is lost, the
retried put fails because the name is taken, and the id tells whether the first put took it.
Requests that fail are retried for a limited time.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlsplit

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from wsa.store.backends.base import MAX_FILE_BYTES, Entry, too_large
from wsa.store.common.errors import DamagedError, Kind, StorageError, UsageError, redact

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

T = TypeVar("T")

# Azure allows no dash in the name of metadata.
WRITE_ID = "wsawrite"
PAGE = 1000

_STATUS = re.compile(r"status code: (\d{3}) ?([\w ]*)")
_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
# Addresses where clouds give credentials to their own machines.
_METADATA = re.compile(r"169\.254\.169\.254|/latest/(api/token|meta-data)|/computeMetadata/")
_CONFLICTS = {"ConditionalRequestConflict", "OperationAborted"}
_CREDENTIALS = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"}


class RemoteBackend:
    """Files below one folder of a bucket. The object holds no connection and no credentials.

    Raises:
        UsageError: If the URL is malformed or contains credentials.
    """

    at_once = 32  # A request waits about ten milliseconds for the network.

    def __init__(self, url: str) -> None:
        self.place = parse(url)
        # Files that were put without an answer: they may still appear.
        self._unanswered: set[str] = set()
        # Whether the last request failed for good, so that the next one is not retried.
        self._gave_up = False

    @property
    def url(self) -> str:
        """The folder's URL, such as `s3://bucket/folder`."""
        scheme, name, prefix = self.place
        return f"{scheme}://{name}/{prefix}".rstrip("/")

    def get(self, path: str, most: int = MAX_FILE_BYTES) -> bytes:
        """Read a file of at most `most` bytes; `FileNotFoundError` if there is none."""
        key = self._file(path)

        def get() -> bytes:
            found = self._client(most, reading=True).get(key)
            length = found.meta["size"]
            if length > most:
                raise too_large(f"{self.url}/{path}", length, most)
            data = bytes(found.bytes())
            if len(data) != length:
                raise BaseError(f"{len(data)} of {length} bytes arrived")
            return data

        try:
            return self._with_retries(get)
        except FileNotFoundError:
            if key not in self._unanswered:
                raise
        raise StorageError(
            "unavailable",
            f"{self.url}/{path} may still appear: the server did not answer when it was written. "
            "Run the same command again.",
        )

    def put_new(self, path: str, data: bytes) -> bool:
        """Publish a file unless one exists, and return whether this call published it."""
        key = self._file(path)
        write_id = uuid.uuid4().hex
        sent = False

        def put() -> bool:
            nonlocal sent
            retried, sent = sent, True
            try:
                self._client(len(data)).put(
                    key, data, mode="create", attributes={WRITE_ID: write_id}, use_multipart=False
                )
            except AlreadyExistsError as error:
                if _code(error) in _CONFLICTS:  # Perhaps no put has won: S3 asks for a retry.
                    raise BaseError(str(error)) from None
                # An earlier put may have published the file, and its reply was lost.
                return retried and self._is_ours(key, write_id, data)
            return True

        try:
            won = self._with_retries(put)
        except FileNotFoundError as error:  # The bucket itself is missing.
            raise self._storage_error(error) from None
        except BaseException:
            self._unanswered.add(key)
            raise
        self._unanswered.discard(key)
        return won

    def list(self, prefix: str) -> Iterator[Entry]:
        """List all files below the folder `prefix`, in no order."""
        key = self._key(prefix)
        seen: set[str] = set()
        tries = _Tries()
        while True:
            try:
                client = self._client(reading=True)
                for page in client.list(key or None, chunk_size=PAGE):
                    known = len(seen)
                    for meta in page:
                        path = meta["path"]
                        # Web consoles create a folder as an empty object of its name.
                        if path not in seen and path != key:
                            seen.add(path)
                            yield Entry(path, meta["size"], meta["last_modified"].timestamp())
                    if len(seen) > known:  # This try got further than those before.
                        tries = _Tries()
                return
            except InvalidPathError as error:
                raise DamagedError(
                    "bad-record",
                    f"{self.url} holds an object with a name that wsa never writes "
                    f"({_first_line(error)}). Remove it.",
                ) from None
            except BaseError as error:
                if not tries.retry(error):
                    raise self._storage_error(error) from None

    def delete(self, path: str) -> None:
        """Remove a file, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            key = self._file(path)
            self._with_retries(lambda: self._client().delete(key))

    def stat(self, path: str) -> int | None:
        """Return a file's length in bytes, or None if there is no such file."""
        try:
            key = self._file(path)
            return int(self._with_retries(lambda: self._client(reading=True).head(key)["size"]))
        except FileNotFoundError:
            return None

    def _is_ours(self, key: str, write_id: str, data: bytes) -> bool:
        """Whether an earlier try of this put published the existing file."""
        client = self._client(len(data), reading=True)
        try:
            found = client.get(key, options={"head": True})
            if WRITE_ID in found.attributes:
                return bool(found.attributes[WRITE_ID] == write_id)
            # The server keeps no metadata, so compare the bytes. Where it matters, no two writers
            # put the same: a record contains its attempt, and other files are in that folder.
            return found.meta["size"] == len(data) and bytes(client.get(key).bytes()) == data
        except FileNotFoundError:
            raise BaseError("the file was removed while wsa looked at it") from None

    def _client(self, size: int = 0, *, reading: bool = False) -> Client:
        """Return a client for requests of up to `size` bytes."""
        scale = 1
        while scale * REQUEST_BYTES < size:
            scale *= 2
        try:
            return connect(self.place, scale, reading, patience(), environment())
        except UsageError:
            raise
        except (BaseError, ValueError) as error:
            scheme = self.place.scheme
            raise StorageError(
                "unavailable",
                f"{self.url}: {_reason(error)}. Check {CREDENTIALS[scheme]}, and "
                f"{SETTINGS[scheme]}.",
            ) from None

    def _with_retries(self, request: Callable[[], T]) -> T:
        """Repeat a request until it succeeds, fails for good, or has failed for too long."""
        tries = _Tries(self._gave_up)
        while True:
            try:
                answer = request()
                self._gave_up = False
                return answer
            except FileNotFoundError as error:
                # The bucket is missing, not the file. Only puts and reads get that error.
                if "NoSuchBucket" in str(error):
                    raise self._storage_error(error) from None
                raise
            except BaseError as error:
                if not tries.retry(error):
                    self._gave_up = True
                    raise self._storage_error(error) from None

    def _file(self, path: str) -> str:
        """Return a file's key, or raise `FileNotFoundError` for a folder."""
        key = self._key(path)
        if not path or path.endswith("/"):
            raise FileNotFoundError(f"{self.url}/{path}")
        return key

    def _key(self, path: str) -> str:
        parts = path.removesuffix("/").split("/")
        if path and (not {"", ".", ".."}.isdisjoint(parts) or not path.isprintable()):
            raise DamagedError(
                "bad-record", f"{path!r} leads out of the store {self.url}. Run 'wsa verify'."
            )
        return path.removesuffix("/")

    def _storage_error(self, error: Exception) -> StorageError:
        """Return an error with the reason and what to check, without secrets."""
        scheme, name, _ = self.place
        kind = _kind(error)
        variables = CREDENTIALS[scheme]
        hint = {
            "credentials": f"Check the credentials: {variables}. They must allow to list, read, "
            "write and delete there.",
            "no-credentials": f"No credentials were found. Set {variables}.",
            "bucket": f"There is no bucket {name!r}. Make it, or check its name and {SETTINGS[scheme]}.",
            "conditional": "This server has no put-if-absent (If-None-Match: *), which a store "
            "needs. Keep the store elsewhere.",
            "refused": f"Check {SETTINGS[scheme]}.",
            "failed": f"It kept failing for {patience():g} s. Check the network and "
            f"{SETTINGS[scheme]}, and run the same command again: nothing committed is lost.",
        }[kind]
        denied = kind in ("credentials", "no-credentials")
        reported: Kind = "no-permission" if denied else "unavailable"
        return StorageError(reported, f"{self.url}: {_reason(error)}. {hint}")


class _Tries:
    """Retries of one request until its time is over."""

    def __init__(self, once: bool = False) -> None:
        self._until = time.monotonic() + (0 if once else patience())
        self._pause = 0.1

    def retry(self, error: Exception) -> bool:
        """Pause and return True if a retry makes sense; return False otherwise."""
        left = self._until - time.monotonic()
        if _kind(error) != "failed" or left <= 0:
            return False
        time.sleep(min(left, random.uniform(0.5, 1) * self._pause))
        self._pause = min(5.0, 2 * self._pause)
        return True


def _kind(error: Exception) -> str:
    """Classify an error by its remedy: `failed` may be temporary, all others are permanent."""
    message = str(error)
    status = int(found[1]) if (found := _STATUS.search(message)) else 0
    code = _code(error)
    if _METADATA.search(message) and status < 500:
        return "no-credentials"
    if code == "NoSuchBucket":
        return "bucket"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in (401, 403):
        return "credentials"
    if code in _CREDENTIALS:
        return "credentials"
    if status == 501:
        return "conditional"
    passing = status >= 500 or status in (0, 408, 409, 425, 429) or code == "RequestTimeout"
    final = "builder error" in message or "redirect" in message
    return "failed" if passing and not final else "refused"


def _reason(error: Exception) -> str:
    """Return the server's or the library's message without URLs, which may contain signatures."""
    message = _first_line(error)
    if found := _STATUS.search(message):
        return f"the server answered {found[1]} {_code(error) or found[2]}".rstrip()
    return redact(re.sub(r"\w+://\S+", "the server", message.rpartition(" - ")[2])).rstrip(". ")


def _code(error: Exception) -> str:
    return found[1] if (found := _CODE.search(str(error))) else ""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


Client: TypeAlias = S3Store | GCSStore | AzureStore

# Environment variables, for messages: credentials and other settings of each scheme.
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
# If one of these is set, profiles are not used.
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

_HTTP = re.compile(r"https?://[!-~]+")

PATIENCE_S = 60.0
CONNECT_S = 5.0
# Time limit of a request of up to this many bytes; a larger one gets more time in proportion.
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
    """Parse a URL.

    Raises:
        UsageError: If the URL does not look like `s3://bucket/folder`, or may contain a secret. The
            message does not repeat the secret.
    """
    if found := _URL.fullmatch(url):
        return Place(found[1], found[2], found[3].strip("/"))
    scheme, _, rest = url.partition(":")
    if any(mark in rest for mark in "@?#:"):
        raise UsageError(
            f"This {scheme} URL contains a user, a password, or a query, but every run records the "
            f"URL of its store. Give {scheme}://BUCKET/FOLDER alone, and put credentials in the "
            f"environment: {CREDENTIALS[scheme]}."
        )
    raise UsageError(
        f"{url}: write it like {scheme}://bucket/folder, with only letters, digits, and - _ . = +."
    )


def patience() -> float:
    """Return `WSA_RETRY_S`, the seconds for which a failing request is retried.

    Raises:
        UsageError: If the variable is not a number, or negative.
    """
    given = os.environ.get("WSA_RETRY_S") or PATIENCE_S
    try:
        if (seconds := float(given)) >= 0:  # False for NaN.
            return seconds
    except ValueError:
        pass
    raise UsageError(f"WSA_RETRY_S must be a number of seconds, not {given}.")


def environment() -> tuple[tuple[str, str], ...]:
    """Return the variables that a client depends on; a change leads to a new client."""
    names = ("AWS_", "GOOGLE_", "AZURE_")
    return tuple((name, value) for name, value in os.environ.items() if name.startswith(names))


@lru_cache(maxsize=32)
def connect(
    place: Place, scale: int, reading: bool, seconds: float, settings: tuple[tuple[str, str], ...]
) -> Client:
    """Return a cached client that does not retry.

    Args:
        scale: Time limit of a whole request, in units of `REQUEST_S`.
        reading: Whether a request fails if nothing arrives for `REQUEST_S`; an upload gets no reply
            before its end.
        seconds: Total time for retries, from `patience()`.
        settings: Environment variables, from `environment()`.

    Raises:
        StorageError: If the process was forked after using a bucket, or the settings are invalid.
        UsageError: If the address of a server is malformed.
        obstore.exceptions.BaseError: If obstore rejects the settings.
    """
    if _forked:
        raise StorageError(
            "unavailable",
            f"This process was forked from one that uses {place.scheme}://{place.bucket}, whose "
            "connections do not survive a fork. Start processes with 'spawn'.",
        )
    _in_use.append(place)
    variables = dict(settings)
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
        # Not every server has bulk deletion, and wsa deletes one file at a time.
        config["disable_bulk_delete"] = True
        if "AWS_CA_BUNDLE" in variables:
            options["root_certificate"] = _read(variables["AWS_CA_BUNDLE"])
        if not any(variables.get(name) for name in _GIVEN):
            provider = _profile(variables, config)
    endpoints = {name: variables[name] for name in ENDPOINTS[scheme] if name in variables}
    if "endpoint" in config:
        endpoints["The profile's endpoint_url"] = config["endpoint"]
    for setting, endpoint in endpoints.items():
        _check_endpoint(setting, endpoint)
    if next(iter(endpoints.values()), "").startswith("http://"):
        options["allow_http"] = True
    # `RemoteBackend` retries, since only it knows whether an earlier put may have won.
    no_retries: RetryConfig = {"max_retries": 0}
    if scheme == "gs":
        return GCSStore(name, prefix=prefix, client_options=options, retry_config=no_retries)
    if scheme == "az":
        return AzureStore(name, prefix=prefix, client_options=options, retry_config=no_retries)
    return S3Store(
        name,
        prefix=prefix,
        config=config,  # type: ignore[arg-type]
        client_options=options,
        retry_config=no_retries,
        credential_provider=provider,
    )


def _check_endpoint(setting: str, url: str) -> None:
    """Check a server's address, over which obstore would panic.

    Raises:
        UsageError: If it is not `http(s)://HOST[:PORT]`, perhaps with a path.
    """
    try:
        parts = urlsplit(url)
        valid = _HTTP.fullmatch(url) and parts.hostname and parts.port != 0
    except ValueError:  # The port is not a number, or too large.
        valid = False
    if not valid:
        raise UsageError(
            f"{setting} {url!r} is not the address of a server. Write it like "
            "http://minio.lab:9000."
        )


def _profile(variables: Mapping[str, str], config: dict[str, Any]) -> Any:
    """Return a provider of the credentials of `AWS_PROFILE` or the default profile, or None.

    If the environment has no region or endpoint, the profile's is added to `config`.
    """
    files = (Path(variables.get(name, usual)).expanduser() for name, usual in _PROFILES.items())
    if not variables.get("AWS_PROFILE") and not any(file.exists() for file in files):
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
    if session.region_name and not {"AWS_REGION", "AWS_DEFAULT_REGION"} & variables.keys():
        config["region"] = session.region_name
    if found.get("endpoint_url") and not set(ENDPOINTS["s3"]) & variables.keys():
        config["endpoint"] = found["endpoint_url"]
    return providers.Boto3CredentialProvider(session)


def _read(certificates: str) -> bytes:
    try:
        return Path(certificates).read_bytes()
    except OSError as error:
        raise StorageError(
            "unavailable", f"AWS_CA_BUNDLE={certificates}: {error.strerror}."
        ) from None


# A forked child lacks obstore's threads and would wait for them forever.
_in_use: list[Place] = []
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = bool(_in_use)
    connect.cache_clear()


os.register_at_fork(after_in_child=_after_fork)
