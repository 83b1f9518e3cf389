"""Writer and reader: what a snapshot shows, what is refused, and what a record says."""

import getpass
import os
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from wsa.store.common import atomic_files, names
from wsa.store.common.errors import (
    ConflictError,
    DamagedError,
    MissingError,
    StorageError,
    UsageError,
)
from wsa.store.format import records
from wsa.store.format.records import FramesMeta, ModelMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects import writer
from wsa.store.objects.snapshot import take_objects, take_snapshot
from wsa.store.testing.faults import MemoryBackend


@pytest.fixture
def store(in_memory):
    return in_memory


def test_only_later_snapshots_show_a_commit(store, kit):
    key = kit.key()
    before = take_snapshot(store)
    meta, _ = kit.add_segment(store, indexed=False)
    between = take_snapshot(store)
    kit.add_embedding(store, meta, key, shape=(2, 3, 3))
    files = kit.add_model(store, key)
    after = take_snapshot(store)
    assert (before.games, before.segments(), before.models) == ([], [], [])
    assert between.segments() == [meta] and between.embeddings() == []
    with pytest.raises(MissingError) as missing:
        between.read_embedding(meta.game, key, meta.segment)
    assert missing.value.kind == "not-encoded"
    assert kit.check_whole(before, [meta], [key]) == 0
    assert kit.check_whole(between, [meta], [key]) == 2
    assert after.games == [meta.game] and after.segments(meta.game) == [meta]
    assert after.segments("Seaquest") == []
    assert after.models == [key] and after.read_model(key) == files
    assert [e.segment for e in after.embeddings(meta.game, key)] == [meta.segment]
    np.testing.assert_array_equal(
        after.read_embedding(meta.game, key, meta.segment),
        kit.fake_embedding(meta, key, (2, 3, 3))[1],
    )


def test_the_rows_of_a_segment_without_frames_can_be_read(on_disk, kit):
    """As after a pull for training, which copies only rows."""
    meta, arrays = kit.add_segment(on_disk)
    kit.add_embedding(on_disk, meta, kit.key())
    frames, rows = kit.segment_paths(meta)
    on_disk.delete(names.commit_path(kit.hashing.object_id(frames)))
    snapshot = take_snapshot(on_disk)
    assert snapshot.segments() == [meta] and snapshot.frames() == []
    assert kit.check_whole(snapshot, [meta], [kit.key()]) == 2
    np.testing.assert_array_equal(snapshot.read_digests(meta), arrays["digest"])
    assert list(take_objects(on_disk, [rows]).commits) == [rows]
    with pytest.raises(MissingError) as missing:
        snapshot.read_frames(meta)
    assert (missing.value.kind, missing.value.exit_code) == ("no-frames", 3)
    for word in (on_disk.url, meta.segment, "wsa pull", "--game Pong"):
        assert word in str(missing.value)


def test_a_wrong_number_of_frames_is_damage(store, kit):
    meta, arrays = kit.remember(0)
    of = FramesMeta(meta.game, meta.segment, meta.frames - 1, 6, 5, True)
    files = kit.layout.encode_group({"frames": arrays["frames"][:-1], "palette": arrays["palette"]})
    assert writer._commit(store, writer._record(of, files), files)
    assert writer.commit_segment(store, meta, arrays)
    with pytest.raises(DamagedError) as damaged:
        take_snapshot(store).read_frames(meta)
    assert damaged.value.kind == "bad-record" and of.segment in str(damaged.value)


