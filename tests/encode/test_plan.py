"""Plans: each frame goes through a model once, and other rows are copies."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsa.encode.jobs.plan import make_plan
from wsa.store.format.records import Commit, EmbeddingMeta, SegmentMeta
from wsa.store.objects.snapshot import Snapshot

GAMES = ("Breakout", "Pong")
MODELS = ("a-000000000000", "b-000000000000")


def digest(number):
    return number.to_bytes(2, "big") * 8


@dataclasses.dataclass(frozen=True)
class InMemory(Snapshot):
    """A snapshot whose frames are numbers."""

    contents: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def read_digests(self, meta):
        numbers = self.contents[f"{meta.game}/{meta.segment}"]
        return np.frombuffer(b"".join(map(digest, numbers)), np.uint8).reshape(-1, 16)


@st.composite
def stores(draw):
    """Segments as (game, frame numbers, models that encoded it), and requested models and games."""
    # Few numbers, so that segments repeat frames of the same and of other games.
    contents = st.lists(st.integers(0, 9), min_size=1, max_size=7)
    segment = st.tuples(st.sampled_from(GAMES), contents, st.sets(st.sampled_from(MODELS)))
    return (
        draw(st.lists(segment, min_size=1, max_size=7)),
        draw(st.lists(st.sampled_from(MODELS), min_size=1, unique=True)),
        draw(st.lists(st.sampled_from(GAMES), min_size=1, unique=True)),
    )


def build(kit, segments):
    commits = {}
    contents = {}

    def add(meta):
        commit = Commit(1, meta, "0" * 16, files=(), author="", time="", command="")
        commits[commit.path] = commit

    for at, (game, numbers, encoded) in enumerate(segments):
        # Segments of several games may have the same id.
        meta, _ = kit.fake_segment(at // 2, game=game, env=at % 2, steps=2)
        fields = {name: getattr(meta, name) for name in meta.__struct_fields__}
        meta = SegmentMeta(**{**fields, "frames": len(numbers)})
        add(meta)
        contents[f"{game}/{meta.segment}"] = numbers
        for model in encoded:
            shape = (len(numbers), 1)
            add(EmbeddingMeta(game, meta.segment, model, shape, "float16", 0, len(numbers), 0))
    return InMemory(None, commits, contents=contents)  # type: ignore[arg-type]  # No file is read.


def execute(plan, snapshot):
    """Execute a plan in order: a pass gives the number of its frame, a copy the row of its source.

    Fails if a row is written twice, or copied from an object that does not exist yet.
    """
    rows = {
        (e.model, e.game, e.segment): [float(n) for n in snapshot.contents[f"{e.game}/{e.segment}"]]
        for e in snapshot.embeddings()
    }
    for item in plan.items:
        numbers = snapshot.contents[f"{item.meta.game}/{item.meta.segment}"]
        row = [np.nan] * len(numbers)
        for at in item.own:
            assert np.isnan(row[at])
            row[at] = float(numbers[at])
        for copy in item.copies:
            itself = (copy.game, copy.segment) == (item.meta.game, item.meta.segment)
            source = row if itself else rows.get((item.model, copy.game, copy.segment))
            for at, target in zip(copy.source, copy.target, strict=True):
                assert source is not None and np.isnan(row[target])
                row[target] = source[at]
        name = (item.model, item.meta.game, item.meta.segment)
        assert name not in rows
        rows[name] = row
    return rows


@given(case=stores())
def test_every_frame_goes_through_each_model_once_and_gets_its_embedding(case, kit):
    segments, models, games = case
    snapshot = build(kit, segments)
    plan = make_plan(snapshot, models, games)
    passes = copies = objects = present = 0
    for model in models:
        seen = {n for _, numbers, encoded in segments if model in encoded for n in numbers}
        missing = [
            numbers for game, numbers, done in segments if game in games and model not in done
        ]
        distinct = {n for numbers in missing for n in numbers} - seen
        passes += len(distinct)
        copies += sum(map(len, missing)) - len(distinct)
        objects += len(missing)
        present += sum(game in games and model in done for game, _, done in segments)
    assert (plan.passes, plan.copies, len(plan.items)) == (passes, copies, objects)
    assert plan.present == present
    assert [i.model for i in plan.items] == sorted((i.model for i in plan.items), key=models.index)
    rows = execute(plan, snapshot)
    for (_, game, segment), row in rows.items():
        assert row == snapshot.contents[f"{game}/{segment}"]
    expected = {
        (m, s.game, s.segment) for m in models for s in snapshot.segments() if s.game in games
    }
    assert expected <= rows.keys()


def test_a_copy_comes_from_the_same_model_and_any_game(kit):
    segments = [("Breakout", [1, 2], {MODELS[0]}), ("Pong", [2, 3], set[str]())]
    snapshot = build(kit, segments)
    first, second = make_plan(snapshot, [*MODELS], ["Pong"]).items
    assert [item.model for item in (first, second)] == [*MODELS]
    assert [(c.game, c.source.tolist(), c.target.tolist()) for c in first.copies] == [
        ("Breakout", [1], [0])
    ]
    assert first.own.tolist() == [1] and second.own.tolist() == [0, 1] and not second.copies
