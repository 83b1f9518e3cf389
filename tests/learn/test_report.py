from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

from wsa.encode.models import parse_request
from wsa.encode.register import register
from wsa.learn.report import card, stored, summarise, total_bytes
from wsa.store import names
from wsa.store.backends import Backend
from wsa.store.errors import MissingError
from wsa.store.reader import Snapshot, take_snapshot
from wsa.store.records import EmbeddingMeta
from wsa.store.writer import commit_embedding, commit_segment

MODELS = ("timm:test_resnet.r160_in1k:random", "timm:test_vit.r160_in1k:random")


@pytest.fixture
def snapshot(kit: ModuleType, store: Backend) -> Snapshot:
    """Three segments of Pong under two protocols, and one of Breakout; one model lacks a segment."""
    metas = []
    for number, ends, skip, returns in (
        (0, (2, 5), 4, (1.5, -3.0)),
        (1, (), 4, ()),
        (2, (1,), 2, (7.0,)),
    ):
        meta, arrays = kit.fake_segment(number, steps=10 + number, ends=ends, frames=7)
        protocol = msgspec.structs.replace(meta.protocol, frame_skip=skip)
        episodes = tuple((end + 1, r) for end, r in zip(ends, returns, strict=True))
        meta = msgspec.structs.replace(meta, protocol=protocol, episodes=episodes, seed=number)
        commit_segment(store, meta, arrays)
        metas.append(meta)
    commit_segment(store, *kit.fake_segment(game="Breakout", steps=4))
    for model, count in zip(MODELS, (3, 2), strict=True):
        key = register(take_snapshot(store), parse_request(model, {}, "pooled"), 0.1).spec.key
        for meta in metas[:count]:
            array = np.zeros((meta.frames, 4), np.float16)
            shape = array.shape
            commit_embedding(
                store, EmbeddingMeta(meta.game, meta.segment, key, shape, "float16", 5, 2), array
            )
    return take_snapshot(store)


def on_disk(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_the_numbers_of_a_game(kit: ModuleType, snapshot: Snapshot) -> None:
    summary = summarise(snapshot, kit.GAME)
    folder = Path(snapshot.backend.url) / "games" / kit.GAME
    rows = [snapshot.read_rows(meta) for meta in snapshot.segments(kit.GAME)]
    steps = [int((r["action"] >= 0).sum()) for r in rows]
    assert steps == [10, 11, 12]
    assert (summary.game, summary.segments, summary.steps) == (kit.GAME, 3, sum(steps))
    assert summary.emulator_frames == 4 * 10 + 4 * 11 + 2 * 12
    digests = [snapshot.read_digests(meta) for meta in snapshot.segments(kit.GAME)]
    assert summary.frames == sum(map(len, digests)) == 21
    assert (summary.episodes, summary.mean_return) == (3, pytest.approx((1.5 - 3 + 7) / 3))
    assert summary.bytes == on_disk(folder / "segments") > 0
    assert summary.embedded == on_disk(folder / "embeddings") > 0
    resnet, vit = snapshot.models
    assert summary.models == {resnet: 1.0, vit: pytest.approx(2 / 3)}


def test_bytes(snapshot: Snapshot) -> None:
    root = Path(snapshot.backend.url)
    paths = list(snapshot.commits)
    assert total_bytes(snapshot) == sum(on_disk(root / path) for path in paths)
    assert total_bytes(snapshot) == on_disk(root / "games") + on_disk(root / "models")
    path = names.model_path(snapshot.models[0])
    assert stored(snapshot, path) == on_disk(root / path) > 0


def test_the_card_of_a_game(kit: ModuleType, snapshot: Snapshot) -> None:
    shown: dict[str, Any] = card(snapshot, kit.GAME)
    assert shown["steps"] == 33 and shown["segments"] == 3
    assert shown["screens"] == ["6 x 5"]
    assert sorted(p["frame_skip"] for p in shown["protocols"]) == [2, 4]
    assert shown["collections"] == [f"random, seed {n}, run {kit.RUN}" for n in range(3)]
    assert shown["emulator"] == ["ale-py 0.12.0, ROM MD5 60e0ea3cbe0913d39803477945e9e5ec"]
    assert shown["returns"] == {"min": -3.0, "max": 7.0}
    assert [e["key"] for e in shown["encoders"]] == snapshot.models
    assert [e["frames"] for e in shown["encoders"]] == [21, 14]
    assert [e["passes"] for e in shown["encoders"]] == [15, 10]
    assert len(shown["authors"]) == 1 and "@" in shown["authors"][0]
    assert len(shown["commands"]) == 1
    assert msgspec.json.decode(msgspec.json.encode(shown)).keys() == shown.keys()


def test_a_game_without_ends_or_encoders(snapshot: Snapshot) -> None:
    summary = summarise(snapshot, "Breakout")
    assert (summary.episodes, summary.mean_return, summary.models) == (0, None, {})
    assert summary.embedded == 0
    shown = card(snapshot, "Breakout")
    assert shown["returns"] is None and shown["encoders"] == []


def test_a_game_that_is_not_there(snapshot: Snapshot) -> None:
    for function in (summarise, card):
        with pytest.raises(MissingError, match=r"wsa collect --game Seaquest$"):
            function(snapshot, "Seaquest")
