"""A store in a bucket: Amazon S3 and what speaks like it, Google Cloud Storage, Azure.

A file is published by a put that the bucket refuses where the name is taken, so of two writers one
wins. Each put carries a write id as the object's metadata: where the reply to a put was lost, the
same put made again is told that the name is taken, and the id says by whom. Requests that fail are
made again for a stated time.
"""

from __future__ import annotations

import contextlib
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TypeVar

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from wsa.store import bucket
from wsa.store.backends import MAX_FILE_BYTES, Entry, too_large
from wsa.store.common.errors import DamagedError, StorageError, redact

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
        self.place = bucket.parse(url)
        # Files of which no answer ever said whether they were published: they may appear yet.
        self._unsure: set[str] = set()
        # Whether the last request was given up: what follows on it shall not take as long again.
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
                if _code(error) in _CONFLICTS:  # Nobody may have won: S3 asks to put again.
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

    def _client(self, size: int = 0, *, reading: bool = False) -> bucket.Client:
        """The connections for requests of up to `size` bytes."""
        scale = 1
        while scale * bucket.REQUEST_BYTES < size:
            scale *= 2
        try:
            return bucket.connect(
                self.place, scale, reading, bucket.patience(), bucket.environment()
            )
        except (BaseError, ValueError) as error:
            scheme = self.place.scheme
            raise StorageError(
                "unavailable",
                f"{self.url}: {_reason(error)}. Check {bucket.CREDENTIALS[scheme]}, and "
                f"{bucket.SETTINGS[scheme]}.",
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
                # Only a put or a read is told that the bucket is what is missing.
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
        variables = bucket.CREDENTIALS[scheme]
        hint = {
            "credentials": f"Check the credentials: {variables}. They must allow to list, read, "
            "write and delete there.",
            "no-credentials": f"No credentials were found. Set {variables}.",
            "bucket": f"There is no bucket {name!r}. Make it, or check its name and {bucket.SETTINGS[scheme]}.",
            "conditional": "This server has no put-if-absent (If-None-Match: *), which a store "
            "needs. Keep the store elsewhere.",
            "refused": f"Check {bucket.SETTINGS[scheme]}.",
            "failed": f"It kept failing for {bucket.patience():g} s. Check the network and "
            f"{bucket.SETTINGS[scheme]}, and run the same command again: nothing committed is lost.",
        }[kind]
        return StorageError("unavailable", f"{self.url}: {_reason(error)}. {hint}")


class _Tries:
    """How long a request has been failing."""

    def __init__(self, last: bool = False) -> None:
        self._until = time.monotonic() + (0 if last else bucket.patience())
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
