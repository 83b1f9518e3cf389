"""An export is a plain Zarr group that other libraries read."""

from __future__ import annotations

import fcntl
import math
import os
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import xarray
import zarr

from wsa.store.common import names
from wsa.store.common.errors import ConflictError, DamagedError, MissingError
from wsa.store.exchange import export as columns
from wsa.store.exchange.export import export, plan_export
from wsa.store.objects.snapshot import Snapshot, take_snapshot
from wsa.store.testing.faults import MemoryBackend

RUN_B = "ba9876543210"


@pytest.fixture(scope="module")
def template(kit):
    """A run of three consecutive segments, one of which begins inside an episode; an environment
    whose first segment is missing; another run. Two models, one with float32 in one segment."""
    store = MemoryBackend()
    store.put_new("wsa.json", b'{"format":1}')
    vit, cnn = kit.key("vit"), kit.key("cnn")
    for number, options in (
        (0, {"ends": (4, 9)}),
        (1, {"ends": (11,), "cut": True}),
        (2, {"ends": (0, 3)}),
        (1, {"env": 1, "ends": (7,), "cut": True}),
        (0, {"run": RUN_B, "steps": 5}),
    ):
        meta, _ = kit.add_segment(store, number, frames=9, **options)
        kit.add_embedding(store, meta, vit, shape=(2, 3))
        kit.add_embedding(store, meta, cnn, dtype="float32" if number == 2 else "float16")
    kit.add_model(store, vit)
    kit.add_model(store, cnn)
    return store


@pytest.fixture
def store(template):
    copy = MemoryBackend(template.url)
    copy.files = dict(template.files)
    return copy


@pytest.fixture
def snapshot(store):
    return take_snapshot(store)


def export_all(snapshot, kit, path, **options):
    plan = plan_export(snapshot, kit.GAME, [kit.key("vit"), kit.key("cnn")], **options)
    export(snapshot, plan, path)
    return plan


def in_order(snapshot, kit):
    return sorted(snapshot.segments(kit.GAME), key=lambda m: (m.run, m.env, m.start))


def concatenate(snapshot, kit, read):
    return np.concatenate([read(meta) for meta in in_order(snapshot, kit)])


def test_zarr_dask_and_xarray_read_what_the_store_holds(kit, snapshot, tmp_path):
    path = tmp_path / "pong.zarr"
    plan = export_all(snapshot, kit, path, pictures=True)
    expected = {
        key: concatenate(
            snapshot, kit, lambda m, k=key: snapshot.read_embedding(m.game, k, m.segment)
        )
        for key in plan.models
    }
    expected["digest"] = concatenate(snapshot, kit, snapshot.read_digests)
    expected["frames"] = concatenate(snapshot, kit, snapshot.read_frames)
    group: Any = zarr.open_group(path, mode="r")
    table = xarray.open_zarr(path)
    assert group.metadata.consolidated_metadata is not None
    for name, array in expected.items():
        assert len(array) == 42
        for found in (
            group[name][...],
            dask.array.from_zarr(str(path), component=name).compute(),
            table[name].values,
        ):
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)
        assert table[name].dims[0] == "frame"
    assert table["frames"].dims == ("frame", "y", "x", "channel")
    assert table[kit.key("cnn")].dtype == np.float32
    for name, (kind, _) in columns.ROW_COLUMNS.items():
        assert table[name].dims == ("row",) and table[name].dtype == kind
        np.testing.assert_array_equal(group[name][...], table[name].values)
    # The table by itself is a data frame, and rows pick embeddings.
    frame = table[list(columns.ROW_COLUMNS)].to_dataframe()
    assert len(frame) == table.sizes["row"]
    picked = table[kit.key("vit")].isel(frame=table["frame_index"].values)
    assert picked.shape == (table.sizes["row"], 2, 3)


def test_rows_show_the_frames_of_their_segment(kit, snapshot, tmp_path):
    export_all(snapshot, kit, tmp_path / "x")
    found: Any = zarr.open_group(tmp_path / "x", mode="r")
    table = {name: found[name][...] for name in columns.ROW_COLUMNS}
    digest = found["digest"][...]
    assert found.attrs["segments"] == [meta.segment for meta in in_order(snapshot, kit)]
    for number, meta in enumerate(in_order(snapshot, kit)):
        rows = snapshot.read_rows(meta)
        here = table["segment"] == number
        acted = rows["action"] >= 0
        own = {name: table[name][here] for name in table}
        assert (own["action"] >= 0).sum() == meta.steps
        for name in ("action", "reward", "terminated", "truncated", "is_first", "lives"):
            np.testing.assert_array_equal(own[name][own["action"] >= 0], rows[name][acted])
        shown = rows["digest"][rows["frame"]][acted]
        np.testing.assert_array_equal(digest[own["frame_index"]][own["action"] >= 0], shown)
        np.testing.assert_array_equal(
            own["step"][own["action"] >= 0], meta.start + np.arange(meta.steps)
        )


def test_consecutive_segments_are_joined(kit, snapshot, tmp_path):
    plan = export_all(snapshot, kit, tmp_path / "x")
    found: Any = zarr.open_group(tmp_path / "x", mode="r")
    table = {name: found[name][...] for name in columns.ROW_COLUMNS}
    # Only three rows of context and the closing row before them are repeated.
    assert plan.rows - len(table["action"]) == 4
    first = table["step"][(table["segment"] == 1) & ~table["context"]]
    last = table["step"][table["segment"] == 0]
    assert first[0] == last[-1] + 1
    # If the previous segment is missing, the context stays and is marked.
    context = np.flatnonzero(table["context"])
    assert table["segment"][context].tolist() == [3, 3, 3]
    assert table["step"][context].tolist() == [9, 10, 11]
    # Episodes: 3 begin in the first segment, none in the second, 3 in the third, ...
    lengths = {e: int((table["episode"] == e).sum()) for e in np.unique(table["episode"])}
    assert lengths == {0: 6, 1: 6, 2: 15, 3: 2, 4: 4, 5: 9, 6: 3 + 8 + 1, 7: 5, 8: 6}
    assert sorted(table["episode"]) == list(table["episode"])
    for episode in lengths:
        actions = table["action"][(table["episode"] == episode) & ~table["context"]]
        assert actions[-1] == -1 and (actions[:-1] >= 0).all()


