"""What the bytes of a segment and of an embedding mean: Zarr v3 arrays, encoded and checked here.

Both directions are pure functions between numpy arrays and `{relative path: bytes}`, so that every
byte passes through `publish` on its way out and through its commit record's checksum on its way in.
Before Zarr sees stored metadata, `check_metadata` refuses anything that is not Zarr format 3, not
of the expected shape and type, or that names a codec outside a short list. Every chunk ends with a
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

from wsa.store.errors import DamagedError

FRAMES_PER_CHUNK = 32
EMBEDDINGS_PER_CHUNK = 256
MAX_METADATA_BYTES = 64 << 10
MAX_CHUNK_BYTES = 1 << 30

CODECS = frozenset({"bytes", "transpose", "zstd", "blosc", "crc32c", "sharding_indexed"})

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

Arrays = dict[str, NDArray[Any]]
Files = dict[str, bytes]


def encode_segment(arrays: Arrays) -> Files:
    """Files of a segment's Zarr group.

    Args:
        arrays: `frames` (F, H, W) or (F, H, W, 3) uint8, `digest` (F, 16) uint8, `palette`
            (256, 3) uint8 where frames are indices, and every field of `ROW_FIELDS` (rows,).
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
    """Files of one embedding array (F, *shape), float16 or float32."""
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
    if len(own) - 1 != chunks:
        raise DamagedError(
            "lost-file",
            f"{where} has {len(own) - 1} chunks in place of {chunks}. Run 'wsa verify'.",
        )
    buffer = default_buffer_prototype().buffer
    memory = MemoryStore({path: buffer.from_bytes(data) for path, data in own.items()})
    try:
        result = zarr.open_array(memory, mode="r", zarr_format=3)[...]
    except Exception as error:  # Codecs raise what they like on damaged bytes.
        raise DamagedError(
            "bad-bytes", f"{where} cannot be decoded: {error}. Run 'wsa verify'."
        ) from None
    return np.asarray(result)


def check_metadata(data: bytes | None, shape: tuple[int, ...], dtype: str, where: str) -> int:
    """Refuse array metadata that is not exactly what this format writes.

    Returns:
        The number of stored chunks the array must have.

    Raises:
        DamagedError: It is absent, malformed, of another shape or type, or names other codecs.
    """
    if data is None:
        raise DamagedError("lost-file", f"{where}/zarr.json is missing. Run 'wsa verify'.")

    def refuse(why: str) -> DamagedError:
        return DamagedError("bad-array", f"{where}/zarr.json is refused: {why}. Run 'wsa verify'.")

    if len(data) > MAX_METADATA_BYTES:
        raise refuse(f"it has {len(data)} bytes")
    try:
        found = msgspec.json.decode(data, type=dict[str, Any])
        if found["zarr_format"] != 3 or found["node_type"] != "array":
            raise refuse("it is not an array of Zarr format 3")
        if tuple(found["shape"]) != shape or found["data_type"] != dtype:
            raise refuse(f"it says {found['shape']} {found['data_type']}, not {shape} {dtype}")
        if found["chunk_grid"]["name"] != "regular" or found.get("storage_transformers"):
            raise refuse("its chunk grid is not the regular one")
        chunk = tuple(found["chunk_grid"]["configuration"]["chunk_shape"])
        if len(chunk) != len(shape) or any(type(n) is not int or n < 1 for n in chunk):
            raise refuse(f"its chunk shape is {chunk}")
        if math.prod(chunk) * np.dtype(dtype).itemsize > MAX_CHUNK_BYTES:
            raise refuse(f"its chunks of shape {chunk} are larger than {MAX_CHUNK_BYTES} bytes")
        for codec in _codec_names(found["codecs"]):
            if codec not in CODECS:
                raise refuse(f"codec {codec!r} is not one of {', '.join(sorted(CODECS))}")
    except (msgspec.MsgspecError, KeyError, TypeError, RecursionError) as error:
        raise refuse(str(error) or type(error).__name__) from None
    return math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))


def _codec_names(codecs: list[dict[str, Any]]) -> list[str]:
    found: list[str] = []
    for codec in codecs:
        found.append(codec["name"])
        if codec["name"] == "sharding_indexed":
            inner = codec["configuration"]
            found += _codec_names(inner["codecs"]) + _codec_names(inner["index_codecs"])
    return found


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
