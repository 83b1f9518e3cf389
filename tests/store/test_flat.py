from __future__ import annotations

import errno
import os
import random
import shutil
import time

import filelock
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsa.store.common import hashing, names
from wsa.store.common.errors import (
    ConflictError,
    DamagedError,
    MissingError,
    StorageError,
    UsageError,
)
from wsa.store.format import arrays
from wsa.store.objects import flat_map
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

SHAPES = {"lite0": (3,), "vit": (2, 2)}


@pytest.fixture
def store(in_memory):
    return in_memory


@pytest.fixture
def models(kit):
    return [kit.key(alias) for alias in SHAPES]


def fill(store, kit, numbers, **options):
    """Segments of one environment, each cut where the last one ended, encoded by two models."""
    metas = []
    for number in numbers:
        made = {"steps": 9, "ends": (2, 3, 6), "frames": 7, "cut": number > 0, **options}
        meta, _ = kit.add_segment(store, number, **made)
        for alias, shape in SHAPES.items():
            kit.add_embedding(store, meta, kit.key(alias), shape=shape)
        metas.append(meta)
    return metas


def reference(snapshot, game, models, depth):
    """For each step in the snapshot's order: its row, and its stack of fused embeddings, by brute force."""
    for meta in snapshot.segments(game):
        rows = snapshot.read_rows(meta)
        rows = {name: rows[name] for name in arrays.ROW_FIELDS}
        fused = np.concatenate(
            [
                snapshot.read_embedding(game, key, meta.segment).reshape(meta.frames, -1)
                for key in models
            ],
            axis=1,
        )
        for row in range(meta.rows):
            if rows["action"][row] < 0:
                continue
            stack, at = [], row
            for _ in range(depth):
                stack.insert(0, fused[rows["frame"][at]])
                at = at if rows["is_first"][at] or at == 0 else at - 1
            yield {name: values[row] for name, values in rows.items()}, np.stack(stack), meta, row


def equals_the_store(made, snapshot, models, depth=4):
    expected = list(reference(snapshot, "Pong", models, depth))
    assert len(made.steps) == len(expected)
    stacks = made.stack(made.steps, depth)
    assert stacks.shape == (len(expected), depth) and stacks.dtype == np.int64
    out = np.empty((stacks.size, made.width), made.embeddings.dtype)
    gathered = made.gather(stacks.reshape(-1), out).reshape(*stacks.shape, -1)
    for at, (row, stack, meta, number) in enumerate(expected):
        found = made.rows[made.steps[at]]
        for name in arrays.ROW_FIELDS:
            if name != "frame":
                assert found[name] == row[name]
        np.testing.assert_array_equal(gathered[at], stack.astype(gathered.dtype))
        digest = snapshot.read_digests(meta)[snapshot.read_rows(meta)["frame"][number]]
        np.testing.assert_array_equal(made.digests[found["frame"]], digest)
    for column, shape in zip(made.columns, made.shapes, strict=True):
        assert column.stop - column.start == np.prod(shape)


def same_data(one, other):
    """Equal to whoever samples, wherever the segments stand in the files."""
    assert len(one.steps) == len(other.steps)
    for name in arrays.ROW_FIELDS:
        if name != "frame":
            np.testing.assert_array_equal(one.rows[name][one.steps], other.rows[name][other.steps])
    for depth in (1, 4):
        left, right = (m.embeddings[m.stack(m.steps, depth)] for m in (one, other))
        np.testing.assert_array_equal(left, right)


def folder_of(cache):
    (folder,) = (cache / "flat").iterdir()
    return folder


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_map_equals_the_store(store, kit, models, tmp_path, depth):
    fill(store, kit, range(3))
    fill(store, kit, [0], game="Seaquest")
    snapshot = take_snapshot(store)
    made = flat_map.materialise(snapshot, "Pong", models, tmp_path)
    assert made.models == tuple(models) and made.shapes == tuple(SHAPES.values())
    assert made.width == 7 and made.embeddings.dtype == np.float16
    equals_the_store(made, snapshot, models, depth)
    swapped = flat_map.materialise(snapshot, "Pong", models[::-1], tmp_path)
    assert swapped.models == tuple(models[::-1])
    equals_the_store(swapped, snapshot, models[::-1], depth)