def test_attributes_state_the_origin(kit, snapshot, tmp_path):
    export_all(snapshot, kit, tmp_path / "x")
    attributes: Any = zarr.open_group(tmp_path / "x", mode="r").attrs.asdict()
    assert (attributes["game"], attributes["store"]) == (kit.GAME, snapshot.backend.url)
    assert attributes["models"].keys() == {kit.key("vit"), kit.key("cnn")}
    assert attributes["runs"][kit.RUN]["protocol"]["frame_skip"] == 4
    assert attributes["runs"].keys() == {kit.RUN, RUN_B}
    assert "@" in attributes["authors"][0]


def test_columns_are_written_in_whole_chunks(kit, snapshot, tmp_path, monkeypatch):
    export_all(snapshot, kit, tmp_path / "large", pictures=True)
    monkeypatch.setattr(columns, "CHUNK_BYTES", 64)
    written = []
    put = columns.Column._put

    def watched(self, rows):
        written.append((self.count % self._chunk, len(rows) % self._chunk))
        put(self, rows)

    monkeypatch.setattr(columns.Column, "_put", watched)
    export_all(snapshot, kit, tmp_path / "small", pictures=True)
    assert all(start == 0 for start, _ in written)
    large, small = (
        dict(zarr.open_group(tmp_path / name, mode="r").arrays()) for name in ("large", "small")
    )
    for name, array in small.items():
        assert math.prod(array.chunks) * array.dtype.itemsize <= max(
            64, array.nbytes // array.shape[0]
        )
        np.testing.assert_array_equal(array[...], large[name][...])


def test_a_plan_predicts_frames_rows_and_bytes(kit, snapshot, tmp_path):
    plan = export_all(snapshot, kit, tmp_path / "x", pictures=True)
    found: Any = zarr.open_group(tmp_path / "x", mode="r")
    rows = found["action"].shape[0]
    assert found["digest"].shape[0] == plan.frames == 42
    row = sum(np.dtype(kind).itemsize for kind, _ in columns.ROW_COLUMNS.values())
    nbytes = sum(int(array.nbytes) for _, array in found.arrays())
    assert plan.bytes == nbytes + (plan.rows - rows) * row


def test_existing_files_are_left_alone(kit, snapshot, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    folders = (Path(name) for name in (".", "..", "/", "", "nowhere/.."))
    for path in (*(tmp_path / name for name in ("file", "folder", "link")), *folders):
        with pytest.raises(ConflictError, match="Export to another path"):
            export_all(snapshot, kit, path)
    partial = tmp_path / "x.partial"
    partial.mkdir()
    (partial / "notes.txt").write_text("mine")
    with pytest.raises(ConflictError, match="does not come from an export"):
        export_all(snapshot, kit, tmp_path / "x")
    assert (partial / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "x").exists()


def test_two_processes_cannot_write_one_export(kit, snapshot, tmp_path):
    partial = tmp_path / "x.partial"
    partial.mkdir()
    handle = os.open(partial, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ConflictError, match="Another process") as busy:
        export_all(snapshot, kit, tmp_path / "x")
    assert busy.value.kind == "run-exists"
    os.close(handle)
    export_all(snapshot, kit, tmp_path / "x")
    assert not partial.exists()


def test_an_export_is_complete_or_absent(kit, snapshot, tmp_path):
    """Damage in the third segment stops it; the same command later starts again."""
    meta = in_order(snapshot, kit)[2]
    commit = snapshot.commit(names.segment_path(meta.game, meta.segment))
    largest = max(commit.files, key=lambda file: file.bytes)
    path = f"{commit.folder}/{largest.name}"
    assert isinstance(snapshot.backend, MemoryBackend)
    files = snapshot.backend.files
    whole = files[path]
    files[path] = (whole[0][:-1], whole[1])
    with pytest.raises(DamagedError):
        export_all(snapshot, kit, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert (tmp_path / "x.partial").exists()
    files[path] = whole
    plan = export_all(snapshot, kit, tmp_path / "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]
    found: Any = zarr.open_group(tmp_path / "x", mode="r")
    assert {name for name, _ in found.arrays()} == {
        *(*plan.models, "digest"),
        *columns.ROW_COLUMNS,
    }


def test_missing_games_embeddings_and_frames_are_named(kit, store, snapshot):
    with pytest.raises(MissingError, match="wsa collect --game Breakout"):
        plan_export(snapshot, "Breakout")
    meta, _ = kit.add_segment(store, 7)
    later = take_snapshot(store)
    with pytest.raises(MissingError, match="1 of 6 segments"):
        plan_export(later, kit.GAME, [kit.key("vit")])
    assert plan_export(later, kit.GAME).models == ()
    path = names.frames_path(meta.game, meta.segment)
    pulled = Snapshot(store, {p: c for p, c in later.commits.items() if p != path})
    assert plan_export(pulled, kit.GAME).frames == 42 + meta.frames
    with pytest.raises(MissingError, match=r"wsa pull.*without --frames"):
        plan_export(pulled, kit.GAME, pictures=True)
