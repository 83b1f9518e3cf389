"""A store with something of everything, and a disk that refuses."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from wsa.store.backends.local import LocalBackend
from wsa.store.common.errors import StorageError
from wsa.store.format.records import SegmentMeta

MODELS = ("lite0", "vit")


@pytest.fixture
def full(store: LocalBackend, kit: ModuleType) -> list[SegmentMeta]:
    """A store with two games, RGB and indexed frames, two models, shards of several chunks."""
    metas = [
        kit.add_segment(store, 0, steps=20),
        kit.add_segment(store, 1, steps=20, indexed=False, cut=True),
        kit.add_segment(store, 0, game="Seaquest", steps=270, height=3, width=2),
    ]
    for meta, _ in metas:
        for alias in MODELS:
            kit.add_embedding(store, meta, kit.key(alias))
    for alias in MODELS:
        kit.add_model(store, kit.key(alias))
    return [meta for meta, _ in metas]


@pytest.fixture
def refuse(store: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`refuse(path)`: from now on reading below it ends as over a bad sector."""

    def begin(bad: str) -> None:
        real = LocalBackend.get

        def get(self: LocalBackend, path: str, *most: int) -> bytes:
            if path.startswith(bad):
                raise StorageError("unavailable", f"{path}: Input/output error")
            return real(self, path, *most)

        monkeypatch.setattr(LocalBackend, "get", get)

    return begin
