"""Reduce a grid of features to a few hundred numbers by a frozen linear map.

Pooled features lose small things, such as a ball; a grid keeps them but is large (7 x 7 x 1280).
There are two kinds of map. A principal component analysis is fitted once, on the probe frames of
all games or on frames of one game. It has two steps, so that it takes megabytes instead of hundreds
of them: first the channels, with the same map at every position of the grid, to at most `CHANNELS`;
then the whole grid. docs/design/003-output.md measures the cost of the first step. A random projection needs
no fit: its matrix is drawn from a fixed seed, so nothing needs to be stored.
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

# Rows reduced at once: 0.19 ms each for 49 x 1280 features, compared with 0.70 one by one.
ROWS = 8


class Reduction(Protocol):
    """A map from the features of a `wsa.encode.inference.trunk.Trunk` to an embedding."""

    def __call__(self, features: Tensor) -> Tensor:
        """Reduce features (B, *shape) to (B, K), each row independently; see `in_rows`."""
        ...

    def to(self, device: torch.device) -> Reduction:
        """Return the same map on a device."""
        ...


class Projection:
    """The random projection x -> x S / sqrt(K), where S holds random signs (Achlioptas 2003).

    Signs are the plain bits of numpy's PCG64, which are the same on every machine and in every
    version of numpy; numpy promises neither for its normal numbers. Signs preserve distances as
    well as Gaussian numbers do.

    Args:
        numbers: Size K of the result.
    """

    def __init__(self, numbers: int, device: torch.device | str = "cpu") -> None:
        self._numbers = numbers
        self._device = torch.device(device)
        self._matrix: Tensor | None = None
        self._drawing = threading.Lock()

    def __call__(self, features: Tensor) -> Tensor:
        """Project features (B, *shape) to (B, K)."""
        matrix = self._drawn(features[0].numel())
        return in_rows(lambda rows: rows.flatten(1) @ matrix, features)

    def _drawn(self, size: int) -> Tensor:
        """Return the matrix; draw it at first use, when the size of the features is known."""
        with self._drawing:
            matrix = self._matrix
            if matrix is None:
                drawn = torch.from_numpy(signs(size, self._numbers))
                matrix = drawn.to(self._device, torch.float32) / self._numbers**0.5
                self._matrix = matrix
            return matrix

    def to(self, device: torch.device) -> Projection:
        """Return the same map on a device."""
        return Projection(self._numbers, device)


def signs(size: int, numbers: int) -> np.ndarray[tuple[int, int], np.dtype[np.int8]]:
    """Return a matrix (size, numbers) of -1 and 1.

    The signs are the bits of PCG64 with seed `SEED`, lowest bit first, in row-major order.
    """
    count = size * numbers
    words = np.random.PCG64(SEED).random_raw(-(-count // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=count, bitorder="little")
    return (2 * bits.view(np.int8) - 1).reshape(size, numbers)


@dataclasses.dataclass(frozen=True)
class Basis:
    """The map x -> (flatten((x - channel_mean) channels) - grid_mean) grid.

    Attributes:
        channel_mean: Mean of the channels, (C,) float32.
        channels: Principal directions of the channels, (C, c) float32.
        grid_mean: Mean of the flattened grid, (places x c,) float32.
        grid: Principal directions of the grid, (places x c, K) float32.
    """

    channel_mean: Tensor
    channels: Tensor
    grid_mean: Tensor
    grid: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Reduce features (B, *places, C) to (B, K)."""

        def reduce(rows: Tensor) -> Tensor:
            narrow = ((rows - self.channel_mean) @ self.channels).flatten(1)
            return (narrow - self.grid_mean) @ self.grid

        return in_rows(reduce, features)

    def to(self, device: torch.device) -> Basis:
        """Return the same map on a device."""
        return Basis(*(tensor.to(device) for tensor in dataclasses.astuple(self)))


def in_rows(function: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """Apply a map to exactly `ROWS` rows at a time; the last batch is padded with zeros.

    Matrix products of different sizes would round differently.
    """
    reduced = []
    for rows in features.split(ROWS):
        count = len(rows)
        if count < ROWS:
            rows = nn.functional.pad(rows, (0, 0) * (rows.ndim - 1) + (0, ROWS - count))
        reduced.append(function(rows)[:count])
    return torch.cat(reduced)


def recipe(probe_frames: str) -> str:
    """Return the part of a model's identity that stands for a basis fitted on the probe frames.

    It hashes the method and the probe frames instead of the basis's bytes. Fits on two machines
    differ in the last bits (by 0.0003 of a game's step for EfficientNet-Lite0), but two labs that
    encode with the same model should get the same key.

    Args:
        probe_frames: Digest of the probe frames.
    """
    return hashing.identity(["pca of channels, then of the grid", CHANNELS, probe_frames])


def random_recipe() -> str:
    """Return the part of a model's identity that stands for a random projection."""
    return hashing.identity(["signs of PCG64", SEED])


def own_recipe(saved: bytes) -> str:
    """Return the part of a model's identity that stands for a basis of one game.

    It hashes the basis's bytes, since no other store has the frames it was fitted on.
    """
    return hashing.checksum(saved)


def fit(features: Tensor, numbers: int) -> Basis:
    """Fit the principal component analysis.

    Args:
        features: Features (n, *places, C) float32.
        numbers: Size K of the result, at most n - 1 and at most places x C.

    Raises:
        UsageError: If K is too large.
    """
    features = features.flatten(1, -2) if features.ndim > 2 else features.unsqueeze(1)
    count, places, width = features.shape
    if numbers > min(count - 1, places * width):
        raise UsageError(
            f"pca:{numbers} asks for more numbers than {count} frames of {places} x {width} "
            f"features can give; ask for at most {min(count - 1, places * width)}."
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
    return load(save(fitted))  # Round to half precision, so that it equals the stored basis.


def save(basis: Basis) -> bytes:
    """Serialize the basis as safetensors bytes, with its two matrices in half precision."""
    return safetensors.torch.save(
        {
            "channel_mean": basis.channel_mean,
            "channels": basis.channels.half(),
            "grid_mean": basis.grid_mean,
            "grid": basis.grid.half(),
        }
    )


def load(data: bytes) -> Basis:
    """Restore a basis from the bytes of `save`."""
    tensors = safetensors.torch.load(data)
    return Basis(*(tensors[field.name].to(torch.float32) for field in dataclasses.fields(Basis)))


def _leading(centered: Tensor, numbers: int) -> Tensor:
    """Return the leading principal directions (D, numbers) of centered rows (n, D).

    The sign of each is chosen so that its largest entry is positive, which makes a fit repeatable.
    """
    rows, width = centered.shape
    if width <= rows:
        square = torch.zeros(width, width, dtype=torch.float64)
        for part in centered.split(CHUNK):  # All rows at once would take gigabytes as doubles.
            square += part.double().T @ part.double()
        _, vectors = torch.linalg.eigh(square)
        directions = vectors[:, -numbers:].flip(1)
    else:
        wide = centered.double()
        values, vectors = torch.linalg.eigh(wide @ wide.T)
        scale = values[-numbers:].flip(0).clamp_min(1e-12).sqrt()
        directions = wide.T @ vectors[:, -numbers:].flip(1) / scale
    largest = directions.abs().argmax(dim=0)
    signs = directions[largest, torch.arange(numbers)].sign()
    signed: Tensor = (directions * signs).float().contiguous()
    return signed