@settings(max_examples=8)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 12),
            st.sets(st.integers(0, 11), max_size=5),
            st.integers(1, 14),
            st.booleans(),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_map_equals_the_store(kit, tmp_path_factory, segments):
    folder = tmp_path_factory.mktemp("any")
    on_disk = open_store(str(folder / "store"), create=True)
    models = [kit.key(alias) for alias in SHAPES]
    for env, (steps, ends, frames, cut) in enumerate(segments):
        options = {"env": env, "steps": steps, "ends": tuple(ends), "frames": frames, "cut": cut}
        fill(on_disk, kit, [0], **options)
    snapshot = take_snapshot(on_disk)
    equals_the_store(flat_map.materialise(snapshot, "Pong", models, folder), snapshot, models)


def test_new_segments_are_appended_and_nothing_else_changes(store, kit, models, tmp_path):
    cache, fresh = tmp_path / "cache", tmp_path / "fresh"
    fill(store, kit, [3, 1])
    early = take_snapshot(store)
    first = flat_map.materialise(early, "Pong", models, cache)
    before = {
        name: (folder_of(cache) / name).read_bytes()
        for name in ("rows.bin", "embeddings.bin", "digests.bin")
    }
    mapped = first.embeddings[:].copy()
    fill(store, kit, [0, 2])  # Before and between the old ones in the snapshot's order.
    snapshot = take_snapshot(store)
    second = flat_map.materialise(snapshot, "Pong", models, cache)
    for name, data in before.items():
        after = (folder_of(cache) / name).read_bytes()
        assert after.startswith(data) and len(after) > len(data)
    np.testing.assert_array_equal(first.embeddings, mapped)
    equals_the_store(second, snapshot, models)
    same_data(second, flat_map.materialise(snapshot, "Pong", models, fresh))
    same_data(first, flat_map.materialise(early, "Pong", models, cache))
    equals_the_store(flat_map.materialise(early, "Pong", models, cache), early, models)


def test_the_same_again_reads_nothing_of_the_store_and_writes_nothing(
    store, kit, models, tmp_path, monkeypatch
):
    fill(store, kit, range(2))
    snapshot = take_snapshot(store)
    first = flat_map.materialise(snapshot, "Pong", models, tmp_path)
    stamps = {p.name: p.stat().st_mtime_ns for p in folder_of(tmp_path).iterdir()}
    monkeypatch.setattr(type(snapshot), "read_files", None)
    same_data(first, flat_map.materialise(snapshot, "Pong", models, tmp_path))
    assert (
        stamps.items()
        >= {
            p.name: p.stat().st_mtime_ns for p in folder_of(tmp_path).iterdir() if p.name != "lock"
        }.items()
    )


def test_a_map_is_opened_before_anyone_may_replace_it(store, kit, models, tmp_path, monkeypatch):
    fill(store, kit, range(1))
    held = []

    def opened(folder, contents, snapshot):
        try:
            with filelock.FileLock(folder / "lock", timeout=0):
                held.append(False)
        except filelock.Timeout:
            held.append(True)

    monkeypatch.setattr(flat_map, "FlatMap", opened)
    flat_map.materialise(take_snapshot(store), "Pong", models, tmp_path)
    assert held == [True]


def test_sampling_order_is_the_snapshots_whatever_was_appended_first(store, kit, models, tmp_path):
    maps = []
    for number in [4, 0, 3, 1, 2]:
        fill(store, kit, [number])
        maps.append(flat_map.materialise(take_snapshot(store), "Pong", models, tmp_path / "grown"))
    grown = maps[-1]
    at_once = flat_map.materialise(take_snapshot(store), "Pong", models, tmp_path / "once")
    assert (grown.steps != at_once.steps).any(), "they stand elsewhere in the file"
    same_data(grown, at_once)


def test_a_store_made_anew_at_the_same_path_is_not_mixed_up(on_disk, kit, models, tmp_path):
    cache = tmp_path / "cache"
    fill(on_disk, kit, range(3))
    old = flat_map.materialise(take_snapshot(on_disk), "Pong", models, cache)
    copied = old.embeddings[:].copy()
    for again in ({"frames": 5}, {"run": "ffffffffffff"}):
        shutil.rmtree(on_disk.url)
        open_store(on_disk.url, create=True)
        fill(on_disk, kit, range(2), **again)
        snapshot = take_snapshot(on_disk)
        made = flat_map.materialise(snapshot, "Pong", models, cache)
        equals_the_store(made, snapshot, models)
        np.testing.assert_array_equal(old.embeddings, copied)  # Whoever mapped it keeps it.


