"""Flat maps: copies of a game's rows and embeddings in the cache, memory-mapped, equal to the store."""

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
from wsa.store.objects.snapshot import Snapshot, take_snapshot
from wsa.store.testing.faults import MemoryBackend

# Shape and window of each model; models of windows and of single frames are mixed.
MODELS = {"lite0": ((3,), 1), "pair": ((2, 2), 2), "vit": ((2, 2), 1), "moving": ((1,), 4)}


@pytest.fixture
def store(in_memory):
    return in_memory


@pytest.fixture
def models(kit):
    return [kit.key(alias) for alias in MODELS]


def fill(store, kit, numbers, aliases=tuple(MODELS), first=None, **options):
    """Commit consecutive segments of one environment, encoded by these models.

    Args:
        first: Other options of the embeddings of the first model.
    """
    metas = []
    for number in numbers:
        segment = {"steps": 9, "ends": (2, 3, 6), "frames": 7, "cut": number > 0, **options}
        meta, _ = kit.add_segment(store, number, **segment)
        for alias in aliases:
            shape, window = MODELS[alias]
            changed = (first or {}) if alias == aliases[0] else {}
            embedding = {"shape": shape, "window": window, **changed}
            kit.add_embedding(store, meta, kit.key(alias), **embedding)
        metas.append(meta)
    return metas


def materialize(store, models, cache, game="Pong"):
    return flat_map.materialize(take_snapshot(store), game, models, cache)


def check_map(flat, snapshot, models, depth=4):
    """Compare rows, digests, stacks and windows of each step with the objects, by brute force."""
    stacks = flat.stack(flat.steps, depth)
    out = np.empty((stacks.size, flat.width), flat.embeddings.dtype)
    stacked = flat.gather(stacks.reshape(-1), out).reshape(*stacks.shape, flat.width)
    out = np.empty((len(flat.steps), flat.window_width), flat.windowed.dtype)
    windows = flat.gather_windows(flat.steps, out)
    step = 0
    for meta in snapshot.segments("Pong"):
        rows = snapshot.read_rows(meta)
        digests = snapshot.read_digests(meta)
        embeddings = [snapshot.read_embedding("Pong", key, meta.segment) for key in models]
        for row in np.flatnonzero(rows["action"] >= 0):
            found = flat.rows[flat.steps[step]]
            for name in arrays.ROW_FIELDS:
                if name != "frame":
                    assert found[name] == rows[name][row]
            np.testing.assert_array_equal(flat.digests[found["frame"]], digests[rows["frame"][row]])
            stack, at = [], row
            for _ in range(depth):
                stack.insert(0, rows["frame"][at])
                at = at if rows["is_first"][at] or at == 0 else at - 1
            for embedding, window, columns in zip(
                embeddings, flat.windows, flat.columns, strict=True
            ):
                if window == 1:
                    expected = embedding[stack].reshape(depth, -1)
                    np.testing.assert_array_equal(stacked[step][:, columns], expected)
                else:
                    expected = embedding[row].reshape(-1)
                    np.testing.assert_array_equal(windows[step][columns], expected)
            step += 1
    assert step == len(flat.steps)


def check_same_samples(one, other):
    """Sampling gives the same, although segments may lie elsewhere in the files."""
    assert len(one.steps) == len(other.steps)
    for name in arrays.ROW_FIELDS:
        if name != "frame":
            np.testing.assert_array_equal(one.rows[name][one.steps], other.rows[name][other.steps])
    left, right = (flat.embeddings[flat.stack(flat.steps, 4)] for flat in (one, other))
    np.testing.assert_array_equal(left, right)


def folder_of(cache):
    (folder,) = (cache / "flat").iterdir()
    return folder


