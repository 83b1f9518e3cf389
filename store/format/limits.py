"""Checks of stored arrays before anything is decoded or allocated.

A store's bytes may come from anyone, and so may the commit record with their checksums. So the
metadata must be what this format writes (one file per array, whole rows per chunk, one known chain
of codecs). The index of a shard must divide the file among its chunks without overlap. Each chunk
must say that it decodes to exactly the size of a chunk. An array that passes takes no more memory
than its record states, and `MAX_ARRAY_BYTES` limits that.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import google_crc32c
import msgspec
import numpy as np
from numpy.typing import NDArray

from wsa.store.common.errors import DamagedError

MAX_METADATA_BYTES = 64 << 10
# Limit on an array in memory, padded to whole chunks.
MAX_ARRAY_BYTES = 4 << 30
# An array of the largest size has fewer, unless its rows are far smaller than any embedding or
# frame. Each chunk costs some memory, however few bytes it has.
MAX_CHUNKS = 1 << 16

DTYPES = frozenset({"float16", "float32", "int32", "int16", "uint8", "bool"})

_CRC_BYTES = 4
_INDEX_BYTES = 16  # Offset and length of a chunk.
_ZSTD_MAGIC = 0xFD2FB528
_HEADER_BYTES = 18  # The longest header of zstd; blosc's has 16.
_BLOSC_COPIED = 0x02  # Flag of an uncompressed chunk.
_BLOSC_ZSTD = 4  # Compressor, in the three highest bits of the flags.
# Blosc allocates a few buffers of the block size.
_MAX_BLOSC_BLOCK_BYTES = 1 << 20

Bytes = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Stored:
    """Layout of an array in its one file.

    Attributes:
        shape: The array's shape.
        dtype: The array's type.
        rows: Rows per chunk; the last chunk may be padded.
        order: Axes in stored order.
        compressor: `zstd` or `blosc`.
        sharded: Whether the file holds chunks and their index (True) or one chunk.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: int
    order: tuple[int, ...]
    compressor: str
    sharded: bool

    @property
    def chunks(self) -> int:
        """Number of chunks in the file."""
        return -(-self.shape[0] // self.rows)

    @property
    def chunk_bytes(self) -> int:
        """Size of a decoded chunk in bytes."""
        return self.rows * math.prod(self.shape[1:]) * self.dtype.itemsize


def check_metadata(data: bytes | None, shape: tuple[int, ...], dtype: str, where: str) -> Stored:
    """Parse array metadata, and refuse any that this format would not write.

    Args:
        data: Content of the array's `zarr.json`; None if it is missing.
        shape: The required shape, from the commit record.
        dtype: The required type.
        where: The array's path, for messages.

    Raises:
        DamagedError: If the metadata is missing or malformed, or has another shape, type or codec.
    """
    if data is None:
        raise DamagedError("lost-file", f"{where}/zarr.json is missing. Run 'wsa verify'.")
    try:
        return _stored(data, shape, dtype)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RecursionError) as error:
        why = str(error)[:1000] or type(error).__name__
        raise DamagedError(
            "bad-array", f"{where}/zarr.json is refused: {why}. Run 'wsa verify'."
        ) from None


