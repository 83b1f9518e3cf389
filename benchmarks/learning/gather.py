"""Rows per second from the flat map, compared with `np.take` on a memory map of the same bytes.

python -m benchmarks.learning.gather
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from benchmarks.kit import interleave, rate, table
from wsa.store.objects.flat_map import FlatMap

ROWS, MODELS, WIDTH, BATCH = 200_000, 3, 512, 256


def main() -> None:
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "embeddings.bin"
        width = MODELS * WIDTH
        block = generator.standard_normal((20_000, width)).astype(np.float16)
        with path.open("wb") as file:
            for _ in range(ROWS // len(block)):
                file.write(block.tobytes())
        plain = np.memmap(path, np.float16, "r", shape=(ROWS, width))
        plain.sum(dtype=np.float64)  # Fill the page cache.
        mapped = SimpleNamespace(embeddings=np.memmap(path, np.float16, "r", shape=(ROWS, width)))
        separate = [
            np.ascontiguousarray(plain[:, i * WIDTH : (i + 1) * WIDTH]) for i in range(MODELS)
        ]
        out = np.empty((BATCH, width), np.float16)
        outs = [np.empty((BATCH, WIDTH), np.float16) for _ in range(MODELS)]

        def draw() -> np.ndarray:
            return generator.integers(ROWS, size=BATCH)

        def take() -> int:
            np.take(plain, draw(), axis=0, out=out, mode="clip")
            return BATCH

        def gather() -> int:
            FlatMap.gather(mapped, draw(), out)
            return BATCH

        def indexed() -> int:
            plain[draw()]
            return BATCH

        def apart() -> int:
            rows = draw()
            for array, target in zip(separate, outs, strict=True):
                np.take(array, rows, axis=0, out=target, mode="clip")
            return BATCH

        contenders = {
            "np.take on a plain memory map": take,
            "FlatMap.gather": gather,
            "plain indexing": indexed,
            "np.take on an array in RAM for each model": apart,
        }
        print(f"{BATCH} random rows of {MODELS} models x {WIDTH} float16, {ROWS:,} rows:\n")
        rates = interleave({n: (lambda w=w: rate(w, 1.0)) for n, w in contenders.items()})
        table("rows/s", rates, "np.take on a plain memory map")


if __name__ == "__main__":
    main()
