"""P18: `sweep` removes old files that no record names or may name, and nothing else."""

import os
import random
import time

import pytest

from wsa.store.common import hashing, names
from wsa.store.common.errors import ConflictError, StorageError
from wsa.store.maintenance import sweep, verify
from wsa.store.maintenance.repair import repair
from wsa.store.objects import snapshot as reader
from wsa.store.objects import writer
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.testing import FaultyBackend, Killed, unnamed

DAY = 86400.0


def age(store, hours, path=""):
    """Make every file below a path this much older."""
    for entry in list(store.list(path)):
        file = store.root / entry.path
        moment = file.lstat().st_mtime - 3600 * hours
        os.utime(file, (moment, moment), follow_symlinks=False)


def die(kit, store, segment, puts):
    """A writer of a segment dies after about so many puts; the files that no record names."""
    before = set(kit.paths(store))
    with pytest.raises(Killed):
        writer.commit_segment(FaultyBackend(store, {("put_new", puts): "kill"}), *segment)
    return {path for path in unnamed(store) if path.startswith("games/")} - before


@pytest.fixture
def used(store, kit):
    """A store with two segments, an embedding and a model."""
    metas = [kit.add_segment(store, number)[0] for number in range(2)]
    kit.add_embedding(store, metas[0], kit.key())
    kit.add_model(store, kit.key())
    return metas


def test_files_of_a_dead_writer_are_removed_and_nothing_else(store, kit, used):
    left = die(kit, store, kit.fake_segment(5), 5)
    before = {p: data for p, data in kit.all_files(store).items() if p not in left}
    store.put_new("tmp/0123456789abcdef0123456789abcdef", b"half")
    age(store, 25)
    dry = sweep.sweep(store, DAY, dry_run=True)
    assert before.keys() | left < kit.all_files(store).keys()
    assert dry.removed == 0 and dry.files == len(left) + 1 >= 3
    report = sweep.sweep(store, DAY, dry_run=False)
    assert report.leftovers[0].path.startswith("games/Pong/")
    assert report.leftovers[-1].path.startswith("tmp/")
    assert all(DAY < leftover.age_s < 2 * DAY for leftover in report.leftovers)
    assert (report.removed, report.bytes) == (report.files, dry.bytes)
    assert kit.all_files(store) == before
    assert not verify.verify(store).leftovers
    assert sweep.sweep(store, 0, dry_run=False).files == 0


def test_young_files_stay(store, kit):
    left = die(kit, store, kit.fake_segment(5), 5)
    before = kit.all_files(store)
    age(store, 23)
    report = sweep.sweep(store, DAY, dry_run=False)
    assert (report.leftovers, report.removed, report.kept_young) == ((), 0, len(left))
    assert kit.all_files(store) == before


def test_an_attempt_with_a_young_file_stays(store, kit):
    gone = die(kit, store, kit.fake_segment(6), 5)
    left = die(kit, store, kit.fake_segment(5), 5)
    assert len(left) > 2
    age(store, 48)
    os.utime(store.root / min(left))
    before = kit.all_files(store)
    report = sweep.sweep(store, DAY, dry_run=False)
    assert (report.removed, report.kept_young) == (len(gone), len(left))
    assert kit.all_files(store).keys() == before.keys() - gone


@pytest.mark.parametrize("skew", [-DAY, DAY, 400 * DAY])
def test_the_clock_of_this_machine_does_not_matter(store, kit, used, monkeypatch, skew):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + skew)
    left = die(kit, store, kit.fake_segment(5), 5)
    before = kit.all_files(store)
    age(store, 23)
    assert sweep.sweep(store, DAY, dry_run=False).removed == 0
    age(store, 2)
    assert sweep.sweep(store, DAY, dry_run=False).removed == len(left) > 0
    assert kit.all_files(store).keys() == before.keys() - left


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"version":9}', None])
def test_a_damaged_record_protects_its_object(store, kit, used, damage):
    meta = used[0]
    record = store.root / names.commit_path(hashing.object_id(kit.segment_paths(meta)[1]))
    whole = record.read_bytes()
    # And another attempt at the same object: either may be the committed one.
    store.put_new(f"{kit.segment_paths(meta)[1]}/{'0' * 16}/zarr.json", b"{}")
    record.write_bytes(whole[:-1] + b" " if damage is None else damage)
    age(store, 48)
    before = kit.all_files(store)
    report = sweep.sweep(store, DAY, dry_run=False)
    assert (report.leftovers, report.removed) == ((), 0)
    assert report.protected == len(kit.paths(store, kit.segment_paths(meta)[1]))
    assert kit.all_files(store) == before
    record.write_bytes(whole)
    assert sweep.sweep(store, DAY, dry_run=False).removed == 1
    assert kit.check_whole(take_snapshot(store), used, [kit.key()]) == 5


