"""Every distinct frame that an online run has seen: what its models return for it, once, at a row.

    <run>/table/embeddings.bin    (N, width) float16 or float32, or grey pixels; one row a frame
                digests.bin       (N, 16) uint8, which frame that is

A learner keeps row numbers and gathers from here, so that PPO's epochs and DQN's replay cost no
pass and little memory: the files are mapped, and the system keeps of them what is in use. Rows are
only ever appended. A checkpoint says how many there were, and whoever continues from it writes over
what came later.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from torch import Tensor

from wsa.store import keys, publish
from wsa.store.errors import DamagedError
from wsa.store.index import DigestIndex

GROWTH = 32 << 20  # Bytes that the embeddings' file grows by.
CHECKED = 4096  # Rows that are checked at once.
# Frames that are looked up in a dictionary before they are sorted into the index.
RECENT = 1 << 16


class Embedder(Protocol):
    """What turns frames into rows: `wsa.encode.live.LiveEncoder`, or grey pixels."""

    @property
    def width(self) -> int:
        """Numbers in a row."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a row."""
        ...

    @property
    def found(self) -> int:
        """Frames that were found in the store."""
        ...

    @property
    def passes(self) -> int:
        """Frames that went through a model, summed over the models."""
        ...

    def __call__(
        self, frames: NDArray[np.uint8], *, digests: Sequence[bytes] | None = None
    ) -> NDArray[Any]:
        """Embed (n, H, W, 3) uint8 frames, whose digests are known: (n, width)."""
        ...


