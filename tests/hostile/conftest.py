"""An enemy who can write to the store, and compute checksums."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.format import records
from wsa.store.format.records import Commit, File, Meta

Plant = Callable[[Backend, Meta, dict[str, bytes]], None]


@pytest.fixture
def plant() -> Plant:
    """Commit any bytes as an object."""

    def commit(store: Backend, meta: Meta, files: dict[str, bytes]) -> None:
        listed = tuple(
            File(name, len(data), hashing.checksum(data)) for name, data in files.items()
        )
        made = records.seal(Commit(1, meta, "0" * 16, listed, "eve", "", ""))
        for name, data in files.items():
            store.put_new(f"{made.folder}/{name}", data)
        store.put_new(names.commit_path(made.id), records.write_commit(made))

    return commit
