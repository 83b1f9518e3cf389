"""A store written by an enemy: metadata that runs code, lies about its size or its type."""

from __future__ import annotations

import copy
import json

import msgspec
import numpy as np
import pytest
import zarr

from wsa.store.common import names
from wsa.store.common.errors import DamagedError, WsaError
from wsa.store.format import arrays, limits
from wsa.store.format.records import EmbeddingMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects.snapshot import take_snapshot

ARRAY = np.ones((40, 3), np.float16)
SHARDED = np.ones((600, 3), np.float16)


@pytest.fixture
def store(in_memory):
    return in_memory


def metadata(array=ARRAY):
    return json.loads(arrays.encode_embedding(array)["zarr.json"])


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Zarr must not be reached; whatever a codec would do leaves a file."""
    file = tmp_path / "canary"

    def touched(*args, **kwargs):
        file.touch()
        raise AssertionError("Zarr was asked to open hostile metadata")

    monkeypatch.setattr(zarr, "open_array", touched)
    monkeypatch.setattr(zarr, "open", touched)
    yield file
    assert not file.exists()


def changed(*path, value, array=ARRAY):
    found = copy.deepcopy(metadata(array))
    place = found
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return found


def codec(name, **configuration):
    return {"name": name, "configuration": configuration}


def with_codec(made, at=1):
    found = metadata()
    found["codecs"].insert(at, made)
    return found


def nested(depth):
    found = metadata(SHARDED)
    inner = found["codecs"]
    for _ in range(depth):
        inner = [
            {
                "name": "sharding_indexed",
                "configuration": {"chunk_shape": [1, 1], "codecs": inner, "index_codecs": []},
            }
        ]
    return {**found, "codecs": inner}


DEEP = b"[" * 20_000 + b"]" * 20_000

HOSTILE = {
    "pickle": with_codec(codec("numcodecs.pickle")),
    "pickle first": with_codec(codec("numcodecs.pickle"), 0),
    "pickle without its prefix": with_codec(codec("pickle")),
    "strings": with_codec(codec("vlen-utf8"), 0),
    "bytes of any length": with_codec(codec("vlen-bytes"), 0),
    "json2": with_codec(codec("numcodecs.json2")),
    "zlib": with_codec(codec("numcodecs.zlib", level=1)),
    "any entry point": with_codec(codec("os.system", command="touch canary")),
    "a module": with_codec(codec("__main__")),
    "no name": with_codec({"configuration": {}}),
    "name is a list": with_codec({"name": ["bytes"]}),
    "codec is a word": with_codec("pickle"),
    "codecs are a word": changed("codecs", value="bytes"),
    "codecs are null": changed("codecs", value=None),
    "pickle in a shard": changed(
        "codecs", 0, "configuration", "codecs", value=[codec("numcodecs.pickle")], array=SHARDED
    ),
    "pickle in a shard's index": changed(
        "codecs", 0, "configuration", "index_codecs", value=[codec("pickle")], array=SHARDED
    ),
    "shards without end": nested(200),
    "zarr 2": {
        "zarr_format": 2,
        "shape": [40, 3],
        "chunks": [40, 3],
        "dtype": "|O",
        "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}],
        "compressor": None,
        "order": "C",
        "fill_value": None,
    },
    "format 2 said in format 3": changed("zarr_format", value=2),
    "a group": changed("node_type", value="group"),
    "objects": changed("data_type", value="object"),
    "numpy objects": changed("data_type", value="|O"),
    "strings by type": changed("data_type", value="string"),
    "structured": changed("data_type", value=codec("structured", fields=[["a", "object"]])),
    "raw bits": changed("data_type", value="r64"),
    "2**62 rows": changed("shape", value=[2**62, 3]),
    "negative rows": changed("shape", value=[-40, 3]),
    "fewer rows": changed("shape", value=[39, 3]),
    "more axes": changed("shape", value=[40, 3, 1]),
    "rows are text": changed("shape", value="40,3"),
    "huge chunks": changed("chunk_grid", "configuration", "chunk_shape", value=[2**40, 3]),
    "chunks of nothing": changed("chunk_grid", "configuration", "chunk_shape", value=[0, 3]),
    "negative chunks": changed("chunk_grid", "configuration", "chunk_shape", value=[-1, 3]),
    "real chunks": changed("chunk_grid", "configuration", "chunk_shape", value=[40.0, 3]),
    "chunks of another rank": changed("chunk_grid", "configuration", "chunk_shape", value=[120]),
    "another grid": changed("chunk_grid", "name", value="rectilinear"),
    "other chunk names": changed("chunk_key_encoding", "name", value="v2"),
    "another separator": changed("chunk_key_encoding", "configuration", "separator", value="/"),
    "transformers": changed("storage_transformers", value=[codec("pickle")]),
    "nothing": {},
    "list": [],
    "null": None,
}


def refused(data: bytes, shape=(40, 3), dtype="float16"):
    with pytest.raises(DamagedError) as error:
        limits.check_metadata(data, shape, dtype, "x")
    files = {**arrays.encode_embedding(ARRAY), "zarr.json": data}
    with pytest.raises(DamagedError):
        arrays.decode_array(files, None, shape, dtype, "x")
    assert error.value.kind in ("bad-array", "lost-file")
    assert len(str(error.value)) < 20_000


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata_is_refused_before_zarr_sees_it(canary, name):
    shape = (600, 3) if "shard" in name else (40, 3)
    refused(json.dumps(HOSTILE[name]).encode(), shape)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"{",
        DEEP,
        b'{"codecs":' + DEEP + b"}",
        b" " * (65 << 10),
        b"{}" + b" " * 70000,
    ],
    ids=lambda d: f"{d[:12]!r} of {len(d)}",
)
def test_what_is_no_metadata_is_refused(canary, data):
    refused(data)


@pytest.mark.parametrize(
    "dtype", ["object", "O", "string", "float64", "V8", "M8[ns]", "S9999999999"]
)
def test_types_of_a_record_are_on_a_list(canary, dtype):
    refused(json.dumps(changed("data_type", value=dtype)).encode(), dtype=dtype)


@pytest.mark.parametrize("shape", [(2**62, 3), (2**20, 2**20), (2**31, 3), (0, 2**61), (2**61, 0)])
def test_no_shape_makes_the_reader_take_memory(shape):
    """Even where record and metadata agree on it, and one chunk is there."""
    for chunk in ([1, 1], [min(n, 2**30) or 1 for n in shape], [n or 1 for n in shape]):
        found = changed("shape", value=list(shape))
        found["chunk_grid"]["configuration"]["chunk_shape"] = chunk
        files = {**arrays.encode_embedding(ARRAY), "zarr.json": json.dumps(found).encode()}
        try:
            assert arrays.decode_array(files, None, shape, "float16", "x").size == 0
        except DamagedError as error:
            assert error.kind in ("bad-array", "lost-file", "bad-bytes")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_object_is_refused_and_its_neighbours_read(
    store, kit, plant, canary, monkeypatch, name
):
    model, segment = kit.key(), kit.fake_segment()[0].segment
    meta = EmbeddingMeta("Pong", segment, model, (40, 3), "float16", 40, 0, 0.0)
    files = {**arrays.encode_embedding(ARRAY), "zarr.json": json.dumps(HOSTILE[name]).encode()}
    plant(store, meta, files)
    snapshot = take_snapshot(store)
    with pytest.raises(DamagedError):
        snapshot.read_embedding("Pong", model, segment)
    monkeypatch.undo()
    good = kit.add_segment(store)[0]
    (damage,) = verify(store).damage
    assert model in damage.concerns and segment in damage.concerns
    kit.check_whole(take_snapshot(store), [good], [])


@pytest.mark.timeout(30)
def test_files_of_any_size_are_not_read(on_disk, kit):
    meta, _ = kit.add_segment(on_disk)
    frames = take_snapshot(on_disk).commit(names.frames_path(meta.game, meta.segment))
    target = on_disk.root / frames.folder / "frames" / "c.0.0.0"
    with target.open("r+b") as file:
        file.truncate(1 << 40)  # Holes: nothing on the disk, all of it in memory when read.
    with pytest.raises(DamagedError):
        take_snapshot(on_disk).read_frames(meta)
    assert len(verify(on_disk).damage) == 1
    record = next(iter((on_disk.root / "commits").glob("*/*.json")))
    with record.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamagedError):
        take_snapshot(on_disk)
    assert len(verify(on_disk).damage) in (1, 2)  # Whether or not it was the record of the frames.


@pytest.mark.timeout(30)
def test_pipes_folders_and_links_in_place_of_files_are_damage(on_disk, kit, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    planters = {
        "pipe": lambda p: __import__("os").mkfifo(p),
        "folder": lambda p: p.mkdir(),
        "link out": lambda p: p.symlink_to(tmp_path / "secret"),
        "link to itself": lambda p: p.symlink_to(p.name),
        "link to nothing": lambda p: p.symlink_to("nothing"),
    }
    metas = [kit.add_segment(on_disk, number)[0] for number in range(len(planters) + 1)]
    for meta, planter in zip(metas, planters.values(), strict=False):
        rows = take_snapshot(on_disk).commit(names.segment_path(meta.game, meta.segment))
        target = on_disk.root / rows.folder / "reward" / "c.0"
        target.unlink()
        planter(target)
    snapshot = take_snapshot(on_disk)
    for meta in metas[:-1]:
        with pytest.raises(WsaError):
            snapshot.read_rows(meta)
        kit.by_id(meta)
        snapshot.read_frames(meta)
    kit.check_whole(snapshot, metas[-1:], [])
    damaged = {damage.path for damage in verify(on_disk).damage}
    assert damaged == {names.segment_path(m.game, m.segment) for m in metas[:-1]}


def test_metadata_of_the_store_itself_passes():
    """The list is not so strict that nothing passes."""
    for array in (ARRAY, SHARDED, np.ones(5, np.float32), np.ones((300, 2, 2, 2), np.float32)):
        data = arrays.encode_embedding(array)["zarr.json"]
        stored = limits.check_metadata(data, array.shape, array.dtype.name, "x")
        assert (stored.shape, stored.dtype) == (array.shape, array.dtype)
        assert stored.chunks == -(-len(array) // stored.rows)
        assert msgspec.json.decode(data)["zarr_format"] == 3
