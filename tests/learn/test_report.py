from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

from wsa.encode.models.registry import parse_request
from wsa.encode.registration.register import register
from wsa.store.common import names
from wsa.store.common.errors import MissingError
from wsa.store.format.records import EmbeddingMeta
from wsa.store.maintenance.summary import (
    card,
    model_card,
    segment_card,
    summaries,
    summarise,
    total_bytes,
)
from wsa.store.maintenance.usage import usage
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot
from wsa.store.objects.writer import commit_embedding, commit_segment

MODELS = ("timm:test_resnet.r160_in1k:random", "timm:test_vit.r160_in1k:random")


@pytest.fixture(scope="module")
def snapshot(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Three segments of Pong under two protocols, and one of Breakout; one model lacks a segment."""
    store = open_store(str(tmp_path_factory.mktemp("report") / "store"), create=True)
    metas = []
    for number, ends, skip, returns in (
        (0, (2, 5), 4, (1.5, -3.0)),
        (1, (), 4, ()),
        (2, (1,), 2, (7.0,)),
    ):
        meta, arrays = kit.fake_segment(number, steps=10 + number, ends=ends, frames=7)
        protocol = msgspec.structs.replace(meta.protocol, frame_skip=skip)
        episodes = tuple((end + 1, r) for end, r in zip(ends, returns, strict=True))
        meta = msgspec.structs.replace(
            meta,
            protocol=protocol,
            episodes=episodes,
            seed=number,
            policy="random" if skip == 4 else "expert",
        )
        commit_segment(store, meta, arrays)
        metas.append(meta)
    commit_segment(store, *kit.fake_segment(game="Breakout", steps=4))
    for model, count in zip(MODELS, (3, 2), strict=True):
        key = register(take_snapshot(store), parse_request(model, {}, "pooled"), 0.1).spec.key
        for meta in metas[:count]:
            array = np.zeros((meta.frames, 4), np.float16)
            shape = array.shape
            commit_embedding(
                store,
                EmbeddingMeta(meta.game, meta.segment, key, shape, "float16", 5, 2, 1.5),
                array,
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
    assert summary.bytes == on_disk(folder / "segments") + on_disk(folder / "frames") > 0
    assert summary.embedded == on_disk(folder / "embeddings") > 0
    resnet, vit = snapshot.models
    assert summary.models == {resnet: 1.0, vit: pytest.approx(2 / 3)}
    assert summary.encoded == {resnet: 3, vit: 2} and summary.pictured == 3
    assert summaries(snapshot) == [summarise(snapshot, game) for game in ("Breakout", kit.GAME)]


def without(snapshot: Snapshot, *paths: str) -> Snapshot:
    kept = {path: c for path, c in snapshot.commits.items() if path not in paths}
    return Snapshot(snapshot.backend, kept)


def test_a_store_without_frames_says_so(kit: ModuleType, snapshot: Snapshot) -> None:
    first = snapshot.segments(kit.GAME)[1].segment
    pulled = without(snapshot, names.frames_path(kit.GAME, first))
    assert summarise(pulled, kit.GAME).pictured == 2
    assert segment_card(pulled, first)["screens"] is None
    # Embeddings of segments that are not here are not coverage.
    rowless = without(snapshot, names.segment_path(kit.GAME, first))
    assert list(summarise(rowless, kit.GAME).encoded.values()) == [2, 1]


def test_bytes(snapshot: Snapshot) -> None:
    root = Path(snapshot.backend.url)
    paths = list(snapshot.commits)
    assert total_bytes(snapshot) == sum(on_disk(root / path) for path in paths)
    assert total_bytes(snapshot) == on_disk(root / "games") + on_disk(root / "models")


def test_the_card_of_a_game(kit: ModuleType, snapshot: Snapshot) -> None:
    shown: dict[str, Any] = card(snapshot, kit.GAME)
    assert shown["steps"] == 33 and shown["segments"] == 3
    assert shown["screens"] == ["6 x 5"]
    assert sorted(p["frame_skip"] for p in shown["protocols"]) == [2, 4]
    assert shown["collections"] == [
        f"{policy}, seed {n}, run {kit.RUN}"
        for policy, n in (("expert", 2), ("random", 0), ("random", 1))
    ]
    assert shown["emulator"] == ["ale-py 0.12.0, ROM MD5 60e0ea3cbe0913d39803477945e9e5ec"]
    assert shown["policies"] == {
        "expert": {
            "steps": 12,
            "episodes": 1,
            "mean_return": 7.0,
            "least_return": 7.0,
            "highest_return": 7.0,
        },
        "random": {
            "steps": 21,
            "episodes": 2,
            "mean_return": -0.75,
            "least_return": -3.0,
            "highest_return": 1.5,
        },
    }
    assert [e["key"] for e in shown["encoders"]] == snapshot.models
    assert [e["embeddings"] for e in shown["encoders"]] == [21, 14]
    assert [e["passes"] for e in shown["encoders"]] == [15, 10]
    assert len(shown["authors"]) == 1 and "@" in shown["authors"][0]
    assert len(shown["commands"]) == 1
    assert msgspec.json.decode(msgspec.json.encode(shown)).keys() == shown.keys()


def test_a_game_without_ends_or_encoders(snapshot: Snapshot) -> None:
    summary = summarise(snapshot, "Breakout")
    assert (summary.episodes, summary.mean_return, summary.models) == (0, None, {})
    assert summary.embedded == 0
    shown = card(snapshot, "Breakout")
    assert shown["policies"]["random"]["mean_return"] is None and shown["encoders"] == []


def test_a_game_that_is_not_there(snapshot: Snapshot) -> None:
    for function in (summarise, card):
        with pytest.raises(MissingError, match=r"wsa collect --game Seaquest$"):
            function(snapshot, "Seaquest")


def test_the_card_of_a_segment(kit: ModuleType, snapshot: Snapshot) -> None:
    meta = snapshot.segments(kit.GAME)[2]
    shown = segment_card(snapshot, meta.segment)
    assert (shown["game"], shown["steps"], shown["policy"]) == (kit.GAME, 12, "expert")
    assert shown["bytes"] == on_disk(Path(snapshot.backend.url) / shown["path"])
    assert shown["screens"]["path"].startswith(names.frames_path(kit.GAME, meta.segment))
    assert list(shown["embeddings"]) == snapshot.models[:1]
    assert shown["embeddings"][snapshot.models[0]]["shape"] == [7, 4]
    with pytest.raises(MissingError, match="has no segment"):
        segment_card(snapshot, names.make_segment("0" * 12, 0, 0, 12))


def test_the_card_of_a_model(kit: ModuleType, snapshot: Snapshot) -> None:
    vit = snapshot.models[1]
    shown = model_card(snapshot, vit)
    assert shown["games"] == {kit.GAME: "2 of 3 segments"}
    assert (shown["passes"], shown["embeddings"], shown["seconds"]) == (10, 14, 3.0)
    assert shown["bytes"] == on_disk(Path(snapshot.backend.url) / names.model_path(vit))
    assert shown["embedded"] == on_disk(
        Path(snapshot.backend.url) / "games" / kit.GAME / "embeddings" / vit
    )
    with pytest.raises(MissingError, match="'wsa models' lists them"):
        model_card(snapshot, kit.key("other"))


@pytest.mark.parametrize("by", ["game", "policy", "model", "author"])
def test_what_fills_a_store(kit: ModuleType, snapshot: Snapshot, by: str) -> None:
    root = Path(snapshot.backend.url)
    found = usage(snapshot, by)
    resnet, vit = snapshot.models
    assert {share.name for share in found.shares} == {
        "game": {"Pong", "Breakout", "(models)"},
        "policy": {"random", "expert", "(models)"},
        "model": {resnet, vit, "(no model)"},
        "author": {next(iter(snapshot.commits.values())).author},
    }[by]
    total = found.total
    assert (total.objects, total.frames) == (len(snapshot.commits), 21 + 5)
    assert (
        total.bytes == total_bytes(snapshot) == on_disk(root / "games") + on_disk(root / "models")
    )
    assert total.seconds == 5 * 1.5
    for share in (*found.shares, total):
        assert share.bytes == share.screens + share.rows + share.embeddings + share.models
    for name in ("objects", "screens", "rows", "embeddings", "models", "bytes", "seconds"):
        assert sum(getattr(share, name) for share in found.shares) == getattr(total, name)
    sizes = [share.bytes for share in found.shares]
    assert sizes == sorted(sizes, reverse=True)
    by_name = {share.name: share for share in found.shares}
    if by == "model":
        assert (by_name[vit].frames, by_name[vit].seconds) == (14, 3.0)
    if by == "game":
        assert by_name["Pong"].bytes == on_disk(root / "games" / "Pong")
    assert (found.leftovers.files, found.damaged.files) == (0, 0)


def test_leftovers_and_what_was_put_aside(
    kit: ModuleType, snapshot: Snapshot, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    shutil.copytree(snapshot.backend.url, root)
    snapshot = take_snapshot(open_store(str(root)))
    first = names.segment_path(kit.GAME, snapshot.segments(kit.GAME)[0].segment)
    for place, length in (
        (f"{first}/0123456789abcdef/zarr.json", 7),
        ("tmp/half", 11),
        ("damaged/commits/ab/x.json", 13),
        ("damaged/y", 17),
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(bytes(length))
    found = usage(snapshot, "game")
    assert (found.leftovers.files, found.leftovers.bytes) == (2, 18)
    assert (found.damaged.files, found.damaged.bytes) == (2, 30)


def test_frames_without_rows_have_no_policy(kit: ModuleType, snapshot: Snapshot) -> None:
    first = snapshot.segments(kit.GAME)[2].segment
    shares = usage(without(snapshot, names.segment_path(kit.GAME, first)), "policy").shares
    assert {share.name for share in shares} == {"random", "(models)", "(rows not here)"}