def test_a_map_equals_the_store(store, kit, models, tmp_path):
    fill(store, kit, range(3))
    fill(store, kit, [0], game="Seaquest")
    snapshot = take_snapshot(store)
    flat = materialize(store, models, tmp_path)
    assert flat.models == tuple(models)
    assert list(zip(flat.shapes, flat.windows, strict=True)) == list(MODELS.values())
    assert (flat.width, flat.window_width, flat.embeddings.dtype) == (7, 5, np.float16)
    for depth in (1, 4):
        check_map(flat, snapshot, models, depth)
    for chosen in (models[::-1], models[:1], models[1:2], [models[2], models[3]]):
        check_map(materialize(store, chosen, tmp_path), snapshot, chosen)
    for window in (2, 4):
        digests = flat.digests[flat.stack(np.arange(len(flat.rows)), window)]
        expected = [hashing.window_digest(one.tobytes()) for one in digests]
        assert [digest.tobytes() for digest in flat.window_digests(window)] == expected


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
    store, cache = MemoryBackend(), tmp_path_factory.mktemp("any")
    models = [kit.key(alias) for alias in MODELS]
    for env, (steps, ends, frames, cut) in enumerate(segments):
        options = {"env": env, "steps": steps, "ends": tuple(ends), "frames": frames, "cut": cut}
        fill(store, kit, [0], **options)
    check_map(materialize(store, models, cache), take_snapshot(store), models)


def test_a_map_has_only_the_files_that_its_models_need(store, kit, models, tmp_path):
    fill(store, kit, range(1))
    both = {"rows.bin", "digests.bin"}
    for number, (chosen, files) in enumerate(
        [
            (models[1:2], both | {"windows.bin"}),
            (models[:1], both | {"embeddings.bin"}),
            (models[:2], both | {"embeddings.bin", "windows.bin"}),
        ]
    ):
        cache = tmp_path / str(number)
        materialize(store, chosen, cache)
        assert {path.name for path in folder_of(cache).glob("*.bin")} == files


def test_new_segments_are_appended(store, kit, models, tmp_path):
    cache = tmp_path / "cache"
    fill(store, kit, [3, 1])
    early = take_snapshot(store)
    first = materialize(store, models, cache)
    before = {name: (folder_of(cache) / name).read_bytes() for name in flat_map.FILES}
    fill(store, kit, [0, 2])  # Before and between the others in the order of the snapshot.
    snapshot = take_snapshot(store)
    second = materialize(store, models, cache)
    for name, data in before.items():
        after = (folder_of(cache) / name).read_bytes()
        assert after.startswith(data) and len(after) > len(data)
    check_map(second, snapshot, models)
    at_once = materialize(store, models, tmp_path / "once")
    assert (second.steps != at_once.steps).any(), "segments lie elsewhere in the files"
    check_same_samples(second, at_once)
    check_map(first, early, models)
    check_map(flat_map.materialize(early, "Pong", models, cache), early, models)


def test_a_complete_map_opens_without_reads_or_writes(store, kit, models, tmp_path, monkeypatch):
    def stamps():
        files = folder_of(tmp_path).iterdir()
        return {file.name: file.stat().st_mtime_ns for file in files if file.name != "lock"}

    fill(store, kit, range(2))
    snapshot = take_snapshot(store)
    first = flat_map.materialize(snapshot, "Pong", models, tmp_path)
    before = stamps()
    monkeypatch.setattr(type(snapshot), "read_files", None)
    check_same_samples(first, flat_map.materialize(snapshot, "Pong", models, tmp_path))
    assert stamps() == before


def test_a_map_is_opened_under_its_lock(store, kit, models, tmp_path, monkeypatch):
    fill(store, kit, range(1))
    locked = []

    def open_map(folder, contents, snapshot):
        try:
            with filelock.FileLock(folder / "lock", timeout=0):
                locked.append(False)
        except filelock.Timeout:
            locked.append(True)

    monkeypatch.setattr(flat_map, "FlatMap", open_map)
    materialize(store, models, tmp_path)
    assert locked == [True]


def test_a_new_store_at_the_same_path_gets_a_new_map(on_disk, kit, models, tmp_path):
    cache = tmp_path / "cache"
    fill(on_disk, kit, range(3))
    old = materialize(on_disk, models, cache)
    copied = old.embeddings[:].copy()
    for options in ({"frames": 5}, {"run": "ffffffffffff"}):
        shutil.rmtree(on_disk.url)
        open_store(on_disk.url, create=True)
        fill(on_disk, kit, range(2), **options)
        check_map(materialize(on_disk, models, cache), take_snapshot(on_disk), models)
        np.testing.assert_array_equal(old.embeddings, copied)  # A process that maps it keeps it.


