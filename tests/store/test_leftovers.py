"""What becomes of the files of a writer that died, lost, or was refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from wsa.store.common import names
from wsa.store.common.errors import ConflictError, StorageError
from wsa.store.format import arrays as layout
from wsa.store.format.records import ModelMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects import writer
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.testing.faults import FaultyBackend


@pytest.fixture
def store(in_memory):
    return in_memory


def objects(kit):
    """Committing a segment, its embeddings, and a model."""
    meta, arrays = kit.remember(0)
    described, array = kit.fake_embedding(meta, kit.key())
    files = {"spec.json": b"{}", "probe.safetensors": bytes(99)}
    return {
        "segment": lambda backend: writer.commit_segment(backend, meta, arrays),
        "embedding": lambda backend: writer.commit_embedding(backend, described, array),
        "model": lambda backend: writer.commit_model(backend, ModelMeta(kit.key()), files),
    }


def record_of(kit, what):
    """The path of an object's record."""
    meta, _ = kit.remember(0)
    path = {
        "frames": names.frames_path(meta.game, meta.segment),
        "segment": names.segment_path(meta.game, meta.segment),
        "embedding": names.embedding_path(meta.game, kit.key(), meta.segment),
        "model": names.model_path(kit.key()),
    }[what]
    return names.commit_path(kit.hashing.object_id(path))


def leftovers(kit, store):
    """Files that no record names."""
    commits = take_snapshot(store).commits.values()
    named = {f"{c.folder}/{file.name}" for c in commits for file in c.files}
    found = {p for p in kit.paths(store) if p.startswith(("games", "models"))} - named
    assert verify(store).leftovers == len(found)
    return found


@pytest.mark.parametrize("kept", [0, 1, 5, 6, 13, 24])
def test_files_of_a_dead_writer_are_named_by_nobody(store, kit, kept):
    meta, arrays = kit.remember(0)
    with pytest.raises(KeyboardInterrupt):
        writer.commit_segment(kit.Dying(store, kept), meta, arrays)
    dead = {path: store.get(path) for path in leftovers(kit, store)}
    assert len(dead) == kept - 6 * (kept >= 6), "the frames were committed by then"
    assert writer.commit_segment(store, meta, arrays)
    assert leftovers(kit, store) == set(dead), "the next writer completes beside them"
    assert {path: store.get(path) for path in dead} == dead
    assert kit.check_whole(take_snapshot(store), [meta], []) == 2
    assert not verify(store).damage


@pytest.mark.parametrize("wrong", [b"", b"{}", b"\0" * 300])
@pytest.mark.parametrize("attempt", ["", "0" * 16, "xyz"])
def test_whatever_lies_at_an_objects_path_is_no_hindrance(store, kit, wrong, attempt):
    meta, arrays = kit.remember(0)
    for path in kit.segment_paths(meta):
        for name in (*layout.encode_group({"reward": arrays["reward"]}), "zarr.json", "frames/x"):
            store.put_new("/".join(filter(None, (path, attempt, name))), wrong)
    before = leftovers(kit, store)
    assert before and writer.commit_segment(store, meta, arrays)
    assert leftovers(kit, store) == before
    kit.check_whole(take_snapshot(store), [meta], [])


def test_each_attempt_has_a_folder_of_its_own(store, kit):
    key = kit.key()
    folders = set()
    for _ in range(3):
        kit.add_model(store, key)
        commit = take_snapshot(store).commit(names.model_path(key))
        assert commit.folder == f"models/{key}/{commit.attempt}"
        folders.add(commit.folder)
        store.delete(names.commit_path(commit.id))
    assert len(folders) == 3 and take_snapshot(store).commits == {}
    kit.add_model(store, key)
    assert len(leftovers(kit, store)) == 6
    assert not verify(store).damage