def _stored(data: bytes, shape: tuple[int, ...], dtype: str) -> Stored:
    if len(data) > MAX_METADATA_BYTES:
        raise ValueError(f"it has {len(data)} bytes")
    if dtype not in DTYPES:
        raise ValueError(f"its record says {dtype!r}, not one of {', '.join(sorted(DTYPES))}")
    item_type = np.dtype(dtype)
    metadata = msgspec.json.decode(data, type=dict[str, Any])
    if metadata["zarr_format"] != 3 or metadata["node_type"] != "array":
        raise ValueError("it is not an array of Zarr format 3")
    if (
        metadata["shape"] != list(shape)
        or metadata["data_type"] != dtype
        or min(shape, default=0) < 1
    ):
        raise ValueError(
            f"it says {metadata['shape']} {metadata['data_type']!r}, not {shape} {dtype}"
        )
    if metadata["chunk_grid"]["name"] != "regular" or metadata.get("storage_transformers"):
        raise ValueError("its chunk grid is not regular")
    keys = metadata["chunk_key_encoding"]
    if keys["name"] != "default" or keys.get("configuration") != {"separator": "."}:
        raise ValueError("its chunks are not named as c.0.0")
    whole = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    codecs, inner = metadata["codecs"], whole
    sharded = len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed"
    if sharded:
        shard = codecs[0]["configuration"]
        if shard.get("index_location", "end") != "end":
            raise ValueError("its index is not at the end")
        if [codec["name"] for codec in shard["index_codecs"]] != ["bytes", "crc32c"]:
            raise ValueError("its index is not stored as bytes and crc32c")
        _check_order(shard["index_codecs"][0], 8)
        codecs, inner = shard["codecs"], shard["chunk_shape"]
    for chunk in (whole, inner):
        if [type(n) for n in chunk] != [int] * len(shape) or chunk[1:] != list(shape[1:]):
            raise ValueError(f"its chunks of {chunk} do not hold whole rows")
    rows = inner[0]
    if not 1 <= rows <= shape[0] or whole[0] != -(-shape[0] // rows) * rows:
        raise ValueError(f"chunks of {inner} in {whole} do not make up {shape}")
    if whole[0] * math.prod(shape[1:]) * item_type.itemsize > MAX_ARRAY_BYTES:
        raise ValueError(f"{shape} in chunks of {inner} takes more than {MAX_ARRAY_BYTES} bytes")
    if whole[0] // rows > (MAX_CHUNKS if sharded else 1):
        raise ValueError(f"it has {whole[0] // rows} chunks")
    order, compressor = _chain(codecs, len(shape), item_type.itemsize)
    return Stored(shape, item_type, rows, order, compressor, sharded)


def _chain(codecs: Any, axes: int, itemsize: int) -> tuple[tuple[int, ...], str]:
    """Return axis order and compressor of a codec chain: [transpose,] bytes, zstd or blosc, crc32c."""
    names = [codec["name"] for codec in codecs]
    order = list(range(axes))
    if names[:1] == ["transpose"]:
        order = codecs[0]["configuration"]["order"]
        if [type(n) for n in order] != [int] * axes or sorted(order) != list(range(axes)):
            raise ValueError(f"it transposes to {order}")
        codecs, names = codecs[1:], names[1:]
    if len(names) != 3 or names[0] != "bytes" or names[2] != "crc32c":
        raise ValueError(f"codecs {names} are not bytes, zstd or blosc, and crc32c")
    if names[1] not in ("zstd", "blosc"):
        raise ValueError(f"codec {names[1]!r} is not zstd or blosc")
    _check_order(codecs[0], itemsize)
    return tuple(order), names[1]


def _check_order(codec: Any, itemsize: int) -> None:
    endian = codec.get("configuration", {}).get("endian")
    if endian != "little" and (endian is not None or itemsize > 1):
        raise ValueError(f"its bytes are {endian!r}, not little endian")


def split(stored: Stored, data: bytes) -> list[Bytes]:
    """Split an array's file into its chunks, in row order.

    Raises:
        ValueError: If the index is damaged, leads out of the file, or has overlapping chunks.
    """
    view = np.frombuffer(data, np.uint8)
    if not stored.sharded:
        return [view]
    end = len(data) - stored.chunks * _INDEX_BYTES - _CRC_BYTES
    if end < 0:
        raise ValueError(f"{len(data)} bytes are too few for {stored.chunks} chunks")
    ranges = check_crc(view[end:]).view("<u8").reshape(-1, 2)
    offsets, lengths = ranges[:, 0], ranges[:, 1]
    # This comparison cannot overflow. Zarr gives an absent chunk the largest offset.
    if (offsets > end).any() or (lengths > end - np.minimum(offsets, end)).any():
        raise ValueError("its index leads out of the file, or says that a chunk is absent")
    by_place = np.argsort(offsets, kind="stable")
    if (offsets[by_place][1:] < (offsets + lengths)[by_place][:-1]).any():
        raise ValueError("its index says that chunks share bytes")
    return [view[at : at + length] for at, length in ranges.tolist()]


def check_crc(chunk: Bytes) -> Bytes:
    """Check a chunk's trailing crc32c and return the bytes before it.

    Raises:
        ValueError: If the checksum does not match.
    """
    body, crc = chunk[:-_CRC_BYTES], chunk[-_CRC_BYTES:].tobytes()
    if len(chunk) < _CRC_BYTES or google_crc32c.value(body) != int.from_bytes(crc, "little"):
        raise ValueError("its crc32c does not match")
    return body


def check_size(stored: Stored, body: Bytes) -> None:
    """Refuse a compressed chunk unless its header states exactly the size of a decoded chunk.

    Raises:
        ValueError: If the header states no size or another one, or does not fit the metadata.
    """
    header = body[:_HEADER_BYTES].tobytes()
    if stored.compressor == "zstd":
        size = _zstd_bytes(header)
    else:
        size = _blosc_bytes(header, len(body), stored.dtype.itemsize)
    if size != stored.chunk_bytes:
        raise ValueError(f"it would decode to {size} bytes, not {stored.chunk_bytes}")


def _zstd_bytes(header: bytes) -> int:
    """Return the content size in a zstd frame's header (RFC 8878, 3.1.1.1).

    The decoder's buffer has exactly this size, so any further frames do not fit.
    """
    if len(header) < 6 or int.from_bytes(header[:4], "little") != _ZSTD_MAGIC:
        raise ValueError("it is not a zstd frame")
    flags = header[4]
    single_segment = bool(flags & 0x20)
    width = (1 if single_segment else 0, 2, 4, 8)[flags >> 6]
    at = 5 + (not single_segment) + (0, 1, 2, 4)[flags & 3]
    if not width or len(header) < at + width:
        raise ValueError("it does not say to how many bytes it decodes")
    return int.from_bytes(header[at : at + width], "little") + (256 if width == 2 else 0)


def _blosc_bytes(header: bytes, length: int, itemsize: int) -> int:
    """Return the decoded size in a blosc header.

    Its fields: two versions, flags, item size; then decoded, block and stored size in bytes.
    """
    if len(header) < 16:
        raise ValueError("it has no blosc header")
    decoded, block, stored = (int.from_bytes(header[at : at + 4], "little") for at in (4, 8, 12))
    if stored != length:  # Blosc does not check this.
        raise ValueError(f"it says that {stored} bytes are stored, not {length}")
    if header[3] != itemsize or not 0 < block <= _MAX_BLOSC_BLOCK_BYTES:
        raise ValueError(f"it says items of {header[3]} bytes in blocks of {block}")
    flags = header[2]
    if not flags & _BLOSC_COPIED and flags >> 5 != _BLOSC_ZSTD:
        raise ValueError("it is not compressed by zstd")
    return decoded
