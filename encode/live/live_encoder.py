"""Embeddings of frames as they are played: look up, run the misses as one batch, remember.

What the store has is found by a frame's digest, or a window's, in the flat map; what it has not goes
through the same `Encoder` that fills the store, rounded the same way, so a cached and a live
embedding of one frame are the same numbers. Everything asked for is counted as found, remembered,
or run.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.live.frame_history import FrameHistory, window_inputs
from wsa.store.common import hashing
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.objects.digest_index import DigestIndex
from wsa.store.objects.flat_map import FlatMap, side_by_side

MAX_SHRUNK = 1024  # Screens that are made small in one way: of 256 environments the last four.


class ShrunkFrames:
    """The screens last seen, as models see them; may be asked by many threads.

    Args:
        encoders: The models.
        windows: Frames that each looks at.
    """

    def __init__(self, encoders: Sequence[Any], windows: Sequence[int]) -> None:
        looks = Counter[Any]()
        for encoder, window in zip(encoders, windows, strict=False):
            looks[encoder.alike] += window
        # Where one model looks at one frame at a time, nothing else would use it.
        self._caches = {alike: _ShrunkCache() for alike, count in looks.items() if count > 1}

    def embed(self, encoder: Encoder, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What a model gives for frames, to the bit as from the frames themselves.

        Args:
            encoder: One of the models.
            frames: As it takes them: (n, H, W, 3), or (n, window, H, W, 3), uint8 RGB.

        Returns:
            (n, *shape) float32.
        """
        cache = self._caches.get(encoder.alike)
        if cache is None or not encoder.shrinks(frames.shape[-3:-1]):
            return encoder(frames)
        levels = cache.levels(encoder, frames.reshape(-1, *frames.shape[-3:]))
        return encoder.embed_shrunk(levels.reshape(*frames.shape[:-3], *levels.shape[1:]))


