"""Everything that an online run has seen: what its models return for it, once, at a row.

    <run>/table/             what models of single frames return for each distinct frame
                window-4/    what models that look at four frames return for each distinct window

A row of the table is a frame as it was played, with as many before it as any model looks at: where
all look at one, a distinct frame; else a distinct window of the longest, which knows in which rows
of the other folders the shorter ones stand. A learner keeps row numbers and gathers from here, so
that PPO's epochs and DQN's replay cost no pass and little memory. Of each folder see
`wsa.learn.online.digest_table`.
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
    """What turns frames into rows: `wsa.encode.live.live_encoder.LiveEncoder`, or grey pixels."""

    @property
    def width(self) -> int:
        """Numbers in a row."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a row."""
        ...

    @property
    def lookups(self) -> Mapping[int, Lookup]:
        """Of the models that look at as many frames, by how many."""
        ...


class Table:
    """A growing table of embeddings, and what they are of.

    Args:
        folder: Where its files are; what they hold is kept by `restore`, or written over.
        embedder: What is not seen before goes through it, by all models at once.

    Raises:
        StorageError: No room.

    Attributes:
        width: Numbers in a row.
        dtype: Type of a row.
        longest: Frames that any model looks at.
        parts: Frames, and windows, by how many frames that is, the longest last.
        asked: Frames, and windows, looked for, before the run was continued too.
        known: Of those, seen by this run before, or found in the store.
        passes: Frames, and windows, that went through a model or are about to, over all models.
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
        # By where its numbers begin in a row: what a model's numbers are part of, and where there.
        self._models: dict[int, tuple[Distinct, slice]] = {}
        for part in self.parts.values():
            places = part.lookup.places
            own = side_by_side([(place.stop - place.start,) for place in places])
            for place, columns in zip(places, own, strict=True):
                self._models[place.start] = part, columns
        self.asked = self.known = self.passes = self._passes_before = 0

    def __len__(self) -> int:
        """Rows: distinct frames, or windows of the longest, seen."""
        return len(self._last)

    @property
    def seconds(self) -> float:
        """Time that models took for what was not seen before in this process, over all threads."""
        return sum(part.seconds for part in self.parts.values())

    @property
    def seconds_a_pass(self) -> float:
        """What the way through one model took on average, in this process."""
        return self.seconds / max(1, self.passes - self._passes_before)

    def see(self, seen: Sequence[FrameWindow]) -> NDArray[np.int64]:
        """Rows of what is shown; what was not seen before is appended, and begins to be embedded.

        Args:
            seen: n frames, and as many before each as any model looks at.

        Returns:
            (n,) rows.
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
        """Copy states, once what they show is embedded.

        Args:
            rows: (..., k), those of the k frames of each state, oldest first.

        Returns:
            (..., k, width). What models that look at several frames gave stands in a state's last
            row; in the others are zeros in its place, which are never read.
        """
        if self.longest == 1:
            return torch.from_numpy(self._last.gather(rows))
        out = np.zeros((*rows.shape, self.width), self.dtype)
        for at, (window, part) in enumerate(self.parts.items()):
            these, where = (rows, out) if window == 1 else (rows[..., -1], out[..., -1, :])
            if part is not self._last:
                these = self._last.shorter[these, at]
            scatter_columns(part.gather(these), part.lookup.places, where)
        return torch.from_numpy(out)

    def sample(self, place: slice, most: int) -> NDArray[Any]:
        """What one model gave.

        Args:
            place: Where its numbers stand in a row.
            most: Rows to look at, evenly spaced among all frames, or windows, that it has seen.

        Returns:
            (n, numbers).
        """
        part, columns = self._models[place.start]
        at = np.unique(np.linspace(0, len(part) - 1, most).astype(np.int64))
        found: NDArray[Any] = part.embeddings[at, columns]
        return found

    def flush(self) -> None:
        """Make all rows durable, as the checkpoint that names them will be."""
        for part in self.parts.values():
            part.flush()

    def state(self) -> dict[str, Any]:
        """Counts, and a checksum of all rows, as JSON values."""
        counts = {k: getattr(self, k) for k in ("asked", "known", "passes")}
        shorter = [part.state() for _, part in self._shorter]
        return {**counts, **self._last.state(), **({"shorter": shorter} if shorter else {})}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            DamagedError: The files do not hold what they held then.
        """
        self.asked, self.known, self.passes = state["asked"], state["known"], state["passes"]
        self._passes_before = self.passes
        self._last.restore(state)
        for (_, part), its in zip(self._shorter, state.get("shorter", []), strict=True):
            part.restore(its)

    def _see_shorter(self, seen: Sequence[FrameWindow]) -> NDArray[np.int64]:
        """Rows of the shorter windows that end with the frames, (n, parts - 1)."""
        rows = [part.see(*window_inputs(seen, window)) for window, part in self._shorter]
        return np.stack(rows, axis=1)

    def _missed(self) -> int:
        """What was in neither place."""
        return sum(len(part) - part.lookup.found for part in self.parts.values())

    def _passes(self) -> int:
        return sum(part.lookup.passes for part in self.parts.values())
