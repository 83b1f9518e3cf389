"""Copying a game's embeddings into the flat map, compared with reading the same arrays once.

    python -m benchmarks.learning.flat_map

Reading once means that plain Zarr opens and decodes each array (rows, digests, embeddings) in
sequence, without checking or keeping anything.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

from benchmarks.kit import interleave, store_of, table
from wsa.store.common import hashing, names
from wsa.store.format.records import EmbeddingMeta, SegmentMeta
from wsa.store.objects.flat_map import materialize
from wsa.store.objects.snapshot import arrays_of, take_snapshot
from wsa.store.objects.writer import commit_embedding

GAME, STEPS, NUMBERS = "Seaquest", 8192, 512


def main() -> None:
    generator = np.random.default_rng(0)
    models = [names.make_model_key(a, hashing.identity(a)) for a in ("vit", "resnet", "clip")]
    with store_of(GAME, STEPS, 1024) as (backend, folder):
        snapshot = take_snapshot(backend)
        for meta in snapshot.segments(GAME):
            for model in models:
                slow = np.cumsum(generator.normal(size=(meta.frames, NUMBERS)), axis=0)
                meta_of_rows = EmbeddingMeta(
                    GAME, meta.segment, model, slow.shape, "float16", meta.frames, 0, 1.0
                )
                commit_embedding(backend, meta_of_rows, slow.astype(np.float16))
        snapshot = take_snapshot(backend)
        frames = sum(meta.frames for meta in snapshot.segments(GAME))
        places = [
            Path(backend.url) / commit.folder / name
            for commit in snapshot.commits.values()
            for name in arrays_of(commit.meta)
            if isinstance(commit.meta, EmbeddingMeta | SegmentMeta)
        ]

        def once() -> float:
            started = time.perf_counter()
            for place in places:
                zarr.open_array(place, mode="r", zarr_format=3)[...]
            return frames / (time.perf_counter() - started)

        def copy() -> float:
            cache = Path(tempfile.mkdtemp(dir=folder))
            started = time.perf_counter()
            materialize(snapshot, GAME, models, cache)
            spent = time.perf_counter() - started
            shutil.rmtree(cache)
            return frames / spent

        print(f"{GAME}, {frames:,} frames, {len(models)} models x {NUMBERS} float16:\n")
        rates = interleave({"arrays read once with plain Zarr": once, "materialize": copy})
        table("frames/s", rates, "arrays read once with plain Zarr")


if __name__ == "__main__":
    main()
