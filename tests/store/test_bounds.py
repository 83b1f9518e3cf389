"""P9: the size that a chunk decodes to is checked before anything is decoded."""

import json

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import Blosc, Zstd

from wsa.store.common.errors import DamagedError
from wsa.store.format import arrays, limits

# Around the sizes at which the header of a zstd frame changes its width.
SIZES = st.one_of(
    st.integers(1, 600), st.integers(65_500, 66_100), st.sampled_from([1 << 17, 1 << 20])
)


def expect_bytes(size, compressor, itemsize=1):
    """Metadata of an array in one chunk that decodes to `size` bytes."""
    dtype = {1: "uint8", 2: "float16", 4: "float32"}[itemsize]
    rows = size // itemsize
    return limits.Stored((rows,), np.dtype(dtype), rows, (0,), compressor, False)


def to_array(data):
    return np.frombuffer(data, np.uint8)


@given(SIZES, st.integers(1, 22), st.booleans(), st.booleans())
def test_the_size_in_a_zstd_header_is_compared(size, level, check, noise):
    data = np.random.default_rng(size).bytes(size) if noise else bytes(size)
    body = to_array(Zstd(level=min(level, 12), checksum=check).encode(data))
    limits.check_size(expect_bytes(size, "zstd"), body)
    for other in (size - 1, size + 1, 2 * size):
        if other:
            with pytest.raises(ValueError, match=f"{size} bytes, not"):
                limits.check_size(expect_bytes(other, "zstd"), body)


@given(SIZES, st.sampled_from([1, 2, 4]), st.integers(0, 9), st.integers(0, 2), st.booleans())
def test_the_size_in_a_blosc_header_is_compared(size, item, level, shuffle, noise):
    size = -(-size // item) * item
    data = np.random.default_rng(size).bytes(size) if noise else bytes(size)
    body = to_array(Blosc("zstd", level, shuffle, typesize=item).encode(data))
    limits.check_size(expect_bytes(size, "blosc", item), body)
    with pytest.raises(ValueError):
        limits.check_size(expect_bytes(size + item, "blosc", item), body)
    for cut in (body[:-1], np.append(body, np.uint8(0)), body[:15], body[:0]):
        with pytest.raises(ValueError):
            limits.check_size(expect_bytes(size, "blosc", item), cut)


@pytest.mark.parametrize("name", ["lz4", "lz4hc", "blosclz", "zlib"])
def test_another_compressor_inside_blosc_is_refused(name):
    body = to_array(Blosc(name, 5, 1, typesize=2).encode(np.zeros(9000, np.float16)))
    with pytest.raises(ValueError, match="not compressed by zstd"):
        limits.check_size(expect_bytes(18000, "blosc", 2), body)


ARRAY = np.arange(1800, dtype=np.float16).reshape(600, 3)
FILES = arrays.encode_embedding(ARRAY)
ENTRIES = 3


def with_index(change):
    """The shard with its index changed, and the checksum of the index recomputed."""
    data = FILES["c.0.0"]
    at = len(data) - 16 * ENTRIES - 4
    index = np.frombuffer(data[at:-4], "<u8").copy().reshape(-1, 2)
    change(index)
    raw = index.tobytes()
    return data[:at] + raw + google_crc32c.value(raw).to_bytes(4, "little")


def put(row, column, value):
    def change(index):
        index[row, column] = value

    return change


def share_chunk(index):
    index[1] = index[0]


@pytest.mark.parametrize(
    "change",
    [
        put(0, 0, 2**64 - 1),
        put(0, 1, 2**64 - 1),
        put(1, 0, 2**63),
        put(2, 1, 2**63),
        put(2, 0, 10**6),
        put(1, 1, 10**6),
        put(1, 1, 0),
        share_chunk,
        lambda index: index.fill(2**64 - 1),
        lambda index: index.fill(0),
    ],
    ids=range(10),
)
def test_an_index_that_does_not_divide_the_file_is_refused(change):
    files = {**FILES, "c.0.0": with_index(change)}
    with pytest.raises(DamagedError) as damaged:
        arrays.decode_array(files, "", ARRAY.shape, "float16", "x")
    assert damaged.value.kind == "bad-bytes"


def test_chunks_may_lie_in_any_order_in_the_file():
    data = FILES["c.0.0"]
    at = len(data) - 16 * ENTRIES - 4
    index = np.frombuffer(data[at:-4], "<u8").reshape(-1, 2).tolist()
    chunks = [data[offset : offset + length] for offset, length in index]
    moved = with_index(
        lambda new: new.__setitem__(
            slice(None),
            [
                [len(chunks[2]) + len(chunks[1]), len(chunks[0])],
                [len(chunks[2]), len(chunks[1])],
                [0, len(chunks[2])],
            ],
        )
    )
    files = {**FILES, "c.0.0": b"".join(reversed(chunks)) + moved[at:]}
    found = arrays.decode_array(files, "", ARRAY.shape, "float16", "x")
    np.testing.assert_array_equal(found, ARRAY)


def test_the_message_names_the_damaged_rows():
    data = bytearray(FILES["c.0.0"])
    index = np.frombuffer(data[-16 * ENTRIES - 4 : -4], "<u8").reshape(-1, 2).tolist()
    data[index[1][0] + 30] ^= 1
    with pytest.raises(DamagedError, match=r"rows 256 to 511 of 600.*crc32c"):
        arrays.decode_array({**FILES, "c.0.0": bytes(data)}, "", ARRAY.shape, "float16", "x")


@pytest.mark.parametrize(
    "order", [[0], [0, 0], [1, 2], [0, 1, 2], [-1, 0], [1.0, 0], ["1", 0], None, {}]
)
def test_an_impossible_order_of_axes_is_refused(order):
    found = json.loads(FILES["zarr.json"])
    found["codecs"][0]["configuration"]["codecs"][0]["configuration"]["order"] = order
    with pytest.raises(DamagedError):
        limits.check_metadata(json.dumps(found).encode(), ARRAY.shape, "float16", "x")


def test_a_shard_of_too_many_chunks_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "MAX_CHUNKS", 2)
    with pytest.raises(DamagedError, match="3 chunks"):
        limits.check_metadata(FILES["zarr.json"], ARRAY.shape, "float16", "x")