def test_one_segment_made_anew_is_not_mixed_up(on_disk, kit, models, tmp_path):
    """Same ids and shapes; other embeddings, as after a model file was repaired."""
    metas = fill(on_disk, kit, range(3))
    flat_map.materialise(take_snapshot(on_disk), "Pong", models, tmp_path)
    path = names.embedding_path("Pong", models[0], metas[1].segment)
    on_disk.delete(names.commit_path(hashing.object_id(path)))
    shutil.rmtree(on_disk.root / path)
    described, array = kit.fake_embedding(metas[1], models[0], SHAPES["lite0"])
    kit.writer.commit_embedding(on_disk, described, -array)
    snapshot = take_snapshot(on_disk)
    equals_the_store(flat_map.materialise(snapshot, "Pong", models, tmp_path), snapshot, models)


def test_one_float32_segment_makes_the_map_float32(store, kit, models, tmp_path):
    fill(store, kit, range(2))
    before = flat_map.materialise(take_snapshot(store), "Pong", models, tmp_path)
    assert before.embeddings.dtype == np.float16
    copied = before.embeddings[:].copy()
    meta, _ = kit.add_segment(store, 2, steps=9, cut=True)
    kit.add_embedding(store, meta, models[0], shape=(3,), dtype="float32", scale=1e6)
    kit.add_embedding(store, meta, models[1], shape=(2, 2))
    snapshot = take_snapshot(store)
    made = flat_map.materialise(snapshot, "Pong", models, tmp_path)
    assert made.embeddings.dtype == np.float32 and np.abs(made.embeddings).max() > 65504
    equals_the_store(made, snapshot, models)
    np.testing.assert_array_equal(before.embeddings, copied)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("rows.bin", "deleted"),
        ("embeddings.bin", "cut"),
        ("digests.bin", "emptied"),
        ("flat.json", "cut"),
        *(
            pytest.param(name, how, marks=pytest.mark.slow)
            for name, hows in {
                "rows.bin": ("cut", "emptied"),
                "embeddings.bin": ("deleted", "emptied"),
                "digests.bin": ("deleted", "cut"),
                "flat.json": ("deleted", "emptied"),
            }.items()
            for how in hows
        ),
    ],
)
def test_a_cleaned_cache_is_made_again(store, kit, models, tmp_path, name, how):
    fill(store, kit, range(2))
    snapshot = take_snapshot(store)
    flat_map.materialise(snapshot, "Pong", models, tmp_path)
    file = folder_of(tmp_path) / name
    if how == "deleted":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2 if how == "cut" else 0)
    equals_the_store(flat_map.materialise(snapshot, "Pong", models, tmp_path), snapshot, models)


def test_what_is_not_there_is_named_with_the_command_that_makes_it(store, kit, models, tmp_path):
    def missing(game, keys_):
        with pytest.raises(MissingError) as error:
            flat_map.materialise(take_snapshot(store), game, keys_, tmp_path)
        assert error.value.exit_code == 3
        return error.value.kind, str(error.value)

    kind, message = missing("Pong", models)
    assert kind == "no-frames" and "wsa collect --game Pong" in message
    fill(store, kit, range(2))
    kind, message = missing("Seaquest", models)
    assert kind == "no-frames" and "wsa collect --game Seaquest" in message
    kit.add_segment(store, 5)
    kind, message = missing("Pong", models)
    assert kind == "not-encoded"
    assert "1 of 3 segments" in message and "wsa encode --game Pong --models lite0" in message
    assert not (tmp_path / "flat").exists()


def test_no_models_and_no_model_keys_are_refused(store, kit, tmp_path):
    fill(store, kit, range(1))
    for keys_, kind in (([], "bad-option"), (["lite0"], "bad-name"), (["../x"], "bad-name")):
        with pytest.raises(UsageError) as refused:
            flat_map.materialise(take_snapshot(store), "Pong", keys_, tmp_path)
        assert refused.value.kind == kind


def test_embeddings_of_several_shapes_are_a_conflict(store, kit, models, tmp_path):
    fill(store, kit, range(2))
    meta, _ = kit.add_segment(store, 2)
    kit.add_embedding(store, meta, models[0], shape=(4,))
    kit.add_embedding(store, meta, models[1], shape=(2, 2))
    with pytest.raises(ConflictError) as conflict:
        flat_map.materialise(take_snapshot(store), "Pong", models, tmp_path)
    assert conflict.value.kind == "other-bytes" and models[0] in str(conflict.value)


