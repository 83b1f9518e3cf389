"""A frozen linear map from a grid of features to a few hundred numbers.

Pooled features lose small things, such as a ball; a grid keeps them but is large (7 x 7 x 1280).
Two kinds of map make it small. A principal component analysis is fitted once, on the strip of all
games or on frames of one. It is done in two steps, so that it is megabytes rather than hundreds:
first the channels, the same way at every place of the grid, to at most `CHANNELS`; then the whole
grid. docs/design/003-output.md has what the first step costs. A random projection is fitted on
nothing: its matrix is drawn from a fixed seed, so there is nothing to store.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from wsa.store.common import hashing
from wsa.store.common.errors import UsageError

CHANNELS = 128
CHUNK = 8192
SEED = 0

# Rows that are reduced at once: 0.19 ms each for 49 x 1280 features, against 0.70 one by one.
ROWS = 8


class Reduction(Protocol):
    """What follows a `wsa.encode.inference.trunk.Trunk`."""

    def __call__(self, features: Tensor) -> Tensor:
        """(B, *shape) to (B, K), each row by itself: see `in_rows`."""
        ...

    def to(self, device: torch.device) -> Reduction:
        """The same map on a device."""
        ...


class Projection:
    """The random projection x -> x S / sqrt(K), S being signs (Achlioptas 2003).

    Signs rather than Gaussian numbers: they are the plain bits of numpy's PCG64, which are the same
    on every machine and in every version of numpy, while its normal numbers are promised to be
    neither. Distances are kept as well by either.

    Args:
        numbers: K.
        device: Where it is used.
    """

    def __init__(self, numbers: int, device: torch.device | str = "cpu") -> None:
        self._numbers = numbers
        self._device = torch.device(device)
        self._matrix: Tensor | None = None
        self._drawing = threading.Lock()

    def __call__(self, features: Tensor) -> Tensor:
        """(B, *shape) to (B, K)."""
        matrix = self._drawn(features[0].numel())
        return in_rows(lambda rows: rows.flatten(1) @ matrix, features)

    def _drawn(self, size: int) -> Tensor:
        """The matrix, drawn at its first use, when the size of the features is known."""
        with self._drawing:
            matrix = self._matrix
            if matrix is None:
                drawn = torch.from_numpy(signs(size, self._numbers))
                matrix = drawn.to(self._device, torch.float32) / self._numbers**0.5
                self._matrix = matrix
            return matrix

    def to(self, device: torch.device) -> Projection:
        """The same map on a device."""
        return Projection(self._numbers, device)


def signs(size: int, numbers: int) -> np.ndarray[tuple[int, int], np.dtype[np.int8]]:
    """(size, numbers) of -1 and 1: the bits of PCG64 with seed `SEED`, lowest first, by row."""
    count = size * numbers
    words = np.random.PCG64(SEED).random_raw(-(-count // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=count, bitorder="little")
    return (2 * bits.view(np.int8) - 1).reshape(size, numbers)


@dataclasses.dataclass(frozen=True)
class Basis:
    """The map x -> ((x - channel_mean) channels, flattened, - grid_mean) grid.

    Attributes:
        channel_mean: (C,) float32.
        channels: (C, c) float32.
        grid_mean: (places x c,) float32.
        grid: (places x c, K) float32.
    """

    channel_mean: Tensor
    channels: Tensor
    grid_mean: Tensor
    grid: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """(B, *places, C) to (B, K)."""

        def reduce(rows: Tensor) -> Tensor:
            narrow = ((rows - self.channel_mean) @ self.channels).flatten(1)
            return (narrow - self.grid_mean) @ self.grid

        return in_rows(reduce, features)

    def to(self, device: torch.device) -> Basis:
        """The same map on a device."""
        return Basis(*(tensor.to(device) for tensor in dataclasses.astuple(self)))


def in_rows(function: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """Apply a map to always `ROWS` rows, the last ones filled up with zeros.

    Products of several sizes would round differently.
    """
    found = []
    for rows in features.split(ROWS):
        count = len(rows)
        if count < ROWS:
            rows = nn.functional.pad(rows, (0, 0) * (rows.ndim - 1) + (0, ROWS - count))
        found.append(function(rows)[:count])
    return torch.cat(found)


def recipe(strip: str) -> str:
    """What stands for a basis of the strip in a model's identity: how it is fitted, and on what.

    Not its bytes: fits of two machines differ in their last bits (by 0.0003 of a game's step for
    EfficientNet-Lite0), and two labs that encode with the same model should find the same key.

    Args:
        strip: Digest of the strip.
    """
    return hashing.identity(["pca of channels, then of the grid", CHANNELS, strip])


def random_recipe() -> str:
    """What stands for a random projection in a model's identity."""
    return hashing.identity(["signs of PCG64", SEED])


