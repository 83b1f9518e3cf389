"""A walk of five states, whose optimum is known, as a store and a flat map."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import msgspec
import numpy as np
import pytest
import torch

from wsa.store.format.records import EmbeddingMeta
from wsa.store.objects.flat_map import FlatMap, materialise
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.objects.writer import commit_embedding, commit_segment

STATES = 5


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are the same to the last bit whatever else the machine does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fill(kit: ModuleType, url: str) -> None:
    """A walk of five states: 2 begins; 0 ends it with nothing, 4 with a reward of 3.

    Actions go left, go right, stay. Episodes are cut after six steps. The embeddings tell the state: one
    model knows it, the other is noise.
    """
    backend = open_store(url, create=True)
    generator = np.random.default_rng(0)
    rows: list[tuple[int, int, float, bool, bool, bool]] = []  # frame, action, reward, ends, first
    for _ in range(150):
        state, first = 2, True
        for step in range(6):
            action = int(generator.integers(3))
            following = state + (-1, 1, 0)[action]
            end = following in (0, STATES - 1)
            reward = 3.0 * (following == STATES - 1)
            rows.append((state, action, reward, end, step == 5 and not end, first))
            state, first = following, False
            if end:
                break
        rows.append((state, -1, 0.0, False, False, False))
    frame, action, reward, terminated, truncated, is_first = map(np.array, zip(*rows, strict=True))
    meta, arrays = kit.fake_segment(steps=len(rows) - 1, frames=STATES)
    steps = int((action >= 0).sum())
    meta = msgspec.structs.replace(meta, rows=len(rows), steps=steps)
    arrays |= {
        "frame": frame.astype(np.int32),
        "action": action.astype(np.int16),
        "reward": reward.astype(np.float32),
        "terminated": terminated,
        "truncated": truncated,
        "is_first": is_first,
        "context": np.zeros(len(rows), np.bool_),
        "lives": np.zeros(len(rows), np.uint8),
        "episode": np.cumsum(is_first).astype(np.int32),
    }
    commit_segment(backend, meta, arrays)
    known = np.eye(STATES, dtype=np.float16)
    noise = np.random.default_rng(1).normal(size=(STATES, 3)).astype(np.float16)
    for alias, array in (("lite0", known), ("vit", noise)):
        about = EmbeddingMeta(
            meta.game, meta.segment, kit.key(alias), array.shape, "float16", STATES, 0, 1.0
        )
        commit_embedding(backend, about, array)


@pytest.fixture(scope="session")
def walk_url(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("mdp") / "store")
    fill(kit, url)
    return url


@pytest.fixture(scope="session")
def walk_flat(kit: ModuleType, walk_url: str, tmp_path_factory: pytest.TempPathFactory) -> FlatMap:
    cache = tmp_path_factory.mktemp("cache")
    models = [kit.key("lite0"), kit.key("vit")]
    return materialise(take_snapshot(open_store(walk_url)), kit.GAME, models, cache)
