"""A store in a folder: nothing leads out of it, and a failing disk is an error."""

import errno
import os

import pytest

from wsa.store.backends.local import LocalBackend
from wsa.store.backends.open import open_backend
from wsa.store.common.errors import DamagedError, StorageError, UsageError


@pytest.fixture
def outside(tmp_path):
    """A folder beside the store, which must stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(b"secret")
    yield folder
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert (folder / "secret").read_bytes() == b"secret"


def test_no_path_and_no_link_leads_out_of_the_store(store, kit, outside):
    games = store.root / "games"
    games.mkdir()
    (games / "link").symlink_to(outside)
    (games / "file").symlink_to(outside / "secret")
    (games / "loop").symlink_to("loop")
    for path in (
        "../outside/secret",
        str(outside / "secret"),
        "games/../../outside/secret",
        "games/link/secret",
        "games/file",
        "games/a\0b",
    ):
        for verb in (store.get, store.stat, store.delete, lambda p: store.put_new(p, b"x")):
            with pytest.raises(DamagedError, match="leads out of the store"):
                verb(path)
    with pytest.raises((DamagedError, StorageError)):
        store.get("games/loop")
    for folder in ("games/link", ".."):
        with pytest.raises(DamagedError):
            kit.paths(store, folder)
    assert not any("secret" in path for path in kit.paths(store, ""))


def test_temporary_files_stay_in_the_store(store, outside):
    (store.root / "tmp").rename(store.root / "old")
    (store.root / "tmp").symlink_to(outside)
    with pytest.raises(DamagedError):
        store.put_new("games/x", b"x")


def test_the_root_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "name").symlink_to("real")
    backend = LocalBackend(tmp_path / "name")
    assert backend.put_new("a/b", b"x") and backend.get("a/b") == b"x"
    assert backend.url == str(tmp_path / "name")


@pytest.mark.timeout(20)
def test_pipes_folders_and_dangling_links_are_no_files(store):
    games = store.root / "games"
    games.mkdir()
    os.mkfifo(games / "pipe")  # Reading it would block forever.
    (games / "folder").mkdir()
    (games / "nowhere").symlink_to("nothing")
    for name in ("pipe", "folder", "nowhere"):
        assert store.stat(f"games/{name}") is None
        with pytest.raises(FileNotFoundError):
            store.get(f"games/{name}")
    store.delete("games/folder")
    assert (games / "folder").is_dir()


def test_a_listing_is_whole_or_an_error(store, kit, monkeypatch):
    store.put_new("commits/aa/x", b"x")
    store.put_new("commits/bb/y", b"y")
    scandir = os.scandir

    def fail_for_one(path):
        if str(path).endswith("bb"):
            raise OSError(errno.EIO, "Input/output error")
        return scandir(path)

    assert len(kit.paths(store, "commits")) == 2
    monkeypatch.setattr(os, "scandir", fail_for_one)
    with pytest.raises(StorageError) as failed:
        kit.paths(store, "commits")
    assert failed.value.kind == "unavailable"
    assert kit.paths(store, "nothing") == []


@pytest.mark.parametrize("verb", ["get", "stat", "delete"])
def test_a_failing_disk_is_a_storage_error(store, monkeypatch, verb):
    store.put_new("a", b"x")

    def fail(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    # Resolving a path only reads links; the verb itself fails.
    monkeypatch.setattr("wsa.store.backends.local._length", fail)
    monkeypatch.setattr("pathlib.Path.unlink", fail)
    with pytest.raises(StorageError) as failed:
        getattr(store, verb)("a")
    assert failed.value.kind == "unavailable" and "Input/output error" in str(failed.value)


def test_a_folder_is_named_by_its_path_or_a_file_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_backend(str(tmp_path)).url == str(tmp_path)
    assert open_backend(f"file://{tmp_path}").url == str(tmp_path)
    assert open_backend("lab").url == str(tmp_path / "lab")
    assert open_backend("~/lab").url == str(tmp_path / "home" / "lab")


@pytest.mark.parametrize("url", ["ftp://bucket/wsa", "", "file://lab/wsa", "file://", "http://x/y"])
def test_other_urls_are_refused(url):
    with pytest.raises(UsageError) as refused:
        open_backend(url)
    assert refused.value.kind == "bad-option" and "/lab/wsa" in str(refused.value)
