from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsa.encode.jobs.plan import Plan, make_plan
from wsa.store.common import names
from wsa.store.format import records
from wsa.store.format.records import Commit, EmbeddingMeta, Meta, SegmentMeta
from wsa.store.objects.snapshot import Snapshot

GAMES = ("Breakout", "Pong")
MODELS = ("a-000000000000", "b-000000000000")


def digest(number: int) -> bytes:
    return number.to_bytes(2, "big") * 8


@dataclasses.dataclass(frozen=True)
class InMemory(Snapshot):
    """A snapshot whose segments hold the frames that a test says, by number."""

    shown: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def read_digests(self, meta: SegmentMeta) -> NDArray[np.uint8]:
        numbers = self.shown[f"{meta.game}/{meta.segment}"]
        return np.frombuffer(b"".join(map(digest, numbers)), np.uint8).reshape(-1, 16)


@st.composite
def stores(draw: st.DrawFn) -> Any:
    """Segments as (game, frame numbers, models that encoded it), and what is asked for."""
    # Few numbers, so that segments of one and of several games share frames, and repeat them.
    shown = st.lists(st.integers(0, 9), min_size=1, max_size=7)
    segment = st.tuples(st.sampled_from(GAMES), shown, st.sets(st.sampled_from(MODELS)))
    return (
        draw(st.lists(segment, min_size=1, max_size=7)),
        draw(st.lists(st.sampled_from(MODELS), min_size=1, unique=True)),
        draw(st.lists(st.sampled_from(GAMES), min_size=1, unique=True)),
    )


def build(kit: ModuleType, segments: list[tuple[str, list[int], set[str]]]) -> InMemory:
    commits: dict[str, Commit] = {}
    shown = {}

    def add(meta: Meta) -> None:
        commit = Commit(1, meta, "0" * 16, files=(), author="", time="", command="")
        commits[commit.path] = commit

    for at, (game, numbers, encoded) in enumerate(segments):
        # Segments of several games may have the same id.
        meta, _ = kit.fake_segment(at // 2, game=game, env=at % 2, steps=2)
        fields = {name: getattr(meta, name) for name in meta.__struct_fields__}
        meta = SegmentMeta(**{**fields, "frames": len(numbers)})
        add(meta)
        shown[f"{game}/{meta.segment}"] = numbers
        for model in encoded:
            shape = (len(numbers), 1)
            add(EmbeddingMeta(game, meta.segment, model, shape, "float16", 0, len(numbers), 0))
    return InMemory(None, commits, shown=shown)  # type: ignore[arg-type]  # No file is read.


def apply(plan: Plan, snapshot: InMemory) -> dict[tuple[str, str, str], list[float]]:
    """Carry a plan out by hand, in order: a pass gives a frame's number, a copy what is there.

    Fails where a row is written twice, or copied from an object that is not there yet.
    """
    rows = {
        (e.model, e.game, e.segment): [float(n) for n in snapshot.shown[f"{e.game}/{e.segment}"]]
        for e in snapshot.embeddings()
    }
    for item in plan.items:
        numbers = snapshot.shown[f"{item.meta.game}/{item.meta.segment}"]
        row = [np.nan] * len(numbers)
        for at in item.own:
            assert np.isnan(row[at])
            row[at] = float(numbers[at])
        for copy in item.copies:
            itself = (copy.game, copy.segment) == (item.meta.game, item.meta.segment)
            source = row if itself else rows.get((item.model, copy.game, copy.segment))
            for theirs, ours in zip(copy.source, copy.target, strict=True):
                assert source is not None and np.isnan(row[ours])
                row[ours] = source[theirs]
        name = (item.model, item.meta.game, item.meta.segment)
        assert name not in rows
        rows[name] = row
    return rows


@given(drawn=stores())
def test_every_frame_goes_through_each_model_once(drawn: Any, kit: ModuleType) -> None:
    segments, models, games = drawn
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


@given(drawn=stores())
def test_a_plan_carried_out_gives_every_frame_its_own_embedding(
    drawn: Any, kit: ModuleType
) -> None:
    segments, models, games = drawn
    snapshot = build(kit, segments)
    rows = apply(make_plan(snapshot, models, games), snapshot)
    for (_, game, segment), found in rows.items():
        assert found == snapshot.shown[f"{game}/{segment}"]
    wanted = {
        (m, s.game, s.segment) for m in models for s in snapshot.segments() if s.game in games
    }
    assert wanted <= rows.keys()


@given(drawn=stores())
def test_what_is_encoded_is_not_planned_again(drawn: Any, kit: ModuleType) -> None:
    segments, models, games = drawn
    done = [
        (game, numbers, encoded | set(models) if game in games else encoded)
        for game, numbers, encoded in segments
    ]
    plan = make_plan(build(kit, done), models, games)
    assert plan.items == () and plan.passes == plan.copies == 0


def test_copies_are_of_the_same_model_and_of_any_game(
    kit: ModuleType, given_names: Callable[[str], str] = names.model_key
) -> None:
    segments = [("Breakout", [1, 2], {MODELS[0]}), ("Pong", [2, 3], set[str]())]
    snapshot = build(kit, segments)
    first, second = make_plan(snapshot, [*MODELS], ["Pong"]).items
    assert [given_names(i.model) for i in (first, second)] == [*MODELS]
    assert [(c.game, c.source.tolist(), c.target.tolist()) for c in first.copies] == [
        ("Breakout", [1], [0])
    ]
    assert first.own.tolist() == [1] and second.own.tolist() == [0, 1] and not second.copies
    assert records.meta_path(first.meta).startswith("games/Pong/")
