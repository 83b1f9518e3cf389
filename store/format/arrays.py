"""What the bytes of a segment and of an embedding mean: Zarr v3 arrays, encoded and checked here.

Both directions are pure functions between numpy arrays and `{relative path: bytes}`, so that every
byte passes through `publish` on its way out and through its commit record's checksum on its way in.
Zarr writes the arrays, and anyone may read them with it. What is read here comes from anybody, so it
is decoded here, in the few lines that this format needs, once `bounds` has found nothing wrong with
it: Zarr never sees stored metadata. Every chunk ends with a crc32c, so that damage is found by people
who read with plain Zarr too, and here to the chunk.
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

# A chunk's own header tells each how it was encoded.
_DECODERS = {"zstd": Zstd(), "blosc": Blosc()}

Arrays = dict[str, NDArray[Any]]
Files = dict[str, bytes]


def encode_group(arrays: Arrays) -> Files:
    """Files of a Zarr group: the rows of a segment, or its frames.

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


def chunk_file(axes: int) -> str:
    """Name of the one file that holds the numbers of an array with so many axes."""
    return ".".join(["c", *["0"] * axes])


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
        DamagedError: The metadata is not what it must be, or a chunk is missing or damaged.
    """
    prefix = f"{name}/" if name else ""
    where = f"{where}/{prefix}".rstrip("/")
    stored = check_metadata(files.get(f"{prefix}zarr.json"), shape, dtype, where)
    data = files.get(f"{prefix}{chunk_file(len(shape))}")
    if data is None:
        raise DamagedError(
            "lost-file", f"{where}/{chunk_file(len(shape))} is missing. Run 'wsa verify'."
        )
    at = "the whole of it"
    try:
        bodies = []
        for number, chunk in enumerate(split(stored, data)):
            at = f"rows {number * stored.rows} to {_end(stored, number) - 1} of {shape[0]}"
            bodies.append(check_crc(chunk))
            check_size(stored, bodies[-1])
        # Only now is it known that what is there has the size of the array.
        result = np.empty(shape, stored.dtype)
        for number, body in enumerate(bodies):
            at = f"rows {number * stored.rows} to {_end(stored, number) - 1} of {shape[0]}"
            rows = result[number * stored.rows : _end(stored, number)]
            _decode(stored, body, rows)
    except (ValueError, RuntimeError) as error:
        raise DamagedError(
            "bad-bytes",
            f"{where}/{chunk_file(len(shape))} cannot be decoded ({at}): {error}. Run 'wsa verify'.",
        ) from None
    return result


def _decode(stored: Stored, body: Bytes, rows: NDArray[Any]) -> None:
    """Decode one chunk into the rows that it holds, without its padding."""
    shape = (stored.rows, *stored.shape[1:])
    flat = stored.order == tuple(range(len(shape)))
    whole = rows if flat and len(rows) == stored.rows else np.empty(stored.chunk_bytes, np.uint8)
    _DECODERS[stored.compressor].decode(body, whole)
    if whole is not rows:
        kept = whole.view(stored.dtype).reshape([shape[axis] for axis in stored.order])
        rows[:] = kept.transpose(np.argsort(stored.order))[: len(rows)]


def damaged_rows(stored: Stored, data: bytes) -> list[tuple[int, int]]:
    """Which rows of an array a file cannot vouch for any more, as (first, last).

    Args:
        stored: What the array's metadata says.
        data: The file's bytes, which are not those that were committed.

    Returns:
        Ranges of the chunks whose checksum does not fit; all rows where the file cannot be divided
        into chunks, or where every chunk is in order but something else is not.
    """
    every = [(0, stored.shape[0] - 1)]
    try:
        chunks = split(stored, data)
    except ValueError:
        return every
    found: list[tuple[int, int]] = []
    for number, chunk in enumerate(chunks):
        try:
            check_size(stored, check_crc(chunk))
        except ValueError:
            first, last = number * stored.rows, _end(stored, number) - 1
            if found and found[-1][1] == first - 1:
                first = found.pop()[0]
            found.append((first, last))
    return found or every


def _end(stored: Stored, number: int) -> int:
    """The row after the last of chunk `number`."""
    return min((number + 1) * stored.rows, stored.shape[0])


# Chunks lie beside their metadata: a folder fewer to make, to flush and to list for each axis.
_FLAT = {"separator": "."}


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
    if whole * array[:1].nbytes > MAX_ARRAY_BYTES or whole // inner > MAX_CHUNKS:
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
        chunk_key_encoding={"name": "default", "configuration": _FLAT},
        # An absent chunk must mean damage, so chunks of zeros are written like any other.
        config={"write_empty_chunks": True},
    )
    created[...] = array


def _files(memory: MemoryStore) -> Files:
    return {path: buffer.to_bytes() for path, buffer in sorted(memory._store_dict.items())}
