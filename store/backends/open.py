"""Choose the backend for a store's path or URL."""

from __future__ import annotations

from wsa.store.backends.base import Backend
from wsa.store.common.errors import UsageError


def open_backend(url: str) -> Backend:
    """Open a folder, given as a path or as `file:///path`, or a bucket.

    Raises:
        UsageError: If the URL's scheme is unknown, or it is malformed or contains credentials.
    """
    from wsa.store.backends.local import LocalBackend

    # Pyright also reads this file as `store.backends`, with another `Entry`.
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
            "No store is named, and there is no home folder here to hold a default one. Name a "
            "store with --store, such as /lab/wsa, or set WSA_STORE."
        )
    if scheme == "file":
        raise UsageError(
            f"--store {url!r} names no folder. Write it like /lab/wsa or file:///lab/wsa."
        )
    raise UsageError(
        f"Stores are kept in folders and in buckets, not on {scheme}://. Give a folder, such as "
        "/lab/wsa, or a bucket, such as s3://bucket/wsa, gs://bucket/wsa, or az://container/wsa."
    )
