"""Moments, splits and labels of probes, and that they rank what knows above what does not."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.models.paper import load
from wsa.learn.probe import inputs
from wsa.learn.probe.inputs import embeddings
from wsa.learn.probe.probe import FLOOR, Plan, Table, probe, usable_variables
from wsa.learn.probe.samples import Moments, choose, draw, is_better, max_drawn
from wsa.learn.probe.targets import action_target, horizons_of, reward_target
from wsa.store.backends.base import Backend
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.format.records import EmbeddingMeta, ModelMeta, SegmentMeta
from wsa.store.objects.model_spec import Identity, ModelSpec, Preprocessing
from wsa.store.objects.snapshot import Snapshot, take_snapshot
from wsa.store.objects.writer import commit_embedding, commit_model, commit_segment

BETTER = "0123456789ac"  # A run of somebody who does not play at random.


@pytest.fixture
def told(kit: ModuleType, store: Backend) -> Snapshot:
    """Episodes of five steps; `lite0` tells what the step earns, and `vit` nothing."""
    for number in range(4):
        meta, arrays = kit.add_segment(store, number, steps=60, ends=tuple(range(4, 60, 5)))
        assert (arrays["frame"] == np.arange(meta.rows)).all()
        known = np.eye(3, dtype=np.float16)[arrays["reward"].astype(int) + 1]
        about = EmbeddingMeta(
            meta.game, meta.segment, kit.key("lite0"), known.shape, "float16", len(known), 0, 1.0
        )
        commit_embedding(store, about, known)
        kit.add_embedding(store, meta, kit.key("vit"), shape=(2, 2))
    return take_snapshot(store)


def played(
    kit: ModuleType, store: Backend, number: int, policy: str = "ppo 0123 eps 0.2", **how: Any
) -> SegmentMeta:
    """A segment that a policy played."""
    meta, arrays = kit.fake_segment(number, run=BETTER, **how)
    meta = msgspec.structs.replace(meta, policy=policy)
    commit_segment(store, meta, arrays)
    return meta


def drawn(
    snapshot: Snapshot, game: str, labeler: Any, samples: int = 300, splits: int = 5, seed: int = 1
) -> Moments:
    return draw(snapshot, snapshot.segments(game), labeler, samples, splits, seed)


def plan(models: dict[str, str], variables: list[str], **options: Any) -> Plan:
    how: dict[str, Any] = {"ordered": True, "places": False, "state": False, "f1": True}
    how |= {"untrained": 0, "frames": False, "seed": 1, **options}
    return Plan(models, variables, **how)


def r2_of(table: Table, name: str, variable: str) -> float:
    (line,) = [line for line in table.lines if line.name == name]
    found = line.scores("both")
    assert found
    return float(found.r2[table.ordered.index(variable)])


def test_what_knows_is_ranked_above_noise(kit: ModuleType, told: Snapshot) -> None:
    moments = drawn(told, kit.GAME, reward_target((1, 2)))
    variables, left_out = usable_variables(moments, 0)
    assert not left_out and variables == ["next step", "next 2 steps"]
    models = {kit.key("vit"): "noise", kit.key("lite0"): "known"}
    done: list[tuple[int, int]] = []
    table = probe(told, kit.GAME, moments, plan(models, variables), lambda *how: done.append(how))
    assert done == [(1, 2), (2, 2)]
    known, noise, floor = table.ranked()
    assert (known.name, noise.name, floor.name) == ("known", "noise", FLOOR)
    assert (known.numbers, noise.numbers) == (3, 4)
    assert r2_of(table, "known", "next step") > 0.999
    assert known.f1["next step"].weighted == known.f1["next step"].macro == 1
    assert 0.2 < r2_of(table, "known", "next 2 steps") < 0.9
    for line in (floor, noise):
        assert line.f1["next step"].weighted < 0.6 and r2_of(table, line.name, "next step") < 0.1
    assert "transfer" not in known.sums  # There is random play only.


def test_actions_have_no_order(kit: ModuleType, told: Snapshot) -> None:
    moments = drawn(told, kit.GAME, action_target)
    models = {kit.key("lite0"): "known"}
    table = probe(told, kit.GAME, moments, plan(models, ["action"], ordered=False))
    known, _ = table.ranked()
    assert not known.sums and not table.means and table.ranked_by == "f1"
    assert known.f1["action"].weighted < 0.6  # It was played at random.


def test_an_episode_is_learned_from_or_judged(kit: ModuleType, told: Snapshot) -> None:
    moments = drawn(told, kit.GAME, action_target, 200)
    whose = np.concatenate(
        [
            1000 * number + told.read_rows(meta)["episode"][rows]
            for number, (meta, rows) in enumerate(zip(moments.segments, moments.rows, strict=True))
        ]
    )
    assert moments.groups.unit == "episodes" and len(moments) == 200
    assert len(moments.splits) == 5
    for split in moments.splits:
        parts = [set(whose[part].tolist()) for part in (split.fit, split.check, split.test)]
        assert all(parts) and not parts[0] & parts[1] and not parts[2] & (parts[0] | parts[1])
        assert len(split.test) == pytest.approx(40, abs=10)
        assert len(split.check) == pytest.approx(40, abs=10)
    times_judged = np.bincount(np.concatenate([split.test for split in moments.splits]))
    assert times_judged.max() == 1


def test_random_and_better_play_have_equal_shares_in_every_split(
    kit: ModuleType, store: Backend
) -> None:
    ends = tuple(range(4, 60, 5))
    for number in range(6):
        kit.add_segment(store, number, steps=60, ends=ends)
    for number in range(4):
        played(kit, store, number, steps=60, ends=ends)
    snapshot = take_snapshot(store)
    moments = drawn(snapshot, kit.GAME, action_target, 200)
    assert moments.better.sum() == 100 and len(moments) == 200
    whose = np.repeat([is_better(m) for m in moments.segments], list(map(len, moments.rows)))
    assert (whose == moments.better).all()
    assert (moments.groups.better[moments.groups.of] == moments.better).all()
    for split in moments.splits:
        for part in (split.fit, split.check, split.test):
            assert 0.3 < moments.better[part].mean() < 0.7
        across = split.across(moments.better)
        assert not moments.better[across.train].any() and moments.better[across.test].all()
        assert set(across.test) < set(split.test) and set(across.fit) < set(split.fit)
    few = drawn(snapshot, kit.GAME, action_target, 10_000)
    assert max_drawn(snapshot.segments(kit.GAME), 10_000) == 600 == len(few)
    assert max_drawn(snapshot.segments(kit.GAME), 200) == 200


def test_a_policy_that_does_nothing_but_explore_plays_at_random(kit: ModuleType) -> None:
    meta, _ = kit.fake_segment()
    policies = ("random", "ppo 01ab eps 1", "ppo 01ab eps 0.1", "online ppo", "expert")
    found = [is_better(msgspec.structs.replace(meta, policy=policy)) for policy in policies]
    assert found == [False, False, True, True, True]


def test_what_was_seen_in_training_is_not_judged(kit: ModuleType, store: Backend) -> None:
    ends = tuple(range(3, 60, 4))
    for number in range(4):
        kit.add_segment(store, number, steps=60, ends=ends, frames=30)
    snapshot = take_snapshot(store)
    moments = drawn(snapshot, kit.GAME, action_target, 200)
    digests = np.concatenate(
        [
            snapshot.read_digests(meta)[frames]
            for meta, frames in zip(moments.segments, moments.frames, strict=True)
        ]
    )
    shown = [digest.tobytes() for digest in digests]
    for split in moments.splits:
        learned = {shown[i] for i in split.train}
        assert len(split.test) and not learned & {shown[i] for i in split.test}
    again = drawn(snapshot, kit.GAME, action_target, 200)
    other = drawn(snapshot, kit.GAME, action_target, 200, seed=2)
    assert [r.tolist() for r in again.rows] == [r.tolist() for r in moments.rows]
    assert [r.tolist() for r in other.rows] != [r.tolist() for r in moments.rows]


def test_few_episodes_are_split_by_segment(kit: ModuleType, store: Backend) -> None:
    for number in range(2):
        kit.add_segment(store, number, steps=40, cut=number > 0)
    with pytest.raises(MissingError, match=r"2 segments of random play in .* 3 episodes"):
        drawn(take_snapshot(store), kit.GAME, action_target)
    for number in range(2, 4):
        kit.add_segment(store, number, steps=40, cut=True)
    moments = drawn(take_snapshot(store), kit.GAME, action_target)
    assert (moments.groups.unit, len(moments.groups)) == ("segments", 4)
    assert len(moments.splits) == 4  # Not five.
    for number in range(3):
        played(kit, store, number, steps=40, ends=(9, 19, 29))
    moments = drawn(take_snapshot(store), kit.GAME, action_target)
    assert moments.groups.unit == "episodes and segments"


def test_the_sign_of_what_is_earned_next() -> None:
    #                   first episode, ends | second, goes on in another segment
    rows = {
        "action": np.array([0, 1, 0, -1, 2, 0, 0, -1]),
        "reward": np.array([0, 5, -1, 9, 0, 0, -2, 9], np.float32),
        "terminated": np.array([0, 0, 1, 0, 0, 0, 0, 0], np.bool_),
        "truncated": np.zeros(8, np.bool_),
    }
    meta: Any = None
    labeled, target, shown = reward_target((1, 2))(meta, rows)
    steps = rows["action"] >= 0
    assert labeled[steps].tolist() == [True, True, True, True, True, False]
    assert target["next step"][steps].tolist() == [0, 1, -1, 0, 0, -1]
    assert target["next 2 steps"][steps][:5].tolist() == [1, 1, -1, 0, -1]
    assert all(of.all() for of in shown.values())


@pytest.mark.parametrize("words", [(), ("x",), ("0",), ("1001",), ("-1",)])
def test_horizons_are_numbers(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="give numbers of steps from 1 to 1000"):
        horizons_of(words)
    assert horizons_of(("10", "1", "10")) == (10, 1)


def test_the_embedding_is_that_of_the_step(kit: ModuleType, store: Backend) -> None:
    """A frame's for models of one frame, a row's for those of several."""
    known = {}
    for number in range(3):
        meta, _ = kit.add_segment(store, number, steps=30, ends=(4, 9, 20), frames=12)
        for alias, window in (("lite0", 1), ("stacked", 4)):
            known[meta.segment, alias] = kit.add_embedding(
                store, meta, kit.key(alias), shape=(2, 3), window=window
            )
    snapshot = take_snapshot(store)
    moments = drawn(snapshot, kit.GAME, action_target, 50)
    for alias in ("lite0", "stacked"):
        found = embeddings(snapshot, kit.GAME, kit.key(alias), moments)
        expected = [
            known[meta.segment, alias][snapshot.read_rows(meta)["frame"][row] if alias == "lite0" else row]
            for meta, rows in zip(moments.segments, moments.rows, strict=True)
            for row in rows
        ]  # fmt: skip
        assert (found == np.stack(expected).reshape(50, 6)).all()


def test_only_what_all_models_have_encoded(kit: ModuleType, store: Backend) -> None:
    metas = []
    for number in range(3):
        meta, _ = kit.add_segment(store, number, steps=10)
        metas.append(meta)
        for alias in ("lite0", "vit")[: 1 + (number < 2)]:
            kit.add_embedding(store, meta, kit.key(alias))
    snapshot = take_snapshot(store)
    both = [kit.key("lite0"), kit.key("vit")]
    assert choose(snapshot, kit.GAME, both, (), 1000) == metas[:2]
    assert choose(snapshot, kit.GAME, both[:1], (), 1000) == metas
    assert choose(snapshot, kit.GAME, both, (), 5) == metas[:1]
    with pytest.raises(MissingError, match="played by expert"):
        choose(snapshot, kit.GAME, both, ("expert",), 1000)


def test_segments_of_random_and_of_better_play_are_chosen(kit: ModuleType, store: Backend) -> None:
    for number in range(6):
        kit.add_segment(store, number, steps=10)
    for number in range(2):
        played(kit, store, number, steps=10)
    snapshot = take_snapshot(store)
    found = choose(snapshot, kit.GAME, [], (), 40)
    assert [is_better(meta) for meta in found] == [False, False, True, True]
    assert len(choose(snapshot, kit.GAME, [], ("random",), 40)) == 4


def test_pixels_are_grey_and_no_more_than_asked_for(kit: ModuleType, store: Backend) -> None:
    for number in range(3):
        kit.add_segment(store, number, steps=20, ends=(5, 11))
    snapshot = take_snapshot(store)
    moments = drawn(snapshot, kit.GAME, action_target, 40)
    shown = inputs.pixels(snapshot, moments, 20)
    assert shown.shape == (40, 20) and shown.dtype == np.uint8 and shown.std() > 0


def spec_of(alias: str, output: str, random: bool = False) -> ModelSpec:
    """As a store has it of one of wsa's own encoders."""
    made = load.build(f"wsa:{alias}", "random")
    how: Preprocessing = made.preprocessing
    identity = Identity(f"wsa:{alias}", "", random, how, output, "", made.window, "fp32")
    return ModelSpec(alias, f"wsa:{alias}", identity, (), "package", "", 0.0, {})


