"""What stored arrays may claim, checked before a byte is decoded or a buffer made for it.

A store's bytes may come from anybody, and the commit record that vouches for them from the same
hand. So the metadata must be one that this format writes (one file an array, whole rows to a chunk,
one known chain of codecs); the index of a shard must divide the file among its chunks, each once;
and each chunk must say that it decodes to exactly its own size. What passes takes the memory of the
array, which its record states and `MAX_ARRAY_BYTES` limits, and no more.
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
# What one array may take in memory, whole or padded to whole chunks.
MAX_ARRAY_BYTES = 4 << 30
# An array of the largest size has no more chunks, unless its rows are far smaller than those of any
# embedding or frame; each costs some memory, however few bytes it holds.
MAX_CHUNKS = 1 << 16

DTYPES = frozenset({"float16", "float32", "int32", "int16", "uint8", "bool"})

_CRC_BYTES = 4
_INDEX_BYTES = 16  # Offset and length of a chunk.
_ZSTD_MAGIC = 0xFD2FB528
_HEADER_BYTES = 18  # Of zstd at most; blosc has 16.
_BLOSC_COPIED = 0x02  # Flag of a chunk that is stored as it is.
_BLOSC_ZSTD = 4  # Compressor, in the three highest bits of the flags.
# Blosc works block by block, with a few buffers of this size.
_MAX_BLOSC_BLOCK_BYTES = 1 << 20

Bytes = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Stored:
    """How an array lies in its one file.

    Attributes:
        shape: Its shape.
        dtype: Its type.
        rows: Rows in each chunk; the last may be padded.
        order: Axes in the order they are stored.
        compressor: `zstd` or `blosc`.
        sharded: Whether the file holds several chunks and their index, or one chunk.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: int
    order: tuple[int, ...]
    compressor: str
    sharded: bool

    @property
    def chunks(self) -> int:
        """Chunks in the file."""
        return -(-self.shape[0] // self.rows)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return self.rows * math.prod(self.shape[1:]) * self.dtype.itemsize


def check_metadata(data: bytes | None, shape: tuple[int, ...], dtype: str, where: str) -> Stored:
    """Refuse array metadata that this format would not write.

    Args:
        data: Content of the array's `zarr.json`; None where there is none.
        shape: The shape the array must have, from the commit record.
        dtype: The type it must have.
        where: The array's path, for messages.

    Raises:
        DamagedError: It is absent, malformed, of another shape or type, or names other codecs.
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
    kind = np.dtype(dtype)
    found = msgspec.json.decode(data, type=dict[str, Any])
    if found["zarr_format"] != 3 or found["node_type"] != "array":
        raise ValueError("it is not an array of Zarr format 3")
    if found["shape"] != list(shape) or found["data_type"] != dtype or min(shape, default=0) < 1:
        raise ValueError(f"it says {found['shape']} {found['data_type']!r}, not {shape} {dtype}")
    if found["chunk_grid"]["name"] != "regular" or found.get("storage_transformers"):
        raise ValueError("its chunk grid is not the regular one")
    keys = found["chunk_key_encoding"]
    if keys["name"] != "default" or keys.get("configuration") != {"separator": "."}:
        raise ValueError("its chunks are not named as c.0.0")
    whole = found["chunk_grid"]["configuration"]["chunk_shape"]
    codecs, inner = found["codecs"], whole
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
    if whole[0] * math.prod(shape[1:]) * kind.itemsize > MAX_ARRAY_BYTES:
        raise ValueError(f"{shape} in chunks of {inner} takes more than {MAX_ARRAY_BYTES} bytes")
    if whole[0] // rows > (MAX_CHUNKS if sharded else 1):
        raise ValueError(f"it has {whole[0] // rows} chunks")
    order, compressor = _chain(codecs, len(shape), kind.itemsize)
    return Stored(shape, kind, rows, order, compressor, sharded)


def _chain(codecs: Any, axes: int, itemsize: int) -> tuple[tuple[int, ...], str]:
    """Order of axes and compressor of a chain [transpose,] bytes, zstd or blosc, crc32c."""
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
    """The chunks in an array's file, in order of their rows.

    Raises:
        ValueError: The file cannot be divided into them.
    """
    view = np.frombuffer(data, np.uint8)
    if not stored.sharded:
        return [view]
    end = len(data) - stored.chunks * _INDEX_BYTES - _CRC_BYTES
    if end < 0:
        raise ValueError(f"{len(data)} bytes are too few for {stored.chunks} chunks")
    ranges = check_crc(view[end:]).view("<u8").reshape(-1, 2)
    offsets, lengths = ranges[:, 0], ranges[:, 1]
    # Compared so that no sum overflows. An absent chunk says that it lies far beyond any end.
    if (offsets > end).any() or (lengths > end - np.minimum(offsets, end)).any():
        raise ValueError("its index leads out of the file, or says that a chunk is absent")
    by_place = np.argsort(offsets, kind="stable")
    if (offsets[by_place][1:] < (offsets + lengths)[by_place][:-1]).any():
        raise ValueError("its index says that chunks share bytes")
    return [view[at : at + length] for at, length in ranges.tolist()]


def check_crc(chunk: Bytes) -> Bytes:
    """What stands before a chunk's crc32c.

    Raises:
        ValueError: The checksum does not fit.
    """
    body, crc = chunk[:-_CRC_BYTES], chunk[-_CRC_BYTES:].tobytes()
    if len(chunk) < _CRC_BYTES or google_crc32c.value(body) != int.from_bytes(crc, "little"):
        raise ValueError("its crc32c does not fit")
    return body


def check_size(stored: Stored, body: Bytes) -> None:
    """Refuse a compressed chunk that does not say it decodes to exactly the size of a chunk.

    Raises:
        ValueError: It says another size, none, or is not what its metadata says.
    """
    header = body[:_HEADER_BYTES].tobytes()
    if stored.compressor == "zstd":
        says = _zstd_bytes(header)
    else:
        says = _blosc_bytes(header, len(body), stored.dtype.itemsize)
    if says != stored.chunk_bytes:
        raise ValueError(f"it would decode to {says} bytes, not {stored.chunk_bytes}")


def _zstd_bytes(header: bytes) -> int:
    """The content size in the header of a zstd frame (RFC 8878, 3.1.1.1).

    Decoding writes into a buffer of just this size, so frames that follow find no room.
    """
    if len(header) < 6 or int.from_bytes(header[:4], "little") != _ZSTD_MAGIC:
        raise ValueError("it is no zstd frame")
    flags = header[4]
    single_segment = bool(flags & 0x20)
    width = (1 if single_segment else 0, 2, 4, 8)[flags >> 6]
    at = 5 + (not single_segment) + (0, 1, 2, 4)[flags & 3]
    if not width or len(header) < at + width:
        raise ValueError("it does not say to how many bytes it decodes")
    return int.from_bytes(header[at : at + width], "little") + (256 if width == 2 else 0)


def _blosc_bytes(header: bytes, length: int, itemsize: int) -> int:
    """The size in a blosc header: versions, flags, item size; bytes, bytes of a block, stored."""
    if len(header) < 16:
        raise ValueError("it has no blosc header")
    decoded, block, says = (int.from_bytes(header[at : at + 4], "little") for at in (4, 8, 12))
    if says != length:  # Blosc itself would believe it.
        raise ValueError(f"it says that {says} bytes are stored, not {length}")
    if header[3] != itemsize or not 0 < block <= _MAX_BLOSC_BLOCK_BYTES:
        raise ValueError(f"it says items of {header[3]} bytes in blocks of {block}")
    flags = header[2]
    if not flags & _BLOSC_COPIED and flags >> 5 != _BLOSC_ZSTD:
        raise ValueError("it is not compressed by zstd")
    return decoded
