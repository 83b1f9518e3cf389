"""A local cache of records saves reading them again, and is never trusted."""

import sqlite3
import time

import pytest

from wsa.store.common import names
from wsa.store.common.errors import DamagedError
from wsa.store.format.records import ModelMeta
from wsa.store.objects import record_cache, writer
from wsa.store.objects import snapshot as reader
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.testing.faults import FaultyBackend, MemoryBackend


@pytest.fixture
def store(in_memory):
    return in_memory


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("WSA_CACHE", str(folder))
    return folder


COUNT = record_cache.WORTHWHILE + 2


@pytest.fixture(scope="module")
def template(kit):
    backend = MemoryBackend()
    add_models(kit, backend, range(COUNT))
    return backend.files


@pytest.fixture
def many(template):
    """A store with two records more than a cache is worthwhile for."""
    backend = MemoryBackend()
    backend.files = dict(template)
    return backend


def add_models(kit, backend, numbers):
    """Commit models, each of one small file."""
    for number in numbers:
        writer.commit_model(backend, ModelMeta(kit.key(f"m{number}")), {"spec.json": b"{}"})


def record_of(kit, number):
    return names.commit_path(kit.hashing.object_id(names.model_path(kit.key(f"m{number}"))))


def read_commits(backend, earlier=None):
    """The commits of a new snapshot, and the files that were read for it."""
    counted = FaultyBackend(backend)
    snapshot = take_snapshot(counted, earlier)
    return snapshot.commits, sorted(c.path for c in counted.calls if c.verb == "get")


def cache_file(cache):
    (file,) = (cache / "catalog").iterdir()
    return file


def test_records_are_read_once(kit, many, cache):
    records = sorted(entry.path for entry in many.list("commits"))
    commits, read = read_commits(many)
    assert read == records and len(commits) == len(records) == COUNT
    assert read_commits(many) == (commits, [])
    add_models(kit, many, [1000])
    grown, read = read_commits(many)
    assert read == [record_of(kit, 1000)] and len(grown) == len(commits) + 1
    assert read_commits(many) == (grown, [])
    # Records of an earlier snapshot are not looked up either.
    earlier = take_snapshot(many)
    cache_file(cache).unlink()
    assert read_commits(many, earlier) == (grown, [])
    assert not list((cache / "catalog").iterdir())


def test_few_records_are_not_cached(kit, many, cache):
    backend = many
    for number in range(3):
        backend.delete(record_of(kit, number))
    for _ in range(2):
        assert len(read_commits(backend)[1]) == record_cache.WORTHWHILE - 1
    assert not cache.exists()


def test_each_store_has_its_own_cache(kit, many, cache):
    other = MemoryBackend("memory://other", lambda: 7.0)
    for path, (data, _) in many.files.items():
        other.put_new(path, data)
    take_snapshot(many)
    assert len(read_commits(other)[1]) == COUNT
    assert len(list((cache / "catalog").iterdir())) == 2


def test_removed_and_replaced_records_are_noticed(kit, many):
    before, _ = read_commits(many)
    many.delete(record_of(kit, 3))
    commits, read = read_commits(many)
    assert len(commits) == len(before) - 1 and read == []
    many.delete(record_of(kit, 4))
    add_models(kit, many, [4])
    commits, read = read_commits(many)
    assert read == [record_of(kit, 4)]
    model = names.model_path(kit.key("m4"))
    assert commits[model].attempt != before[model].attempt
    many.delete(record_of(kit, 4))
    # A record may disappear between the listing and its reading.
    listed = [*many.list(""), reader.Entry(record_of(kit, 4), 500, 1.0)]
    many.list = lambda prefix: iter([e for e in listed if e.path.startswith(prefix)])
    assert model not in read_commits(many)[0]


def test_a_damaged_record_is_not_cached(kit, many, cache):
    path = record_of(kit, 9)
    data, moment = many.files[path]
    many.files[path] = data[:-1] + b" ", moment
    for _ in range(2):
        with pytest.raises(DamagedError, match=path):
            take_snapshot(many)
    many.files[path] = data, moment
    assert len(read_commits(many)[0]) == COUNT


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])


