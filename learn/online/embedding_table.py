"""Embedding table of an online run: each distinct frame or window it has seen, embedded once.

    <run>/table/             embeddings of distinct frames, by models of single frames
                window-4/    embeddings of distinct windows, by models that see four frames

A row of the table is the input of the models at one step: a distinct frame if all models see single
frames, else a distinct window of the largest size, with the row numbers of its shorter windows in
the other folders. Learners keep row numbers and gather embeddings from here, so PPO's epochs and
DQN's replay run no frozen model and need little memory. `wsa.learn.online.digest_table` describes
each folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsa.encode.live.frame_history import FrameWindow, window_inputs
from wsa.encode.live.live_encoder import scatter_columns
from wsa.learn.online.digest_table import Distinct, Lookup
from wsa.store.objects.flat_map import side_by_side


class Embedder(Protocol):
    """Embeds frames: `wsa.encode.live.live_encoder.LiveEncoder`, or the pixel baseline."""

    width: int
    dtype: np.dtype[Any]

    @property
    def lookups(self) -> Mapping[int, Lookup]:
        """Lookup of the models with each window size."""
        ...


class Table:
    """A growing table of embeddings by all models of a run.

    Args:
        folder: Folder of the files. `restore` keeps their content; otherwise it is overwritten.
        embedder: Embeds new frames and windows with all models.

    Raises:
        StorageError: If the disk is full.

    Attributes:
        width: Number of values in a row.
        dtype: Type of a row.
        longest: The largest window size, in frames.
        parts: The table for each window size, in ascending order.
        asked: Number of lookups of frames and windows since the run began, across resumes.
        known: Number of cache hits among them: seen earlier in this run, or found in the store.
        passes: Number of passes started since the run began, summed over the models.
    """

    def __init__(self, folder: Path, embedder: Embedder) -> None:
        self.width, self.dtype = embedder.width, embedder.dtype
        windows = sorted(embedder.lookups)
        self.longest = windows[-1]
        self.parts = {
            window: Distinct(
                folder / f"window-{window}" if window > 1 else folder,
                embedder.lookups[window],
                len(windows) - 1 if window == self.longest else 0,
            )
            for window in windows
        }
        *self._shorter, (_, self._last) = self.parts.items()
        # For each model, by its first column in a row: its part, and its columns within the part.
        self._models: dict[int, tuple[Distinct, slice]] = {}
        for part in self.parts.values():
            places = part.lookup.places
            part_columns = side_by_side([(place.stop - place.start,) for place in places])
            for place, columns in zip(places, part_columns, strict=True):
                self._models[place.start] = part, columns
        self.asked = self.known = self.passes = self._passes_before = 0

    def __len__(self) -> int:
        """Number of rows: distinct frames, or distinct windows of the largest size."""
        return len(self._last)

    @property
    def seconds(self) -> float:
        """Time that models took in this process, summed over all threads."""
        return sum(part.seconds for part in self.parts.values())

    @property
    def seconds_a_pass(self) -> float:
        """Average time of one pass in this process."""
        return self.seconds / max(1, self.passes - self._passes_before)

    def see(self, seen: Sequence[FrameWindow]) -> NDArray[np.int64]:
        """Return the rows of frames. Append new frames and windows, and start embedding them.

        Args:
            seen: n frames, each with the earlier frames of the largest window.

        Returns:
            Row numbers, (n,).
        """
        missed, passes = self._missed(), self._passes()
        rows = self._last.see(
            *window_inputs(seen, self.longest),
            (lambda some: self._see_shorter([seen[i] for i in some])) if self._shorter else None,
        )
        asked = len(self.parts) * len(seen)
        self.asked += asked
        self.known += asked - (self._missed() - missed)
        self.passes += self._passes() - passes
        return rows

    def gather(self, rows: NDArray[np.integer[Any]]) -> Tensor:
        """Wait for the embeddings of states, and copy them.

        Args:
            rows: Rows of the k frames of each state, (..., k), oldest first.

        Returns:
            Embeddings, (..., k, width). Models that see several frames fill only the last of the k
            rows; their columns in the others are zeros, which are never read.
        """
        if self.longest == 1:
            return torch.from_numpy(self._last.gather(rows))
        out = np.zeros((*rows.shape, self.width), self.dtype)
        for at, (window, part) in enumerate(self.parts.items()):
            part_rows, target = (rows, out) if window == 1 else (rows[..., -1], out[..., -1, :])
            if part is not self._last:
                part_rows = self._last.shorter[part_rows, at]
            scatter_columns(part.gather(part_rows), part.lookup.places, target)
        return torch.from_numpy(out)

    def sample(self, place: slice, most: int) -> NDArray[Any]:
        """Return a sample of one model's embeddings.

        Args:
            place: Columns of the model in a row.
            most: Maximum number of embeddings, evenly spaced among all frames or windows that the
                model has seen.

        Returns:
            Embeddings, (n, values).
        """
        part, columns = self._models[place.start]
        rows = np.unique(np.linspace(0, len(part) - 1, most).astype(np.int64))
        sampled: NDArray[Any] = part.embeddings[rows, columns]
        return sampled

    def flush(self) -> None:
        """Write all rows to disk, before a checkpoint that refers to them."""
        for part in self.parts.values():
            part.flush()

    def state(self) -> dict[str, Any]:
        """Return the counts, and a checksum of all rows, as JSON values."""
        counts = {k: getattr(self, k) for k in ("asked", "known", "passes")}
        shorter = [part.state() for _, part in self._shorter]
        return {**counts, **self._last.state(), **({"shorter": shorter} if shorter else {})}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            DamagedError: If the files' rows differ from those at the time of `state`.
        """
        self.asked, self.known, self.passes = state["asked"], state["known"], state["passes"]
        self._passes_before = self.passes
        self._last.restore(state)
        for (_, part), part_state in zip(self._shorter, state.get("shorter", []), strict=True):
            part.restore(part_state)

    def _see_shorter(self, seen: Sequence[FrameWindow]) -> NDArray[np.int64]:
        """Return the rows of the shorter windows that end at these frames, (n, parts - 1)."""
        rows = [part.see(*window_inputs(seen, window)) for window, part in self._shorter]
        return np.stack(rows, axis=1)

    def _missed(self) -> int:
        """Number of cache misses: in neither this table nor the store."""
        return sum(len(part) - part.lookup.found for part in self.parts.values())

    def _passes(self) -> int:
        return sum(part.lookup.passes for part in self.parts.values())
