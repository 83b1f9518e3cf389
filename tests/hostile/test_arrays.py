"""P7, P9: arrays of a hostile store, whose metadata names code or lies about size and type."""

import copy
import json
import os

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
    """Zarr must not be reached; if it were, this file would appear."""
    file = tmp_path / "canary"

    def touch(*args, **kwargs):
        file.touch()
        raise AssertionError("Zarr was asked to open hostile metadata")

    monkeypatch.setattr(zarr, "open_array", touch)
    monkeypatch.setattr(zarr, "open", touch)
    yield file
    assert not file.exists()


def with_value(*path, value, array=ARRAY):
    found = copy.deepcopy(metadata(array))
    place = found
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return found


def codec(name, **configuration):
    return {"name": name, "configuration": configuration}


def with_codec(added, at=1):
    found = metadata()
    found["codecs"].insert(at, added)
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
    "codecs are a word": with_value("codecs", value="bytes"),
    "codecs are null": with_value("codecs", value=None),
    "pickle in a shard": with_value(
        "codecs", 0, "configuration", "codecs", value=[codec("numcodecs.pickle")], array=SHARDED
    ),
    "pickle in a shard's index": with_value(
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
    "format 2 claimed in format 3": with_value("zarr_format", value=2),
    "a group": with_value("node_type", value="group"),
    "objects": with_value("data_type", value="object"),
    "numpy objects": with_value("data_type", value="|O"),
    "strings by type": with_value("data_type", value="string"),
    "structured": with_value("data_type", value=codec("structured", fields=[["a", "object"]])),
    "raw bits": with_value("data_type", value="r64"),
    "2**62 rows": with_value("shape", value=[2**62, 3]),
    "negative rows": with_value("shape", value=[-40, 3]),
    "fewer rows": with_value("shape", value=[39, 3]),
    "more axes": with_value("shape", value=[40, 3, 1]),
    "rows are text": with_value("shape", value="40,3"),
    "huge chunks": with_value("chunk_grid", "configuration", "chunk_shape", value=[2**40, 3]),
    "chunks of nothing": with_value("chunk_grid", "configuration", "chunk_shape", value=[0, 3]),
    "negative chunks": with_value("chunk_grid", "configuration", "chunk_shape", value=[-1, 3]),
    "real chunks": with_value("chunk_grid", "configuration", "chunk_shape", value=[40.0, 3]),
    "chunks of another rank": with_value("chunk_grid", "configuration", "chunk_shape", value=[120]),
    "another grid": with_value("chunk_grid", "name", value="rectilinear"),
    "other chunk names": with_value("chunk_key_encoding", "name", value="v2"),
    "another separator": with_value("chunk_key_encoding", "configuration", "separator", value="/"),
    "transformers": with_value("storage_transformers", value=[codec("pickle")]),
    "nothing": {},
    "list": [],
    "null": None,
}


def check_refused(data, shape=(40, 3), dtype="float16"):
    with pytest.raises(DamagedError) as error:
        limits.check_metadata(data, shape, dtype, "x")
    files = {**arrays.encode_embedding(ARRAY), "zarr.json": data}
    with pytest.raises(DamagedError):
        arrays.decode_array(files, "", shape, dtype, "x")
    assert error.value.kind in ("bad-array", "lost-file")
    assert len(str(error.value)) < 20_000


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata_is_refused_before_zarr_sees_it(canary, name):
    shape = (600, 3) if "shard" in name else (40, 3)
    check_refused(json.dumps(HOSTILE[name]).encode(), shape)


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
def test_other_content_than_metadata_is_refused(canary, data):
    check_refused(data)


@pytest.mark.parametrize(
    "dtype", ["object", "O", "string", "float64", "V8", "M8[ns]", "S9999999999"]
)
def test_only_listed_types_are_accepted(canary, dtype):
    check_refused(json.dumps(with_value("data_type", value=dtype)).encode(), dtype=dtype)


@pytest.mark.parametrize("shape", [(2**62, 3), (2**20, 2**20), (2**31, 3), (0, 2**61), (2**61, 0)])
def test_no_shape_makes_the_reader_allocate_memory(shape):
    """Even if record and metadata agree on it, and one chunk exists."""
    for chunk in ([1, 1], [min(n, 2**30) or 1 for n in shape], [n or 1 for n in shape]):
        found = with_value("shape", value=list(shape))
        found["chunk_grid"]["configuration"]["chunk_shape"] = chunk
        files = {**arrays.encode_embedding(ARRAY), "zarr.json": json.dumps(found).encode()}
        try:
            assert arrays.decode_array(files, "", shape, "float16", "x").size == 0
        except DamagedError as error:
            assert error.kind in ("bad-array", "lost-file", "bad-bytes")


def test_hostile_objects_are_refused_and_their_neighbors_read(store, kit, plant, canary):
    segment = kit.fake_segment()[0].segment
    models = [kit.key(f"m{number}") for number in range(len(HOSTILE))]
    for model, content in zip(models, HOSTILE.values(), strict=True):
        meta = EmbeddingMeta("Pong", segment, model, (40, 3), "float16", 40, 0, 0.0)
        files = {**arrays.encode_embedding(ARRAY), "zarr.json": json.dumps(content).encode()}
        plant(store, meta, files)
    snapshot = take_snapshot(store)
    for model in models:
        with pytest.raises(DamagedError):
            snapshot.read_embedding("Pong", model, segment)
    good = kit.add_segment(store)[0]
    damage = [one for one in verify(store).damage if one.attempt]  # No model has a record.
    assert sorted(damaged.model for damaged in damage) == sorted(models)
    assert all(damaged.segment == segment for damaged in damage)
    assert kit.check_whole(take_snapshot(store), [good], []) == 2


@pytest.mark.timeout(30)
def test_files_longer_than_recorded_are_not_read(on_disk, kit):
    meta, _ = kit.add_segment(on_disk)
    frames = take_snapshot(on_disk).commit(names.frames_path(meta.game, meta.segment))
    target = on_disk.root / frames.folder / "frames" / "c.0.0.0"
    with target.open("r+b") as file:
        file.truncate(1 << 40)  # Holes take no room on the disk, but would in memory.
    with pytest.raises(DamagedError):
        take_snapshot(on_disk).read_frames(meta)
    assert len(verify(on_disk).damage) == 1
    record = next(iter((on_disk.root / "commits").glob("*/*.json")))
    with record.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamagedError):
        take_snapshot(on_disk)
    assert len(verify(on_disk).damage) in (1, 2)  # It may be the record of these frames.


@pytest.mark.timeout(30)
def test_pipes_folders_and_links_instead_of_files_are_damage(on_disk, kit, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    planters = {
        "pipe": os.mkfifo,
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


def test_metadata_that_wsa_writes_is_accepted():
    for array in (ARRAY, SHARDED, np.ones(5, np.float32), np.ones((300, 2, 2, 2), np.float32)):
        data = arrays.encode_embedding(array)["zarr.json"]
        stored = limits.check_metadata(data, array.shape, array.dtype.name, "x")
        assert (stored.shape, stored.dtype) == (array.shape, array.dtype)
        assert stored.chunks == -(-len(array) // stored.rows)
        assert msgspec.json.decode(data)["zarr_format"] == 3
