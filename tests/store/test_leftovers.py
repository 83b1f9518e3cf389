"""What a dead writer left is adopted when it is the same, and never when it is not."""

from __future__ import annotations

import numpy as np
import pytest

from wsa.store import layout, names, writer
from wsa.store.errors import ConflictError
from wsa.store.reader import take_snapshot
from wsa.store.verify import verify


def embedding(kit, store, shape=(3,), **options):
    meta, _ = kit.add_segment(store, **options)
    return meta, *kit.fake_embedding(meta, kit.key(), shape)


@pytest.mark.parametrize("kept", [0, 1, 5, 13, 24])
def test_files_of_a_dead_writer_are_adopted(store, kit, kept):
    meta, arrays = kit.remember(0)
    with pytest.raises(KeyboardInterrupt):
        writer.commit_segment(kit.Dying(store, kept), meta, arrays)
    assert writer.commit_segment(store, meta, arrays)
    report = verify(store)
    assert (report.damage, report.leftovers) == ((), 0)
    kit.check_whole(take_snapshot(store), [meta], [])


def respelled(files):
    """The same arrays as another release might have written them."""
    return {
        name: data.replace(b"  ", b" ") if name.endswith("zarr.json") else data
        for name, data in files.items()
    }


def leave(store, path, files):
    for name, data in files.items():
        store.put_new(f"{path}/{name}", data)


def test_leftovers_of_the_same_content_in_other_bytes_are_adopted(store, kit):
    meta, arrays = kit.remember(0)
    files = layout.encode_segment(arrays)
    path = names.segment_path(meta.game, meta.segment)
    leave(store, path, respelled(files))
    assert respelled(files) != files
    assert writer.commit_segment(store, meta, arrays)
    kit.check_whole(take_snapshot(store), [meta], [])
    assert not verify(store).damage


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ["frames", "reward", "is_first", "digest", "palette"])
def test_leftovers_of_another_segment_are_a_conflict(store, kit, name, whole):
    meta, arrays = kit.remember(0)
    other = {n: a.copy() for n, a in arrays.items()}
    flat = other[name].reshape(-1)
    flat[-1] = not flat[-1] if name == "is_first" else flat[-1] + 1
    path = names.segment_path(meta.game, meta.segment)
    files = layout.encode_segment(other)
    leave(store, path, files if whole else {n: d for n, d in files.items() if name in n})
    before = kit.all_files(store)
    with pytest.raises(ConflictError) as conflict:
        writer.commit_segment(store, meta, arrays)
    assert (conflict.value.kind, conflict.value.exit_code) == ("other-bytes", 4)
    assert path in str(conflict.value) and "Remove" in str(conflict.value)
    assert take_snapshot(store).commits == {}
    assert before.items() <= kit.all_files(store).items(), "nothing is overwritten"
    for left in list(store.list(path)):  # What the message says.
        store.delete(left)
    assert writer.commit_segment(store, meta, arrays)


@pytest.mark.parametrize("junk", [b"", b"\0" * 300, b"{}"])
def test_leftover_junk_is_a_conflict_not_a_record(store, kit, junk):
    meta, arrays = kit.remember(0)
    path = names.segment_path(meta.game, meta.segment)
    store.put_new(f"{path}/reward/c/0", junk)
    with pytest.raises(ConflictError):
        writer.commit_segment(store, meta, arrays)


def test_a_folder_in_place_of_a_file_is_a_conflict(store, kit):
    meta, arrays = kit.remember(0)
    path = names.segment_path(meta.game, meta.segment)
    (store.root / path / "reward" / "c" / "0").mkdir(parents=True)
    with pytest.raises(ConflictError):
        writer.commit_segment(store, meta, arrays)


def test_embeddings_rounded_by_another_machine_are_adopted(store, kit):
    meta, described, array = embedding(kit, store, (8,))
    rounded = np.nextafter(array, np.float16(0))
    path = names.embedding_path(meta.game, kit.key(), meta.segment)
    leave(store, path, layout.encode_embedding(rounded))
    assert writer.commit_embedding(store, described, array)
    found = take_snapshot(store).read_embedding(meta.game, kit.key(), meta.segment)
    np.testing.assert_array_equal(found, rounded)  # One set of bytes, which the record names.
    assert not verify(store).damage


@pytest.mark.parametrize("steps", [1, 12, 400])
@pytest.mark.parametrize("wrong", ["one row", "all rows", "rows shifted", "half", "zeros"])
def test_leftovers_of_other_embeddings_are_a_conflict(store, kit, wrong, steps):
    meta, described, array = embedding(kit, store, (8,), steps=steps)
    other = array.copy()
    if wrong == "one row":
        other[steps // 2] += 0.5
    elif wrong == "all rows":
        other = kit.fake_embedding(meta, kit.key("vit"), (8,))[1]
    elif wrong == "rows shifted":
        other = np.roll(array, 1, axis=0)
    elif wrong == "half":
        other = other[: len(other) // 2]
    else:
        other[-1] = 0
    path = names.embedding_path(meta.game, kit.key(), meta.segment)
    leave(store, path, layout.encode_embedding(other))
    with pytest.raises(ConflictError) as conflict:
        writer.commit_embedding(store, described, array)
    assert conflict.value.kind == "other-bytes"
    assert take_snapshot(store).embeddings() == []


def test_large_embeddings_are_compared_without_overflow(store, kit):
    meta, described, array = embedding(kit, store)
    array = np.where(array > 0, np.float16(65000), np.float16(-65000))
    path = names.embedding_path(meta.game, kit.key(), meta.segment)
    leave(store, path, layout.encode_embedding(-array))
    with pytest.raises(ConflictError):
        writer.commit_embedding(store, described, array)


def test_whoever_comes_second_with_other_content_yields(store, kit, monkeypatch):
    """The other writer commits between this one's look and its own record."""
    meta, described, array = embedding(kit, store)
    real = store.put_new

    class Raced(kit.Dying):
        def put_new(self, path, data):
            if self.left:
                self.left = 0
                assert writer.commit_embedding(store, described, -array)
            return real(path, data)

    assert not writer.commit_embedding(Raced(store, 1), described, array)
    found = take_snapshot(store).read_embedding(meta.game, kit.key(), meta.segment)
    np.testing.assert_array_equal(found, -array)
    assert not verify(store).damage
