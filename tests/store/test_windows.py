"""Models that look at several frames: their windows, and their embeddings, one a row."""

from __future__ import annotations

import itertools
import os

import msgspec
import numpy as np
import pytest
import xarray
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from wsa.store.common import hashing, names
from wsa.store.common.errors import ConflictError, DamagedError, UsageError
from wsa.store.exchange.export import export, plan_export
from wsa.store.format import records
from wsa.store.format.stacks import MAX_STACK_FRAMES
from wsa.store.format.windows import episode_starts, window_digests, window_rows
from wsa.store.maintenance.repair import repair
from wsa.store.maintenance.verify import verify
from wsa.store.objects import flat_map, writer
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

# Of which models, in the order given; single frames stand among windows.
WINDOWS = {"moving": 4, "lite0": 1, "pair": 2, "vit": 1}
SHAPES = {"moving": (3,), "lite0": (2,), "pair": (2, 2), "vit": (1,)}


@pytest.fixture
def store(in_memory):
    return in_memory


@pytest.fixture
def models(kit):
    return [kit.key(alias) for alias in WINDOWS]


def embed(store, kit, meta, aliases=WINDOWS):
    for alias in aliases:
        kit.add_embedding(store, meta, kit.key(alias), shape=SHAPES[alias], window=WINDOWS[alias])


def fill(store, kit, numbers, aliases=WINDOWS, **options):
    """Segments of one environment, each cut where the last one ended, encoded by these models."""
    metas = []
    for number in numbers:
        made = {"steps": 9, "ends": (2, 3, 6), "frames": 7, "cut": number > 0, **options}
        metas.append(kit.add_segment(store, number, **made)[0])
        embed(store, kit, metas[-1], aliases)
    return metas


def equals_the_store(made, snapshot, models):
    """What the map gives for each step is what the objects hold, model by model."""
    at = 0
    windows = made.gather_windows(
        made.steps, np.empty((len(made.steps), made.window_width), made.windowed.dtype)
    )
    frames = made.embeddings[made.rows["frame"][made.steps]]
    for meta in snapshot.segments("Pong"):
        rows = snapshot.read_rows(meta)
        acted = np.flatnonzero(rows["action"] >= 0)
        here = slice(at, at + len(acted))
        for key, window, columns in zip(models, made.windows, made.columns, strict=True):
            found = snapshot.read_embedding("Pong", key, meta.segment)
            assert len(found) == (meta.rows if window > 1 else meta.frames)
            wanted = found[acted] if window > 1 else found[rows["frame"][acted]]
            got = (windows if window > 1 else frames)[here, columns]
            np.testing.assert_array_equal(got, wanted.reshape(len(acted), -1))
        at += len(acted)
    assert at == len(made.steps)


