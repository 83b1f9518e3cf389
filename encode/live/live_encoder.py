"""Embed frames as they are played: look them up, run the misses as one job, and remember those.

An embedding from the store is found in the flat map by the digest of the frame or window. A miss
goes through the same `Encoder` that fills the store and is rounded in the same way, so the cached
and the live embedding of a frame are equal. Every request is counted as found, remembered or run.
The misses of all models and windows run in parallel, in parts, while the caller may do other work
(`Lookup.begin`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.live.embedding_pool import EmbeddingPool, Embeddings, Piece
from wsa.encode.live.frame_history import FrameHistory, FrameInputs, FrameWindow, window_inputs
from wsa.encode.live.shrunk_frames import ShrunkFrames
from wsa.store.common import hashing, memory, user_code
from wsa.store.common.errors import ConflictError, UsageError, WsaError
from wsa.store.objects.digest_index import DigestIndex
from wsa.store.objects.flat_map import FlatMap, side_by_side

REMEMBERED = 50_000


class EmbeddingSource(Protocol):
    """Embeddings of frames or windows outside the store, such as the table of a run."""

    def find(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """Return the rows of digests, (n,); -1 for an unknown digest."""
        ...

    def gather(self, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Return a copy of rows, (n, width)."""
        ...


class LiveEncoder:
    """Embeds live frames, and windows of them, with several models side by side.

    Args:
        flat: Flat map of the game, with the embeddings of the store and the order of the models.
        encoders: One encoder for each of `flat.models`, in that order. None leaves a model out: it
            is neither looked up nor run, and its numbers are 0.
        remember: Number of live embeddings to keep in memory, per window length.
        elsewhere: Other sources to search before running a model, by window length.
        threads: Number of cores to embed on; torch's number if None.

    Attributes:
        width: Size of an embedding by all models.
        dtype: Type of an embedding.
        lookups: Lookup of the models with the same window, by window length.
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
            threads = max(threads, len(self._encoders))  # Models that wait must not block others.
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
        """Number of frames and windows that went through a model, summed over the models."""
        return sum(lookup.passes for lookup in self.lookups.values())

    @property
    def finished_passes(self) -> int:
        """Number of passes that the models have finished since they were opened, for any purpose.

        Unlike `passes`, it includes none that failed.
        """
        return sum(encoder.passes for encoder in self._encoders)

    @property
    def engines(self) -> list[str]:
        """Name of the engine of each model."""
        return [encoder.engine.name for encoder in self._encoders]

    @property
    def frames(self) -> int:
        """Number of frames and windows requested."""
        return sum(lookup.asked for lookup in self.lookups.values())

    @property
    def found(self) -> int:
        """Number of requests found in the store."""
        return sum(lookup.found for lookup in self.lookups.values())

    @property
    def remembered(self) -> int:
        """Number of requests already seen live."""
        return sum(lookup.remembered for lookup in self.lookups.values())

    @property
    def hit_rate(self) -> float:
        """Fraction of the requests that needed no pass."""
        return (self.found + self.remembered) / max(1, self.frames)

    def __call__(
        self,
        frames: NDArray[np.uint8],
        first: NDArray[np.bool_] | None = None,
        envs: NDArray[np.int64] | None = None,
    ) -> NDArray[Any]:
        """Embed the newest frames by all models.

        `first` and `envs` are needed only if a model has a window.

        Args:
            frames: Frames (n, H, W, 3) uint8 RGB.
            first: Whether each frame begins an episode, (n,); its window has no older ones.
            envs: Environment of each frame, (n,).

        Returns:
            Embeddings, (n, width) of the flat map's dtype, in the order of its models.

        Raises:
            UsageError: If a model has a window, and `first` or `envs` is missing.
            ConflictError: If a model returned NaN or a number too large for the flat map, or its
                engine failed.
        """
        if first is None or envs is None:
            if self._longest > 1:
                raise UsageError(
                    "A model that looks at several frames cannot embed one by itself. Choose models "
                    "of single frames."
                )
            seen = [FrameWindow((frame,), (hashing.frame_digest(frame),)) for frame in frames]
        else:
            seen = self._recent.push(frames, first, envs)
        begun = [
            (lookup.begin(*window_inputs(seen, window)), lookup.places)
            for window, lookup in self.lookups.items()
        ]
        out = np.zeros((len(frames), self.width), self.dtype)
        for found, places in begun:
            scatter_columns(found.result()[0], places, out)
        return out


def scatter_columns(part: NDArray[Any], places: Sequence[slice], out: NDArray[Any]) -> None:
    """Copy embeddings by some models into their columns of an array for all models.

    Args:
        part: Embeddings (..., w) by some models, side by side.
        places: Columns of each of these models in `out`.
        out: Embeddings (..., width) by all models.
    """
    columns = side_by_side([(place.stop - place.start,) for place in places])
    for place, own in zip(places, columns, strict=True):
        out[..., place] = part[..., own]


class Lookup:
    """Looks up embeddings by the models with the same window, by digest.

    Args:
        flat: Flat map, as for `LiveEncoder`.
        window: Number of frames that the models see.
        encoders: Encoders, as for `LiveEncoder`; may be empty if the store has every embedding.
        pool: Threads that run the models.
        shrunk: Cache of resized screens, through which models get frames.
        remember: Number of live embeddings to keep in memory.
        elsewhere: Another source to search before running a model.

    Attributes:
        places: Columns of each of these models in a row of all models.
        width: Size of an embedding by these models.
        dtype: Type of an embedding.
        asked, found, remembered: Number of requests, of those found in the store, and of those
            already seen live.
        passes: Number of frames or windows that went through a model or are queued for it, summed
            over the models.
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
        own_models = [i for i, of in enumerate(flat.windows) if of == window and i not in left_out]
        self.places = [flat.places[i] for i in own_models]
        self._columns = np.concatenate([np.r_[flat.columns[i]] for i in own_models])
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
        self._running: dict[bytes, tuple[Embeddings, int]] = {}
        self._remember = remember
        self._elsewhere = elsewhere
        self.asked = self.found = self.remembered = self.passes = 0

    def embed(self, digests: Sequence[bytes], inputs: FrameInputs) -> NDArray[Any]:
        """Look up or run embeddings as `begin` does and wait for the result, (n, width)."""
        return self.begin(digests, inputs).result()[0]

    def begin(self, digests: Sequence[bytes], inputs: FrameInputs) -> Found:
        """Look up embeddings and start the models on the misses.

        Args:
            digests: Digests of the requested frames or windows.
            inputs: The frames or windows themselves.
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
        """Fill rows of `out` that are not known from the other source; return which were filled."""
        assert self._elsewhere is not None
        rows = np.where(known, -1, self._elsewhere.find(digests))
        taken = rows >= 0
        out[taken] = self._elsewhere.gather(rows[taken])
        self.remembered += int(taken.sum())
        return taken

    def rows(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """Return the rows of digests in the flat map, (n,); -1 for an unknown digest."""
        return self._index.find(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16))

    def _run(self, digests: list[bytes], inputs: FrameInputs) -> Embeddings:
        """Start every model on the same inputs."""
        models = [
            (self._piece(key, encoder, inputs), encoder.in_parts) for key, encoder in self._models
        ]

        def keep(rows: NDArray[Any]) -> None:
            for digest, row in zip(digests, rows, strict=True):
                del self._running[digest]
                self._memory[digest] = row.copy()  # A view would keep the whole batch in memory.
            while len(self._memory) > self._remember:
                self._memory.popitem(last=False)

        misses = self._pool.begin(len(digests), models, keep)
        self._running |= {digest: (misses, i) for i, digest in enumerate(digests)}
        return misses

    def _piece(self, key: str, encoder: Encoder, inputs: FrameInputs) -> Piece:
        """Return a function that runs one model on some of the inputs."""

        def embed(begin: int, end: int) -> NDArray[Any]:
            try:
                embeddings = self._shrunk_frames.embed(encoder, inputs.only(range(begin, end)))
            except WsaError:
                raise
            except user_code.ERRORS as error:
                raise _engine_failed(key, encoder.engine.name, error) from error
            with np.errstate(over="ignore"):
                rows = stored(embeddings).reshape(end - begin, -1).astype(self.dtype)
            if not np.isfinite(rows).all():
                raise ConflictError(
                    "not-finite",
                    f"Model {key} returned an embedding that is NaN, or too large for "
                    f"{self.dtype}, for a frame just played. Check the weights file; if the model "
                    "was encoded with --precision, try fp32.",
                )
            return rows

        return embed


class Found:
    """Embeddings that were looked up, with some possibly still in progress.

    Args:
        rows: Embeddings (n, width), still undefined in the rows of `running`.
        running: For each row in progress, its index, its embeddings, and its index there.
        misses: Misses that were started for this lookup; None if there were none.
    """

    def __init__(
        self,
        rows: NDArray[Any],
        running: list[tuple[int, Embeddings, int]],
        misses: Embeddings | None = None,
    ) -> None:
        self._rows, self._running, self._misses = rows, running, misses

    def result(self) -> tuple[NDArray[Any], float]:
        """Wait for the embeddings.

        Returns:
            Embeddings (n, width), and the seconds that models took for this lookup, summed over
            threads.

        Raises:
            ConflictError: If a model returned NaN or a number too large for the flat map, or its
                engine failed.
            WsaError: If the remote workers are gone.
        """
        for i, misses, at in self._running:
            self._rows[i] = misses.rows()[at]
        return self._rows, self._misses.seconds if self._misses else 0.0


def _engine_failed(key: str, engine: str, error: BaseException) -> WsaError:
    if memory.ran_out(error):
        return memory.too_little(error, f"{key} was running. Use fewer --num-envs or --threads.")
    why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return ConflictError(
        "model-failed",
        f"{engine} failed during play when it ran {key} ({why}). 'wsa learn --resume RUN' "
        "continues from the last checkpoint; --engine torch runs the model without it.",
    )
