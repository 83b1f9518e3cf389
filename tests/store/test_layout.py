"""P6: arrays round-trip through Zarr files, and what is missing or changed is an error, never zeros."""

import random
import warnings

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

from wsa.store.common.errors import DamagedError, UsageError
from wsa.store.format import arrays as layout

FLOATS = {"float16": np.float16, "float32": np.float32}
# Around the edges of chunks of 256 rows, one or several in a shard.
ROWS = st.sampled_from([1, 2, 5, 255, 256, 257, 300, 511, 512, 513, 700])
SHAPES = st.sampled_from([(1,), (7,), (3, 2, 5), (4, 3), (2, 1, 1)])


def make_noise(shape, dtype, seed):
    """Noise with stretches of zeros and the extremes of the type."""
    rng = np.random.default_rng(seed)
    array = rng.normal(size=shape).astype(dtype)
    array[rng.random(shape[0]) < 0.3] = 0
    array.reshape(-1)[0] = np.finfo(dtype).max
    array.reshape(-1)[-1] = np.finfo(dtype).tiny
    return array


def assert_same(left, right):
    assert left.dtype == right.dtype and left.shape == right.shape
    assert left.tobytes() == right.tobytes()


def write_files(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@settings(max_examples=settings().max_examples // 2)
@given(ROWS, SHAPES, st.sampled_from([*FLOATS]), st.integers(0, 9))
def test_embeddings_round_trip(rows, shape, dtype, seed):
    array = make_noise((rows, *shape), FLOATS[dtype], seed)
    files = layout.encode_embedding(array)
    assert_same(layout.decode_array(files, "", array.shape, dtype, "x"), array)
    assert len(files) == 2, "an array is one file and its metadata"
    assert layout.encode_embedding(array) == files, "equal arrays give equal bytes"
    columns = np.asfortranarray(array)
    assert_same(
        layout.decode_array(layout.encode_embedding(columns), "", array.shape, dtype, ""), array
    )


@given(
    steps=st.sampled_from([1, 2, 31, 32, 33, 64, 90]),
    frames=st.none() | st.integers(1, 95),
    indexed=st.booleans(),
    cut=st.booleans(),
    height=st.integers(1, 9),
)
@settings(max_examples=10)
def test_segments_round_trip(fake_segment, steps, frames, indexed, cut, height):
    _, arrays = fake_segment(steps=steps, frames=frames, indexed=indexed, cut=cut, height=height)
    files = layout.encode_group(arrays)
    assert len(files) == 2 * len(arrays) + 1
    for name, array in arrays.items():
        assert_same(layout.decode_array(files, name, array.shape, array.dtype.name, "x"), array)


@pytest.mark.parametrize("indexed", [True, False])
def test_segments_open_with_plain_zarr(fake_segment, tmp_path, indexed):
    _, arrays = fake_segment(steps=70, indexed=indexed)
    write_files(tmp_path, layout.encode_group(arrays))
    group = zarr.open_group(tmp_path, mode="r")
    assert sorted(group.array_keys()) == sorted(arrays)
    for name, array in arrays.items():
        assert_same(np.asarray(group[name]), array)
        assert_same(np.asarray(zarr.open_array(tmp_path / name, mode="r")[...]), array)


@pytest.mark.parametrize("rows", [3, 600])
def test_embeddings_open_with_plain_zarr(tmp_path, rows):
    array = make_noise((rows, 3, 2, 5), np.float16, 1)
    write_files(tmp_path, layout.encode_embedding(array))
    found = zarr.open_array(LocalStore(tmp_path), mode="r")
    assert found.metadata.zarr_format == 3
    assert_same(np.asarray(found[...]), array)
    assert_same(np.asarray(found[rows - 1]), array[rows - 1])


@pytest.mark.parametrize("rows", [1, 600])
def test_zeros_are_stored_like_other_values(fake_segment, rows):
    array = np.zeros((rows, 4), np.float16)
    files = layout.encode_embedding(array)
    assert sorted(files) == ["c.0.0", "zarr.json"]
    assert_same(layout.decode_array(files, "", array.shape, "float16", "x"), array)
    _, arrays = fake_segment(steps=70)
    blank = {name: np.zeros_like(array) for name, array in arrays.items()}
    files = layout.encode_group(blank)
    for name, array in blank.items():
        assert any(path.startswith(f"{name}/c.0") for path in files)
        assert_same(layout.decode_array(files, name, array.shape, array.dtype.name, "x"), array)


def test_a_missing_file_is_an_error_and_never_zeros(fake_segment):
    meta, arrays = fake_segment(steps=70)
    files = layout.encode_group(arrays)
    for name, array in arrays.items():
        for lost in [path for path in files if path.startswith(f"{name}/")]:
            rest = {path: data for path, data in files.items() if path != lost}
            for strange in ({}, {f"{name}/c.9": files[lost]}, {f"{name}/README": b""}):
                with pytest.raises(DamagedError) as damaged:
                    shape, dtype = array.shape, array.dtype.name
                    layout.decode_array({**rest, **strange}, name, shape, dtype, meta.segment)
                assert damaged.value.kind == "lost-file"
                assert f"{meta.segment}/{name}" in str(damaged.value)


def test_frame_and_frames_are_not_mixed_up(fake_segment):
    _, arrays = fake_segment(steps=40)
    files = {p: d for p, d in layout.encode_group(arrays).items() if p.startswith("frames/")}
    with pytest.raises(DamagedError):
        layout.decode_array(files, "frame", arrays["frame"].shape, "int32", "x")


@pytest.mark.parametrize(
    "shape, dtype", [((9, 3), "float16"), ((8, 3), "float32"), ((24,), "float16")]
)
def test_another_shape_or_type_than_recorded_is_refused(shape, dtype):
    files = layout.encode_embedding(np.ones((8, 3), np.float16))
    with pytest.raises(DamagedError) as damaged:
        layout.decode_array(files, "", shape, dtype, "x")
    assert damaged.value.kind == "bad-array"


OBJECTS = {
    "one chunk": make_noise((40, 12), np.float16, 2),
    "shard": make_noise((600, 5), np.float16, 3),
    "map": make_noise((40, 3, 2, 2), np.float32, 4),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_a_flipped_bit_is_found_without_the_record(name):
    """The checksum in the record is the first check; this is the second, which plain Zarr has too."""
    array = OBJECTS[name]
    files = layout.encode_embedding(array)
    rng = random.Random(name)
    refused = 0
    for path in files:
        for _ in range(60):
            data = bytearray(files[path])
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    found = layout.decode_array(
                        {**files, path: bytes(data)}, "", array.shape, array.dtype.name, "x"
                    )
            except DamagedError:
                refused += 1
            else:
                assert_same(found, array)  # Some flips in the metadata change nothing.
    assert refused >= 100


@pytest.mark.parametrize("name", OBJECTS)
def test_chunks_that_are_cut_swapped_or_empty_are_refused(name):
    array = OBJECTS[name]
    files = layout.encode_embedding(array)
    (chunk,) = [path for path in files if path != "zarr.json"]
    whole = files[chunk]
    for data in (b"", whole[:-1], whole[: len(whole) // 2], whole[4:], whole[::-1], b"\0" * 99):
        with pytest.raises(DamagedError):
            layout.decode_array({**files, chunk: data}, "", array.shape, array.dtype.name, "x")
    swapped = {chunk: files["zarr.json"], "zarr.json": files[chunk]}
    with pytest.raises(DamagedError):
        layout.decode_array(swapped, "", array.shape, array.dtype.name, "x")


def test_an_array_too_large_to_read_is_not_written(monkeypatch):
    monkeypatch.setattr(layout, "MAX_ARRAY_BYTES", 1000)
    fits = np.ones((250, 2), np.float16)
    assert_same(
        layout.decode_array(layout.encode_embedding(fits), "", (250, 2), "float16", ""), fits
    )
    with pytest.raises(UsageError, match="--segment-steps") as refused:
        layout.encode_embedding(np.ones((251, 2), np.float16))
    assert refused.value.kind == "bad-option"


def test_embeddings_of_neighboring_frames_compress():
    """The row axis comes last, for bitshuffle; otherwise the ratio is 1.2."""
    rng = np.random.default_rng(0)
    slow = rng.normal(size=400) + 0.001 * rng.normal(size=(256, 400)).cumsum(axis=0)
    array = slow.astype(np.float16)
    stored = sum(map(len, layout.encode_embedding(array).values()))
    assert stored < array.nbytes / 1.7
