"""Bytes per frame and per embedding, by codec, on real play and real pretrained embeddings.

    python -m benchmarks.storage.codecs [ALIAS ...]          default: lite0

The first row of each table is what wsa writes. Ratios are relative to the raw array of that row's
type. Encode and decode are MB of raw array per second on one core, side by side in one run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import cv2
import numcodecs
import numpy as np
from numcodecs import Blosc, Zstd

from benchmarks.kit import markdown, store_of
from wsa.encode.models.registry import parse_request
from wsa.encode.registration.register import open_model, register
from wsa.store.common import names
from wsa.store.format.arrays import EMBEDDINGS_PER_CHUNK, FRAMES_PER_CHUNK
from wsa.store.objects.snapshot import take_snapshot

GAMES, STEPS = ("Seaquest", "Breakout"), 1024
EMBEDDED = 512

numcodecs.blosc.set_nthreads(1)


def measure(
    what: str, array: np.ndarray, rows: int, codec: object, turn: bool = False
) -> list[object]:
    """A table row: compress `array` in chunks of `rows`, with the row axis last if `turn`."""
    chunks = [array[at : at + rows] for at in range(0, len(array), rows)]
    if turn:
        chunks = [np.moveaxis(chunk, 0, -1) for chunk in chunks]
    started = time.perf_counter()
    packed = [codec.encode(np.ascontiguousarray(chunk)) for chunk in chunks]
    encoded = time.perf_counter()
    for piece in packed:
        codec.decode(piece)
    decoded = time.perf_counter()
    size = sum(map(len, packed))
    mb = array.nbytes / 1e6
    return [
        what,
        f"{size / len(array):,.0f}",
        f"{array.nbytes / size:.2f}",
        f"{mb / (encoded - started):,.0f}",
        f"{mb / (decoded - encoded):,.0f}",
    ]


def png(frames: np.ndarray) -> list[object]:
    started = time.perf_counter()
    packed = [cv2.imencode(".png", frame)[1] for frame in frames]
    encoded = time.perf_counter()
    for piece in packed:
        cv2.imdecode(piece, cv2.IMREAD_COLOR)
    decoded = time.perf_counter()
    size, mb = sum(len(p) for p in packed), frames.nbytes / 1e6
    rates = [f"{mb / (encoded - started):,.0f}", f"{mb / (decoded - encoded):,.0f}"]
    return ["RGB, PNG", f"{size / len(frames):,.0f}", f"{frames.nbytes / size:.2f}", *rates]


def frame_table(indices: np.ndarray, rgb: np.ndarray) -> list[list[object]]:
    n = FRAMES_PER_CHUNK
    return [
        measure(f"palette index, zstd 3, {n} frames", indices, n, Zstd(3)),
        measure(f"palette index, zstd 1, {n} frames", indices, n, Zstd(1)),
        measure(f"palette index, zstd 9, {n} frames", indices, n, Zstd(9)),
        measure("palette index, zstd 3, 1 frame", indices, 1, Zstd(3)),
        measure(f"palette index, blosc lz4, {n} frames", indices, n, Blosc("lz4", 5, 0)),
        measure(
            f"palette index, blosc zstd 1 bitshuffle, {n} frames", indices, n, Blosc("zstd", 1, 2)
        ),
        measure(f"RGB, zstd 3, {n} frames", rgb, n, Zstd(3)),
        png(rgb),
    ]


def embedding_table(array: np.ndarray) -> list[list[object]]:
    n = EMBEDDINGS_PER_CHUNK
    bits: Callable[[str, int], Blosc] = lambda name, level: Blosc(name, level, 2)
    return [
        measure(
            f"rows last, blosc zstd 1 bitshuffle, {n} rows", array, n, bits("zstd", 1), turn=True
        ),
        measure("the same, 64 rows", array, 64, bits("zstd", 1), turn=True),
        measure("the same, zstd 5", array, n, bits("zstd", 5), turn=True),
        measure("the same, lz4", array, n, bits("lz4", 5), turn=True),
        measure(f"rows first, blosc zstd 1 bitshuffle, {n} rows", array, n, bits("zstd", 1)),
        measure(f"rows first, zstd 3, {n} rows", array, n, Zstd(3)),
    ]


def main(aliases: list[str]) -> None:
    head = ["bytes each", "ratio", "encode MB/s", "decode MB/s"]
    for game in GAMES:
        with store_of(game, STEPS) as (backend, _):
            snapshot = take_snapshot(backend)
            metas = snapshot.segments(game)
            indices = np.concatenate(
                [
                    snapshot.read_array_at(names.frames_path(game, m.segment), "frames")
                    for m in metas
                ]
            )
            rgb = np.concatenate([snapshot.read_frames(m) for m in metas])
            print(f"{game}, {len(rgb):,} distinct frames of {STEPS} steps:\n")
            markdown(["frames", *head], frame_table(indices, rgb))
            for alias in aliases:
                for output in ("grid:7+pca:512", "pooled", "grid:7"):
                    request = parse_request(alias, {}, output)
                    key = register(snapshot, request, 0.1).spec.key
                    encoder = open_model(take_snapshot(backend), key)
                    embeddings = encoder(rgb[:EMBEDDED]).astype(np.float16)
                    print(f"\n{game}, {alias}, {output}, {embeddings.shape} float16:\n")
                    markdown(["embeddings", *head], embedding_table(embeddings))
            print(flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["lite0"])