@pytest.mark.parametrize("damage", ["none", "cut", "gone"])
def test_concurrent_reads_give_the_same(kit, damage):
    one_by_one = MemoryBackend()
    side_by_side = MemoryBackend(at_once=8)
    side_by_side.files = one_by_one.files
    metas = [kit.add_segment(one_by_one, number)[0] for number in range(4)]
    files = kit.add_model(one_by_one, kit.key())
    if damage != "none":
        path = next(p for p in sorted(one_by_one.files) if "/reward/c" in p)
        data, moment = one_by_one.files.pop(path)
        if damage == "cut":
            one_by_one.files[path] = data[:-1], moment
    errors = []
    for backend in (one_by_one, side_by_side):
        snapshot = take_snapshot(backend)
        assert list(snapshot.commits) == list(take_snapshot(one_by_one).commits)
        assert snapshot.read_model(kit.key()) == files
        assert kit.check_whole(snapshot, metas[1:], []) == 6
        try:
            rows = snapshot.read_rows(metas[0])
        except DamagedError as error:
            errors.append((error.kind, str(error)))
        else:
            _, arrays = kit.by_id(metas[0])
            for name, array in rows.items():
                np.testing.assert_array_equal(array, arrays[name])
    assert len(errors) == (0 if damage == "none" else 2) and len(set(errors)) <= 1


@pytest.mark.parametrize("indexed", [True, False])
def test_frames_are_read_as_rgb_and_match_their_digests(store, kit, indexed):
    meta, arrays = kit.add_segment(store, indexed=indexed, steps=40)
    kit.add_segment(store, 0, game="Seaquest")
    snapshot = take_snapshot(store)
    frames = snapshot.read_frames(meta)
    (of,) = snapshot.frames(meta.game)
    assert of == FramesMeta(meta.game, meta.segment, meta.frames, 6, 5, indexed)
    assert [m.game for m in snapshot.frames()] == ["Pong", "Seaquest"]
    assert frames.shape == (meta.frames, of.height, of.width, 3) and frames.dtype == np.uint8
    for frame, digest in zip(frames, arrays["digest"], strict=True):
        assert kit.hashing.frame_digest(frame) == digest.tobytes()


def test_a_snapshot_may_build_on_an_earlier_one(store, kit, monkeypatch):
    first, _ = kit.add_segment(store, 0)
    early = take_snapshot(store)
    second, _ = kit.add_segment(store, 1)
    read = []
    real = records.read_commit
    monkeypatch.setattr(
        records, "read_commit", lambda data, where: read.append(where) or real(data, where)
    )
    later = take_snapshot(store, early)
    assert later.segments() == [first, second] and len(read) == 2
    assert early.segments() == [first]
    assert take_snapshot(store).commits == later.commits


def test_single_objects_are_found_without_reading_the_others(store, kit):
    meta, _ = kit.add_segment(store, 0)
    kit.add_segment(store, 1)
    path = names.segment_path(meta.game, meta.segment)
    assert take_objects(store, [path]).commits == {path: take_snapshot(store).commit(path)}
    with pytest.raises(MissingError):
        take_objects(store, [path, names.model_path(kit.key())])


def test_a_repeated_commit_changes_nothing(store, kit):
    meta, arrays = kit.remember(0)
    described, array = kit.fake_embedding(meta, kit.key())
    files = {"spec.json": b"{}"}
    commits = [
        lambda: writer.commit_segment(store, meta, arrays),
        lambda: writer.commit_embedding(store, described, array),
        lambda: writer.commit_model(store, ModelMeta(kit.key()), files),
    ]
    for commit in commits:
        assert commit()
        before = kit.all_files(store)
        assert not commit()
        assert kit.all_files(store) == before
    assert all(writer.committed(store, records.meta_path(of)) for of in (meta, described))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(3,), (2, 2, 2)])
def test_embeddings_that_are_not_finite_are_refused(store, kit, bad, shape):
    meta, _ = kit.add_segment(store)
    described, array = kit.fake_embedding(meta, kit.key(), shape)
    array[4, 0] = bad
    before = kit.all_files(store)
    with pytest.raises(ConflictError) as conflict:
        writer.commit_embedding(store, described, array)
    assert (conflict.value.kind, conflict.value.exit_code) == ("not-finite", 4)
    for word in (kit.key(), meta.game, meta.segment, "frame 4", f"1 of {meta.frames}"):
        assert word in str(conflict.value)
    assert kit.all_files(store) == before


