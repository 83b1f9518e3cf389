"""Tables and cards of a store's games, segments, and models, and the bytes that they take."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from wsa.store.common import names
from wsa.store.common.errors import MissingError
from wsa.store.format.records import EmbeddingMeta, ModelMeta
from wsa.store.maintenance.summary import (
    card,
    model_card,
    segment_card,
    summaries,
    summarize,
    total_bytes,
)
from wsa.store.maintenance.usage import usage
from wsa.store.objects.model_spec import Identity, ModelSpec, Preprocessing
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot
from wsa.store.objects.writer import commit_embedding, commit_model, commit_segment


def make_spec(alias):
    preprocessing = Preprocessing("squash", 8, 8, "bicubic", (0.0,) * 3, (1.0,) * 3)
    identity = Identity(alias, "", True, preprocessing, "pooled", "", 1, "fp32")
    return ModelSpec(alias, alias, identity, (4,), "random", "", 0.0, {})


@pytest.fixture(scope="module")
def snapshot(kit, tmp_path_factory):
    """Three segments of Pong in two protocols, and one of Breakout.

    The first model has encoded all of Pong, the second has not encoded the last segment.
    """
    store = open_store(str(tmp_path_factory.mktemp("summary") / "store"), create=True)
    metas = []
    for number, frame_skip, policy, episodes in (
        (0, 4, "random", ((3, 1.5), (6, -3.0))),
        (1, 4, "random", ()),
        (2, 2, "expert", ((2, 7.0),)),
    ):
        ends = tuple(end - 1 for end, _ in episodes)
        meta, arrays = kit.fake_segment(number, steps=10 + number, ends=ends, frames=7)
        protocol = msgspec.structs.replace(meta.protocol, frame_skip=frame_skip)
        meta = msgspec.structs.replace(
            meta, protocol=protocol, episodes=episodes, seed=number, policy=policy
        )
        commit_segment(store, meta, arrays)
        metas.append(meta)
    commit_segment(store, *kit.fake_segment(game="Breakout", steps=4))
    for alias, count in (("resnet", 3), ("vit", 2)):
        spec = make_spec(alias)
        commit_model(store, ModelMeta(spec.key), {"spec.json": spec.json})
        for meta in metas[:count]:
            embeddings = np.zeros((meta.frames, 4), np.float16)
            described = EmbeddingMeta(
                meta.game, meta.segment, spec.key, embeddings.shape, "float16", 5, 2, 1.5
            )
            commit_embedding(store, described, embeddings)
    return take_snapshot(store)


def count_bytes(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def leave_out(snapshot, path):
    commits = {p: commit for p, commit in snapshot.commits.items() if p != path}
    return Snapshot(snapshot.backend, commits)


def test_the_summary_of_a_game(kit, snapshot):
    summary = summarize(snapshot, kit.GAME)
    folder = Path(snapshot.backend.url) / "games" / kit.GAME
    assert (summary.game, summary.segments, summary.pictured) == (kit.GAME, 3, 3)
    assert (summary.steps, summary.frames) == (10 + 11 + 12, 3 * 7)
    assert summary.emulator_frames == 4 * 10 + 4 * 11 + 2 * 12
    assert (summary.episodes, summary.mean_return) == (3, pytest.approx((1.5 - 3 + 7) / 3))
    assert summary.bytes == count_bytes(folder / "segments") + count_bytes(folder / "frames") > 0
    assert summary.embedded == count_bytes(folder / "embeddings") > 0
    resnet, vit = snapshot.models
    assert summary.models == {resnet: 1.0, vit: pytest.approx(2 / 3)}
    assert summary.encoded == {resnet: 3, vit: 2}
    assert summaries(snapshot) == [summarize(snapshot, game) for game in ("Breakout", kit.GAME)]


def test_segments_without_frames_or_rows_are_not_counted(kit, snapshot):
    segment = snapshot.segments(kit.GAME)[1].segment
    frameless = leave_out(snapshot, names.frames_path(kit.GAME, segment))
    assert summarize(frameless, kit.GAME).pictured == 2
    assert segment_card(frameless, segment)["screens"] is None
    rowless = leave_out(snapshot, names.segment_path(kit.GAME, segment))
    assert list(summarize(rowless, kit.GAME).encoded.values()) == [2, 1]


def test_the_card_of_a_game(kit, snapshot):
    shown: dict[str, Any] = card(snapshot, kit.GAME)
    assert shown["steps"] == 33 and shown["segments"] == 3
    assert shown["screens"] == ["6 x 5"]
    assert sorted(p["frame_skip"] for p in shown["protocols"]) == [2, 4]
    assert shown["collections"] == [
        f"{policy}, seed {n}, run {kit.RUN}"
        for policy, n in (("expert", 2), ("random", 0), ("random", 1))
    ]
    assert shown["emulator"] == ["ale-py 0.12.0, ROM MD5 60e0ea3cbe0913d39803477945e9e5ec"]
    columns = ("steps", "episodes", "mean_return", "least_return", "highest_return")
    assert shown["policies"] == {
        "expert": dict(zip(columns, (12, 1, 7.0, 7.0, 7.0), strict=True)),
        "random": dict(zip(columns, (21, 2, -0.75, -3.0, 1.5), strict=True)),
    }
    assert [e["key"] for e in shown["encoders"]] == snapshot.models
    assert [e["embeddings"] for e in shown["encoders"]] == [21, 14]
    assert [e["passes"] for e in shown["encoders"]] == [15, 10]
    assert len(shown["authors"]) == 1 and "@" in shown["authors"][0]
    assert len(shown["commands"]) == 1
    assert msgspec.json.decode(msgspec.json.encode(shown)).keys() == shown.keys()


def test_a_game_without_episodes_or_encoders(snapshot):
    summary = summarize(snapshot, "Breakout")
    assert (summary.episodes, summary.mean_return, summary.models) == (0, None, {})
    assert summary.embedded == 0
    shown = card(snapshot, "Breakout")
    assert shown["policies"]["random"]["mean_return"] is None and shown["encoders"] == []


def test_the_card_of_a_segment(kit, snapshot):
    meta = snapshot.segments(kit.GAME)[2]
    shown = segment_card(snapshot, meta.segment)
    assert (shown["game"], shown["steps"], shown["policy"]) == (kit.GAME, 12, "expert")
    assert shown["bytes"] == count_bytes(Path(snapshot.backend.url) / shown["path"])
    assert shown["screens"]["path"].startswith(names.frames_path(kit.GAME, meta.segment))
    assert list(shown["embeddings"]) == snapshot.models[:1]
    assert shown["embeddings"][snapshot.models[0]]["shape"] == [7, 4]


def test_the_card_of_a_model(kit, snapshot):
    root, vit = Path(snapshot.backend.url), snapshot.models[1]
    shown = model_card(snapshot, vit)
    assert shown["games"] == {kit.GAME: "2 of 3 segments"}
    assert (shown["passes"], shown["embeddings"], shown["seconds"]) == (10, 14, 3.0)
    assert shown["bytes"] == count_bytes(root / names.model_path(vit))
    assert shown["embedded"] == count_bytes(root / "games" / kit.GAME / "embeddings" / vit)


def test_missing_objects_are_errors(kit, snapshot):
    for function in (summarize, card):
        with pytest.raises(MissingError, match=r"wsa collect --game Seaquest$"):
            function(snapshot, "Seaquest")
    with pytest.raises(MissingError, match="has no segment"):
        segment_card(snapshot, names.make_segment("0" * 12, 0, 0, 12))
    with pytest.raises(MissingError, match="'wsa models' lists them"):
        model_card(snapshot, kit.key("other"))


@pytest.mark.parametrize("by", ["game", "policy", "model", "author"])
def test_usage_adds_up_to_all_files(snapshot, by):
    root = Path(snapshot.backend.url)
    breakdown = usage(snapshot, by)
    resnet, vit = snapshot.models
    shares = {share.name: share for share in breakdown.shares}
    assert (
        set(shares)
        == {
            "game": {"Pong", "Breakout", "(models)"},
            "policy": {"random", "expert", "(models)"},
            "model": {resnet, vit, "(no model)"},
            "author": {next(iter(snapshot.commits.values())).author},
        }[by]
    )
    total = breakdown.total
    assert (total.objects, total.frames) == (len(snapshot.commits), 21 + 5)
    files = count_bytes(root / "games") + count_bytes(root / "models")
    assert total.bytes == total_bytes(snapshot) == files
    assert total.seconds == 5 * 1.5
    for share in (*breakdown.shares, total):
        assert share.bytes == share.screens + share.rows + share.embeddings + share.models
    for name in ("objects", "screens", "rows", "embeddings", "models", "bytes", "seconds"):
        assert sum(getattr(share, name) for share in breakdown.shares) == getattr(total, name)
    sizes = [share.bytes for share in breakdown.shares]
    assert sizes == sorted(sizes, reverse=True)
    if by == "model":
        assert (shares[vit].frames, shares[vit].seconds) == (14, 3.0)
    if by == "game":
        assert shares["Pong"].bytes == count_bytes(root / "games" / "Pong")
    assert (breakdown.leftovers.files, breakdown.damaged.files) == (0, 0)


def test_usage_counts_leftovers_and_damaged_files(kit, snapshot, tmp_path):
    root = tmp_path / "store"
    shutil.copytree(snapshot.backend.url, root)
    segment = names.segment_path(kit.GAME, snapshot.segments(kit.GAME)[0].segment)
    for path, length in (
        (f"{segment}/0123456789abcdef/zarr.json", 7),
        ("tmp/half", 11),
        ("damaged/commits/ab/x.json", 13),
        ("damaged/y", 17),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(bytes(length))
    breakdown = usage(take_snapshot(open_store(str(root))), "game")
    assert (breakdown.leftovers.files, breakdown.leftovers.bytes) == (2, 18)
    assert (breakdown.damaged.files, breakdown.damaged.bytes) == (2, 30)


def test_frames_without_rows_have_no_policy(kit, snapshot):
    segment = snapshot.segments(kit.GAME)[2].segment
    shares = usage(leave_out(snapshot, names.segment_path(kit.GAME, segment)), "policy").shares
    assert {share.name for share in shares} == {"random", "(models)", "(rows not here)"}