class _ShrunkCache:
    """Those that are made small in one way."""

    def __init__(self) -> None:
        self._levels: OrderedDict[bytes, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def levels(self, encoder: Encoder, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What `Encoder.shrink` gives for frames (n, H, W, 3)."""
        digests = [hashing.frame_digest(frame) for frame in frames]
        with self._lock:
            new = {digest: i for i, digest in enumerate(digests) if digest not in self._levels}
            if new:
                made = encoder.shrink(frames[list(new.values())])
                # Copies: a view would keep the whole batch in memory.
                self._levels |= {digest: row.copy() for digest, row in zip(new, made, strict=True)}
            for digest in digests:
                self._levels.move_to_end(digest)
            found = np.stack([self._levels[digest] for digest in digests])
            while len(self._levels) > MAX_SHRUNK:
                self._levels.popitem(last=False)
        return found


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
        encoders: One for each of `flat.models`, in that order.
        remember: How many frames, and how many windows, seen live are kept in memory.
        elsewhere: What has been seen live, by how many frames that is: looked in, too, before
            anything goes through a model.

    Attributes:
        width: Numbers in a fused embedding by all models.
        dtype: Its type.
        lookups: Of the models that look at as many frames, by how many.
    """

    def __init__(
        self,
        flat: FlatMap,
        encoders: Sequence[Encoder],
        remember: int = REMEMBERED,
        elsewhere: Mapping[int, EmbeddingSource] | None = None,
    ) -> None:
        self.width = flat.width + flat.window_width
        self.dtype: np.dtype[Any] = flat.embeddings.dtype
        self._encoders = list(encoders)
        # A thread that began in the midst of another's work would keep that one's single core.
        cores = (torch.get_num_threads(),)
        self._threads = ThreadPoolExecutor(
            len(self._encoders) or 1, initializer=torch.set_num_threads, initargs=cores
        )
        shrunk = ShrunkFrames(self._encoders, flat.windows)
        self.lookups = {
            window: Lookup(
                flat,
                window,
                self._encoders,
                self._threads,
                shrunk,
                remember,
                (elsewhere or {}).get(window),
            )
            for window in sorted(set(flat.windows))
        }
        self._longest = max(self.lookups)
        self._recent = FrameHistory(self._longest)

    @property
    def passes(self) -> int:
        """Frames, and windows, that went through a model, summed over the models."""
        return sum(encoder.passes for encoder in self._encoders)

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
        """Take the newest frames, and embed them.

        Args:
            frames: (n, H, W, 3) uint8 RGB.
            first: (n,) whether each begins an episode: what was before it is forgotten.
            envs: (n,) which environments they are of. Where no model has a window, neither is
                needed.

        Returns:
            (n, width) of the flat map's dtype, the models side by side in their order.

        Raises:
            ConflictError: A model gave NaN, or a number too large for the flat map.
            UsageError: A model has a window, and it is not told of what.
        """
        if self._longest == 1:
            digests = [hashing.frame_digest(frame) for frame in frames]
            return self.lookups[1].embed(digests, frames.__getitem__)
        if first is None or envs is None:
            raise UsageError(
                "bad-option",
                "A model that looks at several frames cannot embed one by itself. Choose models of "
                "single frames.",
            )
        seen = self._recent.push(frames, first, envs)
        out = np.empty((len(frames), self.width), self.dtype)
        for window, lookup in self.lookups.items():
            scatter_columns(lookup.embed(*window_inputs(seen, window)), lookup.places, out)
        return out


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
        encoders: Of all models; none need be given if the store has all that is asked for.
        threads: What runs the models side by side.
        shrunk: What takes frames to the models.
        remember: How much of what was seen live is kept in memory.
        elsewhere: What has been seen live.

    Attributes:
        places: Where each of them stands in a row of all models.
        width: Numbers in a fused embedding by them.
        dtype: Its type.
        asked, found, remembered: Counts.
    """

    def __init__(
        self,
        flat: FlatMap,
        window: int,
        encoders: Sequence[Encoder],
        threads: ThreadPoolExecutor,
        shrunk: ShrunkFrames,
        remember: int,
        elsewhere: EmbeddingSource | None = None,
    ) -> None:
        mine = [i for i, of in enumerate(flat.windows) if of == window]
        self.places = [flat.places[i] for i in mine]
        self._columns = np.concatenate([np.r_[flat.columns[i]] for i in mine])
        self.width = len(self._columns)
        models = zip(flat.windows, flat.models, encoders, strict=False)
        self._models = [(key, encoder) for of, key, encoder in models if of == window]
        self._table = flat.embeddings if window == 1 else flat.windowed
        self.dtype: np.dtype[Any] = self._table.dtype
        self._index = DigestIndex(flat.digests if window == 1 else flat.window_digests(window))
        self._threads = threads
        self._shrunk_frames = shrunk
        self._memory: OrderedDict[bytes, NDArray[Any]] = OrderedDict()
        self._remember = remember
        self._elsewhere = elsewhere
        self.asked = self.found = self.remembered = 0

    @property
    def passes(self) -> int:
        """Frames, or windows, that went through a model, summed over the models."""
        return sum(encoder.passes for _, encoder in self._models)

    def embed(
        self, digests: Sequence[bytes], inputs: Callable[[list[int]], NDArray[np.uint8]]
    ) -> NDArray[Any]:
        """Embed.

        Args:
            digests: Identities of what is asked for.
            inputs: Gives some of it: (n, H, W, 3), or (n, window, H, W, 3), uint8 RGB.

        Returns:
            (n, width).

        Raises:
            ConflictError: A model gave NaN, or a number too large for the flat map.
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
        missing = np.flatnonzero(~known).tolist()
        for i in missing:
            digest = digests[i]
            if digest in self._memory:
                self._memory.move_to_end(digest)
                self.remembered += 1
            elif digest not in new:
                new[digest] = i
            else:
                self.remembered += 1
        if new:
            missed = self._run(inputs(list(new.values())))
            for digest, row in zip(new, missed, strict=True):
                self._memory[digest] = row.copy()  # A view would keep the whole batch in memory.
        for i in missing:
            out[i] = self._memory[digests[i]]
        while len(self._memory) > self._remember:
            self._memory.popitem(last=False)
        return out

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

    def _run(self, inputs: NDArray[np.uint8]) -> NDArray[Any]:
        """Every model over the same inputs, a thread for each model: (n, width)."""
        each = [inputs] * len(self._models)
        return np.concatenate([*self._threads.map(self._run_one, self._models, each)], axis=1)

    def _run_one(self, model: tuple[str, Encoder], inputs: NDArray[np.uint8]) -> NDArray[Any]:
        key, encoder = model
        dtype = self.dtype
        with np.errstate(over="ignore"):
            rows = stored(self._shrunk_frames.embed(encoder, inputs))
            part = rows.reshape(len(inputs), -1).astype(dtype)
        if not np.isfinite(part).all():
            raise ConflictError(
                "not-finite",
                f"Model {key} gave an embedding that is not a number, or too large for {dtype}, "
                "for a frame just played. Check the weights file; if the model was encoded with "
                "--precision, try fp32.",
            )
        return part
