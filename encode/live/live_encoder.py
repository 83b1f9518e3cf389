"""Embeddings of frames as they are played: look up, run the misses as one job, remember.

What the store has is found by a frame's digest, or a window's, in the flat map; what it has not goes
through the same `Encoder` that fills the store, rounded the same way, so a cached and a live
embedding of one frame are the same numbers. Everything asked for is counted as found, remembered,
or run. The misses of all models and windows run side by side, in parts, and the caller may do
something else meanwhile (`Lookup.begin`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.live.embedding_pool import EmbeddingPool, Embeddings, Piece
from wsa.encode.live.frame_history import FrameHistory, FrameInputs, FrameWindow, window_inputs
from wsa.encode.live.shrunk_frames import ShrunkFrames
from wsa.store.common import hashing
from wsa.store.common.errors import ConflictError, UsageError, WsaError
from wsa.store.objects.digest_index import DigestIndex
from wsa.store.objects.flat_map import FlatMap, side_by_side

REMEMBERED = 50_000


class EmbeddingSource(Protocol):
    """Embeddings of frames, or windows, kept by somebody else: the table of a run."""

    def find(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """Rows of identities, (n,); -1 where there is none."""
        ...

    def gather(self, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Copy rows: (n, width)."""
        ...


class LiveEncoder:
    """Fused embeddings by several models, of single frames and of windows of them.

    Args:
        flat: The game's flat map: what the store has, and the order of the models.
        encoders: One for each of `flat.models`, in that order; None of a model that is left out: it
            is neither looked up nor run, and its numbers are 0.
        remember: How many frames, and how many windows, seen live are kept in memory.
        elsewhere: What has been seen live, by how many frames that is: looked in, too, before
            anything goes through a model.
        threads: Cores that embed side by side; as many as torch uses if not given.

    Attributes:
        width: Numbers in a fused embedding by all models.
        dtype: Its type.
        lookups: Of the models that look at as many frames, by how many.
    """

    def __init__(
        self,
        flat: FlatMap,
        encoders: Sequence[Encoder | None],
        remember: int = REMEMBERED,
        elsewhere: Mapping[int, EmbeddingSource] | None = None,
        threads: int | None = None,
    ) -> None:
        self.width = flat.width + flat.window_width
        self.dtype: np.dtype[Any] = flat.embeddings.dtype
        self._encoders = [encoder for encoder in encoders if encoder is not None]
        left_out = {i for i, encoder in enumerate(encoders) if encoder is None}
        windows = [window for i, window in enumerate(flat.windows) if i not in left_out]
        threads = threads or torch.get_num_threads()
        if any(encoder.waits for encoder in self._encoders):
            threads = max(threads, len(self._encoders))  # So that none waits for another.
        pool = EmbeddingPool(threads)
        shrunk = ShrunkFrames(self._encoders, windows)
        self.lookups = {
            window: Lookup(
                flat,
                window,
                encoders,
                pool,
                shrunk,
                remember,
                (elsewhere or {}).get(window),
            )
            for window in sorted(set(windows))
        }
        self._longest = max(self.lookups)
        self._recent = FrameHistory(self._longest)

    @property
    def passes(self) -> int:
        """Frames, and windows, that went through a model, summed over the models."""
        return sum(lookup.passes for lookup in self.lookups.values())

    @property
    def engines(self) -> list[str]:
        """Names of what runs each model."""
        return [encoder.engine.name for encoder in self._encoders]

    @property
    def frames(self) -> int:
        """Frames, and windows, asked for."""
        return sum(lookup.asked for lookup in self.lookups.values())

    @property
    def found(self) -> int:
        """Of those, found in the store."""
        return sum(lookup.found for lookup in self.lookups.values())

    @property
    def remembered(self) -> int:
        """Of those, seen live before."""
        return sum(lookup.remembered for lookup in self.lookups.values())

    @property
    def hit_rate(self) -> float:
        """Share of what was asked for that needed no pass."""
        return (self.found + self.remembered) / max(1, self.frames)

    def __call__(
        self,
        frames: NDArray[np.uint8],
        first: NDArray[np.bool_] | None = None,
        envs: NDArray[np.int64] | None = None,
    ) -> NDArray[Any]:
        """`embed_later`, and wait: (n, width)."""
        return self.embed_later(frames, first, envs).result()

    def embed_later(
        self,
        frames: NDArray[np.uint8],
        first: NDArray[np.bool_] | None = None,
        envs: NDArray[np.int64] | None = None,
    ) -> Fused:
        """Take the newest frames, and begin to embed them.

        Args:
            frames: (n, H, W, 3) uint8 RGB.
            first: (n,) whether each begins an episode: what was before it is forgotten.
            envs: (n,) which environments they are of. Where no model has a window, neither is
                needed.

        Raises:
            UsageError: A model has a window, and it is not told of what.
        """
        if first is None or envs is None:
            if self._longest > 1:
                raise UsageError(
                    "bad-option",
                    "A model that looks at several frames cannot embed one by itself. Choose models "
                    "of single frames.",
                )
            seen = [FrameWindow((frame,), (hashing.frame_digest(frame),)) for frame in frames]
        else:
            seen = self._recent.push(frames, first, envs)
        out = np.zeros((len(frames), self.width), self.dtype)
        parts = [
            (lookup.begin(*window_inputs(seen, window)), lookup.places)
            for window, lookup in self.lookups.items()
        ]
        return Fused(out, parts)