def test_a_record_of_a_later_version_stops_the_sweep(store, kit, used):
    record = store.root / names.commit_path(hashing.object_id(kit.segment_paths(used[0])[1]))
    later = {"version": 9, "check": ""}
    later["check"] = hashing.checksum(hashing.canonical(later))
    record.write_bytes(hashing.canonical(later))
    age(store, 48)
    before = kit.all_files(store)
    with pytest.raises(ConflictError, match="Update wsa"):
        sweep.sweep(store, DAY, dry_run=False)
    assert kit.all_files(store) == before


def test_an_unreadable_record_protects_its_object(store, kit, used, monkeypatch):
    age(store, 48)
    real = type(store).get

    def get(self, path, *limit):
        if path.startswith("commits/"):
            raise StorageError("unavailable", f"{path}: Input/output error")
        return real(self, path, *limit)

    before = kit.all_files(store)
    monkeypatch.setattr(type(store), "get", get)
    report = sweep.sweep(store, DAY, dry_run=False)
    monkeypatch.undo()
    assert report.removed == 0 and report.protected > 30
    assert kit.all_files(store) == before


STRANGE = [
    "README.md",
    "wsa.json.bak",
    "games/README",
    "games/Pong/notes.txt",
    "games/pong/segments/0123456789ab-e000-000000000-00012/0123456789abcdef/zarr.json",
    "games/Pong/segments/0123456789ab-e000-000000000-00012/zarr.json",
    "games/Pong/segments/0123456789ab-e000-000000000-00012/0123456789ABCDEF/zarr.json",
    "games/Pong/segments/0123456789ab-e000-000000000-00012/0123456789abcde0",
    "games/Pong/segments/0123456789ab-e000-000000000-00012/0123456789abcdef/.hidden",
    "games/Pong/pictures/0123456789ab-e000-000000000-00012/0123456789abcdef/zarr.json",
    "games/Pong/embeddings/lite0/0123456789ab-e000-000000000-00012/0123456789abcdef/zarr.json",
    "models/lite0/0123456789abcdef/spec.json",
    "models/lite0-1f0c9b2a7d3e/spec.json",
    "commits/README",
    "commits/ab/notes.json",
    "commits/00/01234567890123456789012345678901.json.part",
]


def test_foreign_files_are_left_alone_and_reported(store, kit, used):
    for path in [*STRANGE, "damaged/0123/0123456789abcdef/zarr.json"]:
        store.put_new(path, b"mine")
    before = kit.all_files(store)
    age(store, 1000)
    report = sweep.sweep(store, 0, dry_run=False)
    assert report.strange == tuple(sorted(STRANGE))
    assert report.removed == 0
    assert kit.all_files(store) == before


def test_a_foreign_file_in_the_folder_of_an_attempt_stays(store, kit):
    left = die(kit, store, kit.fake_segment(5), 3)
    folder = "/".join(min(left).split("/")[:5])
    store.put_new(f"{folder}/.nfs0001", b"")
    age(store, 48)
    report = sweep.sweep(store, DAY, dry_run=False)
    assert report.removed == len(left) and report.strange == (f"{folder}/.nfs0001",)
    assert kit.paths(store, "games") == [f"{folder}/.nfs0001"]


@pytest.mark.parametrize("moment", ["read_each", "read_record"])
def test_an_object_committed_during_the_sweep_stays(store, kit, monkeypatch, moment):
    """A writer slower than the grace time commits at the last moments that are still safe."""
    meta, arrays = kit.remember(5)
    left = die(kit, store, kit.fake_segment(6), 5)
    stalled = []

    class Stalling(FaultyBackend):
        def put_new(self, path, data):
            if path.startswith("commits/"):
                stalled.append((path, data))
                return True
            return store.put_new(path, data)

    writer.commit_segment(Stalling(store), meta, arrays)
    age(store, 48)
    real = getattr(reader, moment)

    def late(*args):
        found = list(real(*args)) if moment == "read_each" else None
        while stalled:
            store.put_new(*stalled.pop())
        return real(*args) if found is None else found

    monkeypatch.setattr(sweep, moment, late)
    assert sweep.sweep(store, DAY, dry_run=False).removed == len(left)
    assert kit.check_whole(take_snapshot(store), [meta], []) == 2