class Table:
    """A growing table of embeddings, and which frames they are of.

    Args:
        folder: Where its files are; what they hold is kept by `restore`, or written over.
        embedder: What frames not seen before go through, all of a call as one batch.

    Raises:
        StorageError: No room.

    Attributes:
        asked: Frames looked for, before the run was continued too.
        known: Of those, seen by this run before, or found in the store.
        passes: Frames that went through a model, summed over the models.
        seconds: Time that frames not seen before took, in this process.
    """

    def __init__(self, folder: Path, embedder: Embedder) -> None:
        self._embedder = embedder
        self._folder = folder
        self._rows = 0
        self._check = blake3()
        self._map(0)
        self._index = DigestIndex(np.zeros((0, keys.DIGEST_BYTES), np.uint8))
        self._recent: dict[bytes, int] = {}
        self.asked = self.known = self.passes = self._passes_before = 0
        self.seconds = 0.0

    def __len__(self) -> int:
        """Distinct frames seen."""
        return self._rows

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self._embedder.width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a row."""
        return self._embedder.dtype

    @property
    def rows(self) -> NDArray[Any]:
        """All rows, (N, width), mapped."""
        return self._embeddings[: self._rows]

    @property
    def seconds_a_pass(self) -> float:
        """What a frame's way through one model took on average, in this process."""
        return self.seconds / max(1, self.passes - self._passes_before)

    def see(self, frames: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Rows of frames; those not seen before are embedded as one batch and appended.

        Args:
            frames: (n, H, W, 3) uint8 RGB.

        Returns:
            (n,) rows.
        """
        digests = [keys.frame_digest(frame) for frame in frames]
        rows = self.find(digests)
        self.asked += len(frames)
        self.known += len(frames)
        if rows.min(initial=0) < 0:
            self._append(frames, digests, rows)
        return rows

    def find(self, digests: list[bytes]) -> NDArray[np.int64]:
        """Rows of digests, (n,) int64; -1 where there is none."""
        rows = self._index.find(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16))
        for i in np.flatnonzero(rows < 0):
            rows[i] = self._recent.get(digests[i], -1)
        return rows

    def gather(self, rows: NDArray[np.int64]) -> Tensor:
        """Copy rows of any shape: (*shape, width)."""
        out = np.empty((rows.size, self.width), self.dtype)
        assert rows.size == 0 or (rows.min() >= 0 and rows.max() < self._rows)
        # mode="clip" lets numpy write straight into `out`; "raise" would go through a buffer.
        np.take(self._embeddings, rows.ravel(), axis=0, out=out, mode="clip")
        return torch.from_numpy(out).view(*rows.shape, self.width)

    def flush(self) -> None:
        """Make all rows durable, as the checkpoint that names them will be."""
        with publish.storage_errors(self._folder):
            self._embeddings.flush()
            self._digests.flush()

    def state(self) -> dict[str, Any]:
        """Counts, and a checksum of all rows, as JSON values."""
        counts = {k: getattr(self, k) for k in ("asked", "known", "passes")}
        return {**counts, "rows": len(self), "check": self._check.hexdigest()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            DamagedError: The files do not hold what they held then.
        """
        self._rows = min(state["rows"], len(self._embeddings))
        self.asked, self.known, self.passes = state["asked"], state["known"], state["passes"]
        self._passes_before = self.passes
        self._check = blake3()
        for at in range(0, self._rows, CHECKED):
            some = slice(at, min(at + CHECKED, self._rows))
            self._count_in(self._digests[some], self._embeddings[some])
        if self._check.hexdigest() != state["check"]:
            raise DamagedError(
                "bad-bytes",
                f"{self._folder} does not hold the rows that the run's checkpoint tells of: what "
                "it learnt from is lost. Begin another run; with --init it takes over this one's "
                "weights.",
            )
        self._index = DigestIndex(np.array(self._digests[: self._rows]))

    def _count_in(self, digests: NDArray[np.uint8], embeddings: NDArray[Any]) -> None:
        """Let the checksum go on over some rows."""
        parts = [digests, np.ascontiguousarray(embeddings).view(np.uint8)]
        self._check.update(np.concatenate(parts, axis=1).data)

    def _append(
        self, frames: NDArray[np.uint8], digests: list[bytes], rows: NDArray[np.int64]
    ) -> None:
        """Embed the frames whose row is -1 and fill in their rows."""
        new: dict[bytes, int] = {}
        for i in np.flatnonzero(rows < 0):
            new.setdefault(digests[i], int(i))
        found, passes = self._embedder.found, self._embedder.passes
        began = time.perf_counter()
        embedded = self._embedder(frames[list(new.values())], digests=list(new))
        self.seconds += time.perf_counter() - began
        self.known -= len(new) - (self._embedder.found - found)
        self.passes += self._embedder.passes - passes
        end = self._rows + len(new)
        if end > len(self._embeddings):
            self._map(end)
        self._embeddings[self._rows : end] = embedded
        self._digests[self._rows : end] = np.frombuffer(b"".join(new), np.uint8).reshape(-1, 16)
        self._count_in(self._digests[self._rows : end], self._embeddings[self._rows : end])
        self._recent |= {digest: self._rows + i for i, digest in enumerate(new)}
        self._rows = end
        for i in np.flatnonzero(rows < 0):
            rows[i] = self._recent[digests[i]]
        # Sorting all again is worth it once the index has grown by a quarter.
        if len(self._recent) > max(RECENT, end // 4):
            self._index = DigestIndex(np.array(self._digests[:end]))
            self._recent = {}

    def _map(self, rows: int) -> None:
        """Map files of room for more than `rows`, and for all that they hold."""
        files = [
            (self._folder / "embeddings.bin", self.width, self.dtype),
            (self._folder / "digests.bin", keys.DIGEST_BYTES, np.dtype(np.uint8)),
        ]
        step = max(1, GROWTH // (self.width * self.dtype.itemsize))
        room = (rows // step + 1) * step
        for path, width, dtype in files:
            size = path.stat().st_size if path.exists() else 0
            room = max(room, size // (width * dtype.itemsize))
        for path, width, dtype in files:
            publish.reserve(path, room * width * dtype.itemsize)
        self._embeddings, self._digests = (
            np.memmap(path, dtype, "r+", shape=(room, width)) for path, width, dtype in files
        )