def test_a_replaced_embedding_is_noticed(store, kit, models, tmp_path):
    """Ids and shapes are the same, but the values are others, as after a repair."""
    metas = fill(store, kit, range(3))
    materialize(store, models, tmp_path)
    path = names.embedding_path("Pong", models[0], metas[1].segment)
    for file in [names.commit_path(hashing.object_id(path)), *kit.paths(store, path)]:
        store.delete(file)
    described, array = kit.fake_embedding(metas[1], models[0], *MODELS["lite0"][:1])
    kit.writer.commit_embedding(store, described, -array)
    check_map(materialize(store, models, tmp_path), take_snapshot(store), models)


def test_one_float32_segment_makes_the_map_float32(store, kit, models, tmp_path):
    fill(store, kit, range(2))
    before = materialize(store, models, tmp_path)
    assert before.embeddings.dtype == np.float16
    copied = before.embeddings[:].copy()
    fill(store, kit, [2], first={"dtype": "float32", "scale": 1e6})
    flat = materialize(store, models, tmp_path)
    assert flat.embeddings.dtype == np.float32 and np.abs(flat.embeddings).max() > 65504
    check_map(flat, take_snapshot(store), models)
    np.testing.assert_array_equal(before.embeddings, copied)


def test_the_type_is_that_of_the_snapshots_segments(store, kit, models, tmp_path):
    fill(store, kit, range(2))
    (meta,) = fill(store, kit, [2], first={"dtype": "float32", "scale": 1e6})
    whole = take_snapshot(store)
    others = {
        p: c for p, c in whole.commits.items() if p != names.segment_path(kit.GAME, meta.segment)
    }
    part = flat_map.materialize(Snapshot(store, others), kit.GAME, models, tmp_path)
    assert part.embeddings.dtype == np.float16
    materialize(store, models, tmp_path)
    # Neither replaces the files of the other.
    assert len(list(tmp_path.glob("flat/*/flat.json"))) == 2


@pytest.mark.parametrize(
    ("first", "word"), [({"shape": (4,)}, "lite0"), ({"window": 2}, "windows")]
)
def test_embeddings_of_two_shapes_or_windows_conflict(store, kit, models, tmp_path, first, word):
    fill(store, kit, range(2))
    fill(store, kit, [2], first=first)
    with pytest.raises(ConflictError, match=word) as conflict:
        materialize(store, models, tmp_path)
    assert conflict.value.kind == "other-bytes"


DAMAGE = [
    ("rows.bin", "deleted"),
    ("embeddings.bin", "truncated"),
    ("windows.bin", "truncated"),
    ("digests.bin", "emptied"),
    ("flat.json", "truncated"),
]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param(*case, marks=() if case in DAMAGE else pytest.mark.slow)
        for case in [
            (name, how)
            for name in ("rows.bin", "embeddings.bin", "windows.bin", "digests.bin", "flat.json")
            for how in ("deleted", "truncated", "emptied")
        ]
    ],
)
def test_a_damaged_cache_is_made_again(store, kit, models, tmp_path, name, how):
    fill(store, kit, range(2))
    materialize(store, models, tmp_path)
    file = folder_of(tmp_path) / name
    if how == "deleted":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2 if how == "truncated" else 0)
    check_map(materialize(store, models, tmp_path), take_snapshot(store), models)


def test_missing_objects_are_named_with_the_command_that_makes_them(store, kit, models, tmp_path):
    def message_of(kind, game):
        with pytest.raises(MissingError) as missing:
            materialize(store, models, tmp_path, game)
        assert (missing.value.kind, missing.value.exit_code) == (kind, 3)
        return str(missing.value)

    assert "wsa collect --game Pong" in message_of("no-frames", "Pong")
    fill(store, kit, range(2))
    assert "wsa collect --game Seaquest" in message_of("no-frames", "Seaquest")
    kit.add_segment(store, 5)
    message = message_of("not-encoded", "Pong")
    assert "1 of 3 segments" in message and "wsa encode --game Pong --models lite0" in message
    assert not (tmp_path / "flat").exists()
    for chosen, kind in (([], "bad-option"), (["lite0"], "bad-name"), (["../x"], "bad-name")):
        with pytest.raises(UsageError) as refused:
            materialize(store, chosen, tmp_path)
        assert refused.value.kind == kind


