"""Hashes that identify frames, files, objects and models.

All are blake3. The first 128 bits name a frame or an object, enough against accidental and crafted
collisions; the full 256 bits check a file. JSON is always hashed as `canonical` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

DIGEST_BYTES = 16


def canonical(value: object) -> bytes:
    """Encode a value as JSON with sorted keys and no spaces: equal values give equal bytes."""
    return msgspec.json.encode(value, order="sorted")


def checksum(data: bytes | bytearray | memoryview) -> str:
    """Hex blake3-256 of a file's bytes."""
    return blake3(data).hexdigest()


def object_id(path: str) -> str:
    """Hex blake3-128 of an object's path: the name of its commit record."""
    return blake3(path.encode()).hexdigest()[: 2 * DIGEST_BYTES]


def identity(value: object) -> str:
    """Hex blake3-256 of a value's canonical JSON; a model key contains its first digits."""
    return checksum(canonical(value))


def frame_digest(frame: NDArray[np.uint8]) -> bytes:
    """blake3-128 of one frame's RGB bytes, shape (H, W, 3): the frame's identity everywhere."""
    return blake3(np.ascontiguousarray(frame).data).digest(DIGEST_BYTES)


def window_digest(digests: bytes) -> bytes:
    """blake3-128 of the digests of consecutive frames, oldest first: a window's identity."""
    return blake3(digests).digest(DIGEST_BYTES)


def tensors_digest(tensors: Mapping[str, NDArray[np.generic]]) -> str:
    """Hex blake3-256 of named arrays: names, dtypes, shapes and values, sorted by name."""
    hasher = blake3()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        hasher.update(canonical([name, str(array.dtype), list(array.shape)]))
        hasher.update(array.reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()