class Fused:
    """Fused embeddings of frames that may be running still.

    Args:
        out: (n, width), still to be filled.
        parts: Embeddings by models that look at as many frames, and where they stand in a row.
    """

    def __init__(self, out: NDArray[Any], parts: list[tuple[Found, list[slice]]]) -> None:
        self._out, self._parts = out, parts

    def result(self) -> NDArray[Any]:
        """Wait for them: (n, width) of the flat map's dtype, the models side by side in their order.

        Raises:
            ConflictError: A model gave NaN, or a number too large for the flat map, or its engine
                failed.
        """
        for found, places in self._parts:
            scatter_columns(found.result()[0], places, self._out)
        return self._out


def scatter_columns(part: NDArray[Any], places: Sequence[slice], out: NDArray[Any]) -> None:
    """Copy embeddings by some models to where they stand in a row of all models.

    Args:
        part: (..., w), by some models side by side.
        places: Where each of them stands in a row.
        out: (..., width).
    """
    columns = side_by_side([(place.stop - place.start,) for place in places])
    for place, own in zip(places, columns, strict=True):
        out[..., place] = part[..., own]


class Lookup:
    """Fused embeddings by the models that look at `window` frames, by digest.

    Args:
        flat: As of `LiveEncoder`.
        window: How many.
        encoders: As of `LiveEncoder`; none need be given if the store has all that is asked for.
        pool: What runs the models side by side.
        shrunk: What takes frames to the models.
        remember: How much of what was seen live is kept in memory.
        elsewhere: What has been seen live.

    Attributes:
        places: Where each of them stands in a row of all models.
        width: Numbers in a fused embedding by them.
        dtype: Its type.
        asked, found, remembered: Counts.
        passes: Frames, or windows, that went through a model or are about to, summed over the models.
    """

    def __init__(
        self,
        flat: FlatMap,
        window: int,
        encoders: Sequence[Encoder | None],
        pool: EmbeddingPool,
        shrunk: ShrunkFrames,
        remember: int,
        elsewhere: EmbeddingSource | None = None,
    ) -> None:
        left_out = {i for i, encoder in enumerate(encoders) if encoder is None}
        mine = [i for i, of in enumerate(flat.windows) if of == window and i not in left_out]
        self.places = [flat.places[i] for i in mine]
        self._columns = np.concatenate([np.r_[flat.columns[i]] for i in mine])
        self.width = len(self._columns)
        models = zip(flat.windows, flat.models, encoders, strict=False)
        self._models = [
            (key, encoder) for of, key, encoder in models if of == window and encoder is not None
        ]
        self._table = flat.embeddings if window == 1 else flat.windowed
        self.dtype: np.dtype[Any] = self._table.dtype
        self._index = DigestIndex(flat.digests if window == 1 else flat.window_digests(window))
        self._pool = pool
        self._shrunk_frames = shrunk
        self._memory: OrderedDict[bytes, NDArray[Any]] = OrderedDict()
        self._running: dict[bytes, tuple[_Misses, int]] = {}
        self._remember = remember
        self._elsewhere = elsewhere
        self.asked = self.found = self.remembered = self.passes = 0

    def embed(self, digests: Sequence[bytes], inputs: FrameInputs) -> NDArray[Any]:
        """`begin`, and wait: (n, width)."""
        return self.begin(digests, inputs).result()[0]

    def begin(self, digests: Sequence[bytes], inputs: FrameInputs) -> Found:
        """Look up, and begin to run what is found nowhere.

        Args:
            digests: Identities of what is asked for.
            inputs: The frames, or windows, themselves.
        """
        rows = self.rows(digests)
        out = np.empty((len(digests), self.width), self.dtype)
        known = rows >= 0
        out[known] = self._table[rows[known]][:, self._columns]
        self.asked += len(digests)
        self.found += int(known.sum())
        if self._elsewhere is not None:
            known |= self._take_elsewhere(digests, known, out)
        new: dict[bytes, int] = {}
        waiting = []
        for i in np.flatnonzero(~known).tolist():
            digest = digests[i]
            if digest in self._memory:
                self._memory.move_to_end(digest)
                out[i] = self._memory[digest]
                self.remembered += 1
                continue
            waiting.append(i)
            if digest in self._running or digest in new:
                self.remembered += 1
            else:
                new[digest] = i
        self.passes += len(new) * len(self._models)
        misses = self._run(list(new), inputs.only(list(new.values()))) if new else None
        running = [(i, *self._running[digests[i]]) for i in waiting]
        return Found(out, running, misses)

    def _take_elsewhere(
        self, digests: Sequence[bytes], known: NDArray[np.bool_], out: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Copy what is not known and has been seen elsewhere into its rows of `out`; which those are."""
        assert self._elsewhere is not None
        rows = np.where(known, -1, self._elsewhere.find(digests))
        taken = rows >= 0
        out[taken] = self._elsewhere.gather(rows[taken])
        self.remembered += int(taken.sum())
        return taken

    def rows(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """Where the store has what is of these identities, (n,); -1 where it has not."""
        return self._index.find(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16))

    def _run(self, digests: list[bytes], inputs: FrameInputs) -> _Misses:
        """Begin to run every model over the same inputs."""
        models = [
            (self._piece(key, encoder, inputs), encoder.in_parts) for key, encoder in self._models
        ]

        def keep(rows: NDArray[Any]) -> None:
            for digest, row in zip(digests, rows, strict=True):
                del self._running[digest]
                self._memory[digest] = row.copy()  # A view would keep the whole batch in memory.
            while len(self._memory) > self._remember:
                self._memory.popitem(last=False)

        misses = _Misses(self._pool.begin(len(digests), models), keep)
        self._running |= {digest: (misses, i) for i, digest in enumerate(digests)}
        return misses

    def _piece(self, key: str, encoder: Encoder, inputs: FrameInputs) -> Piece:
        """What runs one model over some of the inputs."""

        def embed(begin: int, end: int) -> NDArray[Any]:
            try:
                found = self._shrunk_frames.embed(encoder, inputs.only(range(begin, end)))
            except WsaError:
                raise
            except Exception as error:
                raise _engine_failed(key, encoder.engine.name, error) from error
            with np.errstate(over="ignore"):
                rows = stored(found).reshape(end - begin, -1).astype(self.dtype)
            if not np.isfinite(rows).all():
                raise ConflictError(
                    "not-finite",
                    f"Model {key} gave an embedding that is not a number, or too large for "
                    f"{self.dtype}, for a frame just played. Check the weights file; if the model "
                    "was encoded with --precision, try fp32.",
                )
            return rows

        return embed


class _Misses:
    """What was found nowhere, going through the models.

    Args:
        embeddings: What they give.
        keep: Called once with all rows, when they are there.
    """

    def __init__(self, embeddings: Embeddings, keep: Callable[[NDArray[Any]], None]) -> None:
        self._embeddings, self._keep = embeddings, keep
        self._rows: NDArray[Any] | None = None
        self.seconds = 0.0

    def result(self) -> NDArray[Any]:
        """Wait for them: (n, width)."""
        if self._rows is None:
            self._rows, self.seconds = self._embeddings.result()
            self._keep(self._rows)
        return self._rows


class Found:
    """Embeddings that were looked up, some of which may be running still.

    Args:
        rows: (n, width), without those.
        running: Which rows those are, what runs each, and its number there.
        misses: What was begun for this alone.
    """

    def __init__(
        self,
        rows: NDArray[Any],
        running: list[tuple[int, _Misses, int]],
        misses: _Misses | None = None,
    ) -> None:
        self._rows, self._running, self._misses = rows, running, misses

    def result(self) -> tuple[NDArray[Any], float]:
        """Wait for them: (n, width), and the seconds that models took for this, over all threads.

        Raises:
            ConflictError: A model gave NaN, or a number too large for the flat map, or its engine
                failed.
            WsaError: What embeds elsewhere has gone.
        """
        for i, misses, at in self._running:
            self._rows[i] = misses.result()[at]
        return self._rows, self._misses.seconds if self._misses else 0.0


def _engine_failed(key: str, engine: str, error: Exception) -> ConflictError:
    why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return ConflictError(
        "model-failed",
        f"{engine} failed in the middle of play when it ran {key} ({why}). 'wsa learn --resume RUN' "
        "continues from the last checkpoint; --engine torch runs the model without it.",
    )
