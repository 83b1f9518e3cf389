"""Publishing a file: it appears whole and flushed under its name, once, or not at all."""

import errno
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsa.store.backends.local import LocalBackend
from wsa.store.common import atomic_files
from wsa.store.common.errors import ConflictError, StorageError

# Calls that put a file into its place.
CALLS = ["open", "write", "fsync", "link", "mkdir"]
KINDS = {
    errno.ENOSPC: "no-space",
    errno.EDQUOT: "no-space",
    errno.EACCES: "no-permission",
    errno.EROFS: "no-permission",
    errno.EIO: "unavailable",
    errno.ESTALE: "unavailable",
}


def list_files(root):
    return sorted(entry.path for entry in LocalBackend(root).list(""))


def make_fail(monkeypatch, call, code):
    """Let a call fail from now on."""
    owner, name = (Path, call) if call in ("open", "mkdir") else (os, call)
    if call == "write":
        owner, name = atomic_files, "_write"

    def failing(*args, **kwargs):
        if call == "write":
            args[0].write_bytes(args[1][: len(args[1]) // 2])  # The disk fills halfway.
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(owner, name, failing)


@settings(max_examples=settings().max_examples // 3)
@given(st.binary(max_size=5000), st.binary(max_size=5000))
def test_the_first_writer_of_a_name_wins(tmp_path_factory, first, second):
    root = tmp_path_factory.mktemp("root")
    path = root / "a" / "b" / "c"
    assert atomic_files.write_once(root, path, first)
    assert not atomic_files.write_once(root, path, second)
    assert path.read_bytes() == first
    assert list_files(root) == ["a/b/c"]


def test_a_missing_root_is_not_made(tmp_path):
    """A store that was moved or unmounted must not appear to be an empty one."""
    root = tmp_path / "store"
    with pytest.raises(StorageError, match="mounted") as failed:
        atomic_files.write_once(root, root / "a" / "b", b"x")
    assert failed.value.kind == "unavailable"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code", KINDS)
def test_a_failing_disk_leaves_no_file(tmp_path, monkeypatch, call, code):
    path = tmp_path / "a" / "b"
    with monkeypatch.context() as patch:
        make_fail(patch, call, code)
        with pytest.raises(StorageError) as failed:
            atomic_files.write_once(tmp_path, path, b"x" * 100)
    assert (failed.value.kind, failed.value.exit_code) == (KINDS[code], 6)
    message = str(failed.value)
    if failed.value.kind == "no-space":
        assert "free some space" in message
    else:
        assert os.strerror(code) in message and str(tmp_path) in message
    assert list_files(tmp_path) == []
    assert atomic_files.write_once(tmp_path, path, b"x" * 100)


def test_data_is_flushed_before_its_name_and_its_name_before_success(tmp_path, monkeypatch):
    calls = []

    def watch(name, real):
        def call(*args, **kwargs):
            target = Path(f"/proc/self/fd/{args[0]}").readlink() if name == "fsync" else args[1]
            calls.append((name, str(target)))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    (tmp_path / "a").mkdir()
    (tmp_path / "tmp").mkdir()
    watch("fsync", os.fsync)
    watch("link", os.link)
    path = tmp_path / "a" / "b"
    atomic_files.write_once(tmp_path, path, b"x")
    assert calls[0][0] == "fsync" and calls[0][1].startswith(str(tmp_path / "tmp"))
    assert calls[1:] == [("link", str(path)), ("fsync", str(tmp_path / "a"))]
    calls.clear()
    assert not atomic_files.write_once(tmp_path, path, b"y")
    assert calls[-1] == ("fsync", str(tmp_path / "a")), "the loser relies on the winner's file"
    calls.clear()
    atomic_files.write_once(tmp_path, tmp_path / "c" / "d", b"x")
    assert ("fsync", str(tmp_path)) in calls, "a new folder is an entry in its parent"


def test_a_link_whose_reply_was_lost_counts(tmp_path, monkeypatch):
    link = os.link

    def link_and_repeat(source, target):
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")  # As NFS does when it repeats a call.

    monkeypatch.setattr(os, "link", link_and_repeat)
    assert atomic_files.write_once(tmp_path, tmp_path / "a", b"x")
    monkeypatch.setattr(os, "link", link)
    assert not atomic_files.write_once(tmp_path, tmp_path / "a", b"y")


def test_one_of_several_processes_wins(store, kit, nursery):
    """P3 for a single file."""
    for turn in range(3):
        at = time.time() + 0.15
        children = [nursery.start("put", store.url, f"games/x{turn}", str(i), at) for i in range(8)]
        assert nursery.wait(*children) == [0] * 8
        replies = [child.said() for child in children]
        assert sorted(replies) == [["0"]] * 7 + [["1"]]
        winner = replies.index(["1"])
        assert store.get(f"games/x{turn}") == str(winner).encode() * 5000
    assert kit.paths(store, "tmp") == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file"
    for data in (b"one", b"two"):
        atomic_files.replace(path, data)
    for call in ("write", "fsync"):
        with monkeypatch.context() as patch:
            make_fail(patch, call, errno.ENOSPC)
            with pytest.raises(StorageError) as full:
                atomic_files.replace(path, b"three")
        assert full.value.kind == "no-space"
        assert path.read_bytes() == b"two" and list_files(tmp_path) == ["deep/file"]


def test_a_path_below_a_file_is_refused(tmp_path):
    atomic_files.write_once(tmp_path, tmp_path / "a", b"x")
    with pytest.raises(StorageError) as refused:
        atomic_files.write_once(tmp_path, tmp_path / "a" / "b", b"x")
    assert refused.value.kind == "unavailable"
    for publish in (
        lambda: atomic_files.replace(tmp_path / "a" / "b", b"x"),
        lambda: atomic_files.replace(tmp_path / "a" / "b" / "c", b"x"),
        lambda: atomic_files.require_writable(tmp_path / "a"),
    ):
        with pytest.raises(StorageError, match="a is a file, but a folder is needed there"):
            publish()


def test_errors_of_wsa_pass_through_unchanged():
    with pytest.raises(ConflictError), atomic_files.storage_errors(Path("x")):
        raise ConflictError("other-bytes", "unchanged")
