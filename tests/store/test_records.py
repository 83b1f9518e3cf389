"""Commit records: they round-trip, every changed byte is found, and forged ones are refused."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsa.store.common import hashing, names
from wsa.store.common.errors import ConflictError, DamagedError
from wsa.store.format import records
from wsa.store.format.records import (
    Commit,
    EmbeddingMeta,
    File,
    FramesMeta,
    ModelMeta,
    Protocol,
    SegmentMeta,
)

HEX = st.text("0123456789abcdef", min_size=12, max_size=12)
COUNT = st.integers(0, 2**62 - 1)
# No files can hold more frames.
FRAMES = st.integers(0, 30_000)
TEXT = st.text(max_size=20)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
GAME = st.sampled_from(["Pong", "Seaquest", "MsPacman"])
SEGMENT = st.builds(
    names.make_segment, HEX, st.integers(0, 999), st.integers(0, 10**9 - 1), st.integers(1, 65536)
)
MODEL = st.builds("{}-{}".format, st.sampled_from(["vit", "lite0", "con_x"]), HEX)

PROTOCOL = st.builds(Protocol, name=TEXT, sticky=FLOAT, actions=st.lists(TEXT).map(tuple))
SEGMENT_META = st.builds(
    SegmentMeta,
    game=GAME,
    segment=SEGMENT,
    run=HEX,
    **dict.fromkeys(("env", "start", "steps"), COUNT),
    rows=st.integers(0, 10**6),
    frames=FRAMES,
    episodes=st.lists(st.tuples(st.integers(0, 2**40), FLOAT), max_size=3).map(tuple),
    protocol=PROTOCOL,
)
FRAMES_META = st.builds(
    FramesMeta,
    game=GAME,
    segment=SEGMENT,
    frames=FRAMES,
    height=st.integers(0, 250),
    width=st.just(160),
    indexed=st.booleans(),
)
EMBEDDING_META = st.builds(
    EmbeddingMeta,
    game=GAME,
    segment=SEGMENT,
    model=MODEL,
    shape=st.lists(st.integers(0, 100), max_size=4).map(tuple),
    dtype=st.sampled_from(["float16", "float32"]),
    passes=COUNT,
    copied=COUNT,
    seconds=st.floats(0, allow_nan=False, allow_infinity=False),
)
META = st.one_of(FRAMES_META, SEGMENT_META, EMBEDDING_META, st.builds(ModelMeta, model=MODEL))


def commit_of(meta, command="wsa encode", files=("zarr.json", "c.0.0"), **changes):
    commit = Commit(
        version=1,
        meta=meta,
        attempt="0123456789abcdef",
        files=tuple(File(name, len(name), "0" * 64) for name in files),
        author="ann@lab",
        time="2026-11-22T10:00:00+00:00",
        command=command,
    )
    return msgspec.structs.replace(commit, **changes)


def where(commit):
    return names.commit_path(commit.id)


@given(META, TEXT)
def test_a_record_round_trips(meta, command):
    commit = commit_of(meta, command)
    data = records.write_commit(commit)
    back = records.read_commit(data, where(commit))
    assert back == records.seal(commit)
    assert back.meta == meta and back.path == records.meta_path(meta)
    assert back.folder == f"{back.path}/{commit.attempt}"
    assert back.bytes == sum(len(file.name) for file in commit.files)
    assert records.write_commit(back) == data


@given(META, st.data())
def test_a_changed_byte_is_found(meta, data):
    commit = commit_of(meta)
    written = bytearray(records.write_commit(commit))
    at = data.draw(st.integers(0, len(written) - 1))
    written[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamagedError) as damaged:
        records.read_commit(bytes(written), where(commit))
    assert damaged.value.kind == "bad-record" and damaged.value.exit_code == 5


def test_every_flipped_bit_is_found(fake_segment):
    # `e` and `E` in an exponent differ in one bit, and mean the same number.
    meta = msgspec.structs.replace(fake_segment()[0], episodes=((3, 1e300), (4, 0.1)))
    commit = commit_of(meta)
    data = records.write_commit(commit)
    assert b"1e300" in data
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(DamagedError):
                records.read_commit(bytes(flipped), where(commit))


@given(META, st.data())
def test_a_record_that_is_cut_or_longer_is_refused(meta, data):
    commit = commit_of(meta)
    written = records.write_commit(commit)
    cut = written[: data.draw(st.integers(0, len(written) - 1))]
    for other in (cut, written + b" ", written + written, b"\xff" + written):
        with pytest.raises(DamagedError):
            records.read_commit(other, where(commit))


@given(META, META)
def test_a_record_at_another_path_is_refused(meta, other):
    commit, elsewhere = commit_of(meta), commit_of(other)
    if where(commit) == where(elsewhere):
        return
    with pytest.raises(DamagedError, match="it belongs at"):
        records.read_commit(records.write_commit(commit), where(elsewhere))


def forge(commit, change):
    """A record changed by someone who can recompute its checksum."""
    content = json.loads(records.write_commit(commit))
    change(content)
    content["check"] = ""
    content["check"] = hashing.checksum(hashing.canonical(content))
    return hashing.canonical(content)


def put(*path, value):
    def change(content):
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = value

    return change


FORGED = {
    "unknown field": put("color", value="red"),
    "unknown field within": put("meta", "color", value=1),
    "unknown kind": put("meta", "type", value="pickle"),
    "number for text": put("author", value=1),
    "negative rows": put("meta", "rows", value=-1),
    "rows beyond all memory": put("meta", "rows", value=2**62),
    "a real number of rows": put("meta", "rows", value=1.5),
    "game outside": put("meta", "game", value="../../etc"),
    "segment outside": put("meta", "segment", value=".."),
    "negative length": put("files", 0, "bytes", value=-5),
    "file elsewhere": put("files", 0, "name", value="/wsa.json"),
    "file above": put("files", 0, "name", value="c/../../../y"),
    "endless name": put("files", 0, "name", value="x" * 201),
    "path for name": put("files", 0, "path", value="zarr.json"),
    "no attempt": lambda content: content.pop("attempt"),
    "empty attempt": put("attempt", value=""),
    "attempt above": put("attempt", value="../../../../wsa."),
    "attempt in large letters": put("attempt", value="0123456789ABCDEF"),
    "attempt with a line end": put("attempt", value="0123456789abcdef\n"),
    "short attempt": put("attempt", value="0123456789abcde"),
    "long attempt": put("attempt", value="0123456789abcdef0"),
    "list for record": lambda content: content.__setitem__("meta", []),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_records_are_refused(fake_segment, name):
    commit = commit_of(fake_segment()[0])
    assert records.read_commit(forge(commit, lambda _: None), where(commit)).meta == commit.meta
    with pytest.raises(DamagedError) as damaged:
        records.read_commit(forge(commit, FORGED[name]), where(commit))
    assert damaged.value.kind == "bad-record"


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("dtype", ["object", "float64", "string", "float16\n", "S999999999", ""]),
        ("seconds", [-1, -1e-300, None, "1", True]),
    ],
)
def test_a_forged_field_of_embeddings_is_refused(kit, field, values):
    segment = kit.fake_segment()[0].segment
    meta = EmbeddingMeta("Pong", segment, kit.key(), (2, 3), "float16", 2, 0, 0.5)
    commit = commit_of(meta)
    for value in values:
        with pytest.raises(DamagedError, match=field):
            records.read_commit(forge(commit, put("meta", field, value=value)), where(commit))


STRANGE = ["", "/", "/etc/passwd", "a//b", "./a", "a/..", "../a", "a/./b", "..a", ".hidden"]
STRANGE += ["a\\b", "a\0b", "a\nb", "a b", "a/", "é", "c.0\n", "x" * 500]


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_file_name_is_refused(fake_segment, name):
    commit = commit_of(fake_segment()[0], files=(name,))
    with pytest.raises(DamagedError):
        records.read_commit(records.write_commit(commit), where(commit))


@given(st.text(max_size=40))
def test_no_accepted_file_path_leaves_its_object(kit, tmp_path_factory, name):
    commit = commit_of(kit.fake_segment()[0], files=(name,))
    try:
        records.read_commit(records.write_commit(commit), where(commit))
    except DamagedError:
        return
    root = tmp_path_factory.getbasetemp().resolve()
    file = (root / commit.folder / commit.files[0].name).resolve()
    assert file.is_relative_to(root / commit.folder) and file != root / commit.folder


@pytest.mark.parametrize("extra", [{}, {"color": "red"}, {"meta": {"type": "dream"}}])
def test_a_later_version_is_refused_with_the_advice_to_update(fake_segment, extra):
    commit = commit_of(fake_segment()[0])
    content = {**json.loads(records.write_commit(commit)), "version": 2, **extra, "check": ""}
    content["check"] = hashing.checksum(hashing.canonical(content))
    with pytest.raises(ConflictError, match=r"version 2.*Update wsa"):
        records.read_commit(hashing.canonical(content), where(commit))


DEEP = b"[" * 200_000 + b"]" * 200_000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"null",
        b"[]",
        b"{}",
        b'{"version":1}',
        b'{"version":true}',
        b'{"version":' + b"9" * 5000 + b"}",
        DEEP,
        b'{"version":1,"meta":' + DEEP + b"}",
        b'{"version":1,"x":' + DEEP + b"}",
        b'{"version":2,"x":' + DEEP + b"}",
        b'{"a":' * 100_000,
        b'{"version":1}' + b" " * records.MAX_RECORD_BYTES,
    ],
    ids=lambda data: f"{data[:14]!r} of {len(data)} bytes",
)
def test_other_content_is_refused(data):
    with pytest.raises(DamagedError) as damaged:
        records.read_commit(data, "commits/00/00.json")
    assert damaged.value.kind == "bad-record"
    assert len(str(damaged.value)) < 1000


def test_a_record_prints_as_plain_json(fake_segment):
    plain = msgspec.to_builtins(commit_of(fake_segment()[0]))
    assert json.loads(json.dumps(plain))["meta"]["game"] == "Pong"


def test_only_one_thread_makes_the_decoder_of_a_type(monkeypatch):
    """msgspec crashed when several threads were the first to decode a type."""
    kinds: list[Any] = [
        msgspec.defstruct(f"Kind{i}", [("inner", msgspec.defstruct(f"Inner{i}", [("x", int)]))])
        for i in range(10)
    ]
    at_once, most = 0, 0
    real = msgspec.json.Decoder

    def counted(kind):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.001)
        at_once -= 1
        return real(kind)

    monkeypatch.setattr(msgspec.json, "Decoder", counted)
    with ThreadPoolExecutor(8) as pool:
        for kind in kinds:
            found = pool.map(
                lambda _, k=kind: records.read_json(b'{"inner":{"x":1}}', k, "f"), range(8)
            )
            assert {one.inner.x for one in found} == {1}
    assert most == 1
