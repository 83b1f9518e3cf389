from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsa.store.backends.local import LocalBackend
from wsa.store.backends.open import open_backend
from wsa.store.common.errors import DamagedError, StorageError, UsageError

# As in a store, no path is ever both a file and a folder.
PATHS = st.builds(
    "".join, st.tuples(st.sampled_from(["", "x/", "x/y/"]), st.sampled_from(["a", "b", "xa"]))
)


@settings(max_examples=settings().max_examples // 3)
@given(st.lists(st.tuples(st.sampled_from(["put", "delete", "get"]), PATHS, st.binary(max_size=9))))
def test_the_five_verbs_are_a_dictionary_that_does_not_overwrite(tmp_path_factory, calls):
    backend = LocalBackend(tmp_path_factory.mktemp("root"))
    model: dict[str, bytes] = {}
    for verb, path, data in calls:
        if verb == "put":
            assert backend.put_new(path, data) == (path not in model)
            model.setdefault(path, data)
        elif verb == "delete":
            backend.delete(path)
            model.pop(path, None)
        elif path in model:
            assert backend.get(path) == model[path]
        else:
            with pytest.raises(FileNotFoundError):
                backend.get(path)
        assert backend.stat(path) == (len(model[path]) if path in model else None)
        for folder in ("", "x", "x/y", "z"):
            inside = {file for file in model if not folder or file.startswith(folder + "/")}
            found = [(entry.path, entry.bytes) for entry in backend.list(folder)]
            assert sorted(found) == sorted((file, len(model[file])) for file in inside)


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(b"secret")
    return folder


def test_nothing_leads_out_of_the_store(store, kit, outside):
    root = store.root
    (root / "games").mkdir()
    (root / "games" / "link").symlink_to(outside)
    (root / "games" / "file").symlink_to(outside / "secret")
    (root / "games" / "loop").symlink_to("loop")
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
    with pytest.raises(DamagedError):
        kit.paths(store, "games/link")
    with pytest.raises(DamagedError):
        kit.paths(store, "..")
    assert not any("secret" in path for path in kit.paths(store, ""))
    assert [p.name for p in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


def test_temporary_files_do_not_leave_the_store_either(store, outside):
    (store.root / "tmp").rename(store.root / "old")
    (store.root / "tmp").symlink_to(outside)
    with pytest.raises(DamagedError):
        store.put_new("games/x", b"x")
    assert [p.name for p in outside.iterdir()] == ["secret"]


def test_the_root_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "name").symlink_to("real")
    backend = LocalBackend(tmp_path / "name")
    assert backend.put_new("a/b", b"x") and backend.get("a/b") == b"x"
    assert backend.url == str(tmp_path / "name")


@pytest.mark.timeout(20)
def test_what_is_no_plain_file_is_no_file(store):
    (store.root / "games").mkdir()
    os.mkfifo(store.root / "games" / "pipe")  # Reading it would wait for ever.
    (store.root / "games" / "folder").mkdir()
    (store.root / "games" / "nowhere").symlink_to("nothing")
    for name in ("pipe", "folder", "nowhere"):
        assert store.stat(f"games/{name}") is None
        with pytest.raises(FileNotFoundError):
            store.get(f"games/{name}")
    store.delete("games/folder")
    assert (store.root / "games" / "folder").is_dir()


def test_a_listing_is_whole_or_an_error(store, kit, monkeypatch):
    store.put_new("commits/aa/x", b"x")
    store.put_new("commits/bb/y", b"y")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("bb"):
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    assert len(kit.paths(store, "commits")) == 2
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(StorageError) as refused:
        kit.paths(store, "commits")
    assert refused.value.kind == "unavailable"
    assert kit.paths(store, "nothing") == []


@pytest.mark.parametrize("verb", ["get", "stat", "delete"])
def test_a_refusing_disk_is_a_storage_error(store, monkeypatch, verb):
    store.put_new("a", b"x")

    def refuse(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    # Resolving a path reads links only; the verb itself fails.
    monkeypatch.setattr("wsa.store.backends.local._length", refuse)
    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(StorageError) as refused:
        getattr(store, verb)("a")
    assert refused.value.kind == "unavailable" and "Input/output error" in str(refused.value)


def test_folders_are_named_by_path_or_file_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_backend(str(tmp_path)).url == str(tmp_path)
    assert open_backend(f"file://{tmp_path}").url == str(tmp_path)
    assert open_backend("lab").url == str(tmp_path / "lab")
    assert open_backend("~/lab").url == str(tmp_path / "home" / "lab")


@pytest.mark.parametrize("url", ["ftp://bucket/wsa", "", "file://lab/wsa", "file://", "http://x/y"])
def test_other_places_are_refused(url):
    with pytest.raises(UsageError) as refused:
        open_backend(url)
    assert refused.value.kind == "bad-option" and "/lab/wsa" in str(refused.value)