@pytest.mark.parametrize(
    "value, dtype",
    [
        (0, np.float16),
        (65504, np.float16),
        (-65504, np.float16),
        (65505, np.float32),
        (-1e30, np.float32),
        (np.inf, np.float32),
        (np.nan, np.float32),
    ],
)
def test_values_beyond_float16_are_stored_as_float32(value, dtype):
    array = np.array([[0, 1], [value, 2]], np.float32)
    assert writer.embedding_dtype(array) is dtype
    assert np.isfinite(array.astype(dtype)).all() or not np.isfinite(value)
    assert writer.embedding_dtype(np.zeros((0, 3), np.float32)) is np.float16


def test_arrays_that_do_not_match_their_record_are_refused(store, kit):
    meta, arrays = kit.remember(0)
    for wrong in (
        {**arrays, "reward": arrays["reward"][:-1]},
        {**arrays, "reward": arrays["reward"].astype(np.float64)},
        {**arrays, "frames": arrays["frames"][:-1]},
        {**arrays, "frames": arrays["frames"][0]},
        {**arrays, "frames": arrays["frames"].astype(np.int16)},
        {**arrays, "digest": arrays["digest"][:-1]},
        {**arrays, "extra": arrays["reward"]},
        {n: a for n, a in arrays.items() if n != "palette"},
        {n: a for n, a in arrays.items() if n != "reward"},
    ):
        with pytest.raises(ValueError):
            writer.commit_segment(store, meta, wrong)
    described, array = kit.fake_embedding(meta, kit.key())
    for wrong in (array[:-1], array.astype(np.float32), array[:, :2], array[..., None]):
        with pytest.raises(ValueError):
            writer.commit_embedding(store, described, wrong)
    assert list(kit.all_files(store)) == ["wsa.json"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        *(({"episodes": ((1, float("nan")),)}, ValueError), ({"rows": -1}, ValueError)),
        *(({"seed": "7"}, ValueError), ({"env": 2**63}, ValueError)),
        # Names are checked before they become paths.
        *(({"game": "../Pong"}, UsageError), ({"segment": "x/../.."}, UsageError)),
    ],
)
def test_an_invalid_record_is_not_written(store, kit, change, error):
    meta, arrays = kit.remember(0)
    with pytest.raises(error) as refused:
        writer.commit_segment(store, msgspec.structs.replace(meta, **change), arrays)
    assert getattr(refused.value, "kind", "bad-name") == "bad-name"
    with pytest.raises(UsageError):
        writer.commit_model(store, ModelMeta("../x"), {"spec.json": b""})
    assert list(kit.all_files(store)) == ["wsa.json"]