def test_damage_is_not_copied(store, kit, models, tmp_path):
    metas = fill(store, kit, range(3))
    path = names.embedding_path("Pong", models[2], metas[1].segment)
    file = f"{take_snapshot(store).commit(path).folder}/c.0.0.0"
    whole, moment = store.files[file]
    store.files[file] = whole[:-1] + bytes([whole[-1] ^ 1]), moment
    with pytest.raises(DamagedError):
        materialize(store, models, tmp_path)
    store.files[file] = whole, moment
    check_map(materialize(store, models, tmp_path), take_snapshot(store), models)


def test_a_map_interrupted_by_a_full_disk_is_completed(store, kit, models, tmp_path, monkeypatch):
    fill(store, kit, range(2))
    materialize(store, models, tmp_path)
    fill(store, kit, [2])

    def fail(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError) as full:
            materialize(store, models, tmp_path)
    assert full.value.kind == "no-space"
    check_map(materialize(store, models, tmp_path), take_snapshot(store), models)


def test_rows_out_of_range_and_deep_stacks_are_refused(store, kit, models, tmp_path):
    fill(store, kit, range(1))
    flat = materialize(store, models, tmp_path)
    out = np.zeros((2, flat.width), np.float16)
    count = len(flat.embeddings)
    for frames in ([-1], [0, 10**6], [2**62], [count]):
        with pytest.raises(IndexError, match="must be in"):
            flat.gather(np.array(frames), out[: len(frames)])
    assert not out.any()
    flat.gather(np.array([count - 1]), out[:1])
    np.testing.assert_array_equal(out[0], flat.embeddings[count - 1])
    assert flat.gather(np.zeros(0, np.int64), out[:0]).shape == (0, flat.width)
    with pytest.raises(IndexError, match="must be in"):
        flat.gather_windows(np.array([len(flat.rows)]), np.empty((1, 5), np.float16))
    for depth in (0, -1, 5):
        with pytest.raises(UsageError) as refused:
            flat.stack(flat.steps, depth)
        assert refused.value.kind == "bad-option"


def test_the_user_chooses_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("WSA_CACHE", str(tmp_path))
    assert flat_map.cache_folder() == tmp_path
    monkeypatch.delenv("WSA_CACHE")
    assert flat_map.cache_folder().name == "wsa"


ALIASES = ("lite0", "vit")


def test_several_processes_make_one_map(on_disk, kit, tmp_path, nursery):
    fill(on_disk, kit, range(3), ALIASES)
    cache, models = tmp_path / "cache", [kit.key(alias) for alias in ALIASES]
    args = ("materialize", on_disk.url, ALIASES, str(cache), 0.02)
    children = [nursery.start(*args) for _ in range(3)]
    assert nursery.wait(*children) == [0, 0, 0]
    assert len({child.said()[-1] for child in children}) == 1, "all read the same map"
    assert sorted(len(child.said()) for child in children) == [1, 1, 4], "one did the work"
    check_map(materialize(on_disk, models, cache), take_snapshot(on_disk), models)


def test_a_map_of_a_killed_process_is_completed(on_disk, kit, tmp_path, nursery):
    fill(on_disk, kit, range(4), ALIASES)
    cache, models = tmp_path / "cache", [kit.key(alias) for alias in ALIASES]
    rng = random.Random(3)
    killed = 0
    for turn in range(5):
        child = nursery.start("materialize", on_disk.url, ALIASES, str(cache), 0.01)
        child.wait_for(1 + turn % 2, 2.0)  # Times out if an earlier process finished the map.
        time.sleep(rng.random() * 0.015)
        child.process.kill()
        killed += nursery.wait(child) == [-9]
        if turn == 2:
            check_map(materialize(on_disk, models, cache), take_snapshot(on_disk), models)
            fill(on_disk, kit, [4, 5], ALIASES)
    assert killed >= 2, "some were killed while they worked"
    check_map(materialize(on_disk, models, cache), take_snapshot(on_disk), models)
