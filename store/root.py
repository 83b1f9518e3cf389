"""Open a store, or start one: the folder with `wsa.json` in it."""

from __future__ import annotations

import msgspec

from wsa.store import keys, names, records
from wsa.store.backends import Backend, get_small, open_backend
from wsa.store.errors import ConflictError, DamagedError, MissingError
from wsa.store.publish import TEMPORARY

FORMAT = 1


class Root(msgspec.Struct, frozen=True):
    """Content of `wsa.json`."""

    format: int


def open_store(url: str, *, create: bool = False) -> Backend:
    """Open the store at `url`.

    Args:
        url: A folder.
        create: Start a store if there is none; the folder must be new or empty.

    Raises:
        MissingError: There is no store, or the folder holds something else.
        ConflictError: The store is of another format.
        DamagedError: `wsa.json` cannot be read.
        StorageError: The place refused.
    """
    backend = open_backend(url)
    # In this order: whoever starts the store just now puts its first file before all others.
    # What a writer was killed over is in `tmp/`, and does not make the folder another's.
    strange = any(not path.startswith(f"{TEMPORARY}/") for path in backend.list(""))
    try:
        data = get_small(backend, names.STORE_FILE)
    except FileNotFoundError:
        if strange:
            raise MissingError(
                "no-store",
                f"{backend.url} is not a wsa store: it holds files but no {names.STORE_FILE}. "
                "Give another path with --store, or an empty folder to start a store there.",
            ) from None
        if not create:
            raise MissingError(
                "no-store",
                f"There is no store at {backend.url} yet. Start one with 'wsa collect --game "
                "Seaquest', or name another with --store or WSA_STORE.",
            ) from None
        backend.put_new(names.STORE_FILE, keys.canonical(Root(FORMAT)))
        data = get_small(backend, names.STORE_FILE)
    try:
        root = records.read_json(data, Root, names.STORE_FILE)
    except DamagedError:
        whole = keys.canonical(Root(FORMAT)).decode()
        raise DamagedError(
            "bad-record",
            f"{backend.url}/{names.STORE_FILE} is damaged. If {backend.url} is a store of this "
            f"wsa, that file's whole content is {whole} and nothing else is lost: write that.",
        ) from None
    if root.format != FORMAT:
        raise ConflictError(
            "other-format",
            f"{backend.url} is a store of format {root.format}; this wsa reads format {FORMAT}. "
            "Use the wsa that wrote it, or name another store with --store.",
        )
    return backend