def test_a_record_states_author_time_and_command(store, kit, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/wsa", "collect", "--game", "caf\udce9"])
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    meta, _ = kit.add_segment(store)
    commit = take_snapshot(store).commit(names.segment_path(meta.game, meta.segment))
    assert commit.author.startswith("ann@") and commit.time.endswith("+00:00")
    assert commit.command == "wsa collect --game caf\\udce9"


@pytest.mark.parametrize("error", [KeyError("uid"), OSError("no name")])
def test_an_author_without_a_name_is_a_number(monkeypatch, error):
    def getuser():
        raise error

    monkeypatch.setattr(getpass, "getuser", getuser)
    assert writer.author().startswith(f"{os.getuid()}@")


def test_the_models_of_a_game_are_those_that_encoded_all_of_it(store, kit):
    vit, lite = kit.key("vit"), kit.key("lite0")
    metas = [kit.add_segment(store, number)[0] for number in range(2)]
    other, _ = kit.add_segment(store, game="Seaquest")
    for meta in (*metas, other):
        kit.add_embedding(store, meta, vit)
    kit.add_embedding(store, metas[0], lite)
    snapshot = take_snapshot(store)
    assert snapshot.models_of("Pong") == [vit] and snapshot.models_of("Seaquest") == [vit]
    assert snapshot.models_of("Breakout") == []
    kit.add_embedding(store, metas[1], lite)
    assert take_snapshot(store).models_of("Pong") == sorted([vit, lite])
    assert snapshot.models_of("Pong") == [vit]
    assert take_snapshot(store).games == ["Pong", "Seaquest"]
    assert [e.model for e in take_snapshot(store).embeddings("Seaquest")] == [vit]


def test_objects_never_committed_are_missing(store, kit):
    snapshot = take_snapshot(store)
    meta = kit.remember(0)[0]
    for read in (
        lambda: snapshot.read_rows(meta),
        lambda: snapshot.read_model(kit.key()),
        lambda: snapshot.read_embedding("Pong", kit.key(), meta.segment),
    ):
        with pytest.raises(MissingError):
            read()


def test_partial_files_of_copying_tools_are_not_records(store, kit):
    meta, _ = kit.add_segment(store)
    record = kit.paths(store, "commits")[0]
    for name in (f".{record[-10:]}.Xa12", "x.json.part", ".DS_Store"):
        store.put_new(f"{record.rpartition('/')[0]}/{name}", b"half")
    assert take_snapshot(store).segments() == [meta]
    report = verify(store)
    assert (report.damage, report.leftovers) == ((), 3)


def test_a_record_removed_during_a_listing_is_not_seen(store, kit, monkeypatch):
    kit.add_model(store, kit.key("vit"))
    kit.add_model(store, kit.key("lite0"))
    listed = list(store.list("commits"))
    monkeypatch.setattr(type(store), "list", lambda self, prefix: iter(listed))
    store.delete(listed[0].path)
    assert [names.commit_path(c.id) for c in take_snapshot(store).commits.values()] == [
        listed[1].path
    ]


def test_a_damaged_record_is_refused_until_it_is_removed(on_disk, kit):
    metas = [kit.add_segment(on_disk, number)[0] for number in range(3)]
    record = on_disk.root / names.commit_path(
        kit.hashing.object_id(names.segment_path("Pong", metas[1].segment))
    )
    record.write_bytes(record.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=record.stem) as damaged:
        take_snapshot(on_disk)
    assert damaged.value.kind == "bad-record"
    record.unlink()
    assert kit.check_whole(take_snapshot(on_disk), metas, []) == 5
    assert kit.add_segment(on_disk, 1)
    assert kit.check_whole(take_snapshot(on_disk), metas, []) == 6


def test_a_store_that_cannot_be_listed_does_not_look_empty(on_disk, kit, monkeypatch):
    kit.add_segment(on_disk)
    monkeypatch.setattr(
        os, "scandir", lambda path: (_ for _ in ()).throw(PermissionError(13, "no"))
    )
    with pytest.raises(StorageError):
        take_snapshot(on_disk)


def test_a_commit_flushes_each_file_once_and_writes_no_byte_twice(on_disk, kit, monkeypatch):
    """Three files, the folders they appear in, and new folders: nine flushes."""
    key = kit.key()
    meta, _ = kit.add_segment(on_disk)
    later, _ = kit.add_segment(on_disk, 1)
    kit.add_embedding(on_disk, meta, key)  # The model's folder is there from now on.
    before = kit.all_files(on_disk)
    flushed, written = [], []
    monkeypatch.setattr(
        os, "fsync", lambda handle: flushed.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
    )
    write = atomic_files._write

    def watched(path, data, root=None):
        written.append(len(data))
        write(path, data, root)

    monkeypatch.setattr(atomic_files, "_write", watched)
    kit.add_embedding(on_disk, later, key)
    new = {p: d for p, d in kit.all_files(on_disk).items() if p not in before}
    assert sorted(written) == sorted(map(len, new.values()))
    assert len(new) == 3, "the array's metadata, its shard, the record"
    files = [path for path in flushed if "/tmp/" in path.removeprefix(on_disk.url)]
    commit = take_snapshot(on_disk).commit(names.embedding_path(meta.game, key, later.segment))
    record = f"{on_disk.url}/commits/{commit.id[:2]}"
    folder = f"{on_disk.url}/{commit.folder}"
    assert len(files) == 3
    folders = sorted(path for path in flushed if path not in files)
    appear = [folder, folder, record]
    parents = [str(Path(folder).parent), str(Path(folder).parents[1])]
    shelf = [f"{on_disk.url}/commits"] * (
        f"commits/{commit.id[:2]}" not in {p[:10] for p in before}
    )
    assert folders == sorted([*appear, *parents, *shelf])
