"""What committing an embedding object costs: its flushes and its bytes, and the time beside them.

python benchmarks/store_commit.py

The bare contender writes the same bytes into as many files, with as many flushes, and does nothing
else: no compression, no checksums, no record.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
from kit import interleave, markdown, table

from wsa.store import keys, layout, names, writer
from wsa.store.records import EmbeddingMeta
from wsa.store.root import open_store

FRAMES, NUMBERS, OBJECTS = 820, 512, 20
MODEL = names.make_model_key("vit", keys.identity("vit"))


def main() -> None:
    generator = np.random.default_rng(0)
    slow = np.cumsum(
        generator.normal(size=(FRAMES, NUMBERS)), axis=0
    )  # As features change in play.
    array = slow.astype(np.float16)
    with tempfile.TemporaryDirectory() as folder:
        backend = open_store(f"{folder}/store", create=True)
        number = 0

        def one() -> EmbeddingMeta:
            nonlocal number
            number += 1
            segment = names.make_segment("0123456789ab", 0, number)
            meta = EmbeddingMeta("Pong", segment, MODEL, array.shape, "float16", FRAMES, 0, 1.0)
            assert writer.commit_embedding(backend, meta, array)
            return meta

        one()  # The folders that all objects of a model share.
        with mock.patch.object(os, "fsync", wraps=os.fsync) as fsync:
            one()
        flushes = fsync.call_count
        files = layout.encode_embedding(array)
        size = sum(map(len, files.values()))
        record = max(entry.bytes for entry in backend.list("commits"))
        markdown(
            ["an embedding object", ""],
            [
                ["raw array", f"{array.nbytes:,} bytes"],
                ["written: Zarr metadata and shard", f"{size:,} bytes in {len(files)} files"],
                ["written: record", f"{record:,} bytes in 1 file"],
                ["fsync", f"{flushes}: {len(files) + 1} files, the rest folders"],
            ],
        )

        def commit() -> float:
            started = time.perf_counter()
            for _ in range(OBJECTS):
                one()
            return OBJECTS / (time.perf_counter() - started)

        def bare() -> float:
            started = time.perf_counter()
            for at in range(OBJECTS):
                place = Path(folder) / "bare" / f"{time.monotonic_ns()}-{at}"
                place.mkdir(parents=True)
                for name, data in [*files.items(), ("record", bytes(record))]:
                    with (place / name).open("xb") as file:
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())
                handle = os.open(place, os.O_RDONLY)
                for _ in range(flushes - len(files) - 1):
                    os.fsync(handle)
                os.close(handle)
            return OBJECTS / (time.perf_counter() - started)

        def compress() -> float:
            started = time.perf_counter()
            for _ in range(OBJECTS):
                layout.encode_embedding(array)
            return OBJECTS / (time.perf_counter() - started)

        print()
        found = interleave(
            {"bare files and flushes": bare, "commit": commit, "compression alone": compress}
        )
        table("objects/s", found, "bare files and flushes")


if __name__ == "__main__":
    main()