@pytest.mark.slow
def test_untrained_networks_are_those_of_their_seeds(kit: ModuleType, store: Backend) -> None:
    for number in range(3):
        kit.add_segment(store, number, steps=20, ends=(5, 11), frames=15)
    snapshot = take_snapshot(store)
    moments = drawn(snapshot, kit.GAME, action_target, 12)
    for alias, output in (("sr", "pooled+rp:8"), ("okk", "map")):
        spec = spec_of(alias, output)
        assert inputs.has_untrained(spec)
        zero, one = inputs.untrained(snapshot, moments, spec, (0, 1))
        made = load.build(f"wsa:{alias}", "random")  # As `:random` has it.
        kept = msgspec.structs.replace(inputs.parse_output(output), reduction="", numbers=0)
        encoder = Encoder(made, made.preprocessing, kept)
        meta, frames, rows = next(
            of for of in zip(moments.segments, moments.frames, moments.rows, strict=True) if len(of[1])
        )  # fmt: skip
        if made.window == 1:
            seen = snapshot.read_frames(meta)[frames[:1]]
        else:
            window = kit.window_of(snapshot.read_rows(meta), made.window)[rows[0]]
            seen = snapshot.read_frames(meta)[snapshot.read_rows(meta)["frame"][window]][None]
        assert (zero[0] == stored(encoder(seen)).reshape(-1)).all()
        assert zero.shape == one.shape == (12, zero.shape[1]) and (zero != one).any()


