"""A store that holds something of every kind, and a disk that fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from wsa.store.backends.local import LocalBackend
from wsa.store.common.errors import Kind, StorageError
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.root import open_store

MODELS = ("lite0", "vit")


@pytest.fixture(scope="session")
def full_template(
    kit: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[SegmentMeta]]:
    """A store with two games, RGB and indexed frames, two models, shards of several chunks."""
    root = tmp_path_factory.mktemp("full") / "store"
    store = open_store(str(root), create=True)
    metas = [
        kit.add_segment(store, 0, steps=20)[0],
        kit.add_segment(store, 1, steps=20, indexed=False, cut=True)[0],
        kit.add_segment(store, 0, game="Seaquest", steps=270, height=3, width=2)[0],
    ]
    for model in map(kit.key, MODELS):
        kit.add_model(store, model)
        for meta in metas:
            kit.add_embedding(store, meta, model)
    return root, metas


@pytest.fixture
def full(store: LocalBackend, full_template: tuple[Path, list[SegmentMeta]]) -> list[SegmentMeta]:
    """Fill `store` with a copy of the template; its segments."""
    root, metas = full_template
    shutil.copytree(root, store.root, dirs_exist_ok=True)
    return metas


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`refuse(path)`: from now on, reading anything below `path` fails like a bad sector."""

    def begin(bad: str, kind: Kind = "unavailable") -> None:
        read = LocalBackend.get

        def get(self: LocalBackend, path: str, *most: int) -> bytes:
            if path.startswith(bad):
                raise StorageError(kind, f"{path}: Input/output error")
            return read(self, path, *most)

        monkeypatch.setattr(LocalBackend, "get", get)

    return begin
