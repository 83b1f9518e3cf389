"""Cost of opening, planning, and indexing in a large store of records and digests, without pixels.

    python -m benchmarks.storage.scale 1e8            frames; writes files of about 13 bytes per frame
    python -m benchmarks.storage.scale 1e7 --folder /lab/tmp

Every segment has the records of a real one (frames, rows, three models of which the last has
encoded half), of real size. Digests are drawn, not read; reading them is timed separately on real
objects.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kit import markdown
from wsa.encode.jobs.plan import make_plan
from wsa.learn.envs.atari import protocol
from wsa.store.common import hashing, names
from wsa.store.format import arrays, records
from wsa.store.format.records import EmbeddingMeta, FramesMeta, ModelMeta, SegmentMeta
from wsa.store.objects import writer
from wsa.store.objects.digest_index import DigestIndex
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot

STEPS = 1024
DISTINCT = 820  # Distinct frames of a segment, as in Seaquest.
MODELS = [
    names.make_model_key(alias, hashing.identity(alias)) for alias in ("vit", "resnet", "clip")
]


def objects(segments: int) -> Iterator[tuple[Any, dict[str, bytes]]]:
    """Yield metadata with small placeholder files under the real names."""
    rules = protocol("Seaquest", "classic")
    rows = ["zarr.json"] + [
        f"{name}/{file}" for name in ("digest", *arrays.ROW_FIELDS) for file in ("zarr.json", "c.0")
    ]
    pictures = ["zarr.json", "frames/zarr.json", "frames/c.0.0.0", "palette/zarr.json"]
    for model in MODELS:
        yield ModelMeta(model), dict.fromkeys(["spec.json", "probe.safetensors"], b"x")
    for number in range(segments):
        where = names.make_segment(
            hashing.identity(number % 97)[:12], number % 8, number * STEPS, STEPS
        )
        yield (
            FramesMeta("Seaquest", where, DISTINCT, 210, 160, True),
            dict.fromkeys([*pictures, "palette/c.0.0"], b"x"),
        )
        yield (
            SegmentMeta(
                game="Seaquest",
                segment=where,
                run=where[:12],
                env=number % 8,
                start=number * STEPS,
                rows=STEPS + 4,
                steps=STEPS,
                frames=DISTINCT,
                episodes=((700, 120.0), (650, 80.0)),
                protocol=rules,
                policy="random",
                seed=1,
                emulator=("0.12.0", "240bfbac5163af4df5ae713985386f92"),
            ),
            dict.fromkeys(rows, b"x"),
        )
        for model in MODELS if number % 2 else MODELS[:-1]:
            embedding = EmbeddingMeta(
                "Seaquest", where, model, (DISTINCT, 512), "float16", DISTINCT, 0, 41.5
            )
            yield embedding, dict.fromkeys(["zarr.json", "c.0.0"], b"x")


def fill(root: Path, segments: int) -> int:
    """Write the records; return their number."""
    count = 0
    for meta, files in objects(segments):
        commit = writer._record(meta, files)
        path = root / names.commit_path(commit.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(records.write_commit(commit))
        count += 1
    return count


def digests(self: Snapshot, meta: SegmentMeta) -> np.ndarray:
    """Random digests for a segment; a fifth of them also occur in another segment."""
    own = np.random.default_rng(list(meta.segment.encode())).integers(
        0, 256, (meta.frames, 16), np.uint8
    )
    own[: meta.frames // 5, 1:] = 0
    return own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("frames", type=float)
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    segments = int(options.frames / DISTINCT)
    root = Path(tempfile.mkdtemp(dir=options.folder))
    os.environ["WSA_CACHE"] = str(root / "cache")
    table: list[list[object]] = []

    def timed(what: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        table.append([what, f"{time.perf_counter() - started:.1f}", f"{peak:.1f}"])
        return result

    try:
        backend = open_store(str(root / "store"), create=True)
        count = fill(root / "store", segments)
        timed("open, first time on this machine", lambda: take_snapshot(backend))
        snapshot = timed("open again", lambda: take_snapshot(backend))
        timed("refresh, nothing new", lambda: take_snapshot(backend, snapshot))
        timed("list segments, embeddings, and models", lambda: lists(snapshot))
        everything = np.concatenate([digests(snapshot, meta) for meta in snapshot.segments()])
        index = timed("index all digests", partial(DigestIndex, everything))
        timed("look up the digests of a segment", partial(index.find, everything[:DISTINCT]))
        del index, everything
        Snapshot.read_digests = digests  # type: ignore[method-assign]
        plan = timed("plan", lambda: make_plan(snapshot, MODELS, ["Seaquest"]))
        print(
            f"{options.frames:,.0f} frames, {segments:,} segments, {count:,} records; the plan has "
            f"{len(plan.items):,} objects, {plan.passes:,} passes.\n"
        )
        markdown(["", "seconds", "peak memory so far, GB"], table)
    finally:
        shutil.rmtree(root)


def lists(snapshot: Snapshot) -> None:
    snapshot.segments()
    snapshot.embeddings()
    assert len(snapshot.models_of("Seaquest")) == 2


if __name__ == "__main__":
    main()
