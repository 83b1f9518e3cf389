"""Stores for tests of training: a walk of five states whose optimum is known, and a little Breakout."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest
import torch

from wsa.store.format.records import EmbeddingMeta
from wsa.store.objects.flat_map import FlatMap, materialize
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot
from wsa.store.objects.writer import commit_embedding, commit_segment

sys.path.append(str(Path(__file__).parents[1]))  # For `from learn_kit import ...`.

STATES = 5


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread adds up in one order, so that sums are equal to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fill(kit: ModuleType, url: str) -> None:
    """Fill a store with episodes of a walk that begins in state 2.

    State 0 ends an episode with nothing, 4 with a reward of 3. Actions go left, go right, stay.
    Episodes are truncated after six steps. One model's embeddings are the states, the other's are
    noise.
    """
    backend = open_store(url, create=True)
    generator = np.random.default_rng(0)
    # Frame, action, reward, terminated, truncated, is_first.
    rows: list[tuple[int, int, float, bool, bool, bool]] = []
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
        record = EmbeddingMeta(
            meta.game, meta.segment, kit.key(alias), array.shape, "float16", STATES, 0, 1.0
        )
        commit_embedding(backend, record, array)


@pytest.fixture(scope="session")
def breakout(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A little Breakout in episodes of 24 steps, encoded by two small random models; read it only."""
    from learn_kit import collect_play

    from wsa.encode.jobs.encoding import Encoding
    from wsa.encode.jobs.run import encode
    from wsa.encode.models.registry import parse_request
    from wsa.learn.envs import atari

    backend = open_store(str(tmp_path_factory.mktemp("breakout") / "store"), create=True)
    collect_play(backend, atari.protocol("Breakout", "classic", max_steps=24), steps=128)
    names = ("timm:test_resnet.r160_in1k:random", "timm:test_vit.r160_in1k:random")
    requests = [parse_request(name, {}, "pooled") for name in names]
    encode(backend, Encoding(requests, device="cpu"), scheduler="inproc")
    return take_snapshot(backend)


@pytest.fixture(scope="session")
def trained(breakout: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished offline run of 50 updates on it; read it only."""
    from learn_kit import plan_offline

    from wsa.learn.runs.folder import begin
    from wsa.learn.runs.train import train_stored

    folder = tmp_path_factory.mktemp("trained") / "run"
    config = plan_offline(breakout)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begin(folder, config)
    train_stored(folder, config)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="session")
def walk_url(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("mdp") / "store")
    fill(kit, url)
    return url


@pytest.fixture(scope="session")
def walk_flat(kit: ModuleType, walk_url: str, tmp_path_factory: pytest.TempPathFactory) -> FlatMap:
    cache = tmp_path_factory.mktemp("cache")
    models = [kit.key("lite0"), kit.key("vit")]
    return materialize(take_snapshot(open_store(walk_url)), kit.GAME, models, cache)
