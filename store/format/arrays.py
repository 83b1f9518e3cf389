"""Zarr v3 arrays of segments and embeddings: encoding, checks and decoding.

Both directions are pure functions between numpy arrays and `{relative path: bytes}`. So every byte
passes through `publish` when it is written, and through its commit record's checksum when it is
read. Zarr writes the arrays, and anyone may read them with Zarr. Stored bytes may come from anyone,
so this module decodes them itself, in the few lines that this format needs, after
`wsa.store.format.limits` has checked them: Zarr never sees stored metadata. Every chunk ends with a
crc32c, so a reader with plain Zarr notices damage too, and this module tells which chunk is damaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc, Zstd
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec, ZstdCodec
from zarr.storage import MemoryStore

from wsa.store.common.errors import DamagedError, UsageError
from wsa.store.format.limits import (
    MAX_ARRAY_BYTES,
    MAX_CHUNKS,
    Bytes,
    Stored,
    check_crc,
    check_metadata,
    check_size,
    split,
)

FRAMES_PER_CHUNK = 32
EMBEDDINGS_PER_CHUNK = 256

# Fields of a segment's rows and their stored types. Row i is an observation; its action, reward,
# terminated and truncated are those of the step that follows it. A row with action -1 is only an
# observation: context of a segment that begins inside an episode, the last frame of an episode, or
# the frame after the segment's last step.
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

# Decoding needs no settings: a chunk's header has them.
_DECODERS = {"zstd": Zstd(), "blosc": Blosc()}

Arrays = dict[str, NDArray[Any]]
Files = dict[str, bytes]


def encode_group(arrays: Arrays) -> Files:
    """Encode the rows of a segment, or its frames, as the files of a Zarr group.

    Raises:
        UsageError: If an array is larger than `MAX_ARRAY_BYTES`.
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
    """Encode embeddings, shape (frames or rows, *shape), as the files of one Zarr array.

    Raises:
        UsageError: If the array is larger than `MAX_ARRAY_BYTES`.
    """
    memory = MemoryStore()
    _create(memory, "", array, rows_per_chunk=EMBEDDINGS_PER_CHUNK, compress="blosc")
    return _files(memory)


def chunk_file(axes: int) -> str:
    """Return the name of the one file that holds the values of an array with `axes` axes."""
    return ".".join(["c", *["0"] * axes])


def decode_array(
    files: Mapping[str, bytes], name: str, shape: tuple[int, ...], dtype: str, where: str
) -> NDArray[Any]:
    """Decode one array.

    Args:
        files: The object's files by path relative to the object.
        name: Name within the group; empty if the object is itself an array.
        shape: The required shape, from the commit record.
        dtype: The required type.
        where: The object's path, for messages.

    Raises:
        DamagedError: If the metadata is wrong, or the array's file is missing or damaged.
    """
    prefix = f"{name}/" if name else ""
    where = f"{where}/{prefix}".rstrip("/")
    stored = check_metadata(files.get(f"{prefix}zarr.json"), shape, dtype, where)
    data = files.get(f"{prefix}{chunk_file(len(shape))}")
    if data is None:
        raise DamagedError(
            "lost-file", f"{where}/{chunk_file(len(shape))} is missing. Run 'wsa verify'."
        )
    part = "the whole of it"
    try:
        bodies = []
        for number, chunk in enumerate(split(stored, data)):
            part = f"rows {number * stored.rows} to {_end_row(stored, number) - 1} of {shape[0]}"
            bodies.append(check_crc(chunk))
            check_size(stored, bodies[-1])
        # Only now is it certain that the chunks have the size of the array.
        result = np.empty(shape, stored.dtype)
        for number, body in enumerate(bodies):
            part = f"rows {number * stored.rows} to {_end_row(stored, number) - 1} of {shape[0]}"
            rows = result[number * stored.rows : _end_row(stored, number)]
            _decode(stored, body, rows)
    except (ValueError, RuntimeError) as error:
        raise DamagedError(
            "bad-bytes",
            f"{where}/{chunk_file(len(shape))} cannot be decoded ({part}): {error}. Run 'wsa verify'.",
        ) from None
    return result