def flip_all(file):
    file.write_bytes(bytes(byte ^ 0x10 for byte in file.read_bytes()))


def flip_some(file):
    data = bytearray(file.read_bytes())
    for at in range(2000, len(data), 97):
        data[at] ^= 1
    file.write_bytes(data)


def make_folder(file):
    file.unlink()
    file.mkdir()


def replace_folder(file):
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("no folder")


def execute(*statements):
    def change(file):
        with sqlite3.connect(file) as database:
            for statement in statements:
                database.execute(statement)
        database.close()

    return change


BROKEN = {
    "emptied": lambda file: file.write_bytes(b""),
    "noise": lambda file: file.write_bytes(b"noise" * 5000),
    "cut": truncate,
    "every byte changed": flip_all,
    "some bytes changed": flip_some,
    "a folder": make_folder,
    "in no folder": replace_folder,
    "another table": execute("DROP TABLE record", "CREATE TABLE record (path TEXT, more TEXT)"),
    "no table": execute("DROP TABLE record"),
    "numbers for records": execute("UPDATE record SET data = 5"),
    "text for records": execute("UPDATE record SET data = CAST(data AS TEXT)"),
    "nothing for records": execute("UPDATE record SET data = NULL, bytes = NULL"),
    "times as text": execute("UPDATE record SET modified = 'x'"),
    "damaged records": execute("UPDATE record SET data = CAST(substr(data, 2) AS BLOB)"),
    "records of other objects": execute(
        "UPDATE record SET data = (SELECT data FROM record LIMIT 1)"
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_cache_changes_no_result(kit, many, cache, how):
    whole, _ = read_commits(many)
    BROKEN[how](cache_file(cache))
    for _ in range(3):
        assert read_commits(many)[0] == whole
    add_models(kit, many, [1000])
    assert len(read_commits(many)[0]) == len(whole) + 1


@pytest.mark.parametrize("how", ["emptied", "noise", "cut", "every byte changed", "no table"])
def test_a_broken_cache_is_replaced(many, cache, how):
    take_snapshot(many)
    BROKEN[how](cache_file(cache))
    take_snapshot(many)
    take_snapshot(many)
    assert read_commits(many)[1] == []


@pytest.mark.parametrize("call", ["connect", "mkdir"])
def test_a_read_only_cache_changes_no_result(many, cache, monkeypatch, call):
    def refuse(*args, **kwargs):
        raise sqlite3.OperationalError("readonly") if call == "connect" else PermissionError(13)

    target = {"connect": "sqlite3.connect", "mkdir": "pathlib.Path.mkdir"}[call]
    monkeypatch.setattr(target, refuse)
    for _ in range(2):
        commits, read = read_commits(many)
        assert len(commits) == len(read) == COUNT


def test_a_locked_cache_is_not_waited_for(many, cache, monkeypatch):
    whole, _ = read_commits(many)
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: real(path, timeout=0))
    other = real(cache_file(cache))
    other.execute("BEGIN EXCLUSIVE")
    commits, read = read_commits(many)
    assert commits == whole and len(read) == len(whole)
    other.close()
    assert read_commits(many) == (whole, [])


def test_processes_share_a_cache(kit, template, on_disk, cache, nursery):
    for path, (data, _) in template.items():
        on_disk.put_new(path, data)
    at = time.time() + 0.2
    children = [nursery.start("count", on_disk.url, str(cache), at) for _ in range(4)]
    assert nursery.wait(*children) == [0] * 4
    reports = {line for child in children for line in child.said()}
    commits, read = read_commits(on_disk)
    assert read == [] and len(commits) == COUNT
    checks = kit.hashing.identity(sorted(c.check for c in commits.values()))
    assert reports == {f"{len(commits)} {checks}"}


def test_a_store_is_read_without_a_folder_for_the_cache(many, monkeypatch):
    def fail(*_):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("WSA_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_path", fail)
    assert len(take_snapshot(many).commits) == COUNT