def test_the_losing_attempt_is_removed_and_the_winning_one_stays(store, kit):
    meta, arrays = kit.remember(3)
    left = die(kit, store, (meta, arrays), 20)
    writer.commit_segment(store, meta, arrays)
    age(store, 48)
    assert sweep.sweep(store, DAY, dry_run=False).removed == len(left) > 9
    assert kit.check_whole(take_snapshot(store), [meta], []) == 2


def test_files_whose_record_may_be_lost_stay(store, kit, used):
    """A record that names the object speaks for its files, until a repair has copied them."""
    frames, rows = kit.segment_paths(used[0])
    losing = store.put_new(f"{rows}/{'0' * 16}/zarr.json", b"{}")
    for path in (frames, rows, names.model_path(kit.key())):
        store.delete(names.commit_path(hashing.object_id(path)))
    gone = die(kit, store, kit.fake_segment(6), 5)
    age(store, 48)
    before = kit.all_files(store)
    report = sweep.sweep(store, DAY, dry_run=False)
    assert report.removed == len(gone) and report.protected > 20 and losing
    assert kit.all_files(store).keys() == before.keys() - gone
    repair(store, verify.verify(store).damage)
    assert not verify.verify(store).damage
    age(store, 48)
    # Its frames are left alone: no repair has copied them, since no embedding depends on them.
    assert sweep.sweep(store, DAY, dry_run=False).protected == len(kit.paths(store, frames)) > 0
    assert kit.paths(store, rows) == kit.paths(store, names.model_path(kit.key())) == []
    kit.add_model(store, kit.key())
    kit.writer.commit_segment(store, *kit.by_id(used[0]))
    assert kit.check_whole(take_snapshot(store), used, [kit.key()]) == 5


def test_a_segment_half_of_which_is_committed_stays(store, kit):
    """Nothing tells a writer that died between frames and rows from a lost record."""
    left = die(kit, store, kit.fake_segment(5), 12)
    age(store, 48)
    report = sweep.sweep(store, DAY, dry_run=False)
    assert (report.removed, report.protected) == (0, len(left))
    report = verify.verify(store)
    assert (report.damage, report.incomplete, report.leftovers) == ((), 1, len(left))
    kit.writer.commit_segment(store, *kit.fake_segment(5))
    assert verify.verify(store).incomplete == 0
    assert sweep.sweep(store, DAY, dry_run=False).removed == len(left)


def test_a_store_with_late_listings_is_not_swept(store, kit, monkeypatch):
    monkeypatch.setattr(type(store), "list", lambda self, prefix: iter(()))
    with pytest.raises(StorageError, match="does not list"):
        sweep.sweep(store, DAY, dry_run=True)
    monkeypatch.undo()
    assert kit.paths(store) == ["wsa.json"]


def random_life(store, kit, turns, seed):
    """Random writes, deaths, aging and sweeps lose no committed row; how many files were swept."""
    rng = random.Random(seed)
    metas, removed = [], 0
    dead: list[int] = []
    kit.add_model(store, kit.key())
    for number in range(turns):
        what = rng.choice(["write", "encode", "die", "die", "age", "sweep", "sweep"])
        if what == "write":
            # Completing what a dead writer began makes its files leftovers.
            metas.append(kit.add_segment(store, dead.pop() if dead else number)[0])
        elif what == "encode" and metas:
            kit.add_embedding(store, rng.choice(metas), kit.key())
        elif what == "die":
            die(kit, store, kit.fake_segment(number), rng.randrange(1, 28))
            dead.append(number)
        elif what == "age":
            age(store, rng.choice([1, 10, 30]))
        elif what == "sweep":
            before = sum(len(c.files) for c in take_snapshot(store).commits.values())
            report = sweep.sweep(store, DAY, dry_run=rng.random() < 0.2)
            removed += report.removed
            snapshot = take_snapshot(store)
            assert sum(len(c.files) for c in snapshot.commits.values()) == before
            assert kit.check_whole(snapshot, metas, [kit.key()]) >= 2 * len(metas)
    assert not verify.verify(store).damage
    return removed


def test_a_random_life_loses_no_named_file(store, kit):
    assert random_life(store, kit, 20, 9) > 30


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_long_random_life_loses_no_named_file(store, kit, seed):
    assert random_life(store, kit, 500, seed) > 500
