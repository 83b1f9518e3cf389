"""What the bytes of a segment and of an embedding mean: Zarr v3 arrays, encoded and checked here.

Both directions are pure functions between numpy arrays and `{relative path: bytes}`, so that every
byte passes through `publish` on its way out and through its commit record's checksum on its way in.
Before Zarr sees stored metadata, `check_metadata` refuses anything that is not Zarr format 3, not
of the expected shape and type, too large, or that names a codec outside a short list. Every chunk ends with a
crc32c, so that people who read the arrays with plain Zarr notice damage too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from wsa.store.errors import DamagedError, UsageError

FRAMES_PER_CHUNK = 32
EMBEDDINGS_PER_CHUNK = 256
MAX_METADATA_BYTES = 64 << 10
# What one array may take in memory, whole or padded to whole chunks.
MAX_ARRAY_BYTES = 4 << 30
# A segment that begins inside an episode repeats this many frames less one before its first step.
MAX_STACK_FRAMES = 4

# Of a chunk. A stored chunk may also be a shard of such chunks, one level deep.
CODECS = frozenset({"bytes", "transpose", "zstd", "blosc", "crc32c"})

# What a segment says of each row, with the type it is stored as. Row i is an observation; its
# action, reward and ends are what followed it. A row whose action is -1 holds an observation only:
# context before a cut, the last frame of an episode, or the frame after the segment's last step.
ROW_FIELDS: dict[str, str] = {
    "frame": "int32",
    "action": "int16",
    "reward": "float32",
    "terminated": "bool",
    "truncated": "bool",
    "is_first": "bool",
    "context": "bool",
    "lives": "uint8",
    "episode": "int32",
}

DTYPES = frozenset({"float16", "float32", *ROW_FIELDS.values()})

Arrays = dict[str, NDArray[Any]]
Files = dict[str, bytes]


def encode_segment(arrays: Arrays) -> Files:
    """Files of a segment's Zarr group.

    Args:
        arrays: `frames` (F, H, W) or (F, H, W, 3) uint8, `digest` (F, 16) uint8, `palette`
            (256, 3) uint8 where frames are indices, and every field of `ROW_FIELDS` (rows,).

    Raises:
        UsageError: An array is larger than `MAX_ARRAY_BYTES`.
    """
    memory = MemoryStore()
    zarr.create_group(memory, zarr_format=3)
    for name, array in arrays.items():
        if name == "frames":
            _create(memory, name, array, rows_per_chunk=FRAMES_PER_CHUNK, compress="zstd")
        else:
            _create(memory, name, array, rows_per_chunk=len(array), compress="zstd")
    return _files(memory)


def encode_embedding(array: NDArray[np.floating[Any]]) -> Files:
    """Files of one embedding array (F, *shape), float16 or float32.

    Raises:
        UsageError: It is larger than `MAX_ARRAY_BYTES`.
    """
    memory = MemoryStore()
    _create(memory, None, array, rows_per_chunk=EMBEDDINGS_PER_CHUNK, compress="blosc")
    return _files(memory)


def decode_array(
    files: Mapping[str, bytes], name: str | None, shape: tuple[int, ...], dtype: str, where: str
) -> NDArray[Any]:
    """Decode one array.

    Args:
        files: The object's files, keyed by path relative to the object.
        name: Name within the group, or None where the object is itself an array.
        shape: The shape it must have, from the commit record.
        dtype: The type it must have.
        where: The object's path, for messages.

    Raises:
        DamagedError: The metadata is not what it must be, a chunk is missing, or one is damaged.
    """
    prefix = f"{name}/" if name else ""
    where = f"{where}/{prefix}".rstrip("/")
    own = {path[len(prefix) :]: data for path, data in files.items() if path.startswith(prefix)}
    chunks = check_metadata(own.get("zarr.json"), shape, dtype, where)
    # Zarr would read zeros in place of a chunk that is absent, or of a shard that is empty.
    if math.prod(chunks) > len(own) or not all(own.get(name) for name in _chunk_names(chunks)):
        raise DamagedError(
            "lost-file",
            f"{where} lacks some of its {math.prod(chunks)} chunks; there are "
            f"{', '.join(sorted(own))}. Run 'wsa verify'.",
        )
    buffer = default_buffer_prototype().buffer
    memory = MemoryStore({path: buffer.from_bytes(data) for path, data in own.items()})
    try:
        result = zarr.open_array(memory, mode="r", zarr_format=3)[...]
    except Exception as error:  # noqa: BLE001  Codecs raise what they like on damaged bytes.
        raise DamagedError(
            "bad-bytes", f"{where} cannot be decoded: {error}. Run 'wsa verify'."
        ) from None
    return np.asarray(result)


def check_metadata(
    data: bytes | None, shape: tuple[int, ...], dtype: str, where: str
) -> tuple[int, ...]:
    """Refuse array metadata that this format would not write.

    Returns:
        How many stored chunks the array must have along each axis.

    Raises:
        DamagedError: It is absent, malformed, of another shape or type, or names other codecs.
    """
    if data is None:
        raise DamagedError("lost-file", f"{where}/zarr.json is missing. Run 'wsa verify'.")

    def refuse(why: str) -> DamagedError:
        return DamagedError("bad-array", f"{where}/zarr.json is refused: {why}. Run 'wsa verify'.")

    if len(data) > MAX_METADATA_BYTES:
        raise refuse(f"it has {len(data)} bytes")
    if dtype not in DTYPES:
        raise refuse(f"its record says {dtype!r}, which is not one of {', '.join(sorted(DTYPES))}")
    itemsize = np.dtype(dtype).itemsize
    try:
        found = msgspec.json.decode(data, type=dict[str, Any])
        if found["zarr_format"] != 3 or found["node_type"] != "array":
            raise refuse("it is not an array of Zarr format 3")
        if tuple(found["shape"]) != shape or found["data_type"] != dtype:
            raise refuse(f"it says {found['shape']} {found['data_type']}, not {shape} {dtype}")
        if found["chunk_grid"]["name"] != "regular" or found.get("storage_transformers"):
            raise refuse("its chunk grid is not the regular one")
        keys = found["chunk_key_encoding"]
        if keys["name"] != "default" or keys.get("configuration", {}) not in ({}, _SLASH):
            raise refuse("its chunks are not named as c/0/0")
        chunk = tuple(found["chunk_grid"]["configuration"]["chunk_shape"])
        if len(chunk) != len(shape) or any(type(n) is not int or n < 1 for n in chunk):
            raise refuse(f"its chunk shape is {chunk}")
        if max(math.prod(chunk), math.prod(shape)) * itemsize > MAX_ARRAY_BYTES:
            raise refuse(f"{shape} in chunks of {chunk} takes more than {MAX_ARRAY_BYTES} bytes")
        codecs = found["codecs"]
        if len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed":
            inner = codecs[0]["configuration"]
            codecs = [*inner["codecs"], *inner["index_codecs"]]
        for codec in codecs:
            if codec["name"] not in CODECS:
                raise refuse(f"codec {codec['name']!r} is not one of {', '.join(sorted(CODECS))}")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise refuse(str(error) or type(error).__name__) from None
    return tuple(-(-n // c) for n, c in zip(shape, chunk, strict=True))


_SLASH = {"separator": "/"}


def _chunk_names(chunks: tuple[int, ...]) -> list[str]:
    if not math.prod(chunks):
        return []
    return ["/".join(["c", *map(str, at)]) for at in np.ndindex(*chunks)]


def _create(
    memory: MemoryStore,
    name: str | None,
    array: NDArray[Any],
    *,
    rows_per_chunk: int,
    compress: str,
) -> None:
    """Write one array; many chunks go into one shard, so that an array is one file and its metadata."""
    rows = len(array)
    inner = max(1, min(rows_per_chunk, rows))
    whole = -(-rows // inner) * inner
    if whole * array[:1].nbytes > MAX_ARRAY_BYTES:
        raise UsageError(
            "bad-option",
            f"{name or 'An embedding'} of shape {array.shape} takes more than {MAX_ARRAY_BYTES} "
            "bytes. Collect shorter segments: lower --segment-steps.",
        )
    last = (*range(1, array.ndim), 0)
    codec = (
        ZstdCodec(level=3)
        if compress == "zstd"
        else BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
    )
    created = zarr.create_array(
        memory,
        name=name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=(inner, *array.shape[1:]),
        shards=(whole, *array.shape[1:]) if whole > inner else None,
        # Neighbouring frames are alike, so each feature is smooth along the row axis: with the
        # rows last, bitshuffle finds it (1.7 times smaller in place of 1.2).
        filters=[TransposeCodec(order=last)] if compress == "blosc" and array.ndim > 1 else [],
        compressors=[codec, Crc32cCodec()],
        fill_value=0,
        # An absent chunk must mean damage, so chunks of zeros are written like any other.
        config={"write_empty_chunks": True},
    )
    created[...] = array


def _files(memory: MemoryStore) -> Files:
    return {path: buffer.to_bytes() for path, buffer in sorted(memory._store_dict.items())}
