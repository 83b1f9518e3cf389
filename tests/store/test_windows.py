"""Models that look at several frames: windows of rows, and one embedding for each row."""

import itertools

import msgspec
import numpy as np
import pytest
import xarray
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from wsa.store.common import hashing, names
from wsa.store.common.errors import DamagedError, UsageError
from wsa.store.exchange.export import export, plan_export
from wsa.store.format import records
from wsa.store.format.stacks import MAX_STACK_FRAMES
from wsa.store.format.windows import episode_starts, window_digests, window_rows
from wsa.store.maintenance.repair import repair
from wsa.store.maintenance.verify import verify
from wsa.store.objects import writer
from wsa.store.objects.snapshot import take_snapshot

# Frames of each model's window; models of single frames are mixed in.
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
        shape = {"steps": 9, "ends": (2, 3, 6), "frames": 7, "cut": number > 0, **options}
        metas.append(kit.add_segment(store, number, **shape)[0])
        embed(store, kit, metas[-1], aliases)
    return metas


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
def test_windows_longer_than_the_context_of_segments_are_refused(window):
    with pytest.raises(UsageError) as refused:
        window_rows(np.arange(3), np.zeros(3, np.int64), window)
    assert refused.value.kind == "bad-option"


def test_the_digest_of_a_window_depends_on_the_digests_of_its_frames():
    digests = np.random.default_rng(0).integers(0, 256, (5, 4, 16), np.uint8)
    found = window_digests(digests)
    assert found.shape == (5, 16) and found.dtype == np.uint8
    for one, name in zip(digests, found, strict=True):
        assert name.tobytes() == blake3(one.tobytes()).digest(16)
    assert window_digests(digests[:0]).shape == (0, 16)


def test_a_record_states_a_window_of_several_frames(kit, store):
    meta, _ = kit.add_segment(store)
    embed(store, kit, meta, ("lite0", "pair"))
    for alias, window, unit in (("lite0", 1, "frames"), ("pair", 2, "rows")):
        commit = take_snapshot(store).commit(
            names.embedding_path("Pong", kit.key(alias), meta.segment)
        )
        assert isinstance(commit.meta, records.EmbeddingMeta)
        assert commit.meta.window == window and commit.meta.unit == unit
        written = msgspec.json.decode(store.get(names.commit_path(commit.id), 1 << 20))["meta"]
        assert written.get("window") == (window if window > 1 else None)


@pytest.mark.parametrize("window", [0, 1, -4, 5, 10**9, "4", 4.5, None])
def test_a_record_with_an_invalid_window_is_refused(kit, window):
    """A window of 1 is not written, so that each record has one spelling."""
    meta, _ = kit.remember()
    described, _ = kit.fake_embedding(meta, kit.key("pair"), window=2)
    commit = records.Commit(1, described, "0" * 16, (), "a@b", "", "")
    forged = msgspec.json.decode(records.write_commit(commit))
    forged["meta"]["window"], forged["check"] = window, ""
    forged["check"] = hashing.checksum(hashing.canonical(forged))
    with pytest.raises(DamagedError):
        records.read_commit(hashing.canonical(forged), names.commit_path(commit.id))


@pytest.mark.parametrize("alias", ["lite0", "pair"])
def test_verify_finds_a_wrong_number_of_embeddings(store, kit, alias):
    metas = fill(store, kit, range(2), ("moving",))
    assert not kit.damage_beside_models(verify(store))
    key, window = kit.key(alias), WINDOWS[alias]
    described, array = kit.fake_embedding(metas[1], key, window=window)
    short = msgspec.structs.replace(described, shape=(len(array) - 1, 3))
    writer.commit_embedding(store, short, array[:-1])
    (damage,) = kit.damage_beside_models(verify(store))
    unit = "rows" if window > 1 else "frames"
    assert damage.unit == unit and damage.rows == ((0, len(array) - 2),)
    assert damage.kind == "bad-record" and damage.path == records.meta_path(short)
    assert key in damage.concerns and f"{len(array)} {unit}" in damage.why
    with pytest.raises(DamagedError, match=unit):
        take_snapshot(store).read_embedding("Pong", key, metas[1].segment)
    repair(store, [damage])
    writer.commit_embedding(store, described, array)
    assert not kit.damage_beside_models(verify(store))


def test_damage_to_windows_is_reported_by_rows(on_disk, kit):
    (meta,) = fill(on_disk, kit, [0], ("pair",), steps=600, frames=20)
    commit = take_snapshot(on_disk).commit(
        names.embedding_path("Pong", kit.key("pair"), meta.segment)
    )
    file = on_disk.root / commit.folder / "c.0.0.0"
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)
    (damage,) = kit.damage_beside_models(verify(on_disk))
    assert (damage.unit, damage.rows) == ("rows", ((0, 255),))


def test_an_export_has_windows_on_the_axis_of_rows(store, kit, models, tmp_path):
    """Two segments are joined, and the window of each step is in its row."""
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
