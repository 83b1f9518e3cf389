from __future__ import annotations

import errno
import itertools
import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsa.store.backends.local import LocalBackend
from wsa.store.common import atomic_files
from wsa.store.common.errors import ConflictError, StorageError
from wsa.store.maintenance.verify import verify
from wsa.store.objects import writer
from wsa.store.objects.snapshot import take_snapshot

# Calls through which a file gets into its place.
CALLS = ["open", "write", "fsync", "link", "mkdir"]


def files(root: Path) -> list[str]:
    return sorted(entry.path for entry in LocalBackend(root).list(""))


def fail(monkeypatch, call: str, code: int, after: int = 0) -> None:
    """Let a system call fail from its call number `after` on."""
    counter = itertools.count()
    owner, name = (Path, call) if call in ("open", "mkdir") else (os, call)
    if call == "write":
        owner, name = atomic_files, "_write"
    real = getattr(owner, name)

    def failing(*args, **kwargs):
        if next(counter) < after:
            return real(*args, **kwargs)
        if call == "write":
            args[0].write_bytes(args[1][: len(args[1]) // 2])  # The disk is full half way.
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(owner, name, failing)


@settings(max_examples=settings().max_examples // 3)
@given(st.binary(max_size=5000), st.binary(max_size=5000))
def test_the_first_wins_and_stays(tmp_path_factory, first, second):
    root = tmp_path_factory.mktemp("root")
    path = root / "a" / "b" / "c"
    assert atomic_files.write_once(root, path, first)
    assert not atomic_files.write_once(root, path, second)
    assert path.read_bytes() == first
    assert files(root) == ["a/b/c"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code, kind", [(errno.ENOSPC, "no-space"), (errno.EDQUOT, "no-space")])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, call, code, kind):
    with monkeypatch.context() as patch:
        fail(patch, call, code)
        with pytest.raises(StorageError) as full:
            atomic_files.write_once(tmp_path, tmp_path / "a" / "b", b"x" * 100)
    assert (full.value.kind, full.value.exit_code) == (kind, 6)
    assert "free some space" in str(full.value)
    assert files(tmp_path) == []
    assert atomic_files.write_once(tmp_path, tmp_path / "a" / "b", b"x" * 100)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EROFS, errno.ESTALE])
def test_a_refusing_disk_leaves_nothing(tmp_path, monkeypatch, call, code):
    with monkeypatch.context() as patch:
        fail(patch, call, code)
        with pytest.raises(StorageError) as refused:
            atomic_files.write_once(tmp_path, tmp_path / "a" / "b", b"x")
    forbidden = code in (errno.EACCES, errno.EROFS)
    kind = "no-permission" if forbidden else "unavailable"
    assert (refused.value.kind, refused.value.exit_code) == (kind, 6)
    assert os.strerror(code) in str(refused.value) and str(tmp_path) in str(refused.value)
    assert files(tmp_path) == []


def test_data_is_flushed_before_its_name_and_its_name_before_success(tmp_path, monkeypatch):
    done = []

    def watched(name, real):
        def call(*args, **kwargs):
            target = Path(f"/proc/self/fd/{args[0]}").readlink() if name == "fsync" else args[1]
            done.append((name, str(target)))
            return real(*args, **kwargs)

        return call

    (tmp_path / "a").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(os, "fsync", watched("fsync", os.fsync))
    monkeypatch.setattr(os, "link", watched("link", os.link))
    path = tmp_path / "a" / "b"
    atomic_files.write_once(tmp_path, path, b"x")
    assert [name for name, _ in done] == ["fsync", "link", "fsync"]
    assert done[0][1].startswith(str(tmp_path / "tmp"))
    assert done[1:] == [("link", str(path)), ("fsync", str(tmp_path / "a"))]
    done.clear()
    assert not atomic_files.write_once(tmp_path, path, b"y")
    assert done[-1] == ("fsync", str(tmp_path / "a")), "the loser builds on the winner's file"
    done.clear()
    atomic_files.write_once(tmp_path, tmp_path / "c" / "d", b"x")
    assert ("fsync", str(tmp_path)) in done, "a new folder is an entry in its parent"


def test_a_link_whose_reply_was_lost_counts(tmp_path, monkeypatch):
    real = os.link

    def link(source, target):
        real(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")  # So a repeated NFS call ends.

    monkeypatch.setattr(os, "link", link)
    assert atomic_files.write_once(tmp_path, tmp_path / "a", b"x")
    monkeypatch.setattr(os, "link", real)
    assert not atomic_files.write_once(tmp_path, tmp_path / "a", b"y")


def test_of_racing_processes_one_wins(store, kit, nursery):
    for turn in range(6):
        at = time.time() + 0.15
        children = [nursery.start("put", store.url, f"games/x{turn}", str(i), at) for i in range(8)]
        assert nursery.wait(*children) == [0] * 8
        said = [child.said() for child in children]
        assert sorted(said) == [["0"]] * 7 + [["1"]]
        winner = said.index(["1"])
        assert store.get(f"games/x{turn}") == str(winner).encode() * 5000
    assert kit.paths(store, "tmp") == []


def test_replace_is_whole_and_the_newest_wins(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file"
    atomic_files.replace(path, b"one")
    atomic_files.replace(path, b"two")
    assert path.read_bytes() == b"two"
    for call in ("write", "fsync"):
        with monkeypatch.context() as patch:
            fail(patch, call, errno.ENOSPC)
            with pytest.raises(StorageError) as full:
                atomic_files.replace(path, b"three")
        assert full.value.kind == "no-space"
        assert path.read_bytes() == b"two" and files(tmp_path) == ["deep/file"]


def test_a_path_below_a_file_is_refused(tmp_path):
    atomic_files.write_once(tmp_path, tmp_path / "a", b"x")
    with pytest.raises(StorageError) as refused:
        atomic_files.write_once(tmp_path, tmp_path / "a" / "b", b"x")
    assert refused.value.kind == "unavailable"


def test_a_disk_that_fills_at_every_write_loses_nothing(store, kit, monkeypatch):
    """P10 with every flush of two commits in turn."""
    meta, arrays = kit.remember(0)
    described, array = kit.fake_embedding(meta, kit.key())
    after = 0
    for after in itertools.count(0, 3):
        with monkeypatch.context() as patch:
            fail(patch, "fsync", errno.ENOSPC, after)
            try:
                writer.commit_segment(store, meta, arrays)
                writer.commit_embedding(store, described, array)
                break
            except StorageError as full:
                assert full.kind == "no-space"
        report = verify(store)
        assert not report.damage and not kit.paths(store, "tmp")
        kit.check_whole(take_snapshot(store), [meta], [kit.key()])
    assert after > 30
    assert kit.check_whole(take_snapshot(store), [meta], [kit.key()]) == 3
    assert verify(store).leftovers == 0


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MB; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_small_disk_fills_and_is_used_again(small_disk, kit):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (400 << 10))
    store = kit.open_store(str(small_disk / "store"), create=True)
    made = []
    with pytest.raises(StorageError) as full:
        for number in range(100):
            made.append(kit.remember(number, height=40, width=40))
            writer.commit_segment(store, *made[-1])
    assert full.value.kind == "no-space" and full.value.exit_code == 6
    assert 1 < len(made) < 100
    metas = [meta for meta, _ in made]
    # The last one's frames may have found room before its rows did not.
    seen = kit.check_whole(take_snapshot(store), metas, [])
    assert seen in (2 * len(made) - 2, 2 * len(made) - 1)
    assert not verify(store).damage and not kit.paths(store, "tmp")
    ballast.unlink()
    assert writer.commit_segment(store, *made[-1])
    assert kit.check_whole(take_snapshot(store), metas, []) == 2 * len(made)
    report = verify(store)
    assert (report.damage, report.leftovers) == ((), 0)


def test_conflicts_are_not_storage_errors():
    with pytest.raises(ConflictError), atomic_files.storage_errors(Path("x")):
        raise ConflictError("other-bytes", "unchanged on its way")
