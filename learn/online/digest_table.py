"""A growing table with one row of embeddings per distinct frame, or per distinct window of frames.

    <folder>/embeddings.bin    (N, width) float16, float32, or uint8 gray pixels
             digests.bin       (N, 16) uint8, digest of each row's frame or window
             shorter.bin       (N, s) int32, rows of the shorter windows with the same last frame

The files are memory-mapped, so the operating system caches the parts in use. Rows are only
appended. A checkpoint has the number of rows; a run resumed from it overwrites later ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from wsa.encode.live.frame_history import FrameInputs
from wsa.store.common import atomic_files, hashing
from wsa.store.common.errors import DamagedError
from wsa.store.objects.digest_index import DigestIndex

FIRST = 1 << 20  # Bytes of embeddings.bin at first; it doubles until it grows by
GROWTH = 32 << 20  # as many at a time.
CHECKED = 4096  # Rows per checksum update when a table is restored.
# Minimum number of digests to keep in a dictionary before they are merged into the index.
RECENT = 1 << 16


class Embedding(Protocol):
    """A pending batch of embeddings."""

    def result(self) -> tuple[NDArray[Any], float]:
        """Wait for the embeddings (n, width). Also return the models' seconds over all threads."""
        ...


class Lookup(Protocol):
    """Embeds frames or windows: `wsa.encode.live.live_encoder.Lookup`, or the pixel baseline.

    Attributes:
        width: Number of values in a row.
        dtype: Type of a row.
        found: Number of frames or windows found in the store.
        passes: Number of passes started so far, summed over the models.
    """

    width: int
    dtype: np.dtype[Any]
    found: int
    passes: int

    @property
    def places(self) -> Sequence[slice]:
        """Columns of each of its models in a row of all models."""
        ...

    def rows(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """Return the store's row for each digest, (n,); -1 if the store has none."""
        ...

    def begin(self, digests: Sequence[bytes], inputs: FrameInputs) -> Embedding:
        """Start embedding the frames or windows with these digests."""
        ...


class Distinct:
    """A growing table of embeddings by all models with the same window size.

    A new frame or window gets its row at once. Reading the row waits for its embedding, so models
    run while the game continues.

    Args:
        folder: Folder of the files. `restore` keeps their content; otherwise it is overwritten.
        lookup: Embeds new frames or windows, all those of one `see` call in one batch.
        shorter: Number of shorter window sizes.

    Raises:
        StorageError: If the disk is full.

    Attributes:
        seconds: Time that models took in this process, summed over all threads.
    """

    def __init__(self, folder: Path, lookup: Lookup, shorter: int = 0) -> None:
        self.lookup = lookup
        self._folder = folder
        self._rows = 0
        self._check = blake3()
        self._kinds: dict[str, tuple[int, np.dtype[Any]]] = {
            "embeddings": (lookup.width, np.dtype(lookup.dtype)),
            "digests": (hashing.DIGEST_BYTES, np.dtype(np.uint8)),
        }
        if shorter:
            self._kinds["shorter"] = shorter, np.dtype(np.int32)
        self._map(0)
        self._index = DigestIndex(np.zeros((0, hashing.DIGEST_BYTES), np.uint8))
        self._recent: dict[bytes, int] = {}
        # Rows whose embeddings are pending, oldest first.
        self._running: deque[tuple[slice, Embedding]] = deque()
        self.seconds = 0.0

    def __len__(self) -> int:
        """Number of rows."""
        return self._rows

    @property
    def embeddings(self) -> NDArray[Any]:
        """All embeddings, (N, width), memory-mapped. Waits for pending ones."""
        self.finish()
        rows: NDArray[Any] = self._files["embeddings"][: self._rows]
        return rows

    @property
    def shorter(self) -> NDArray[np.int32]:
        """Rows of the shorter windows, (N, s), memory-mapped."""
        rows: NDArray[np.int32] = self._files["shorter"][: self._rows]
        return rows

    def see(
        self,
        digests: list[bytes],
        inputs: FrameInputs,
        shorter: Callable[[list[int]], NDArray[np.int64]] | None = None,
    ) -> NDArray[np.int64]:
        """Return the rows of frames or windows. Append new ones and start embedding them.

        Args:
            digests: Digests of the frames or windows.
            inputs: The frames or windows.
            shorter: Maps m indices into `digests` to the rows of their shorter windows, (m, s).

        Returns:
            Row numbers, (n,).
        """
        rows = self.find(digests)
        new: dict[bytes, int] = {}
        for i in np.flatnonzero(rows < 0):
            new.setdefault(digests[i], int(i))
        if new:
            new_indices = list(new.values())
            parts: dict[str, NDArray[Any]] = {
                "digests": np.frombuffer(b"".join(new), np.uint8).reshape(-1, hashing.DIGEST_BYTES)
            }
            if shorter is not None:
                parts["shorter"] = shorter(new_indices)
            self._append(list(new), parts, self.lookup.begin(list(new), inputs.only(new_indices)))
            for i in np.flatnonzero(rows < 0):
                rows[i] = self._recent[digests[i]]
            self._tidy()
        return rows

    def finish(self, rows: int | None = None) -> None:
        """Wait for the embeddings of the first `rows` rows, or of all.

        Raises:
            WsaError: If a model failed. Reading one of the failed rows raises it again.
        """
        while self._running and (rows is None or self._running[0][0].start < rows):
            pending, embedding = self._running[0]
            self._files["embeddings"][pending], seconds = embedding.result()
            self.seconds += seconds
            self._count_in(pending)
            self._running.popleft()

    def find(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """Return the row of each digest, (n,) int64; -1 if there is none."""
        rows = self._index.find(
            np.frombuffer(b"".join(digests), np.uint8).reshape(-1, hashing.DIGEST_BYTES)
        )
        for i in np.flatnonzero(rows < 0).tolist():
            rows[i] = self._recent.get(digests[i], -1)
        return rows

    def gather(self, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Wait for the embeddings of rows, and copy them: (*rows.shape, width)."""
        self.finish(int(rows.max(initial=-1)) + 1)
        width, dtype = self._kinds["embeddings"]
        out = np.empty((rows.size, width), dtype)
        assert rows.size == 0 or (rows.min() >= 0 and rows.max() < self._rows)
        # mode="clip" lets numpy write directly into `out`; "raise" copies through a buffer.
        np.take(self._files["embeddings"], rows.ravel(), axis=0, out=out, mode="clip")
        return out.reshape(*rows.shape, width)

    def flush(self) -> None:
        """Write all rows to disk, before a checkpoint that refers to them."""
        self.finish()
        with atomic_files.storage_errors(self._folder):
            for file in self._files.values():
                file.flush()

    def state(self) -> dict[str, Any]:
        """Return the number of rows, and their checksum, as JSON values."""
        self.finish()
        return {"rows": len(self), "check": self._check.hexdigest()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            DamagedError: If the files' rows differ from those at the time of `state`.
        """
        self._rows = min(state["rows"], len(self._files["embeddings"]))
        self._check = blake3()
        for at in range(0, self._rows, CHECKED):
            self._count_in(slice(at, min(at + CHECKED, self._rows)))
        if self._check.hexdigest() != state["check"]:
            raise DamagedError(
                "bad-bytes",
                f"{self._folder} does not match the run's checkpoint, so its data is lost. Start a "
                "new run; use --init to keep this run's weights.",
            )
        self._index = DigestIndex(np.array(self._files["digests"][: self._rows]))

    def _count_in(self, some: slice) -> None:
        """Add rows to the running checksum."""
        order = ["digests", "embeddings", *(["shorter"] if "shorter" in self._files else [])]
        parts = [np.ascontiguousarray(self._files[name][some]).view(np.uint8) for name in order]
        self._check.update(np.concatenate(parts, axis=1).data)

    def _append(
        self, digests: Sequence[bytes], parts: dict[str, NDArray[Any]], embedding: Embedding
    ) -> None:
        end = self._rows + len(digests)
        if end > len(self._files["embeddings"]):
            self._map(end)
        new_rows = slice(self._rows, end)
        for name, part in parts.items():
            self._files[name][new_rows] = part
        self._running.append((new_rows, embedding))
        self._recent |= {digest: self._rows + i for i, digest in enumerate(digests)}
        self._rows = end

    def _tidy(self) -> None:
        # Rebuilding sorts all digests, so wait until the index has grown by a quarter.
        if len(self._recent) > max(RECENT, self._rows // 4):
            self._index = DigestIndex(np.array(self._files["digests"][: self._rows]))
            self._recent = {}

    def _map(self, rows: int) -> None:
        """Map files with room for more than `rows` rows and for all that they already hold."""
        bytes_of = {name: width * dtype.itemsize for name, (width, dtype) in self._kinds.items()}
        paths = {name: self._folder / f"{name}.bin" for name in self._kinds}
        width = bytes_of["embeddings"]
        room = rows + max(1, min(max(FIRST, rows * width), GROWTH) // width)
        for name, path in paths.items():
            size = path.stat().st_size if path.exists() else 0
            room = max(room, size // bytes_of[name])
        for name, path in paths.items():
            atomic_files.reserve(path, room * bytes_of[name])
        self._files: dict[str, Any] = {
            name: np.memmap(paths[name], dtype, "r+", shape=(room, width))
            for name, (width, dtype) in self._kinds.items()
        }
