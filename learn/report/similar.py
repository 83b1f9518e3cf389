"""Frames that a model considers similar: nearest neighbors among its stored embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsa.learn.report.frame_sample import FrameSample, choose_segments, draw
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.snapshot import Snapshot

QUERIES = 4
NEIGHBORS = 5
APART = 30  # Steps. Closer frames of one environment look alike to every model.
MOST_NUMBERS = 1 << 25  # Numbers of embeddings in memory: 128 MiB in single precision.


class Neighbor(NamedTuple):
    """A frame of a sample, and its distance from the query.

    Attributes:
        n: Index of the frame in the sample.
        distance: Cosine distance of the standardized embeddings, from 0 to 2.
    """

    n: int
    distance: float


class Similar(NamedTuple):
    """The frames that a model considers similar.

    Attributes:
        model: Key of the model.
        sample: Frames that were compared.
        groups: For each query, the query and then its neighbors, nearest first.
    """

    model: str
    sample: FrameSample
    groups: list[list[Neighbor]]


def similar_by_model(
    snapshot: Snapshot,
    game: str,
    models: Sequence[str],
    metas: Sequence[SegmentMeta],
    segments: int,
    frames: int,
) -> list[Similar]:
    """Find similar frames with each model that has encoded some of the segments.

    Each model searches at most `segments` segments, and at most `frames` frames of each; fewer if
    their embeddings would not fit into memory.

    Raises:
        DamagedError: If stored bytes differ from what was committed.
    """
    encoded = {key: {e.segment for e in snapshot.embeddings(game, key)} for key in models}
    chosen = {
        key: choose_segments([meta for meta in metas if meta.segment in encoded[key]], segments)
        for key in models
    }
    every = {meta.segment: meta for some in chosen.values() for meta in some}
    if not every:
        return []
    drawn = draw(snapshot, list(every.values()), frames)
    found = []
    for key, some in chosen.items():
        if some:
            width = max(math.prod(e.shape[1:]) for e in snapshot.embeddings(game, key))
            fit = max(1, MOST_NUMBERS // (max(1, width) * len(some)))
            sample = drawn.of({meta.segment for meta in some}, fit)
            groups = find_similar(sample, read_embeddings(snapshot, game, key, sample))
            found.append(Similar(key, sample, groups))
    return found


def read_embeddings(
    snapshot: Snapshot, game: str, model: str, sample: FrameSample
) -> NDArray[np.float32]:
    """Read a model's flattened embeddings of sampled frames, shape (n, width).

    For a model that sees several frames, use the window that ends at the frame.

    Raises:
        DamagedError: If stored bytes differ from what was committed.
    """
    windows = {e.segment: e.window for e in snapshot.embeddings(game, model)}
    parts: list[NDArray[Any]] = []
    for owner in np.unique(sample.owners):  # The frames of a sample are sorted by segment.
        segment = sample.segments[owner].segment
        at = sample.frames if windows[segment] == 1 else sample.rows
        chosen = snapshot.read_embedding(game, model, segment)[at[sample.owners == owner]]
        parts.append(chosen.reshape(len(chosen), -1).astype(np.float32))
    return np.concatenate(parts)


def find_similar(sample: FrameSample, embeddings: NDArray[np.float32]) -> list[list[Neighbor]]:
    """Find the nearest neighbors of a few frames, given all frames' embeddings, (n, width).

    Each dimension of the embeddings is standardized over the sample, so that all count alike. The
    query and its neighbors are distinct frames, and no two of them come from the same 30 steps.

    Returns:
        For each query, the query and then its neighbors, nearest first.
    """
    spread = embeddings.std(axis=0)
    standard = (embeddings - embeddings.mean(axis=0)) / np.where(spread > 0, spread, 1)
    unit = standard / np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-12)
    # The first frame of each segment, then the second: queries come from different segments.
    queries = np.lexsort((sample.owners, sample.ranks))[:QUERIES]
    return [_neighbors(sample, query, 1 - unit @ unit[query]) for query in queries.tolist()]


def _neighbors(sample: FrameSample, query: int, distances: NDArray[np.float32]) -> list[Neighbor]:
    """Return the query and the frames nearest to it, given all distances from it, shape (n,)."""
    tracks = np.unique([(m.run, str(m.env)) for m in sample.segments], axis=0, return_inverse=True)
    track = tracks[1].reshape(-1)[sample.owners]
    free = np.ones(len(sample), np.bool_)
    found = [Neighbor(query, 0.0)]
    while True:
        last = found[-1].n
        close = (track == track[last]) & (np.abs(sample.steps - sample.steps[last]) < APART)
        free &= ~close & (sample.digests != sample.digests[last]).any(axis=1)
        if len(found) > NEIGHBORS or not free.any():
            return found
        nearest = int(np.argmin(np.where(free, distances, np.inf)))
        found.append(Neighbor(nearest, max(0.0, float(distances[nearest]))))
