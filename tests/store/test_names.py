"""P8: names have one grammar, and no name outside it becomes a path."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsa.store.backends.local import LocalBackend
from wsa.store.common import hashing, names
from wsa.store.common.errors import UsageError
from wsa.store.maintenance import sweep

PARSERS = (names.game, names.alias, names.model_key, names.segment)

HEX = st.text("0123456789abcdef", min_size=12, max_size=12)
GAMES = st.from_regex(r"\A[A-Z][A-Za-z0-9]{0,63}\Z")
ALIASES = st.from_regex(r"\A[a-z][a-z0-9_]{0,63}\Z")

GOOD = {
    names.game: "Seaquest",
    names.alias: "lite0",
    names.model_key: "lite0-1f0c9b2a7d3e",
    names.segment: "9c41d0a2b7f3-e003-000002048-01024",
}

# A full-width P and a long s, which normalization maps to P and s; the Kelvin sign, whose small
# letter is k; a Cyrillic o.
FOLDED = ["\uff30ong", "\u017fegment", "\u212a", "P\u043eng"]
HOSTILE = [
    *FOLDED, "", ".", "..", "../x", "/etc/passwd", "a/../../b", "Pong/../..", "Pong\0", "Pong\n",
    " Pong", "Pong.", "Pong/", "\\\\host\\share", "C:Pong", "Pong\u202e", "P" + "o" * 299,
    "p" * 300, "CON", "Nul", "COM1", "con", "aux", "lpt9", "aux-1f0c9b2a7d3e", "-rf", "~root",
    "$HOME", "é", "x-1F0C9B2A7D3E", "x-1f0c9b2a7d3", "x-1f0c9b2a7d3e\n",
    "9c41d0a2b7f3-e0003-000002048", "9c41d0a2b7f3-e003-00000204\uff18",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_refused(name):
    for parse in PARSERS:
        with pytest.raises(UsageError) as refused:
            parse(name)
        assert (refused.value.kind, refused.value.exit_code) == ("bad-name", 2)


def test_each_grammar_accepts_only_its_own_names():
    for parse in PARSERS:
        for owner, name in GOOD.items():
            if owner is parse:
                assert parse(name) == name
            else:
                with pytest.raises(UsageError):
                    parse(name)


def is_device(name):
    """Whether Windows reserves the name."""
    stem = name.lower()
    return stem in {"con", "prn", "aux", "nul"} or (
        stem[:3] in {"com", "lpt"} and len(stem) == 4 and stem[3].isdigit()
    )


@given(ALIASES.filter(lambda a: not is_device(a)), HEX)
@example("con_", "0" * 12)
@example("com", "0" * 12)
def test_model_keys_round_trip(alias, digits):
    key = names.make_model_key(alias, digits + "ffff")
    assert key == f"{alias}-{digits}"
    assert names.model_key(key) == key
    assert names.key_alias(key) == alias


@given(HEX, st.integers(0, 999), st.integers(0, 10**9 - 1), st.integers(1, 65536))
def test_segment_ids_round_trip_and_sort_by_start(run, env, start, steps):
    segment = names.make_segment(run, env, start, steps)
    parts = names.segment(segment).split("-")
    assert (parts[0], int(parts[1][1:]), *map(int, parts[2:])) == (run, env, start, steps)
    assert names.make_segment(run, env, 0, 1) <= segment


@pytest.mark.parametrize("env, start", [(1000, 0), (-1, 0), (0, 10**9), (0, -1)])
def test_numbers_that_a_segment_id_cannot_hold_are_refused(env, start):
    with pytest.raises(UsageError):
        names.make_segment("0123456789ab", env, start, 1024)


ANY = st.one_of(
    st.text(max_size=80),
    st.sampled_from([*HOSTILE, *GOOD.values()]),
    st.lists(st.sampled_from(["..", ".", "/", "\\", "\0", "Pong", "lite0", "-", "é"])).map("".join),
    GAMES,
    ALIASES,
)


@settings(max_examples=100)
@given(ANY, ANY, ANY)
def test_no_path_leaves_the_root(tmp_path_factory, game, key, segment):
    check_inside(tmp_path_factory, game, key, segment)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(ANY, ANY, ANY)
def test_none_of_ten_thousand_paths_leaves_the_root(tmp_path_factory, game, key, segment):
    check_inside(tmp_path_factory, game, key, segment)


def check_inside(tmp_path_factory, game, key, segment):
    """Every path that these names give lies in the root, and `sweep` knows whose it is."""
    root = tmp_path_factory.getbasetemp() / "root"
    for make in (
        lambda: names.segment_path(game, segment),
        lambda: names.frames_path(game, segment),
        lambda: names.embedding_path(game, key, segment),
        lambda: names.segment_path(game, GOOD[names.segment]),
        lambda: names.embedding_path("Pong", key, GOOD[names.segment]),
        lambda: names.model_path(key),
    ):
        try:
            path = make()
        except UsageError as refused:
            assert refused.kind == "bad-name"
            continue
        assert (root / path).resolve().is_relative_to(root.resolve())
        assert path.isascii() and path == unicodedata.normalize("NFKC", path)
        assert all(part not in ("", ".", "..") for part in path.split("/"))
        assert max(map(len, path.split("/"))) <= 80
        assert LocalBackend(root)._inside(path) == root / path
        file = f"{path}/{'0' * 16}/zarr.json"
        assert sweep.owner(file) == f"{path}/{'0' * 16}"


@settings(max_examples=100)
@given(ANY, st.text(max_size=30))
def test_sweep_removes_only_paths_that_the_store_would_use(path, name):
    for file in (path, f"{path}/{name}", f"games/{path}/segments/{name}", f"models/{path}/{name}"):
        owner = sweep.owner(file)
        if owner is not None:
            assert file.startswith(owner + "/") and file.isascii()
            assert all(part not in ("", ".", "..") for part in file.split("/"))


@given(st.text())
def test_the_path_of_a_record_depends_on_its_object_alone(path):
    record = Path(names.commit_path(hashing.object_id(path)))
    assert record.parts[0] == "commits" and record.stem.startswith(record.parts[1])
    assert len(record.stem) == 32 and set(record.stem) <= set("0123456789abcdef")
