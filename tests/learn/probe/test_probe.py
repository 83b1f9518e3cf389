"""Probes of a store: embeddings, pixels, and untrained networks, ranked by what they know."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.models.paper import load
from wsa.learn.probe import inputs
from wsa.learn.probe.probe import FLOOR, Plan, pixel_sizes, probe, usable_variables
from wsa.learn.probe.samples import draw
from wsa.learn.probe.targets import action_target, reward_target
from wsa.store.format.records import EmbeddingMeta, ModelMeta
from wsa.store.objects.model_spec import Identity, ModelSpec
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.objects.writer import commit_embedding, commit_model
from wsa.store.testing.faults import MemoryBackend


@pytest.fixture
def store(in_memory):
    return in_memory


@pytest.fixture(scope="module")
def known_rewards(kit):
    """Episodes of five steps; the embeddings of `lite0` are the reward, those of `vit` are noise."""
    store = MemoryBackend()
    store.put_new("wsa.json", b'{"format":1}')
    for number in range(4):
        meta, arrays = kit.add_segment(store, number, steps=60, ends=tuple(range(4, 60, 5)))
        assert (arrays["frame"] == np.arange(meta.rows)).all()
        known = np.eye(3, dtype=np.float16)[arrays["reward"].astype(int) + 1]
        described = EmbeddingMeta(
            meta.game, meta.segment, kit.key("lite0"), known.shape, "float16", len(known), 0, 1.0
        )
        commit_embedding(store, described, known)
        kit.add_embedding(store, meta, kit.key("vit"), shape=(2, 2))
    return take_snapshot(store)


def draw_samples(snapshot, labeler, samples):
    return draw(snapshot, snapshot.segments(), labeler, samples, 5, 1)


def plan(models, variables, **options):
    defaults: dict[str, Any] = {"ordered": True, "state": False, "f1": True}
    defaults |= {"untrained": 0, "frames": False, "seed": 1}
    return Plan(models, variables, **{**defaults, **options})


def r2_of(table, name, variable):
    (line,) = [line for line in table.lines if line.name == name]
    scores = line.scores("both")
    assert scores
    return float(scores.r2[table.ordered.index(variable)])


def test_a_model_that_knows_the_reward_is_ranked_above_noise(kit, known_rewards):
    sampled = draw_samples(known_rewards, reward_target((1, 2)), 300)
    variables, left_out = usable_variables(sampled, 0)
    assert not left_out and variables == ["next step", "next 2 steps"]
    models = {kit.key("vit"): "noise", kit.key("lite0"): "known"}
    progress = []
    table = probe(
        known_rewards, kit.GAME, sampled, plan(models, variables),
        lambda *counts: progress.append(counts),
    )  # fmt: skip
    assert progress == [(1, 2), (2, 2)]
    known, noise, floor = table.ranked()
    assert (known.name, noise.name, floor.name) == ("known", "noise", FLOOR)
    assert (known.numbers, noise.numbers) == (3, 4)
    assert r2_of(table, "known", "next step") > 0.999
    assert known.f1["next step"].weighted == known.f1["next step"].macro == 1
    assert 0.2 < r2_of(table, "known", "next 2 steps") < 0.9
    for line in (floor, noise):
        assert line.f1["next step"].weighted < 0.6 and r2_of(table, line.name, "next step") < 0.1
    assert "transfer" not in known.sums  # There is only random play.


def test_actions_have_no_order(kit, known_rewards):
    sampled = draw_samples(known_rewards, action_target, 200)
    models = {kit.key("lite0"): "known"}
    table = probe(known_rewards, kit.GAME, sampled, plan(models, ["action"], ordered=False))
    known, _ = table.ranked()
    assert not known.sums and not table.means and table.ranked_by == "f1"
    assert known.f1["action"].weighted < 0.6  # The actions are random.


Embeddings = dict[tuple[str, str], NDArray[Any]]


@pytest.fixture(scope="module")
def two_windows(kit):
    """A store with a model of one frame and one of four, 40 steps, and the stored embeddings."""
    store = MemoryBackend()
    store.put_new("wsa.json", b'{"format":1}')
    embeddings = {}
    for number in range(3):
        meta, _ = kit.add_segment(store, number, steps=30, ends=(4, 9, 20), frames=12)
        for alias, window in (("lite0", 1), ("stacked", 4)):
            embeddings[meta.segment, alias] = kit.add_embedding(
                store, meta, kit.key(alias), shape=(2, 3), window=window
            )
    snapshot = take_snapshot(store)
    return snapshot, draw_samples(snapshot, action_target, 40), embeddings


def test_inputs_are_the_embeddings_and_pixels_of_the_samples(kit, two_windows):
    """Embeddings of one frame are stored by frame, those of a window by row."""
    snapshot, sampled, stored_embeddings = two_windows
    for alias in ("lite0", "stacked"):
        embeddings = inputs.embeddings(snapshot, kit.GAME, kit.key(alias), sampled)
        expected = []
        for meta, rows in zip(sampled.segments, sampled.rows, strict=True):
            at = snapshot.read_rows(meta)["frame"][rows] if alias == "lite0" else rows
            expected += list(stored_embeddings[meta.segment, alias][at])
        assert (embeddings == np.stack(expected).reshape(40, 6)).all()
    pixels = inputs.pixels(snapshot, sampled, 20)
    assert pixels.shape == (40, 20) and pixels.dtype == np.uint8 and pixels.std() > 0


def make_spec(alias, output, random=False):
    """The spec of one of wsa's own encoders, as a store has it."""
    model = load.build(f"wsa:{alias}", "random")
    identity = Identity(
        f"wsa:{alias}", "", random, model.preprocessing, output, "", model.window, "fp32"
    )
    return ModelSpec(alias, f"wsa:{alias}", identity, (), "package", "", 0.0, {})


