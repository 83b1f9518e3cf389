from __future__ import annotations

import time

import pytest

from wsa.store.common.errors import ConflictError, DamagedError, MissingError, UsageError, WsaError
from wsa.store.objects.root import open_store


def fails(error, kind, exit_code, url, **options):
    with pytest.raises(error) as raised:
        open_store(str(url), **options)
    assert (raised.value.kind, raised.value.exit_code) == (kind, exit_code)
    return str(raised.value)


def test_a_store_is_started_once_and_opened_ever_after(tmp_path):
    fails(MissingError, "no-store", 3, tmp_path / "s")
    assert not (tmp_path / "s").exists(), "asking for a store does not make one"
    open_store(str(tmp_path / "s"), create=True)
    content = (tmp_path / "s" / "wsa.json").read_bytes()
    assert content == b'{"format":1}'
    for create in (True, False):
        assert open_store(str(tmp_path / "s"), create=create).url == str(tmp_path / "s")
    assert (tmp_path / "s" / "wsa.json").read_bytes() == content


def test_a_store_may_be_started_in_an_empty_folder_or_below_none(tmp_path):
    (tmp_path / "empty").mkdir()
    message = fails(MissingError, "no-store", 3, tmp_path / "empty")
    assert "wsa collect" in message
    open_store(str(tmp_path / "empty"), create=True)
    open_store(str(tmp_path / "a" / "b" / "c"), create=True)
    assert open_store(str(tmp_path / "a" / "b" / "c"))


@pytest.mark.parametrize("create", [True, False])
def test_a_folder_with_other_files_is_no_store(tmp_path, create):
    (tmp_path / "thesis.tex").write_text("x")
    message = fails(MissingError, "no-store", 3, tmp_path, create=create)
    assert "empty folder" in message
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_text("x")
    fails(MissingError, "no-store", 3, tmp_path / "file")
    fails(MissingError, "no-store", 3, tmp_path / "file", create=True)
    fails(MissingError, "no-store", 3, tmp_path / "file" / "below", create=True)
    assert (tmp_path / "file").read_text() == "x"


def test_what_a_killed_starter_left_is_no_hindrance(tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "0123").write_text("{")
    fails(MissingError, "no-store", 3, tmp_path)
    assert open_store(str(tmp_path), create=True)


def test_many_may_start_the_same_store_at_once(tmp_path, nursery):
    for turn in range(5):
        at = time.time() + 0.15
        url = str(tmp_path / f"s{turn}" / "store")
        children = [nursery.start("start_store", url, at) for _ in range(8)]
        assert nursery.wait(*children) == [0] * 8
        assert len(list(open_store(url).list("games"))) == 8


@pytest.mark.parametrize("content", [b'{"format":2}', b'{"format":0,"x":[]}'])
def test_another_format_is_a_conflict(store, content):
    (store.root / "wsa.json").write_bytes(content)
    for create in (True, False):
        message = fails(ConflictError, "other-format", 4, store.url, create=create)
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
    ids=lambda c: f"{c[:16]!r} of {len(c)} bytes",
)
def test_a_damaged_root_is_damage(store, content):
    (store.root / "wsa.json").write_bytes(content)
    message = fails(DamagedError, "bad-record", 5, store.url, create=True)
    assert "wsa.json" in message
    assert (store.root / "wsa.json").read_bytes() == content


def test_a_root_of_any_size_is_not_read(store):
    with (store.root / "wsa.json").open("wb") as file:
        file.truncate(1 << 40)  # Holes only: it takes no room, until someone reads it.
    fails(DamagedError, "bad-record", 5, store.url)


def test_stores_are_kept_in_folders_and_buckets_only():
    fails(UsageError, "bad-option", 2, "ftp://host/wsa")


def test_a_flip_in_the_root_is_refused_at_opening(store):
    file = store.root / "wsa.json"
    whole = file.read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            file.write_bytes(data)
            with pytest.raises(WsaError) as refused:
                open_store(store.url)
            assert refused.value.exit_code in (4, 5)
