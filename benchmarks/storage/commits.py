"""Cost of committing an embedding object: its flushes, its bytes, and the time.

    python -m benchmarks.storage.commits

The bare contender makes the same files, links, folders, and flushes with the same bytes, and nothing
else: no compression, no checksums, no record.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.kit import interleave, markdown, table
from wsa.store.common import hashing, names
from wsa.store.format import arrays
from wsa.store.format.records import EmbeddingMeta
from wsa.store.objects import writer
from wsa.store.objects.root import open_store

FRAMES, NUMBERS, OBJECTS = 820, 512, 20
MODEL = names.make_model_key("vit", hashing.identity("vit"))


def main() -> None:
    generator = np.random.default_rng(0)
    slow = np.cumsum(
        generator.normal(size=(FRAMES, NUMBERS)), axis=0
    )  # Changes slowly, like features during play.
    array = slow.astype(np.float16)
    with tempfile.TemporaryDirectory() as folder:
        backend = open_store(f"{folder}/store", create=True)
        number = 0

        def one() -> EmbeddingMeta:
            nonlocal number
            number += 1
            segment = names.make_segment("0123456789ab", 0, number, FRAMES)
            meta = EmbeddingMeta("Pong", segment, MODEL, array.shape, "float16", FRAMES, 0, 1.0)
            assert writer.commit_embedding(backend, meta, array)
            return meta

        one()  # Make the folders that all objects of a model share.
        with mock.patch.object(os, "fsync", wraps=os.fsync) as fsync:
            one()
        flushes = fsync.call_count
        files = arrays.encode_embedding(array)
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
            for _ in range(OBJECTS):
                segment = Path(folder) / "bare" / "model" / uuid.uuid4().hex
                attempt, shelf = segment / "attempt", Path(folder) / "bare" / segment.name[:2]
                for place in (segment, attempt, *([] if shelf.exists() else [shelf])):
                    place.mkdir(parents=True)
                    flush(place.parent)
                for name, data in files.items():
                    publish(attempt / name, data)
                publish(shelf / segment.name, bytes(record))
            return OBJECTS / (time.perf_counter() - started)

        def flush(place: Path) -> None:
            handle = os.open(place, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)

        def publish(path: Path, data: bytes) -> None:
            temporary = Path(folder) / uuid.uuid4().hex
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            path.hardlink_to(temporary)
            flush(path.parent)
            temporary.unlink()

        def compress() -> float:
            started = time.perf_counter()
            for _ in range(OBJECTS):
                arrays.encode_embedding(array)
            return OBJECTS / (time.perf_counter() - started)

        print()
        rates = interleave(
            {
                "the same files, links and flushes": bare,
                "commit": commit,
                "compression alone": compress,
            }
        )
        table("objects/s", rates, "the same files, links and flushes")


if __name__ == "__main__":
    main()