@st.composite
def episodes_and_cuts(draw):
    """Rows of whole episodes, and where they are cut into segments."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    steps = sum(lengths)
    return lengths, sorted(draw(st.sets(st.integers(0, steps), max_size=5)) | {0, steps})


@given(drawn=episodes_and_cuts(), window=st.integers(1, MAX_STACK_FRAMES))
def test_windows_of_a_segment_are_those_of_the_uncut_episode(drawn, window):
    lengths, cuts = drawn
    whole = [[(e, i) for i in range(length + 1)] for e, length in enumerate(lengths)]
    steps = [(e, i) for e, length in enumerate(lengths) for i in range(length)]
    for begin, end in itertools.pairwise(cuts):
        # As format.md has it: context, then each step, and an observation where something ended.
        rows = [(e, i, False) for e, i in whole[steps[begin][0]] if i < steps[begin][1]]
        rows = [(e, i, True) for e, i, _ in rows[-3:]]
        for e, i in steps[begin:end]:
            rows.append((e, i, False))
            if i + 1 == lengths[e] or (e, i) == steps[end - 1]:
                rows.append((e, i + 1, False))
        starts = episode_starts(np.array([i == 0 for _, i, _ in rows]))
        found = window_rows(np.arange(len(rows)), starts, window)
        assert found.shape == (len(rows), window) and (found[:, -1] == np.arange(len(rows))).all()
        for (e, i, context), of in zip(rows, found, strict=True):
            if not context:
                seen = [whole[e][max(0, i - back)] for back in range(window - 1, -1, -1)]
                assert [rows[at][:2] for at in of] == seen
            else:
                assert of.min() >= 0 and all(rows[at][0] == e for at in of)


@pytest.mark.parametrize("window", [0, -1, MAX_STACK_FRAMES + 1])
def test_longer_windows_than_segments_repeat_are_refused(window):
    with pytest.raises(UsageError) as refused:
        window_rows(np.arange(3), np.zeros(3, np.int64), window)
    assert refused.value.kind == "bad-option"


def test_a_window_is_named_by_the_digests_of_its_frames():
    digests = np.random.default_rng(0).integers(0, 256, (5, 4, 16), np.uint8)
    found = window_digests(digests)
    assert found.shape == (5, 16) and found.dtype == np.uint8
    for one, name in zip(digests, found, strict=True):
        assert name.tobytes() == blake3(one.tobytes()).digest(16)
    assert window_digests(digests[:0]).shape == (0, 16)


def test_a_record_says_the_window_where_there_is_one(kit, store):
    meta, _ = kit.add_segment(store)
    embed(store, kit, meta, ("lite0", "pair"))
    for alias, window, unit in (("lite0", 1, "frames"), ("pair", 2, "rows")):
        commit = take_snapshot(store).commit(
            names.embedding_path("Pong", kit.key(alias), meta.segment)
        )
        assert isinstance(commit.meta, records.EmbeddingMeta)
        assert commit.meta.window == window and commit.meta.unit == unit
        said = msgspec.json.decode(store.get(names.commit_path(commit.id), 1 << 20))["meta"]
        assert said.get("window") == (window if window > 1 else None)


@pytest.mark.parametrize("window", [0, 1, -4, 5, 10**9, "4", 4.5, None])
def test_a_record_with_another_window_is_refused(kit, window):
    """1 too: there is one way to write a record."""
    meta, _ = kit.remember()
    described, _ = kit.fake_embedding(meta, kit.key("pair"), window=2)
    commit = records.Commit(1, described, "0" * 16, (), "a@b", "", "")
    forged = msgspec.json.decode(records.write_commit(commit))
    forged["meta"]["window"], forged["check"] = window, ""
    forged["check"] = hashing.checksum(hashing.canonical(forged))
    with pytest.raises(DamagedError):
        records.read_commit(hashing.canonical(forged), names.commit_path(commit.id))


def test_a_map_of_frames_and_windows_equals_the_store(store, kit, models, tmp_path):
    fill(store, kit, range(3))
    snapshot = take_snapshot(store)
    made = flat_map.materialise(snapshot, "Pong", models, tmp_path)
    assert made.windows == tuple(WINDOWS.values()) and made.shapes == tuple(SHAPES.values())
    assert (made.width, made.window_width) == (3, 7)
    equals_the_store(made, snapshot, models)
    for names_ in (models[::-1], models[:1], models[1:2], [models[2], models[0]]):
        equals_the_store(flat_map.materialise(snapshot, "Pong", names_, tmp_path), snapshot, names_)
    with pytest.raises(IndexError, match="must be in"):
        made.gather_windows(np.array([len(made.rows)]), np.empty((1, 7), np.float16))
    for window in (2, 4):
        names_of = made.window_digests(window)
        of = made.digests[made.stack(np.arange(len(made.rows)), window)]
        assert [n.tobytes() for n in names_of] == [
            hashing.window_digest(one.tobytes()) for one in of
        ]


def test_files_of_what_no_model_needs_are_not_there(store, kit, models, tmp_path):
    fill(store, kit, range(1))
    snapshot = take_snapshot(store)
    for chosen, present in (
        (models[:1], {"rows.bin", "digests.bin", "windows.bin"}),
        (models[1:2], {"rows.bin", "digests.bin", "embeddings.bin"}),
        (models[:2], {"rows.bin", "digests.bin", "embeddings.bin", "windows.bin"}),
    ):
        cache = tmp_path / str(len(present)) / chosen[-1]
        flat_map.materialise(snapshot, "Pong", chosen, cache)
        (folder,) = (cache / "flat").iterdir()
        assert {p.name for p in folder.glob("*.bin")} == present


def test_windows_of_new_segments_are_appended(store, kit, models, tmp_path):
    fill(store, kit, [3, 1])
    early = take_snapshot(store)
    first = flat_map.materialise(early, "Pong", models, tmp_path)
    (folder,) = (tmp_path / "flat").iterdir()
    before = {name: (folder / name).read_bytes() for name in flat_map.FILES}
    fill(store, kit, [0, 2])
    snapshot = take_snapshot(store)
    equals_the_store(flat_map.materialise(snapshot, "Pong", models, tmp_path), snapshot, models)
    for name, data in before.items():
        after = (folder / name).read_bytes()
        assert after.startswith(data) and len(after) > len(data)
    equals_the_store(first, early, models)
    equals_the_store(flat_map.materialise(early, "Pong", models, tmp_path), early, models)


@pytest.mark.parametrize("how", ["deleted", "cut"])
def test_cleaned_windows_are_made_again(store, kit, models, tmp_path, how):
    fill(store, kit, range(2))
    snapshot = take_snapshot(store)
    flat_map.materialise(snapshot, "Pong", models, tmp_path)
    (file,) = tmp_path.glob("flat/*/windows.bin")
    file.unlink() if how == "deleted" else os.truncate(file, file.stat().st_size - 1)
    equals_the_store(flat_map.materialise(snapshot, "Pong", models, tmp_path), snapshot, models)


@settings(max_examples=8)
@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.sets(st.integers(0, 11)), st.booleans()),
        min_size=1,
        max_size=3,
    )
)
def test_any_map_with_windows_equals_the_store(kit, tmp_path_factory, segments):
    folder = tmp_path_factory.mktemp("any")
    on_disk = open_store(str(folder / "store"), create=True)
    models = [kit.key(alias) for alias in WINDOWS]
    for env, (steps, ends, cut) in enumerate(segments):
        fill(on_disk, kit, [0], env=env, steps=steps, ends=tuple(ends), cut=cut)
        snapshot = take_snapshot(on_disk)
        made = flat_map.materialise(snapshot, "Pong", models, folder)
        equals_the_store(made, snapshot, models)


def test_one_model_has_one_window(store, kit, tmp_path):
    fill(store, kit, [0], ("pair",))
    meta, _ = kit.add_segment(store, 1)
    key = kit.key("pair")
    kit.add_embedding(store, meta, key, shape=SHAPES["pair"], window=4)
    snapshot = take_snapshot(store)
    for use in (
        lambda: flat_map.materialise(snapshot, "Pong", [key], tmp_path),
        lambda: plan_export(snapshot, "Pong", [key]),
    ):
        with pytest.raises(ConflictError, match="windows"):
            use()


@pytest.mark.parametrize("alias", ["lite0", "pair"])
def test_verify_finds_a_wrong_number_of_embeddings(store, kit, alias):
    metas = fill(store, kit, range(2), ("moving",))
    assert not verify(store).damage
    key, window = kit.key(alias), WINDOWS[alias]
    described, array = kit.fake_embedding(metas[1], key, window=window)
    short = msgspec.structs.replace(described, shape=(len(array) - 1, 3))
    writer.commit_embedding(store, short, array[:-1])
    (damage,) = verify(store).damage
    unit = "rows" if window > 1 else "frames"
    assert damage.unit == unit and damage.rows == ((0, len(array) - 2),)
    assert damage.kind == "bad-record" and damage.path == records.meta_path(short)
    assert key in damage.concerns and f"{len(array)} {unit}" in damage.why
    with pytest.raises(DamagedError, match=unit):
        take_snapshot(store).read_embedding("Pong", key, metas[1].segment)
    repair(store, [damage])
    writer.commit_embedding(store, described, array)
    assert not verify(store).damage


def test_damaged_windows_are_named_by_row(on_disk, kit):
    (meta,) = fill(on_disk, kit, [0], ("pair",), steps=600, frames=20)
    commit = take_snapshot(on_disk).commit(
        names.embedding_path("Pong", kit.key("pair"), meta.segment)
    )
    file = on_disk.root / commit.folder / "c.0.0.0"
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)
    (damage,) = verify(on_disk).damage
    assert (damage.unit, damage.rows) == ("rows", ((0, 255),))


def test_an_export_has_windows_on_the_axis_of_rows(store, kit, models, tmp_path):
    """Two segments are joined: each step's window stands in its row, context only where it is."""
    fill(store, kit, range(2))
    fill(store, kit, [1], env=1)
    for key in models:
        kit.add_model(store, key)
    snapshot = take_snapshot(store)
    plan = plan_export(snapshot, "Pong", models)
    written = export(snapshot, plan, tmp_path / "x")
    table = xarray.open_zarr(tmp_path / "x")
    assert written == table.sizes["row"] == plan.rows - 4
    width = sum(
        (plan.rows if WINDOWS[a] > 1 else plan.frames) * 2 * int(np.prod(SHAPES[a]))
        for a in WINDOWS
    )
    assert plan.bytes == width + plan_export(snapshot, "Pong").bytes
    action = table["action"].values
    for alias, key in zip(WINDOWS, models, strict=True):
        assert table[key].dims[0] == ("row" if WINDOWS[alias] > 1 else "frame")
        assert table[key].attrs.get("window", 1) == WINDOWS[alias]
        if WINDOWS[alias] == 1:
            continue
        for number, meta in enumerate(plan.segments):
            rows = snapshot.read_rows(meta)
            stored = snapshot.read_embedding("Pong", key, meta.segment)
            here = (table["segment"].values == number) & (action >= 0)
            np.testing.assert_array_equal(table[key].values[here], stored[rows["action"] >= 0])
