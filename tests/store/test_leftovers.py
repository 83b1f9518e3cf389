"""Files of writers that died, lost a race, or were refused: they do no harm, and most disappear."""

import itertools

import pytest

from wsa.store.common import names
from wsa.store.common.errors import ConflictError, StorageError
from wsa.store.format import arrays as layout
from wsa.store.format.records import ModelMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects import writer
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.testing import FaultyBackend, Killed, Work, unnamed


@pytest.fixture
def store(in_memory):
    return in_memory


@pytest.mark.parametrize("puts", [0, 1, 5, 6, 13, 24])
def test_the_next_writer_completes_beside_the_files_of_a_dead_one(store, kit, puts):
    meta, arrays = kit.remember(0)
    with pytest.raises(Killed):
        writer.commit_segment(FaultyBackend(store, {("put_new", puts): "kill"}), meta, arrays)
    dead = {path: store.get(path) for path in unnamed(store)}
    assert len(dead) == puts - 6 * (puts >= 6), "the first six puts commit the frames"
    assert writer.commit_segment(store, meta, arrays)
    assert {path: store.get(path) for path in unnamed(store)} == dead
    assert kit.check_whole(take_snapshot(store), [meta], []) == 2
    report = verify(store)
    assert (report.damage, report.leftovers) == ((), len(dead))


@pytest.mark.parametrize("attempt", ["", "0" * 16, "xyz"])
def test_foreign_files_at_the_path_of_an_object_do_not_hinder_its_writer(store, kit, attempt):
    meta, arrays = kit.remember(0)
    for path in kit.segment_paths(meta):
        for name in (*layout.encode_group({"reward": arrays["reward"]}), "zarr.json", "frames/x"):
            store.put_new("/".join(filter(None, (path, attempt, name))), b"{}")
    before = unnamed(store)
    assert before and writer.commit_segment(store, meta, arrays)
    assert unnamed(store) == before
    assert kit.check_whole(take_snapshot(store), [meta], []) == 2


def test_each_attempt_has_its_own_folder(store, kit):
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
    assert len(unnamed(store)) == 6 and not verify(store).damage


def test_a_writer_refuses_a_folder_that_is_not_new(store, kit, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    store.put_new(f"models/{kit.key()}/{'0' * 16}/spec.json", b"another's")
    with pytest.raises(ConflictError) as conflict:
        writer.commit_model(store, ModelMeta(kit.key()), {"spec.json": b"{}", "a": b""})
    assert conflict.value.kind == "other-bytes" and kit.key() in str(conflict.value)
    assert take_snapshot(store).commits == {}


@pytest.mark.parametrize(("fault", "kind"), [("fail", "unavailable"), ("full", "no-space")])
@pytest.mark.parametrize("work", [Work("segment"), Work("model")], ids=["segment", "model"])
def test_a_writer_that_is_refused_removes_its_files(store, work, fault, kind):
    """From each put on, every put is refused; only a record that may still arrive keeps its files."""
    puts = 0
    for puts in itertools.count():

        def plan(call, puts=puts):
            return fault if call.verb == "put_new" and call.nth >= puts else None

        try:
            work.commit(FaultyBackend(store, plan))
            break
        except StorageError as error:
            assert error.kind == kind
            left = unnamed(store)
            assert bool(left) == (fault == "fail" and "commits/" in str(error))
            for path in left:
                store.delete(path)
    assert puts >= 3 and not unnamed(store)
    assert not verify(store).damage and not work.commit(store)


def test_a_loser_whose_reply_was_lost_removes_its_files(store):
    """The record of the other writer is there, so the loser knows what the reply would have said."""
    work = Work("model")
    other = []

    def plan(call):
        if call.verb == "put_new":
            return "stall" if call.nth == 0 else "lose" if "commits/" in call.path else None
        return None

    with pytest.raises(StorageError):
        work.commit(FaultyBackend(store, plan, lambda call: other.append(work.commit(store))))
    assert other == [True] and not unnamed(store)
    assert not verify(store).damage


def test_a_file_that_cannot_be_removed_does_no_harm(store):
    work = Work("model")
    faulty = FaultyBackend(store, {("put_new", 2): "full", ("delete", 0): "fail"})
    with pytest.raises(StorageError, match="commits/"):
        work.commit(faulty)
    assert len(unnamed(store)) == 1
    assert work.commit(store) and not verify(store).damage
