"""P5, P6: `verify` reports every damaged file with what it concerns, and reading it is an error."""

import itertools
import random

import google_crc32c
import numpy as np
import pytest

from wsa.store.common import hashing, names
from wsa.store.common.errors import DamagedError, WsaError
from wsa.store.format import arrays, records
from wsa.store.format.limits import check_metadata
from wsa.store.format.records import EmbeddingMeta, FramesMeta
from wsa.store.maintenance import verify
from wsa.store.objects import writer
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.testing import read_object, same_content

MODELS = ("lite0", "vit")
OBJECTS = 14


def read(snapshot, path, metas):
    """Content of an object, or the error that reading it raises."""
    meta = snapshot.commits[path].meta
    try:
        if isinstance(meta, FramesMeta):
            (rows,) = [m for m in metas if (m.game, m.segment) == (meta.game, meta.segment)]
            return {"": snapshot.read_frames(rows)}
        return read_object(snapshot, path)
    except WsaError as error:
        return error


def object_of(path, snapshot):
    """Path of the object that a file or record of the store belongs to."""
    for commit in snapshot.commits.values():
        if path == names.commit_path(commit.id) or path.startswith(commit.path + "/"):
            return commit.path
    raise AssertionError(path)


def concerned_names(path):
    """Game, segment and model of an object, which a report must name."""
    return [part for part in path.split("/") if "-" in part or part.istitle()]


def check_reported(store, target, snapshot, before, metas, kind="bad-bytes", others=100):
    """One file is damaged: it is reported, its object cannot be read, and others can."""
    path = object_of(target, snapshot)
    (damage,) = verify.verify(store).damage
    assert all(word in damage.concerns for word in concerned_names(path)), damage
    assert {damage.game, damage.segment, damage.model} - {""} == set(concerned_names(path))
    if target.startswith("commits/"):
        assert damage.path == target and damage.kind == "bad-record"
        with pytest.raises(DamagedError, match=target):
            take_snapshot(store)
        return damage
    assert damage.path == path and damage.kind == kind
    commit = snapshot.commit(path)
    name = target.removeprefix(f"{commit.folder}/")
    assert damage.array == ("" if damage.model or "/" not in name else name.split("/")[0])
    asked = {path, *random.Random(1).sample(sorted(before), min(others, len(before)))}
    now = take_snapshot(store)
    for other in asked:
        content = read(now, other, metas)
        if other != path:
            assert not isinstance(content, WsaError) and same_content(content, before[other])
        elif isinstance(content, WsaError):
            assert isinstance(content, DamagedError) and path in str(content)
            assert content.kind == kind
        else:
            # wsa does not read the metadata of a group; plain Zarr does.
            assert name == "zarr.json" and "/frames/" in path
    return damage


