"""Which backend serves a store's path or URL."""

from __future__ import annotations

from wsa.store.backends.base import Backend
from wsa.store.common.errors import UsageError


def open_backend(url: str) -> Backend:
    """The backend for a folder, given as a path or as `file:///path`, or for a bucket.

    Raises:
        UsageError: The URL's scheme is not served, it names no place, or it holds credentials.
    """
    from wsa.store.backends.local import LocalBackend

    # Pyright reads this file as `store.backends` as well, and takes its Entry for another one.
    scheme, separator, rest = url.partition("://")
    if url.startswith(("s3:", "gs:", "az:")):
        from wsa.store.backends.bucket import RemoteBackend

        return RemoteBackend(url)  # pyright: ignore[reportReturnType]
    if url and not separator:
        return LocalBackend(url)  # pyright: ignore[reportReturnType]
    if scheme == "file" and rest.startswith("/"):
        return LocalBackend(rest)  # pyright: ignore[reportReturnType]
    if not url:
        raise UsageError(
            "bad-option",
            "No store is named, and you have no home folder here that could hold one. Name one "
            "with --store, such as /lab/wsa, or set WSA_STORE.",
        )
    if scheme == "file":
        raise UsageError(
            "bad-option",
            f"--store {url!r} names no folder. Write it like /lab/wsa or file:///lab/wsa.",
        )
    raise UsageError(
        "bad-option",
        f"Stores are kept in folders and in buckets, not on {scheme}://. Give a folder, "
        "such as /lab/wsa, or a bucket, such as s3://bucket/wsa, gs://bucket/wsa or az://container/wsa.",
    )
