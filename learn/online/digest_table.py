"""Distinct frames, or windows of them: what models return for each, once, at a row.

    <folder>/embeddings.bin    (N, width) float16 or float32, or grey pixels; one row each
             digests.bin       (N, 16) uint8, which frame or window that is
             shorter.bin       (N, s) int32, rows of the shorter windows that end with this one

The files are mapped, and the system keeps the parts in use. Rows are only ever appended. A
checkpoint says how many there were, and a run that continues from it overwrites what came later.
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

GROWTH = 32 << 20  # Bytes that the embeddings' file grows by.
CHECKED = 4096  # Rows that are checked at once.
# Identities that are looked up in a dictionary before they are sorted into the index.
RECENT = 1 << 16


class Embedding(Protocol):
    """Embeddings that are asked for, and may be running still."""

    def result(self) -> tuple[NDArray[Any], float]:
        """Wait for them: (n, width), and the seconds that models took, over all threads."""
        ...


class Lookup(Protocol):
    """What turns frames, or windows, into rows: `wsa.encode.live.live_encoder.Lookup`, or grey pixels."""

    @property
    def width(self) -> int:
        """Numbers in a row."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a row."""
        ...

    @property
    def places(self) -> Sequence[slice]:
        """Where the numbers of each model stand in a row of all models."""
        ...

    @property
    def found(self) -> int:
        """Frames, or windows, that were found in the store."""
        ...

    @property
    def passes(self) -> int:
        """Frames, or windows, that went through a model or are about to, over all models."""
        ...

    def rows(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """Where the store has had what is of these identities, (n,); -1 where it has not."""
        ...

    def begin(self, digests: Sequence[bytes], inputs: FrameInputs) -> Embedding:
        """Begin to embed what is of these identities."""
        ...


class Distinct:
    """A growing table of embeddings by models that look at as many frames.

    What is seen has its row at once; its embedding is waited for where somebody reads it, so that
    models run while the game is played on.

    Args:
        folder: Where its files are; what they hold is kept by `restore`, or written over.
        lookup: What is not seen before goes through it, all of a call at once.
        shorter: How many shorter windows there are.

    Raises:
        StorageError: No room.

    Attributes:
        seconds: Time that models took for it in this process, over all threads.
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
        # The rows that have no embedding yet, and where it comes from; the oldest first.
        self._running: deque[tuple[slice, Embedding]] = deque()
        self.seconds = 0.0

    def __len__(self) -> int:
        """Rows."""
        return self._rows

    @property
    def embeddings(self) -> NDArray[Any]:
        """All embeddings, (N, width), mapped."""
        self.finish()
        found: NDArray[Any] = self._files["embeddings"][: self._rows]
        return found

    @property
    def shorter(self) -> NDArray[np.int32]:
        """Rows of the shorter windows, (N, s), mapped."""
        found: NDArray[np.int32] = self._files["shorter"][: self._rows]
        return found

    def see(
        self,
        digests: list[bytes],
        inputs: FrameInputs,
        shorter: Callable[[list[int]], NDArray[np.int64]] | None = None,
    ) -> NDArray[np.int64]:
        """Rows of frames, or windows; those not seen before are appended, and begin to be embedded.

        Args:
            digests: Their identities.
            inputs: The frames, or windows, themselves.
            shorter: Gives the rows of the shorter windows of some of them, (n, s).

        Returns:
            (n,) rows.
        """
        rows = self.find(digests)
        new: dict[bytes, int] = {}
        for i in np.flatnonzero(rows < 0):
            new.setdefault(digests[i], int(i))
        if new:
            asked = list(new.values())
            parts: dict[str, NDArray[Any]] = {
                "digests": np.frombuffer(b"".join(new), np.uint8).reshape(-1, hashing.DIGEST_BYTES)
            }
            if shorter is not None:
                parts["shorter"] = shorter(asked)
            self._append(list(new), parts, self.lookup.begin(list(new), inputs.only(asked)))
            for i in np.flatnonzero(rows < 0):
                rows[i] = self._recent[digests[i]]
            self._tidy()
        return rows

    def finish(self, rows: int | None = None) -> None:
        """Wait for the embeddings of the first rows; of all if not told how many.

        Raises:
            WsaError: A model failed; it is raised again whenever one of its rows is read.
        """
        while self._running and (rows is None or self._running[0][0].start < rows):
            some, embedding = self._running[0]
            self._files["embeddings"][some], seconds = embedding.result()
            self.seconds += seconds
            self._count_in(some)
            self._running.popleft()

    def find(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """Rows of identities, (n,) int64; -1 where there is none."""
        rows = self._index.find(
            np.frombuffer(b"".join(digests), np.uint8).reshape(-1, hashing.DIGEST_BYTES)
        )
        for i in np.flatnonzero(rows < 0).tolist():
            rows[i] = self._recent.get(digests[i], -1)
        return rows

    def gather(self, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Copy rows of any shape, once they are embedded: (*shape, width)."""
        self.finish(int(rows.max(initial=-1)) + 1)
        width, dtype = self._kinds["embeddings"]
        out = np.empty((rows.size, width), dtype)
        assert rows.size == 0 or (rows.min() >= 0 and rows.max() < self._rows)
        # mode="clip" lets numpy write straight into `out`; "raise" would go through a buffer.
        np.take(self._files["embeddings"], rows.ravel(), axis=0, out=out, mode="clip")
        return out.reshape(*rows.shape, width)

    def flush(self) -> None:
        """Make all rows durable, as the checkpoint that names them will be."""
        self.finish()
        with atomic_files.storage_errors(self._folder):
            for file in self._files.values():
                file.flush()

    def state(self) -> dict[str, Any]:
        """How many rows there are, and a checksum of them, as JSON values."""
        self.finish()
        return {"rows": len(self), "check": self._check.hexdigest()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            DamagedError: The files do not hold what they held then.
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
        """Let the checksum go on over some rows."""
        order = ["digests", "embeddings", *(["shorter"] if "shorter" in self._files else [])]
        parts = [np.ascontiguousarray(self._files[name][some]).view(np.uint8) for name in order]
        self._check.update(np.concatenate(parts, axis=1).data)

    def _append(
        self, digests: Sequence[bytes], parts: dict[str, NDArray[Any]], embedding: Embedding
    ) -> None:
        end = self._rows + len(digests)
        if end > len(self._files["embeddings"]):
            self._map(end)
        some = slice(self._rows, end)
        for name, part in parts.items():
            self._files[name][some] = part
        self._running.append((some, embedding))
        self._recent |= {digest: self._rows + i for i, digest in enumerate(digests)}
        self._rows = end

    def _tidy(self) -> None:
        # Sorting all again is worth it once the index has grown by a quarter.
        if len(self._recent) > max(RECENT, self._rows // 4):
            self._index = DigestIndex(np.array(self._files["digests"][: self._rows]))
            self._recent = {}

    def _map(self, rows: int) -> None:
        """Map files of room for more than `rows`, and for all that they hold."""
        bytes_of = {name: width * dtype.itemsize for name, (width, dtype) in self._kinds.items()}
        paths = {name: self._folder / f"{name}.bin" for name in self._kinds}
        step = max(1, GROWTH // bytes_of["embeddings"])
        room = (rows // step + 1) * step
        for name, path in paths.items():
            size = path.stat().st_size if path.exists() else 0
            room = max(room, size // bytes_of[name])
        for name, path in paths.items():
            atomic_files.reserve(path, room * bytes_of[name])
        self._files: dict[str, Any] = {
            name: np.memmap(paths[name], dtype, "r+", shape=(room, width))
            for name, (width, dtype) in self._kinds.items()
        }
