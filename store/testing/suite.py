"""Conformance suite for backends.

    class TestMine(BackendSuite):
        @pytest.fixture
        def backend(self, tmp_path):
            return MyBackend(tmp_path)

tests every promise of `wsa.store.backends.base.Backend` on `MyBackend`. `MemoryBackend` is the
simplest backend that keeps them. `FaultyBackend` makes any backend fail at the calls that you
choose. `StoreMachine` tries commits, faults, damage, sweeps and merges on any of them. This needs
the extra `testing`.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from wsa.store.backends.base import Backend
from wsa.store.common import names
from wsa.store.common.errors import DamagedError

OUTSIDE = ["../outside", "/outside", "a/../../outside", "a/../../../outside", "..", "a\0b"]


class BackendSuite:
    """Tests that every backend must pass. Inherit it and override the fixture `backend`.

    Attributes:
        large_bytes: Size of the large file, above the size of one request or of one part.
        many: Number of files of the long listing, more than one page.
        rounds: Number of races between writers.
        calls: Number of random calls that are compared with a dictionary.
    """

    large_bytes = 12 << 20
    many = 1100
    rounds = 10
    calls = 300

    @pytest.fixture
    def backend(self) -> Backend:
        """Return a new empty backend."""
        raise NotImplementedError("override the fixture 'backend'")

    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 9, b"\r\n\0\n"])
    def test_a_file_comes_back_as_it_was_put(self, backend: Backend, data: bytes) -> None:
        """Short files, including an empty one, are read, measured and listed as they were put."""
        assert backend.put_new("games/a", data)
        assert backend.get("games/a") == data
        assert backend.stat("games/a") == len(data)
        assert [(entry.path, entry.bytes) for entry in backend.list("")] == [("games/a", len(data))]

    def test_a_large_file_comes_back_as_it_was_put(self, backend: Backend) -> None:
        """A file that takes more than one request is read and measured as it was put."""
        data = random.Random(1).randbytes(self.large_bytes)
        assert backend.put_new("games/large", data)
        assert backend.stat("games/large") == len(data)
        assert backend.get("games/large") == data
        assert not backend.put_new("games/large", data[::-1])
        assert backend.get("games/large", len(data)) == data
        with pytest.raises(DamagedError):
            backend.get("games/large", len(data) - 1)

    def test_a_name_is_given_once(self, backend: Backend) -> None:
        """`put_new` never replaces a file, and returns False instead."""
        assert backend.put_new("games/a", b"first")
        before = list(backend.list(""))
        for data in (b"second, and longer", b"first", b""):
            assert not backend.put_new("games/a", data)
            assert backend.get("games/a") == b"first"
        assert list(backend.list("")) == before

    def test_of_many_writers_one_wins(self, backend: Backend) -> None:
        """If threads put the same name at once, exactly one call returns True, for its own bytes."""
        writers = 8
        start = threading.Barrier(writers)

        def write(number: int, path: str) -> bool:
            start.wait()
            return backend.put_new(path, b"%d" % number * 1000)

        with ThreadPoolExecutor(writers) as threads:
            for turn in range(self.rounds):
                path = f"commits/{turn:02d}/record.json"
                won = list(threads.map(write, range(writers), [path] * writers))
                assert won.count(True) == 1, "exactly one of the writers hears that it won"
                assert backend.get(path) == b"%d" % won.index(True) * 1000
        assert len(list(backend.list("commits"))) == self.rounds

    def test_a_file_is_seen_whole_or_not_at_all(self, backend: Backend) -> None:
        """Concurrent readers never see a part of a file."""
        data = random.Random(2).randbytes(4 << 20)
        done = threading.Event()

        def read() -> int:
            reads = 0
            while not done.is_set():
                reads += 1
                with contextlib.suppress(FileNotFoundError):
                    assert backend.get("games/a") == data
                assert backend.stat("games/a") in (None, len(data))
                assert {e.bytes for e in backend.list("games")} <= {len(data)}
            return reads

        with ThreadPoolExecutor(2) as threads:
            readers = [threads.submit(read) for _ in range(2)]
            try:
                for _ in range(3):
                    assert backend.put_new("games/a", data)
                    backend.delete("games/a")
            finally:
                done.set()
            assert all(reader.result() for reader in readers)

    def test_what_is_not_there(self, backend: Backend) -> None:
        """Missing files, folders and prefixes of names all count as missing."""
        backend.put_new("games/Pong/a", b"x")
        # A folder is not a file, nor is a prefix of a file's name, and a file is not a folder.
        missing = ("nothing", "games/nothing", "games", "games/Pong", "games/Pon", "games/Pong/")
        for path in (*missing, "games/Pong/a/b"):
            with pytest.raises(FileNotFoundError):
                backend.get(path)
            assert backend.stat(path) is None
            backend.delete(path)
        assert backend.get("games/Pong/a") == b"x"
        assert list(backend.list("nothing")) == []

    def test_deleting(self, backend: Backend) -> None:
        """A deleted file is gone, its neighbors are not, and its name is free."""
        for path in ("games/a", "games/ab", "games/b/a"):
            backend.put_new(path, b"first")
        backend.delete("games/a")
        backend.delete("games/a")
        assert backend.stat("games/a") is None
        with pytest.raises(FileNotFoundError):
            backend.get("games/a")
        assert _paths(backend) == ["games/ab", "games/b/a"]
        assert backend.put_new("games/a", b"second"), "its name is free again"
        assert backend.get("games/a") == b"second"

    def test_too_large_a_file_is_refused(self, backend: Backend) -> None:
        """`get` refuses a file larger than `most`."""
        backend.put_new("commits/a", b"x" * 1000)
        backend.put_new("commits/empty", b"")
        assert backend.get("commits/a", 1000) == b"x" * 1000
        assert backend.get("commits/empty", 0) == b""
        for most in (0, 1, 999):
            with pytest.raises(DamagedError, match="commits/a") as refused:
                backend.get("commits/a", most)
            assert refused.value.kind == "bad-bytes"

    def test_a_prefix_is_a_folder(self, backend: Backend) -> None:
        """`list` takes folders, not prefixes of names."""
        inside = ["commits/aa/x.json", "commits/ab/y.json", "commits/z"]
        for path in (*inside, "commits2/x", "commit", "games/commits/x", "wsa.json"):
            backend.put_new(path, b"x")
        assert _paths(backend, "commits") == inside
        assert _paths(backend, "commits/aa") == inside[:1]
        assert _paths(backend, "commits/a") == _paths(backend, "comm") == []
        assert _paths(backend, "commits/z") == [], "a file is not a folder"
        assert _paths(backend, "games") == ["games/commits/x"]
        assert len(_paths(backend)) == 7

    def test_a_long_listing_is_whole(self, backend: Backend) -> None:
        """A listing of several pages has every file once."""
        expected = [f"commits/{n % 256:02x}/{n:032x}.json" for n in range(self.many)]
        with ThreadPoolExecutor(16) as threads:
            assert all(threads.map(lambda path: backend.put_new(path, path.encode()), expected))
        found = list(backend.list("commits"))
        assert sorted(entry.path for entry in found) == sorted(expected)
        assert {entry.bytes for entry in found} == {len(expected[0])}

    def test_when_a_file_was_published(self, backend: Backend) -> None:
        """The time of a file is that of its publication, and does not change."""
        backend.put_new("games/a", b"x")
        (before,) = backend.list("games")
        assert type(before.modified) is float and type(before.bytes) is int
        # A backend may have its own clock, but hours of difference mean a wrong unit or no time.
        assert abs(before.modified - time.time()) < 3600
        backend.get("games/a")
        backend.put_new("games/a", b"y")
        (after,) = backend.list("games")
        assert after == before

    def test_every_name_that_a_store_uses(self, backend: Backend) -> None:
        """The longest and most unusual names of the grammar are accepted."""
        key = names.make_model_key("a" * 64, "0123456789ab")
        segment = names.make_segment("0123456789ab", 999, 999_999_999, 65536)
        expected = {
            names.STORE_FILE,
            names.commit_path("0" * 32),
            f"{names.segment_path('G' * 64, segment)}/0123456789abcdef/is_first/c/0",
            f"{names.frames_path('Pong', segment)}/0123456789abcdef/frames/c/0/0/0",
            f"{names.embedding_path('G' * 64, key, segment)}/0123456789abcdef/zarr.json",
            f"{names.model_path('a_1-0123456789ab')}/0123456789abcdef/probe.safetensors",
            f"models/a/{'x' * 200}",
        }
        for path in expected:
            assert backend.put_new(path, path.encode())
        assert set(_paths(backend)) == expected
        assert all(backend.get(path) == path.encode() for path in expected)

    @pytest.mark.parametrize("path", OUTSIDE)
    def test_no_path_leads_out(self, backend: Backend, path: str) -> None:
        """Every method refuses a path that leads out of the root."""
        for call in (backend.get, backend.stat, backend.delete, lambda p: list(backend.list(p))):
            with pytest.raises(DamagedError):
                call(path)
        with pytest.raises(DamagedError):
            backend.put_new(path, b"x")
        assert _paths(backend) == []

    def test_it_is_a_dictionary_that_does_not_overwrite(self, backend: Backend) -> None:
        """Many random calls have the same effect as on a dictionary."""
        rng = random.Random(3)
        model: dict[str, bytes] = {}
        paths = [folder + name for folder in ("", "x/", "x/y/") for name in ("a", "b", "xa")]
        for _ in range(self.calls):
            path, data = rng.choice(paths), rng.randbytes(rng.randrange(9))
            if rng.random() < 0.5:
                assert backend.put_new(path, data) == (path not in model)
                model.setdefault(path, data)
            else:
                backend.delete(path)
                model.pop(path, None)
            assert backend.stat(path) == (len(model[path]) if path in model else None)
            folder = rng.choice(["", "x", "x/y", "z"])
            inside = [p for p in model if not folder or p.startswith(folder + "/")]
            assert _paths(backend, folder) == sorted(inside)
        assert {path: backend.get(path) for path in _paths(backend)} == model

    def test_what_it_says_of_itself(self, backend: Backend) -> None:
        """`url` and `at_once` have valid values."""
        assert backend.url and isinstance(backend.url, str)
        assert backend.at_once >= 1


def _paths(backend: Backend, prefix: str = "") -> list[str]:
    return sorted(entry.path for entry in backend.list(prefix))