def test_a_folder_that_is_not_new_is_not_written_to(store, kit, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    store.put_new(f"models/{kit.key()}/{'0' * 16}/spec.json", b"another's")
    with pytest.raises(ConflictError) as conflict:
        writer.commit_model(store, ModelMeta(kit.key()), {"spec.json": b"{}", "a": b""})
    assert conflict.value.kind == "other-bytes" and kit.key() in str(conflict.value)
    assert take_snapshot(store).commits == {}


def test_whoever_comes_second_with_other_content_yields(store, kit):
    """The other writer commits between this one's look and its own record."""
    meta, _ = kit.add_segment(store)
    described, array = kit.fake_embedding(meta, kit.key(), (8,))
    for call in (1, 2, 3):  # After the look: two files, and the record.
        other = []

        def overtake(_, other=other):
            other.append(writer.commit_embedding(store, described, -array))

        slow = FaultyBackend(store, {call: "stall"}, overtake)
        assert not writer.commit_embedding(slow, described, array)
        assert other == [True]
        assert not leftovers(kit, store), "the loser took its files away"
        found = take_snapshot(store).read_embedding(meta.game, kit.key(), meta.segment)
        np.testing.assert_array_equal(found, -array)
        path = names.embedding_path(meta.game, kit.key(), meta.segment)
        for file in [record_of(kit, "embedding"), *kit.paths(store, path)]:
            store.delete(file)


@pytest.mark.parametrize("fault", ["fail", "full"])
@pytest.mark.parametrize("what", ["segment", "embedding", "model"])
def test_a_writer_that_is_refused_tidies_up_after_itself(store, kit, what, fault):
    commit = objects(kit)[what]
    taken = 0
    for taken in itertools.count():

        def plan(call, taken=taken):
            return fault if call.verb == "put_new" and call.nth >= taken else None

        try:
            commit(FaultyBackend(store, plan))
            break
        except StorageError as error:
            assert error.kind == {"fail": "unavailable", "full": "no-space"}[fault]
            left = leftovers(kit, store)
            # Of a record that was not answered nobody knows whether it is still on its way.
            assert bool(left) == (fault == "fail" and "commits/" in str(error))
            for path in left:
                store.delete(path)
            for path in kit.paths(store, "commits"):  # Frames that rows were to follow.
                assert path == record_of(kit, "frames")
    assert taken >= 3 and not leftovers(kit, store)
    assert not verify(store).damage and not commit(store)


@pytest.mark.parametrize("what", ["segment", "embedding", "model"])
def test_a_writer_told_nothing_of_its_record_keeps_what_the_record_names(store, kit, what):
    """The record is there, and the reply was lost."""
    commit = objects(kit)[what]
    record = record_of(kit, what)
    lose = FaultyBackend(
        store, lambda c: "lose" if (c.verb, c.path) == ("put_new", record) else None
    )
    with pytest.raises(StorageError):
        commit(lose)
    assert store.stat(record)
    assert not verify(store).damage and not leftovers(kit, store)
    assert not commit(store), "nothing is left to do"


def test_a_writer_that_lost_and_was_told_nothing_takes_its_files_away(store, kit):
    """Another's record is there: what the lost reply would have said is known."""
    commit = objects(kit)["model"]
    record = record_of(kit, "model")
    other = []

    def overtake(call):
        other.append(commit(store))

    def plan(call):
        if call.verb == "put_new" and call.nth == 0:
            return "stall"
        return "lose" if (call.verb, call.path) == ("put_new", record) else None

    with pytest.raises(StorageError):
        commit(FaultyBackend(store, plan, overtake))
    assert other == [True] and not leftovers(kit, store)
    assert not verify(store).damage


def test_what_cannot_be_removed_is_left_and_does_no_harm(store, kit):
    commit = objects(kit)["model"]
    faulty = FaultyBackend(store, {("put_new", 2): "full", ("delete", 0): "fail"})
    with pytest.raises(StorageError, match="commits/"):
        commit(faulty)
    assert len(leftovers(kit, store)) == 1
    assert commit(store) and not verify(store).damage
