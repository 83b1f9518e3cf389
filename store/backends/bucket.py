"""A store in a bucket: Amazon S3 and what speaks like it, Google Cloud Storage, Azure.

A file is published by a put that the bucket refuses where the name is taken, so of two writers one
wins. Each put carries a write id as the object's metadata: if the reply to a put was lost, the
retried put fails because the name is taken, and the id says by whom. Requests that fail are
retried for a limited time.
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

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from wsa.store.backends.base import MAX_FILE_BYTES, Entry, too_large
from wsa.store.common.errors import DamagedError, StorageError, UsageError, redact

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

T = TypeVar("T")

# Azure takes no dash in such a name.
WRITE_ID = "wsawrite"
PAGE = 1000

_STATUS = re.compile(r"status code: (\d{3}) ?([\w ]*)")
_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
# Where clouds keep the credentials of their own machines.
_METADATA = re.compile(r"169\.254\.169\.254|/latest/(api/token|meta-data)|/computeMetadata/")
_CONFLICTS = {"ConditionalRequestConflict", "OperationAborted"}
_CREDENTIALS = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"}


class RemoteBackend:
    """Files below one folder of a bucket. It holds no connection and no credentials itself.

    Raises:
        UsageError: The URL is malformed, or holds credentials.
    """

    def __init__(self, url: str) -> None:
        self.place = parse(url)
        # Files of which no answer ever said whether they were published: they may appear yet.
        self._unsure: set[str] = set()
        # Whether the last request was given up: the next one must not take as long again.
        self._down = False

    @property
    def url(self) -> str:
        """The folder, as `s3://bucket/folder`."""
        scheme, name, prefix = self.place
        return f"{scheme}://{name}/{prefix}".rstrip("/")

    @property
    def at_once(self) -> int:
        """A request waits some ten milliseconds for the network."""
        return 32

    def get(self, path: str, most: int = MAX_FILE_BYTES) -> bytes:
        """The file's bytes, at most `most`; `FileNotFoundError` if there is none."""
        key = self._file(path)

        def get() -> bytes:
            found = self._client(most, reading=True).get(key)
            length = found.meta["size"]
            if length > most:
                raise too_large(f"{self.url}/{path}", length, most)
            data = bytes(found.bytes())
            if len(data) != length:
                raise BaseError(f"{len(data)} of {length} bytes came")
            return data

        try:
            return self._persist(get)
        except FileNotFoundError:
            if key not in self._unsure:
                raise
        raise StorageError(
            "unavailable",
            f"{self.url}/{path} was put without an answer and may still appear. Run the same "
            "command again.",
        )

    def put_new(self, path: str, data: bytes) -> bool:
        """Publish a file unless one is there; whether this call did."""
        key = self._file(path)
        write = uuid.uuid4().hex
        sent = False

        def put() -> bool:
            nonlocal sent
            again, sent = sent, True
            try:
                self._client(len(data)).put(
                    key, data, mode="create", attributes={WRITE_ID: write}, use_multipart=False
                )
            except AlreadyExistsError as error:
                if _code(error) in _CONFLICTS:  # Perhaps no put has won: S3 asks to put again.
                    raise BaseError(str(error)) from None
                # An earlier put may have published the file, and its reply been lost.
                return again and self._is_ours(key, write, data)
            return True

        try:
            won = self._persist(put)
        except FileNotFoundError as error:  # It is the bucket that is not there.
            raise self._refusal(error) from None
        except BaseException:
            self._unsure.add(key)
            raise
        self._unsure.discard(key)
        return won

    def list(self, prefix: str) -> Iterator[Entry]:
        """All files below the folder `prefix`, in no order."""
        key = self._key(prefix)
        seen: set[str] = set()
        tries = _Tries()
        while True:
            try:
                client = self._client(reading=True)
                for page in client.list(key or None, chunk_size=PAGE):
                    tries = _Tries()
                    for meta in page:
                        path = meta["path"]
                        # Consoles make a folder by an empty object that is called like it.
                        if path not in seen and path != key:
                            seen.add(path)
                            yield Entry(path, meta["size"], meta["last_modified"].timestamp())
                return
            except InvalidPathError as error:
                raise DamagedError(
                    "bad-record",
                    f"{self.url} holds an object of a name that wsa never writes "
                    f"({_first_line(error)}). Remove it.",
                ) from None
            except BaseError as error:
                if not tries.again(error):
                    raise self._refusal(error) from None

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""
        with contextlib.suppress(FileNotFoundError):
            key = self._file(path)
            self._persist(lambda: self._client().delete(key))

    def stat(self, path: str) -> int | None:
        """The file's length in bytes, or None if there is none."""
        try:
            key = self._file(path)
            return int(self._persist(lambda: self._client(reading=True).head(key)["size"]))
        except FileNotFoundError:
            return None

    def _is_ours(self, key: str, write: str, data: bytes) -> bool:
        """Whether the file that has the name is the one that this put published."""
        client = self._client(len(data), reading=True)
        try:
            found = client.get(key, options={"head": True})
            if WRITE_ID in found.attributes:
                return bool(found.attributes[WRITE_ID] == write)
            # The place keeps no metadata. No two writers put the same bytes where it matters: a
            # record holds its attempt, and other files lie in the attempt's own folder.
            return found.meta["size"] == len(data) and bytes(client.get(key).bytes()) == data
        except FileNotFoundError:
            raise BaseError("the file was removed while it was looked at") from None

    def _client(self, size: int = 0, *, reading: bool = False) -> Client:
        """The connections for requests of up to `size` bytes."""
        scale = 1
        while scale * REQUEST_BYTES < size:
            scale *= 2
        try:
            return connect(self.place, scale, reading, patience(), environment())
        except (BaseError, ValueError) as error:
            scheme = self.place.scheme
            raise StorageError(
                "unavailable",
                f"{self.url}: {_reason(error)}. Check {CREDENTIALS[scheme]}, and "
                f"{SETTINGS[scheme]}.",
            ) from None

    def _persist(self, request: Callable[[], T]) -> T:
        """Make a request until it is answered, for good or bad, or has failed for too long."""
        tries = _Tries(self._down)
        while True:
            try:
                answer = request()
                self._down = False
                return answer
            except FileNotFoundError as error:
                # Only a put or a read learns that the bucket itself is missing.
                if "NoSuchBucket" in str(error):
                    raise self._refusal(error) from None
                raise
            except BaseError as error:
                if not tries.again(error):
                    self._down = True
                    raise self._refusal(error) from None

    def _file(self, path: str) -> str:
        """The key of a file; a folder is none."""
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

    def _refusal(self, error: Exception) -> StorageError:
        """What a request failed of, and what to check; nothing of it is secret."""
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
        return StorageError("unavailable", f"{self.url}: {_reason(error)}. {hint}")