def rows_at(snapshot, target, at, whole):
    """The rows that byte `at` of a file holds, according to the index of the file."""
    commit = snapshot.commit(object_of(target, snapshot))
    meta = commit.meta
    name = target.removeprefix(f"{commit.folder}/").rpartition("/")[0]
    if isinstance(meta, EmbeddingMeta):
        (frames, _), inner = meta.shape, arrays.EMBEDDINGS_PER_CHUNK
    elif name == "frames":
        frames, inner = meta.frames, arrays.FRAMES_PER_CHUNK
    else:
        return None
    chunks = -(-frames // inner)
    if chunks == 1 or not target.rpartition("/")[2].startswith("c."):
        return ((0, frames - 1),)
    index = np.frombuffer(whole[-16 * chunks - 4 : -4], "<u8").reshape(-1, 2)
    for number, (offset, length) in enumerate(index.tolist()):
        if offset <= at < offset + length:
            return ((number * inner, min((number + 1) * inner, frames) - 1),)
    return ((0, frames - 1),)  # The index itself.


def flip_many(store, kit, metas, count, seed):
    rng = random.Random(seed)
    snapshot = take_snapshot(store)
    before = {path: read(snapshot, path, metas) for path in snapshot.commits}
    kinds = {}
    for path in kit.paths(store, ""):
        if path != "wsa.json":
            parts = path.split("/")
            kind = "record" if parts[0] == "commits" else "/".join(parts[-2:])
            kind = kind if "/" not in kind or parts[-2].isalpha() else parts[-1]
            kinds.setdefault(f"{parts[2 if parts[0] == 'games' else 0]} {kind}", []).append(path)
    exact = 0
    for turn in range(count):
        target = rng.choice(kinds[sorted(kinds)[turn % len(kinds)]])
        file = store.root / target
        whole = file.read_bytes()
        data = bytearray(whole)
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        damage = check_reported(store, target, snapshot, before, metas, others=2)
        if target.startswith("games/") and (rows := rows_at(snapshot, target, at, whole)):
            assert damage.rows == rows and damage.unit == "frames"
            exact += rows[0][0] > 0
        file.write_bytes(whole)
    assert not verify.verify(store).damage
    return len(kinds), exact


def test_a_flipped_bit_in_each_kind_of_file_is_found(store, full, kit):
    assert flip_many(store, kit, full, 35, 1)[0] >= 30


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_thousand_flipped_bits_are_found(store, full, kit):
    kinds, exact = flip_many(store, kit, full, 1000, 2)
    assert kinds >= 30 and exact > 5


@pytest.mark.parametrize("chunks", [[4], [0, 1], [1, 3], [0, 1, 2, 3, 4]])
def test_damaged_rows_are_named_exactly(store, kit, chunks):
    meta, _ = kit.add_segment(store, steps=1100)
    kit.add_model(store, kit.key())
    kit.add_embedding(store, meta, kit.key(), shape=(4, 2))
    path = names.embedding_path(meta.game, kit.key(), meta.segment)
    folder = take_snapshot(store).commit(path).folder
    file = store.root / folder / "c.0.0.0"
    data = bytearray(file.read_bytes())
    index = np.frombuffer(data[-16 * 5 - 4 : -4], "<u8").reshape(-1, 2).tolist()
    for number in chunks:
        data[index[number][0] + index[number][1] // 2] ^= 1
    file.write_bytes(data)
    (damage,) = verify.verify(store).damage
    spans = [(256 * n, min(256 * n + 255, meta.frames - 1)) for n in chunks]
    lost = {row for first, last in spans for row in range(first, last + 1)}
    assert {r for first, last in damage.rows for r in range(first, last + 1)} == lost
    assert len(damage.rows) == 1 + sum(b - a > 1 for a, b in itertools.pairwise(chunks))
    assert f"frames {damage.rows[0][0]} to {damage.rows[0][1]}" in damage.concerns


def test_chunks_swapped_inside_a_file_are_found(store, kit):
    meta, _ = kit.add_segment(store, steps=600)
    kit.add_model(store, kit.key())
    kit.add_embedding(store, meta, kit.key())
    path = names.embedding_path(meta.game, kit.key(), meta.segment)
    file = store.root / take_snapshot(store).commit(path).folder / "c.0.0"
    whole = file.read_bytes()
    stored = check_metadata((file.parent / "zarr.json").read_bytes(), (601, 3), "float16", "")
    entries = [whole[at : at + 16] for at in range(len(whole) - 52, len(whole) - 4, 16)]
    index = entries[1] + entries[0] + entries[2]
    # Also if the checksum of the index was recomputed; then no row is known to be right.
    for forged in (
        whole[:-52] + index + whole[-4:],
        whole[:-52] + index + google_crc32c.value(index).to_bytes(4, "little"),
    ):
        file.write_bytes(forged)
        (damage,) = verify.verify(store).damage
        assert damage.rows == ((0, 600),)
        with pytest.raises(DamagedError):
            take_snapshot(store).read_embedding(meta.game, kit.key(), meta.segment)
    assert arrays.damaged_rows(stored, whole) == [(0, 600)]


@pytest.mark.parametrize("how", ["cut", "emptied", "longer", "deleted", "zeroed"])
def test_other_damage_is_found(store, full, kit, how):
    snapshot = take_snapshot(store)
    before = {path: read(snapshot, path, full) for path in snapshot.commits}
    rng = random.Random(how)
    files = sorted(path for path in kit.paths(store, "") if path != "wsa.json")
    for target in rng.sample(files, 4):
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
            check_lost_record(store, snapshot, object_of(target, snapshot))
        else:
            kind = "lost-file" if how == "deleted" else "bad-bytes"
            check_reported(store, target, snapshot, before, full, kind)
        file.write_bytes(whole)
    assert not verify.verify(store).damage


def check_lost_record(store, snapshot, path):
    """Without a record there is no object, and its files are leftovers, unless others need it."""
    report = verify.verify(store)
    assert report.leftovers == len(snapshot.commit(path).files)
    assert path not in take_snapshot(store).commits
    if "/frames/" in path or "/embeddings/" in path:
        assert not report.damage and report.incomplete == ("/frames/" in path)
        return
    (damage,) = report.damage
    assert (damage.path, damage.kind) == (records.record_path(path), "lost-file")
    assert path in damage.why and all(word in damage.concerns for word in concerned_names(path))


def test_each_lost_record_that_others_depend_on_is_reported(store, full, kit):
    snapshot = take_snapshot(store)
    for path in [*kit.segment_paths(full[0]), names.model_path(kit.key("vit"))]:
        record = store.root / records.record_path(path)
        data = record.read_bytes()
        record.unlink()
        check_lost_record(store, snapshot, path)
        record.write_bytes(data)


def test_a_segment_and_its_embedding_committed_during_verification_are_not_damage(
    store, full, kit, monkeypatch
):
    """A listing may show the record of an embedding, and not the earlier one of its segment."""
    real = verify.list_records
    meta, _ = kit.add_segment(store, 7)
    kit.add_embedding(store, meta, kit.key("vit"))
    hidden = records.record_path(kit.segment_paths(meta)[1])
    monkeypatch.setattr(
        verify, "list_records", lambda store: [e for e in real(store) if e.path != hidden]
    )
    report = verify.verify(store)
    assert (report.damage, report.incomplete) == ((), 0)


def test_a_store_without_frames_is_whole(store, full, kit):
    for path in (kit.segment_paths(meta)[0] for meta in full):
        for file in [records.record_path(path), *kit.paths(store, path)]:
            store.delete(file)
    report = verify.verify(store)
    assert (report.damage, report.incomplete, report.leftovers) == ((), 0, 0)


def test_two_swapped_files_are_found(store, full, kit):
    snapshot = take_snapshot(store)

    def at(path, name):
        return f"{snapshot.commit(path).folder}/{name}"

    one, two = (names.embedding_path(full[0].game, kit.key(a), full[0].segment) for a in MODELS)
    left, right = (names.segment_path("Pong", meta.segment) for meta in full[:2])
    commits = kit.paths(store, "commits")
    pairs = [
        (at(one, "c.0.0"), at(two, "c.0.0")),
        (at(one, "zarr.json"), at(one, "c.0.0")),
        (at(left, "reward/c.0"), at(right, "reward/c.0")),
        (commits[0], commits[-1]),
    ]
    for left, right in pairs:
        swap_files(store, left, right)
        report = verify.verify(store)
        concerned = {object_of(left, snapshot), object_of(right, snapshot)}
        assert len({d.path for d in report.damage}) == len(concerned)
        for path in concerned:
            assert any(all(w in d.concerns for w in concerned_names(path)) for d in report.damage)
        swap_files(store, left, right)
    assert not verify.verify(store).damage


def swap_files(store, left, right):
    a, b = store.root / left, store.root / right
    x, y = a.read_bytes(), b.read_bytes()
    assert x != y
    a.write_bytes(y)
    b.write_bytes(x)


def test_damage_to_several_arrays_is_reported_separately(store, full, kit):
    meta = full[2]
    folder = store.root / take_snapshot(store).commit(kit.segment_paths(meta)[1]).folder
    for name in ("reward/c.0", "digest/c.0.0", "zarr.json"):
        (folder / name).write_bytes(b"?")
    damage = verify.verify(store).damage
    assert [(d.array, d.unit, d.rows) for d in damage] == [
        ("", "rows", ((0, meta.rows - 1),)),
        ("digest", "frames", ((0, meta.frames - 1),)),
        ("reward", "rows", ((0, meta.rows - 1),)),
    ]


def test_a_report_counts_objects_files_and_bytes(store, full, kit):
    seen = []
    report = verify.verify(store, lambda done, total: seen.append((done, total)))
    files = [path for path in kit.paths(store, "") if path != "wsa.json"]
    assert len(take_snapshot(store).commits) == OBJECTS
    assert seen == [(i + 1, OBJECTS) for i in range(OBJECTS)]
    assert (report.objects, report.of, report.files) == (OBJECTS, OBJECTS, len(files))
    assert (report.leftovers, report.set_aside, report.damage, report.unlisted) == (0, 0, (), 0)
    records = sum(store.stat(path) for path in kit.paths(store, "commits"))
    assert report.bytes + records == sum(store.stat(path) for path in files)


def test_concurrent_checks_give_the_same_report(store, full, kit, monkeypatch):
    clean = verify.verify(store)
    (store.root / kit.paths(store, "models")[0]).write_bytes(b"?")
    alone = verify.verify(store)
    monkeypatch.setattr(type(store), "at_once", 32)
    assert verify.verify(store) == alone != clean


def test_leftovers_are_counted_and_are_not_damage(store, full, kit):
    store.put_new("tmp/0123", b"half")
    store.put_new("models/dead-0123456789ab/0123456789abcdef/spec.json", b"{}")
    store.put_new("games/Pong/segments/0123456789ab-e009-000000000-00012/zarr.json", b"{}")
    store.put_new("games/README", b"hello")
    store.put_new("notes.txt", b"hello")
    report = verify.verify(store)
    assert (report.leftovers, report.damage) == (5, ())


def test_a_damaged_record_without_files_is_reported(store, full, kit):
    path = names.embedding_path("Pong", kit.key("vit"), full[0].segment)
    record = names.commit_path(hashing.object_id(path))
    (store.root / record).write_bytes(b"{")
    for left in kit.paths(store, path):
        store.delete(left)
    (damage,) = verify.verify(store).damage
    assert damage.path == record and "none of whose files" in damage.concerns


@pytest.mark.parametrize("kind", verify.REFUSALS)
def test_an_unreadable_file_is_reported_and_the_rest_is_verified(store, full, kit, refuse, kind):
    bad = names.embedding_path(full[0].game, kit.key("vit"), full[0].segment)
    refuse(bad, kind)
    report = verify.verify(store)
    assert [(d.path, d.kind, d.refused) for d in report.damage] == [(bad, kind, True)]
    assert report.objects == OBJECTS


def test_a_commit_during_verification_is_not_damage(store, full, kit, monkeypatch):
    """It happens after the files were listed and before the records are."""
    real = verify.list_records

    def late(backend):
        kit.add_segment(store, 7)
        return real(backend)

    monkeypatch.setattr(verify, "list_records", late)
    report = verify.verify(store)
    assert (report.damage, report.leftovers, report.objects) == ((), 0, OBJECTS + 2)


@pytest.mark.parametrize("where", ["chunk", "index", "metadata"])
def test_damage_with_a_right_checksum_is_found_by_decoding(store, kit, monkeypatch, where):
    """A writer with bad memory commits bytes that cannot be decoded."""
    real = writer.layout.encode_embedding

    def broken(array):
        files = real(array)
        name = "zarr.json" if where == "metadata" else "c.0.0"
        data = bytearray(files[name])
        at = {"chunk": 300, "index": -10, "metadata": data.find(b"float16")}[where]
        data[at] ^= 1
        return {**files, name: bytes(data)}

    meta, _ = kit.add_segment(store, steps=600)
    monkeypatch.setattr(writer.layout, "encode_embedding", broken)
    kit.add_model(store, kit.key())
    kit.add_embedding(store, meta, kit.key())
    (damage,) = verify.verify(store).damage
    assert kit.key() in damage.concerns
    assert damage.rows == ((0, 255 if where == "chunk" else 600),)
    with pytest.raises(DamagedError):
        take_snapshot(store).read_embedding(meta.game, kit.key(), meta.segment)


def test_a_sample_has_the_requested_size_and_finds_its_damage(store, full, kit):
    for path in kit.paths(store, "models"):
        (store.root / path).write_bytes(b"?")
    found = set()
    for _ in range(40):
        seen = []
        report = verify.verify(store, lambda done, total, to=seen: to.append((done, total)), 0.3)
        assert (report.objects, report.of, report.leftovers) == (5, OBJECTS, None)
        assert seen[-1] == (5, 5)
        found |= {damage.path for damage in report.damage}
    assert found == {names.model_path(kit.key(alias)) for alias in MODELS}


def test_a_long_list_of_damage_is_cut_and_counted(store, full, kit, monkeypatch):
    monkeypatch.setattr(verify, "MOST_LISTED", 3)
    for commit in take_snapshot(store).commits.values():
        (store.root / commit.folder / commit.files[-1].name).write_bytes(b"?")
    report = verify.verify(store)
    assert (len(report.damage), report.unlisted) == (3, OBJECTS - 3)
