"""P10: a full disk loses nothing committed, and the same command completes once there is room."""

import contextlib
import errno
import os
import shutil
import subprocess

import numpy as np
import pytest
from command_kit import run as wsa

from wsa.store.backends.local import LocalBackend
from wsa.store.common import atomic_files
from wsa.store.common.errors import StorageError
from wsa.store.objects import flat_map, writer
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.testing import Work, check_store

WORKS = [Work("segment"), Work("model"), Work("embedding")]


class Disk:
    """Counts the calls that need room on the disk, and lets those fail that `full` selects."""

    def __init__(self, monkeypatch, code=errno.ENOSPC):
        self.calls = 0
        self.full = lambda number: False
        self.code = code
        for name in ("fsync", "link", "mkdir", "open"):
            monkeypatch.setattr(os, name, self._watch(getattr(os, name)))
        monkeypatch.setattr(atomic_files, "_write", self._write)

    def use_room(self):
        self.calls += 1
        if self.full(self.calls - 1):
            raise OSError(self.code, os.strerror(self.code))

    def _watch(self, real):
        def call(*args, **kwargs):
            self.use_room()
            return real(*args, **kwargs)

        return call

    def _write(self, path, data, root=None):
        """Like `atomic_files._write`, but half of a file is written before the disk is full."""
        self.use_room()
        with path.open("xb") as file:
            file.write(data[: len(data) // 2])
            self.use_room()
            file.write(data[len(data) // 2 :])
            file.flush()
            os.fsync(file.fileno())


def run(store, works=WORKS):
    """Start the store and commit what is missing, as a command does."""
    backend = open_store(str(store), create=True)
    return [work.commit(backend) for work in works]


def fill_at_each_call(tmp_path, monkeypatch, numbers, lasting, code):
    monkeypatch.setattr(writer, "PUTS_AT_ONCE", 1)
    disk = Disk(monkeypatch, code)
    for number in numbers:
        store = tmp_path / f"store{number}"
        disk.calls = 0
        disk.full = number.__le__ if lasting else number.__eq__
        with pytest.raises(StorageError) as refused:
            run(store)
        assert (refused.value.kind, refused.value.exit_code) == ("no-space", 6)
        assert "Nothing committed was lost" in str(refused.value)
        disk.full = lambda number: False
        everything = {path for work in WORKS for path in work.paths}
        check_store(LocalBackend(store), WORKS)
        run(store)
        assert check_store(open_store(str(store)), WORKS) == everything
        shutil.rmtree(store)


def calls_of(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(writer, "PUTS_AT_ONCE", 1)
        disk = Disk(patch)
        run(tmp_path / "counted")
        return disk.calls


@pytest.mark.parametrize(
    ("code", "lasting"),
    [
        (errno.ENOSPC, False),
        pytest.param(errno.EDQUOT, True, marks=pytest.mark.slow),
        pytest.param(errno.ENOSPC, True, marks=pytest.mark.slow),
        pytest.param(errno.EDQUOT, False, marks=pytest.mark.slow),
    ],
)
def test_the_disk_is_full_at_a_call(tmp_path, monkeypatch, lasting, code):
    calls = calls_of(tmp_path, monkeypatch)
    offset = 2 * lasting + (code == errno.EDQUOT)
    numbers = [*range(offset, calls, 80), calls - 1]
    fill_at_each_call(tmp_path, monkeypatch, numbers, lasting, code)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("lasting", [True, False])
def test_the_disk_is_full_at_each_call(tmp_path, monkeypatch, lasting):
    numbers = range(calls_of(tmp_path, monkeypatch))
    fill_at_each_call(tmp_path, monkeypatch, numbers, lasting, errno.ENOSPC)


# The tests below fill a real file system: a small one in memory.


@pytest.fixture
def small_disk(tmp_path):
    """Mounts small disks; without the right to mount, the test is skipped."""
    mounted = []

    def mount(options):
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        with contextlib.suppress(FileNotFoundError):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if not done.returncode:
                mounted.append(place)
                return place
        pytest.skip("mounting a small disk takes root")

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk, leave):
    """Use all room on the disk except `leave` bytes."""
    room = os.statvfs(disk)
    with (disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_bsize - leave))


@pytest.mark.parametrize(
    "leave",
    [60 << 10, *(pytest.param(n << 10, marks=pytest.mark.slow) for n in (0, 4, 20, 100))],
)
def test_a_small_disk_fills(small_disk, leave):
    disk = small_disk("size=4m")
    fill(disk, leave)
    store = disk / "store"
    with pytest.raises(StorageError) as refused:
        for number in range(100):
            run(store, [Work("segment", number), Work("embedding", number)])
    assert refused.value.kind == "no-space" and str(disk) in str(refused.value)
    (disk / "ballast").unlink()
    works = [Work(kind, n) for n in range(10) for kind in ("segment", "embedding")]
    before = check_store(open_store(str(store), create=True), works)
    assert bool(before) == (leave >= 60 << 10)
    run(store, works)
    after = check_store(open_store(str(store)), works)
    assert before < after == {path for work in works for path in work.paths}


@pytest.mark.variants
@pytest.mark.parametrize("files", [20, 8, 50])
def test_a_disk_without_free_inodes(small_disk, files):
    disk = small_disk(f"size=8m,nr_inodes={files}")
    store = disk / "store"
    with pytest.raises(StorageError) as refused:
        run(store)
    assert refused.value.kind == "no-space"
    subprocess.run(["mount", "-o", "remount,nr_inodes=4000", str(disk)], check=True)
    check_store(open_store(str(store), create=True), WORKS)
    run(store)
    assert len(check_store(open_store(str(store)), WORKS)) == 4


def test_collect_and_encode_continue_once_there_is_room(small_disk, monkeypatch, tmp_path):
    disk = small_disk("size=8m")
    monkeypatch.setenv("WSA_STORE", str(disk / "store"))
    monkeypatch.setenv("WSA_CACHE", str(tmp_path / "cache"))
    play = ("--steps", 40, "--num-envs", 1, "--segment-steps", 20)
    collect = ("collect", "--game", "Breakout", *play)
    model = "timm:test_resnet.r160_in1k:random"
    encode = ("encode", "--models", model, "--output", "pooled", "--scheduler", "inproc")
    for command, leave, objects in ((collect, 40 << 10, 4), (encode, 8 << 10, 4 + 1 + 2)):
        fill(disk, leave)
        outcome = wsa(*command)
        assert outcome.code == 6 and "No room left" in outcome.error
        assert "same command again" in outcome.error
        assert wsa("verify").code == 0
        (disk / "ballast").unlink()
        assert wsa(*command).code == 0
        assert wsa("verify").code == 0
        assert len(take_snapshot(open_store(str(disk / "store"))).commits) == objects


def test_a_flat_map_on_a_full_disk(small_disk, store, kit):
    disk = small_disk("size=1m")
    for number in range(3):
        meta, _ = kit.add_segment(store, number, steps=200)
        kit.add_embedding(store, meta, kit.key(), shape=(64,))
    snapshot = take_snapshot(store)
    for leave in (0, 40 << 10):
        fill(disk, leave)
        with pytest.raises(StorageError) as refused:
            flat_map.materialize(snapshot, kit.GAME, [kit.key()], disk / "cache")
        assert refused.value.kind == "no-space"
        (disk / "ballast").unlink()
    on_full_disk = flat_map.materialize(snapshot, kit.GAME, [kit.key()], disk / "cache")
    expected = flat_map.materialize(snapshot, kit.GAME, [kit.key()], disk.parent / "cache")
    np.testing.assert_array_equal(on_full_disk.embeddings, expected.embeddings)
    np.testing.assert_array_equal(on_full_disk.rows, expected.rows)
