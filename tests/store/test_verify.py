from __future__ import annotations

import random
import warnings

import numpy as np
import pytest

from wsa.store import layout, names, verify
from wsa.store.errors import DamagedError, StorageError, WsaError
from wsa.store.reader import Snapshot, take_snapshot
from wsa.store.root import open_store

MODELS = ("lite0", "vit")


@pytest.fixture
def full(store, kit):
    """A store with two games, RGB and indexed segments, two models, sharded embeddings."""
    metas = [
        kit.add_segment(store, 0, steps=20),
        kit.add_segment(store, 1, steps=20, indexed=False, cut=True),
        kit.add_segment(store, 0, game="Seaquest", steps=270, height=3, width=2),
    ]
    for meta, _ in metas:
        for alias in MODELS:
            kit.add_embedding(store, meta, kit.key(alias))
    for alias in MODELS:
        kit.add_model(store, kit.key(alias))
    return [meta for meta, _ in metas]


def everything(snapshot, metas, kit, only=None):
    """What a reader can ask for, by object path; errors in place of what raised them."""
    asked = {}
    for meta in metas:
        asked[names.segment_path(meta.game, meta.segment)] = lambda m=meta: [
            *snapshot.read_rows(m).values(),
            snapshot.read_frames(m),
            snapshot.read_digests(m),
        ]
        for alias in MODELS:
            path = names.embedding_path(meta.game, kit.key(alias), meta.segment)
            asked[path] = lambda m=meta, a=alias: [
                snapshot.read_embedding(m.game, kit.key(a), m.segment)
            ]
    for alias in MODELS:
        asked[names.model_path(kit.key(alias))] = lambda a=alias: [
            np.frombuffer(data, np.uint8) for data in snapshot.read_model(kit.key(a)).values()
        ]
    found = {}
    for path, ask in asked.items():
        if only and path not in only:
            continue
        try:
            found[path] = ask()
        except WsaError as error:
            found[path] = error
    return found


def object_of(path, snapshot):
    """Path of the object that a file or record of the store belongs to."""
    for commit in snapshot.commits.values():
        if path == names.commit_path(commit.id) or path.startswith(commit.path + "/"):
            return commit.path
    raise AssertionError(path)


def words_of(path):
    """What a report must say of an object: its game, segment and model."""
    return [
        part
        for part in path.split("/")
        if part not in ("games", "segments", "embeddings", "models")
    ]


def is_reported(store, target, snapshot, before, metas, kit, kind="bad-bytes", others=100):
    """One damaged file: it is reported, its object does not read, and others do."""
    path = object_of(target, snapshot)
    (damage,) = verify.verify(store).damage
    assert all(word in damage.concerns for word in words_of(path)), damage
    remedy = verify.remedy(damage)
    assert names.commit_path(kit.keys.object_id(path)) in remedy
    if target.startswith("commits/"):
        assert damage.path == target
        with pytest.raises(DamagedError, match=target):
            take_snapshot(store)
        return
    assert damage.path == path and path in remedy
    asked = {path, *random.Random(target).sample(sorted(before), min(others, len(before)))}
    for name, value in everything(take_snapshot(store), metas, kit, asked).items():
        if name != path:
            assert all(map(np.array_equal, value, before[name]))
        elif isinstance(value, list):
            # The group's own metadata is for others; wsa does not read it.
            assert target.endswith(f"{path}/zarr.json") and "segments" in path
        else:
            assert isinstance(value, DamagedError) and path in str(value)
            assert value.kind == kind


def flip_many(store, kit, metas, count, seed):
    rng = random.Random(seed)
    snapshot = take_snapshot(store)
    before = everything(snapshot, metas, kit)
    assert all(isinstance(value, list) for value in before.values())
    files = sorted(path for path in store.list("") if path != "wsa.json")
    kinds: dict[str, list[str]] = {}
    for path in files:
        kind = "record" if path.startswith("commits") else path.rsplit("/", 3)[-1]
        kinds.setdefault(
            f"{path.split('/')[2 if path.startswith('games') else 0]} {kind}", []
        ).append(path)
    for turn in range(count):
        target = rng.choice(kinds[sorted(kinds)[turn % len(kinds)]])
        file = store.root / target
        whole = file.read_bytes()
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        is_reported(store, target, snapshot, before, metas, kit, others=2)
        file.write_bytes(whole)
    assert not verify.verify(store).damage
    return len(kinds)


def test_one_flipped_bit_is_found(store, full, kit):
    assert flip_many(store, kit, full, 80, 1) >= 6


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_thousand_flipped_bits_are_found(store, full, kit):
    flip_many(store, kit, full, 1000, 2)


@pytest.mark.parametrize("how", ["cut", "emptied", "longer", "deleted", "zeroed"])
def test_other_damage_is_found(store, full, kit, how):
    snapshot = take_snapshot(store)
    before = everything(snapshot, full, kit)
    rng = random.Random(how)
    files = sorted(path for path in store.list("") if path != "wsa.json")
    for target in rng.sample(files, 6):
        file = store.root / target
        whole = file.read_bytes()
        if how == "deleted":
            file.unlink()
        else:
            file.write_bytes(
                {
                    "cut": whole[:-1],
                    "emptied": b"",
                    "longer": whole + b"\0",
                    "zeroed": bytes(len(whole)),
                }[how]
            )
        if how == "deleted" and target.startswith("commits/"):
            # No record, no object: its files are leftovers, and it is made again.
            path = object_of(target, snapshot)
            report = verify.verify(store)
            assert not report.damage and report.leftovers == len(snapshot.commit(path).files)
            assert path not in take_snapshot(store).commits
        else:
            kind = "lost-file" if how == "deleted" else "bad-bytes"
            is_reported(store, target, snapshot, before, full, kit, kind)
        file.write_bytes(whole)
    assert not verify.verify(store).damage