def test_untrained_seeds_and_pixels_stand_beside_encoders_of_wsas_own(
    kit: ModuleType, store: Backend
) -> None:
    specs = [spec_of("vos", "pooled"), spec_of("vos", "pooled", random=True)]
    models = dict(zip([spec.key for spec in specs], ["vos", "vos:random"], strict=True))
    for spec in specs:
        commit_model(store, ModelMeta(spec.key), {"spec.json": spec.json})
    for number in range(3):
        meta, _ = kit.add_segment(store, number, steps=40, ends=(9, 19, 29), frames=30)
        for key in models:
            kit.add_embedding(store, meta, key, shape=(512,), window=specs[0].identity.window)
    snapshot = take_snapshot(store)
    moments = drawn(snapshot, kit.GAME, reward_target((1,)), 30)
    asked = plan(models, ["next step"], untrained=2, frames=True, f1=False)
    table = probe(snapshot, kit.GAME, moments, asked)
    kinds = {line.name: line.kind for line in table.lines}
    seeds = {f"vos untrained, seed {seed}": "untrained" for seed in (0, 1)}  # Of both, once.
    shown = {name: kind for name, kind in kinds.items() if kind == "pixels"}
    assert kinds == {FLOOR: "floor", "vos": "model", "vos:random": "model", **seeds, **shown}
    assert [line.numbers for line in table.lines if line.kind == "untrained"] == [512, 512]
    assert len(shown) == 1