def test_damage_is_not_copied(on_disk, kit, models, tmp_path):
    metas = fill(on_disk, kit, range(3))
    path = names.embedding_path("Pong", models[1], metas[1].segment)
    file = on_disk.root / take_snapshot(on_disk).commit(path).folder / "c.0.0.0"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    snapshot = take_snapshot(on_disk)
    with pytest.raises(DamagedError):
        flat_map.materialise(snapshot, "Pong", models, tmp_path)
    file.write_bytes(whole)
    equals_the_store(flat_map.materialise(snapshot, "Pong", models, tmp_path), snapshot, models)


def test_a_full_disk_leaves_a_map_that_can_be_completed(store, kit, models, tmp_path, monkeypatch):
    fill(store, kit, range(2))
    flat_map.materialise(take_snapshot(store), "Pong", models, tmp_path)
    fill(store, kit, [2])
    snapshot = take_snapshot(store)

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError) as error:
            flat_map.materialise(snapshot, "Pong", models, tmp_path)
    assert error.value.kind == "no-space"
    equals_the_store(flat_map.materialise(snapshot, "Pong", models, tmp_path), snapshot, models)


@pytest.mark.parametrize("frames", [[-1], [0, 10**6], [2**62]])
def test_rows_out_of_range_are_refused(store, kit, models, tmp_path, frames):
    fill(store, kit, range(1))
    made = flat_map.materialise(take_snapshot(store), "Pong", models, tmp_path)
    out = np.zeros((len(frames), made.width), np.float16)
    for bad in (frames, [len(made.embeddings)]):
        with pytest.raises(IndexError, match="must be in"):
            made.gather(np.array(bad), out[: len(bad)])
    assert not out.any()
    last = len(made.embeddings) - 1
    made.gather(np.array([last]), out[:1])
    np.testing.assert_array_equal(out[0], made.embeddings[last])
    assert made.gather(np.zeros(0, np.int64), out[:0]).shape == (0, made.width)


@pytest.mark.parametrize("depth", [0, -1, 5])
def test_stacks_deeper_than_what_segments_repeat_are_refused(store, kit, models, tmp_path, depth):
    fill(store, kit, range(2))
    made = flat_map.materialise(take_snapshot(store), "Pong", models, tmp_path)
    with pytest.raises(UsageError) as refused:
        made.stack(made.steps, depth)
    assert refused.value.kind == "bad-option"


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("WSA_CACHE", str(tmp_path))
    assert flat_map.cache_folder() == tmp_path
    monkeypatch.delenv("WSA_CACHE")
    assert flat_map.cache_folder().name == "wsa"


def test_two_processes_make_one_map(on_disk, kit, models, tmp_path, nursery):
    fill(on_disk, kit, range(4))
    snapshot = take_snapshot(on_disk)
    for turn in range(2):
        cache = tmp_path / f"cache{turn}"
        args = ("materialise", on_disk.url, list(SHAPES), str(cache), 0.02)
        children = [nursery.start(*args) for _ in range(3)]
        assert nursery.wait(*children) == [0, 0, 0]
        results = {child.said()[-1] for child in children}
        assert len(results) == 1
        assert sorted(len(child.said()) for child in children) == [1, 1, 5], "one did the work"
        equals_the_store(flat_map.materialise(snapshot, "Pong", models, cache), snapshot, models)


def test_a_killed_materialisation_is_completed(on_disk, kit, models, tmp_path, nursery):
    fill(on_disk, kit, range(4))
    snapshot = take_snapshot(on_disk)
    rng = random.Random(3)
    cache = tmp_path / "cache"
    grown = 0
    for turn in range(8):
        child = nursery.start("materialise", on_disk.url, list(SHAPES), str(cache), 0.01)
        child.wait_for(1 + turn % 2, 2.0)  # In vain where an earlier one was killed too late.
        time.sleep(rng.random() * 0.015)
        child.kill()
        grown += nursery.wait(child) == [-9]
        if turn % 3 == 2:
            made = flat_map.materialise(snapshot, "Pong", models, cache)
            equals_the_store(made, snapshot, models)
            if turn == 2:
                fill(on_disk, kit, [4, 5])
                snapshot = take_snapshot(on_disk)
            else:
                shutil.rmtree(cache)
    assert grown >= 4, "most were killed at work"
    equals_the_store(flat_map.materialise(snapshot, "Pong", models, cache), snapshot, models)