def test_untrained_networks_and_pixels_are_probed_beside_the_encoders(kit, store):
    specs = [make_spec("vos", "pooled"), make_spec("vos", "pooled", random=True)]
    models = dict(zip([spec.key for spec in specs], ["vos", "vos:random"], strict=True))
    for spec in specs:
        commit_model(store, ModelMeta(spec.key), {"spec.json": spec.json})
    for number in range(3):
        meta, _ = kit.add_segment(store, number, steps=20, ends=(4, 9, 14), frames=15)
        for key in models:
            kit.add_embedding(store, meta, key, shape=(512,), window=specs[0].identity.window)
    snapshot = take_snapshot(store)
    sampled = draw_samples(snapshot, reward_target((1,)), 20)
    asked = plan(models, ["next step"], untrained=2, frames=True, f1=False)
    lines = probe(snapshot, kit.GAME, sampled, asked).lines
    assert {line.name for line in lines} > {FLOOR, "vos", "vos:random"}
    untrained = [line for line in lines if line.kind == "untrained"]
    assert [(line.name, line.numbers) for line in untrained] == [
        ("vos untrained, seed 0", 512), ("vos untrained, seed 1", 512),
    ]  # fmt: skip
    assert sorted(line.kind for line in lines if line.kind != "untrained") == [
        "floor", "model", "model", "pixels",
    ]  # fmt: skip


def test_the_untrained_network_has_the_inputs_of_the_encoder(two_windows):
    """`sr` is the paper's network of four large frames, or one of a small frame."""
    snapshot, sampled, _ = two_windows
    spec = make_spec("sr", "pooled")
    small, paper = load.networks("sr")

    def spec_of(network, window):
        preprocessing = load.network("sr", where=network).sees.preprocessing()
        identity = msgspec.structs.replace(
            spec.identity, preprocessing=preprocessing, window=window
        )
        return msgspec.structs.replace(spec, identity=identity)

    (embeddings,) = inputs.untrained(snapshot, sampled, spec_of(small, 1), (3,))
    seeded = load.build("wsa:sr", "random", 3, small)
    encoder = Encoder(seeded, seeded.preprocessing, inputs.parse_output("pooled"))
    i = next(i for i, frames in enumerate(sampled.frames) if len(frames))
    first = snapshot.read_frames(sampled.segments[i])[sampled.frames[i][:1]]
    assert (embeddings[0] == stored(encoder(first))[0]).all()
    assert inputs._network(spec_of(paper, 4)) == paper
    assert not inputs.has_untrained(spec_of(paper, 3))


def test_widths_with_the_same_pixels_are_compared_once():
    grids = [inputs.pixel_grid(number) for number in (500, 512, 10_000)]
    assert grids[0] == grids[1] == (25, 20)
    assert pixel_sizes([512, 500, 10_000, 8000, 384]) == [384, 512, 7056]


def test_only_encoders_with_weights_of_wsas_own_have_untrained_networks():
    for name in ("lab.nets:make", "wsa:nothing"):
        spec = msgspec.structs.replace(make_spec("sr", "pooled"), timm_name=name)
        assert not inputs.has_untrained(spec)
