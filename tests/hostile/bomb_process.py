"""Plants hostile stores, reads each in a separate process, and measures how much that grows.

`bomb_process.py FOLDER [--small] [ATTACK ...]` prints a line of JSON for each attack: the outcome of
reading the store, and the peak growth of the reading process. `--small` plants smaller bombs, which
would still exceed what `test_memory.py` allows if wsa expanded them.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import msgspec
import numpy as np
from numcodecs import Blosc, Zstd

from wsa.store.backends.base import Backend, Entry
from wsa.store.common import hashing, names
from wsa.store.common.errors import WsaError
from wsa.store.exchange.sync import survey
from wsa.store.format import arrays, records
from wsa.store.format.records import Commit, EmbeddingMeta, File, Meta, ModelMeta
from wsa.store.maintenance import sweep, verify
from wsa.store.objects import writer
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

RECORD = f"commits/00/{'0' * 32}.json"
SEGMENT = "0123456789ab-e000-000000000-00012"
MODEL = "lite0-0123456789ab"
GIB = 1 << 30
# On top of what a process maps at its start: above any bound of a test, below a machine's memory.
LIMIT_BYTES = 3 * GIB
BLOCK_BYTES = 128 << 10
# `--small` divides the sizes by this.
SMALLER = 8
divisor = 1


def embedding(shape: tuple[int, ...], dtype: str = "float16") -> EmbeddingMeta:
    return EmbeddingMeta("Pong", SEGMENT, MODEL, shape, dtype, shape[0], 0, 0.0)


def plant(store: Backend, meta: Meta, files: dict[str, bytes], lengths: int | None = None) -> None:
    """Commit any bytes, as an enemy who can compute checksums does."""
    listed = tuple(
        File(name, len(data) if lengths is None else lengths, hashing.checksum(data))
        for name, data in files.items()
    )
    commit = records.seal(Commit(1, meta, "0" * 16, listed, "eve", "", ""))
    for name, data in files.items():
        store.put_new(f"{commit.folder}/{name}", data)
    store.put_new(names.commit_path(commit.id), records.write_commit(commit))


def with_crc(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(4, "little")


def metadata(shape: tuple[int, ...], codec: str = "blosc", **changes: Any) -> bytes:
    """Metadata of an array in one chunk, as wsa would write it."""
    small = arrays.encode_embedding(np.ones((2, *[1 for _ in shape[1:]]), np.float16))
    found = msgspec.json.decode(small["zarr.json"])
    found["shape"] = list(shape)
    found["chunk_grid"]["configuration"]["chunk_shape"] = list(shape)
    for chain in found["codecs"]:
        if chain["name"] == "blosc" and codec == "zstd":
            chain.update(name="zstd", configuration={"level": 3, "checksum": False})
    return json.dumps(found | changes).encode()


def sharded(shape: tuple[int, ...], inner: int, **changes: Any) -> bytes:
    """Metadata of an array in a shard of chunks of `inner` rows."""
    found = json.loads(metadata(shape))
    found["codecs"] = [
        {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [inner, *shape[1:]],
                "codecs": found["codecs"],
                "index_codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "crc32c"},
                ],
                "index_location": "end",
                **changes,
            },
        }
    ]
    return json.dumps(found).encode()


def bomb_bytes() -> int:
    """What a bomb expands to."""
    return GIB // divisor


def json_bytes() -> int:
    """Size of a document of nested lists."""
    return (64 << 20) // divisor


def rle_frame(header: bytes) -> bytes:
    """A zstd frame of `bomb_bytes()` zeros, in blocks of four bytes each."""
    blocks = bomb_bytes() // BLOCK_BYTES
    block = struct.pack("<I", (BLOCK_BYTES << 3) | (1 << 1))[:3] + b"\0"
    last = struct.pack("<I", (BLOCK_BYTES << 3) | (1 << 1) | 1)[:3] + b"\0"
    return b"\x28\xb5\x2f\xfd" + header + block * (blocks - 1) + last


NO_SIZE = b"\x00\x58"  # A window and no content size.


def chunk(data: bytes, codec: str = "zstd", shape: tuple[int, ...] = (40, 3)) -> dict[str, bytes]:
    return {"zarr.json": metadata(shape, codec), "c.0.0": with_crc(data)}


def blosc_header(nbytes: int, block: int, cbytes: int, flags: int = 0x94) -> bytes:
    return struct.pack("<BBBBIII", 2, 1, flags, 2, nbytes, block, cbytes)


GOOD_FRAME = Zstd(level=3).encode(bytes(240))
GOOD_BLOSC = Blosc("zstd", 1, Blosc.BITSHUFFLE, typesize=2).encode(np.ones(120, np.float16))


def deep(count: int) -> bytes:
    return b"[" * (count // 2) + b"]" * (count // 2)


def planted(files: Callable[[], dict[str, bytes]], meta: Meta | None = None) -> Any:
    return lambda store: plant(store, meta or embedding((40, 3)), files())


def huge_record(store: Backend) -> None:
    """As many files as four megabytes hold."""
    files = [File(f"c.{n}", 10, "0" * 64) for n in range(30_000)]
    commit = records.seal(Commit(1, ModelMeta(MODEL), "0" * 16, tuple(files), "", "", ""))
    store.put_new(names.commit_path(commit.id), records.write_commit(commit))


def huge_rows(store: Backend) -> None:
    plant(store, embedding((2**61, 3)), {"zarr.json": metadata((2**61, 3)), "c.0.0": b"x"})


def long_file(store: Backend) -> None:
    """A file as long as the record says, with nothing on the disk."""
    plant(store, embedding((40, 3)), {"c.0.0": b""}, lengths=7 * GIB)
    os.truncate(Path(store.url, embedding_folder(), "c.0.0"), 7 * GIB)


def embedding_folder() -> str:
    return f"{names.embedding_path('Pong', MODEL, SEGMENT)}/{'0' * 16}"


def largest(store: Backend) -> None:
    """A valid array of 64 MB in one chunk, which compresses to nothing."""
    array = np.zeros((256, (1 << 17) // divisor), np.float16)
    writer.commit_embedding(store, embedding(array.shape), array)


ATTACKS: dict[str, Callable[[Backend], object]] = {
    "zstd bomb": planted(lambda: chunk(Zstd().encode(bytes(bomb_bytes())))),
    "zstd bomb of no stated size": planted(lambda: chunk(rle_frame(NO_SIZE))),
    "zstd bomb that understates": planted(
        lambda: chunk(rle_frame(b"\x80\x58" + struct.pack("<I", 240)))
    ),
    "zstd bomb behind a good frame": planted(lambda: chunk(GOOD_FRAME + rle_frame(NO_SIZE))),
    "zstd bomb behind a frame to skip": planted(
        lambda: chunk(b"\x50\x2a\x4d\x18\x04\0\0\0\0\0\0\0" + rle_frame(NO_SIZE))
    ),
    "blosc bomb": planted(
        lambda: chunk(
            Blosc("zstd", 9, Blosc.SHUFFLE, typesize=2).encode(
                np.zeros(bomb_bytes() // 2, np.float16)
            ),
            "blosc",
        )
    ),
    "blosc says 2 GB": planted(
        lambda: chunk(blosc_header((1 << 31) - 17, 1 << 15, 20) + b"abcd", "blosc")
    ),
    "blosc blocks of 2 GB": planted(
        lambda: chunk(GOOD_BLOSC[:8] + struct.pack("<I", (1 << 31) - 17) + GOOD_BLOSC[12:], "blosc")
    ),
    "blosc longer than its file": planted(
        lambda: chunk(blosc_header(240, 240, 1 << 30, 0x96) + bytes(100), "blosc")
    ),
    "compressed index": planted(
        lambda: {
            "zarr.json": sharded(
                (1 << 16, 3),
                1,
                index_codecs=[
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "zstd", "configuration": {"level": 3, "checksum": False}},
                ],
            ),
            "c.0.0": Zstd().encode(bytes(256 << 20)),
        },
        embedding((1 << 16, 3)),
    ),
    "index of 2**28 chunks": planted(
        lambda: {"zarr.json": sharded((1 << 28, 1), 1), "c.0.0": with_crc(bytes(1 << 20))},
        embedding((1 << 28, 1)),
    ),
    "a chunk listed 60,000 times": planted(
        lambda: {
            "zarr.json": sharded((60_000, 3), 1),
            "c.0.0": GOOD_BLOSC + with_crc(struct.pack("<QQ", 0, len(GOOD_BLOSC)) * 60_000),
        },
        embedding((60_000, 3)),
    ),
    "2**61 rows": huge_rows,
    "nested JSON as record": lambda store: store.put_new(RECORD, deep(json_bytes())),
    "4 MB of nested JSON as record": lambda store: store.put_new(RECORD, deep(4 << 20)),
    "nested JSON as metadata": planted(
        lambda: {"zarr.json": deep(json_bytes()), "c.0.0": b"x"}, embedding((1 << 20, 100))
    ),
    "nested JSON as spec": planted(lambda: {"spec.json": deep(json_bytes())}, ModelMeta(MODEL)),
    "huge record": huge_record,
    "a file of 7 GB": long_file,
    "a good array": largest,
}


class Flood:
    """A place that lists any number of files and gives the same garbage for each."""

    url, at_once = "flood:", 1

    def __init__(self, paths: Callable[[int], str], count: int) -> None:
        self._paths, self._count = paths, count

    def list(self, prefix: str) -> Iterator[Entry]:
        for number in range(self._count):
            path = self._paths(number)
            if path.startswith(prefix):
                yield Entry(path, 2, 0.0)

    def get(self, path: str, most: int = 0) -> bytes:
        if self._paths is garbage_commits:
            return b"{}"
        raise FileNotFoundError(path)

    def put_new(self, path: str, data: bytes) -> bool:
        return False

    def delete(self, path: str) -> None:
        pass

    def stat(self, path: str) -> int | None:
        return None


def garbage_commits(number: int) -> str:
    return f"commits/{number % 256:02x}/{number % 256:02x}{number:030x}.json"


def garbage_attempts(number: int) -> str:
    return f"models/{MODEL}/{number:016x}/spec.json"


def read_flood(paths: Callable[[int], str], count: int) -> str:
    flood: Any = Flood(paths, count)
    with contextlib.suppress(WsaError):
        take_snapshot(flood)
    found = sweep.sweep(flood, 0, dry_run=True, now=1.0)
    report = verify.verify(flood)
    damaged = len(report.damage) + report.unlisted
    assert max(damaged, len(found.leftovers)) == count
    return "refused"


def read_all(url: str) -> str:
    """Open a store and read everything in it, as a reader and as `wsa verify`."""
    try:
        store = open_store(url)
        survey(store)
        snapshot = take_snapshot(store)
        for meta in snapshot.embeddings():
            snapshot.read_embedding(meta.game, meta.model, meta.segment)
        for key in snapshot.models:
            spec = snapshot.read_model(key)["spec.json"]
            records.read_json(spec, dict[str, Any], "spec.json")
    except WsaError as error:
        return f"refused: {error.kind}"
    # The embeddings come without a segment and a model.
    damage = [d for d in verify.verify(store).damage if d.attempt or d.kind != "lost-file"]
    return "damaged" if damage else "read"


def measured(work: Callable[[], str]) -> dict[str, Any]:
    """Outcome of `work` in a separate process, and how much that process grew."""
    out, inside = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
            resource.setrlimit(resource.RLIMIT_AS, (now + LIMIT_BYTES, now + LIMIT_BYTES))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            what = work()
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            os.write(inside, json.dumps({"what": what, "grown_mb": grown / 1024}).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(inside)
    with os.fdopen(out, "rb") as pipe:
        output = pipe.read()
    _, ended = os.waitpid(pid, 0)
    return json.loads(output) if output else {"what": f"died: {ended}", "grown_mb": 0}


def main(folder: Path, chosen: list[str]) -> None:
    for name, attack in ATTACKS.items():
        if name in chosen or not chosen:
            url = str(folder / hashing.identity(name)[:8])

            def make(url: str = url, attack: Callable[[Backend], object] = attack) -> str:
                attack(open_store(url, create=True))
                return ""

            planted = measured(make)
            assert planted["what"] == "", (name, planted)
            print(json.dumps({"name": name, **measured(lambda url=url: read_all(url))}), flush=True)
    few = 2 * 10**4 // divisor
    for paths in (garbage_commits, garbage_attempts):
        for count in (few, 10**6):
            name = f"{paths.__name__} {count}"
            if name in chosen or (not chosen and count == few):
                work = measured(lambda paths=paths, count=count: read_flood(paths, count))
                print(json.dumps({"name": name, **work}), flush=True)


if __name__ == "__main__":
    folder, *chosen = [argument for argument in sys.argv[1:] if argument != "--small"]
    divisor = SMALLER if "--small" in sys.argv else 1
    main(Path(folder), chosen)
