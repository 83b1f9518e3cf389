"""Starting and opening a store: `wsa.json` is written once, and nothing else counts as a store."""

import time

import pytest

from wsa.store.common.errors import ConflictError, DamagedError, MissingError, UsageError, WsaError
from wsa.store.objects.root import open_store


def check_refused(error, kind, exit_code, url, **options):
    """Opening raises this error; its message."""
    with pytest.raises(error) as refused:
        open_store(str(url), **options)
    assert (refused.value.kind, refused.value.exit_code) == (kind, exit_code)
    return str(refused.value)


def test_a_store_is_created_only_on_request_and_only_once(tmp_path):
    url = tmp_path / "a" / "store"
    check_refused(MissingError, "no-store", 3, url)
    assert not url.exists(), "asking for a store does not create one"
    open_store(str(url), create=True)
    for create in (True, False):
        assert open_store(str(url), create=create).url == str(url)
    assert (url / "wsa.json").read_bytes() == b'{"format":1}'


def test_an_empty_folder_may_become_a_store(tmp_path):
    assert "wsa collect" in check_refused(MissingError, "no-store", 3, tmp_path)
    # Such a file remains when the process that starts a store is killed.
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "0123").write_text("{")
    check_refused(MissingError, "no-store", 3, tmp_path)
    assert open_store(str(tmp_path), create=True)


@pytest.mark.parametrize("create", [True, False])
def test_files_and_folders_of_others_are_no_store(tmp_path, create):
    file = tmp_path / "thesis.tex"
    file.write_text("x")
    message = check_refused(MissingError, "no-store", 3, tmp_path, create=create)
    assert "empty folder" in message
    check_refused(MissingError, "no-store", 3, file, create=create)
    check_refused(MissingError, "no-store", 3, file / "below", create=create)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert file.read_text() == "x"
    check_refused(UsageError, "bad-option", 2, "ftp://host/wsa", create=create)


def test_many_processes_may_start_the_same_store_at_once(tmp_path, nursery):
    for turn in range(2):
        url = str(tmp_path / f"s{turn}" / "store")
        at = time.time() + 0.15
        children = [nursery.start("start_store", url, at) for _ in range(8)]
        assert nursery.wait(*children) == [0] * 8
        assert len(list(open_store(url).list("games"))) == 8


@pytest.mark.parametrize("content", [b'{"format":2}', b'{"format":0,"x":[]}'])
def test_another_format_is_a_conflict(store, content):
    (store.root / "wsa.json").write_bytes(content)
    for create in (True, False):
        message = check_refused(ConflictError, "other-format", 4, store.url, create=create)
        assert "reads format 1" in message
    assert (store.root / "wsa.json").read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"format":"1"}',
        b'{"format":1',
        b"\xff\xfe",
        b'{"format":1.5}',
        b'{"format":null}',
        b'{"format":1,"x":' + b"[" * 100_000,
        b'{"format":1}' + b" " * (5 << 20),
    ],
    ids=lambda content: f"{content[:16]!r} of {len(content)} bytes",
)
def test_a_damaged_root_is_reported_and_left_alone(store, content):
    (store.root / "wsa.json").write_bytes(content)
    message = check_refused(DamagedError, "bad-record", 5, store.url, create=True)
    assert "wsa.json" in message
    assert (store.root / "wsa.json").read_bytes() == content


def test_a_huge_root_is_not_read(store):
    with (store.root / "wsa.json").open("wb") as file:
        file.truncate(1 << 40)  # Holes take no room on the disk, but would in memory.
    check_refused(DamagedError, "bad-record", 5, store.url)


def test_every_flipped_bit_of_the_root_is_found(store):
    file = store.root / "wsa.json"
    whole = file.read_bytes()
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        with pytest.raises(WsaError) as refused:
            open_store(store.url)
        assert refused.value.exit_code in (4, 5)