def own_recipe(saved: bytes) -> str:
    """What stands for a basis of one game: its bytes, since no other store has those frames."""
    return hashing.checksum(saved)


def fit(features: Tensor, numbers: int) -> Basis:
    """Fit the map.

    Args:
        features: (n, *places, C) float32.
        numbers: K, at most n - 1 and at most places x C.

    Raises:
        UsageError: K is too large.
    """
    features = features.flatten(1, -2) if features.ndim > 2 else features.unsqueeze(1)
    count, places, width = features.shape
    if numbers > min(count - 1, places * width):
        raise UsageError(
            "bad-option",
            f"pca:{numbers} asks for more numbers than {count} frames of {places} x {width} "
            f"features can give; ask for at most {min(count - 1, places * width)}.",
        )
    mean = features.mean(dim=(0, 1), dtype=torch.float64).float()
    if places > 1 and width > CHANNELS:
        flat = (features - mean).flatten(0, 1)
        channels = _leading(flat, CHANNELS)
    else:
        channels = torch.eye(width)
    narrow = ((features - mean) @ channels).flatten(1)
    grid_mean = narrow.mean(dim=0, dtype=torch.float64).float()
    grid = _leading(narrow - grid_mean, numbers)
    fitted = Basis(mean, channels, grid_mean, grid)
    return load(save(fitted))  # As it will be read: rounded to half precision.


def save(basis: Basis) -> bytes:
    """Safetensors bytes; the two matrices in half precision."""
    return safetensors.torch.save(_halves(basis))


def load(data: bytes) -> Basis:
    """Read what `save` wrote."""
    tensors = safetensors.torch.load(data)
    return Basis(*(tensors[field.name].to(torch.float32) for field in dataclasses.fields(Basis)))


def _halves(basis: Basis) -> dict[str, Tensor]:
    return {
        "channel_mean": basis.channel_mean,
        "channels": basis.channels.half(),
        "grid_mean": basis.grid_mean,
        "grid": basis.grid.half(),
    }


def _leading(centred: Tensor, numbers: int) -> Tensor:
    """(n, D) centred rows to the (D, numbers) leading principal directions.

    Each is signed so that its largest entry is positive, which makes a fit repeatable.
    """
    rows, width = centred.shape
    if width <= rows:
        square = torch.zeros(width, width, dtype=torch.float64)
        for part in centred.split(CHUNK):  # In double precision, all rows at once take gigabytes.
            square += part.double().T @ part.double()
        _, vectors = torch.linalg.eigh(square)
        directions = vectors[:, -numbers:].flip(1)
    else:
        wide = centred.double()
        values, vectors = torch.linalg.eigh(wide @ wide.T)
        scale = values[-numbers:].flip(0).clamp_min(1e-12).sqrt()
        directions = wide.T @ vectors[:, -numbers:].flip(1) / scale
    largest = directions.abs().argmax(dim=0)
    signs = directions[largest, torch.arange(numbers)].sign()
    signed: Tensor = (directions * signs).float().contiguous()
    return signed