def test_the_untrained_network_is_the_one_that_sees_what_the_model_sees(
    kit: ModuleType, store: Backend
) -> None:
    """`sr` may be the paper's network of four large frames as well as one of a small frame."""
    for number in range(3):
        kit.add_segment(store, number, steps=20, ends=(5, 11), frames=15)
    snapshot = take_snapshot(store)
    moments = drawn(snapshot, kit.GAME, action_target, 12)
    spec = spec_of("sr", "pooled")
    small, paper = load.networks("sr")
    made = load.network("sr", where=small)
    sees = msgspec.structs.replace(
        spec.identity, preprocessing=made.sees.preprocessing(), window=made.window
    )
    (found,) = inputs.untrained(
        snapshot, moments, msgspec.structs.replace(spec, identity=sees), (3,)
    )
    seeded = load.build("wsa:sr", "random", 3, small)
    encoder = Encoder(seeded, seeded.preprocessing, inputs.parse_output("pooled"))
    i = next(i for i, frames in enumerate(moments.frames) if len(frames))
    seen = snapshot.read_frames(moments.segments[i])[moments.frames[i][:1]]
    assert made.window == 1 and (found[0] == stored(encoder(seen))[0]).all()
    larger = load.network("sr", where=paper)
    assert (
        inputs._network(
            msgspec.structs.replace(
                spec,
                identity=msgspec.structs.replace(
                    sees, preprocessing=larger.sees.preprocessing(), window=4
                ),
            )
        )
        == paper
    )
    neither = msgspec.structs.replace(spec.identity, window=3)
    assert not inputs.has_untrained(msgspec.structs.replace(spec, identity=neither))


def test_only_encoders_with_weights_of_wsas_own_are_untrained() -> None:
    user = msgspec.structs.replace(spec_of("sr", "pooled"), timm_name="lab.nets:make")
    other = msgspec.structs.replace(spec_of("sr", "pooled"), timm_name="wsa:nothing")
    assert not inputs.has_untrained(user) and not inputs.has_untrained(other)