def test_two_files_that_changed_places_are_found(store, full, kit):
    one, two = (names.embedding_path(full[0].game, kit.key(a), full[0].segment) for a in MODELS)
    pairs = [
        (f"{one}/c/0/0", f"{two}/c/0/0"),
        (f"{one}/zarr.json", f"{one}/c/0/0"),
        (
            names.segment_path("Pong", full[0].segment) + "/reward/c/0",
            names.segment_path("Pong", full[1].segment) + "/reward/c/0",
        ),
    ]
    commits = sorted(store.list("commits"))
    pairs.append((commits[0], commits[-1]))
    snapshot = take_snapshot(store)
    for left, right in pairs:
        swap(store, left, right)
        report = verify.verify(store)
        concerned = {object_of(left, snapshot), object_of(right, snapshot)}
        assert len(report.damage) == len(concerned)
        for path in concerned:
            assert any(all(w in d.concerns for w in words_of(path)) for d in report.damage)
        swap(store, left, right)
    assert not verify.verify(store).damage


def swap(store, left, right):
    a, b = store.root / left, store.root / right
    x, y = a.read_bytes(), b.read_bytes()
    assert x != y
    a.write_bytes(y)
    b.write_bytes(x)


def test_a_damaged_object_is_made_again_as_the_report_says(store, full, kit):
    meta = full[0]
    path = names.segment_path(meta.game, meta.segment)
    (store.root / path / "frames/c/0/0/0").write_bytes(b"")
    (damage,) = verify.verify(store).damage
    assert verify.remedy(damage).startswith("remove commits/")
    store.delete(names.commit_path(kit.keys.object_id(damage.path)))
    for left in list(store.list(damage.path)):
        store.delete(left)
    assert not verify.verify(store).damage
    assert kit.writer.commit_segment(store, *kit.by_id(meta))
    assert kit.check_whole(take_snapshot(store), full, [kit.key(a) for a in MODELS]) == 9


def test_a_clean_store_is_counted(store, full, kit):
    seen = []
    report = verify.verify(store, lambda done, total: seen.append((done, total)))
    files = [path for path in store.list("") if path != "wsa.json"]
    objects = len(take_snapshot(store).commits)
    assert seen == [(i + 1, objects) for i in range(objects)]
    assert (report.objects, report.files, report.leftovers) == (objects, len(files), 0)
    assert report.damage == ()
    records = sum(store.stat(path) for path in store.list("commits"))
    assert report.bytes + records == sum(store.stat(path) for path in files)


def test_leftovers_are_counted_and_are_no_damage(store, full, kit):
    store.put_new("tmp/0123", b"half")
    store.put_new("models/dead-0123456789ab/spec.json", b"{}")
    store.put_new("games/Pong/segments/0123456789ab-e009-000000000/zarr.json", b"{}")
    store.put_new("games/README", b"hello")
    store.put_new("notes.txt", b"hello")
    report = verify.verify(store)
    assert (report.leftovers, report.damage) == (5, ())


def test_a_record_whose_object_is_gone_as_well_is_reported(store, full, kit):
    path = names.model_path(kit.key("vit"))
    record = names.commit_path(kit.keys.object_id(path))
    (store.root / record).write_bytes(b"{")
    for left in list(store.list(path)):
        store.delete(left)
    (damage,) = verify.verify(store).damage
    assert damage.path == record and "none of whose files" in damage.concerns


def test_a_file_that_the_disk_refuses_is_damage_and_the_rest_is_verified(
    store, full, kit, monkeypatch
):
    """A bad sector answers with an input/output error."""
    bad = names.embedding_path(full[0].game, kit.key("vit"), full[0].segment)
    real = type(store).get

    def get(self, path):
        if path.startswith(bad):
            raise StorageError("unavailable", f"{path}: Input/output error")
        return real(self, path)

    monkeypatch.setattr(type(store), "get", get)
    report = verify.verify(store)
    assert [d.path for d in report.damage] == [bad] and report.objects == 11


def test_a_commit_made_during_verification_is_no_damage(store, full, kit, monkeypatch):
    """Between the look at the files and the look at the records."""
    real = verify.list_records

    def late(backend):
        kit.add_segment(store, 7)
        return real(backend)

    monkeypatch.setattr(verify, "list_records", late)
    report = verify.verify(store)
    assert (report.damage, report.leftovers, report.objects) == ((), 0, 12)


def test_damage_under_a_good_checksum_is_found_by_decoding(store, kit, monkeypatch):
    """A writer whose memory was bad commits what cannot be decoded."""
    real = layout.encode_embedding

    def broken(array):
        files = real(array)
        data = bytearray(files["c/0/0"])
        data[len(data) // 2] ^= 1
        return {**files, "c/0/0": bytes(data)}

    meta, _ = kit.add_segment(store)
    monkeypatch.setattr(layout, "encode_embedding", broken)
    kit.add_embedding(store, meta, kit.key())
    (damage,) = verify.verify(store).damage
    assert kit.key() in damage.concerns and "cannot be decoded" in damage.why
    with pytest.raises(DamagedError):
        take_snapshot(store).read_embedding(meta.game, kit.key(), meta.segment)


def test_a_flip_in_the_root_is_refused_at_opening(store):
    file = store.root / "wsa.json"
    whole = file.read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            file.write_bytes(data)
            with pytest.raises(WsaError) as refused:
                open_store(store.url)
            assert refused.value.exit_code in (4, 5)


def test_no_warning_passes_for_a_reading(store, full, kit):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(take_snapshot(store), Snapshot)
        assert not verify.verify(store).damage