def _decode(stored: Stored, body: Bytes, rows: NDArray[Any]) -> None:
    """Decode one chunk into `rows`, without its padding."""
    shape = (stored.rows, *stored.shape[1:])
    in_order = stored.order == tuple(range(len(shape)))
    decoded = (
        rows if in_order and len(rows) == stored.rows else np.empty(stored.chunk_bytes, np.uint8)
    )
    _DECODERS[stored.compressor].decode(body, decoded)
    if decoded is not rows:
        values = decoded.view(stored.dtype).reshape([shape[axis] for axis in stored.order])
        rows[:] = values.transpose(np.argsort(stored.order))[: len(rows)]


def damaged_rows(stored: Stored, data: bytes) -> list[tuple[int, int]]:
    """Return the ranges of rows that are damaged, each as (first, last).

    Args:
        stored: The array's layout, from its metadata.
        data: The file's bytes, which differ from those that were committed.

    Returns:
        Rows of the chunks with a wrong checksum or size. All rows if the file cannot be divided
        into chunks, or if every chunk is intact but the file still differs.
    """
    all_rows = [(0, stored.shape[0] - 1)]
    try:
        chunks = split(stored, data)
    except ValueError:
        return all_rows
    ranges: list[tuple[int, int]] = []
    for number, chunk in enumerate(chunks):
        try:
            check_size(stored, check_crc(chunk))
        except ValueError:
            first, last = number * stored.rows, _end_row(stored, number) - 1
            if ranges and ranges[-1][1] == first - 1:
                first = ranges.pop()[0]
            ranges.append((first, last))
    return ranges or all_rows


def _end_row(stored: Stored, number: int) -> int:
    """Return the row after the last row of chunk `number`."""
    return min((number + 1) * stored.rows, stored.shape[0])


# Names chunks `c.0.0`, beside their metadata: each axis would otherwise be a folder to make, flush
# and list.
_FLAT = {"separator": "."}


def _create(
    memory: MemoryStore,
    name: str,
    array: NDArray[Any],
    *,
    rows_per_chunk: int,
    compress: str,
) -> None:
    """Write one array, its chunks in one shard, so that it is one data file and one metadata file."""
    rows = len(array)
    chunk_rows = max(1, min(rows_per_chunk, rows))
    padded_rows = -(-rows // chunk_rows) * chunk_rows
    if padded_rows * array[:1].nbytes > MAX_ARRAY_BYTES or padded_rows // chunk_rows > MAX_CHUNKS:
        raise UsageError(
            f"{name or 'An embedding'} of shape {array.shape} takes more than {MAX_ARRAY_BYTES} "
            "bytes. Collect shorter segments: lower --segment-steps."
        )
    rows_last = (*range(1, array.ndim), 0)
    codec = (
        ZstdCodec(level=3)
        if compress == "zstd"
        else BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
    )
    created = zarr.create_array(
        memory,
        name=name or None,
        shape=array.shape,
        dtype=array.dtype,
        chunks=(chunk_rows, *array.shape[1:]),
        shards=(padded_rows, *array.shape[1:]) if padded_rows > chunk_rows else None,
        # Neighboring frames are similar, so each feature is smooth along the row axis. With that
        # axis last, bitshuffle uses this: 1.7 times smaller instead of 1.2.
        filters=[TransposeCodec(order=rows_last)] if compress == "blosc" and array.ndim > 1 else [],
        compressors=[codec, Crc32cCodec()],
        fill_value=0,
        chunk_key_encoding={"name": "default", "configuration": _FLAT},
        # A missing chunk must mean damage, so chunks of zeros are written too.
        config={"write_empty_chunks": True},
    )
    created[...] = array


def _files(memory: MemoryStore) -> Files:
    return {path: buffer.to_bytes() for path, buffer in sorted(memory._store_dict.items())}