class _Tries:
    """How long a request has been failing."""

    def __init__(self, last: bool = False) -> None:
        self._until = time.monotonic() + (0 if last else patience())
        self._pause = 0.1

    def again(self, error: Exception) -> bool:
        """Wait a little and say whether to try again, or that it is of no use."""
        left = self._until - time.monotonic()
        if _kind(error) != "failed" or left <= 0:
            return False
        time.sleep(min(left, random.uniform(0.5, 1) * self._pause))
        self._pause = min(5.0, 2 * self._pause)
        return True


def _kind(error: Exception) -> str:
    """What is to be done about an error: `failed` may pass, the others do not."""
    said = str(error)
    status = int(found[1]) if (found := _STATUS.search(said)) else 0
    code = _code(error)
    if _METADATA.search(said) and status < 500:
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
    final = "builder error" in said or "redirect" in said
    return "failed" if passing and not final else "refused"


def _reason(error: Exception) -> str:
    """The server's or the library's words, without addresses, which may hold signatures."""
    said = _first_line(error)
    if found := _STATUS.search(said):
        return f"the server answered {found[1]} {_code(error) or found[2]}".rstrip()
    return redact(re.sub(r"\w+://\S+", "the server", said.rpartition(" - ")[2])).rstrip(". ")


def _code(error: Exception) -> str:
    return found[1] if (found := _CODE.search(str(error))) else ""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


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
    """What connections depend on; they are made again when it has changed."""
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
