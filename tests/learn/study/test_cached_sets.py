"""`wsa study scale --after cached`: every set of a run's models on stored states, without a model pass or a game."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from command_kit import read_csv

from wsa.encode.inference.encoder import Encoder
from wsa.learn.configs.algorithms import BCConfig, CQLConfig, PPOConfig
from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.runs.config import OnlineRun
from wsa.learn.runs.folder import begin
from wsa.learn.runs.network import make_network
from wsa.learn.runs.setup.make_run import make_offline
from wsa.learn.runs.train import train_stored
from wsa.learn.study.scaling import cached, cached_report
from wsa.learn.study.scaling.stored_states import StoredStates
from wsa.learn.study.scaling.subsets import shapley, subsets
from wsa.learn.study.trained_runs import TrainedRun
from wsa.learn.training import checkpoint
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.format.records import EmbeddingMeta
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.objects.writer import commit_embedding, commit_segment

NETWORK = NetworkConfig(FusionConfig(size=16), frame_stack=2, hidden=(16,))
LEARNER = CQLConfig(updates=60, batch_size=32, learning_rate=3e-3, log_frequency=30)


def test_subsets_are_ordered_by_size():
    assert subsets(2) == [(True, False), (False, True), (True, True)]
    assert len(set(subsets(4))) == 15 and [sum(s) for s in subsets(3)] == [1, 1, 1, 2, 2, 2, 3]


def test_shapley_values_are_exact():
    # Two left gloves and a right one; a pair is worth 1.
    gloves = {s: float(s[2] and (s[0] or s[1])) for s in [(False,) * 3, *subsets(3)]}
    np.testing.assert_allclose(shapley(gloves), [1 / 6, 1 / 6, 4 / 6])
    generator = np.random.default_rng(0)
    values = {s: float(generator.normal()) for s in [(False,) * 5, *subsets(5)]}
    exact = shapley(values)
    assert exact.sum() == pytest.approx(values[(True,) * 5] - values[(False,) * 5])
    # Models that add the same to every set are worth that, and others nothing.
    additive = {s: 0.3 * s[0] + 0.5 * s[2] for s in values}
    np.testing.assert_allclose(shapley(additive), [0.3, 0, 0.5, 0, 0], atol=1e-12)


def test_regret_and_divergence():
    whole = np.array([[1, 3], [2, 0]], np.float32)
    assert cached.regret(whole, np.array([[5, 4], [9, 8]], np.float32)) == 1.0
    assert cached.regret(whole, whole) == cached.divergence(whole, whole) == 0
    logits = (
        np.log(np.array([[0.5, 0.5]], np.float32)),
        np.log(np.array([[0.25, 0.75]], np.float32)),
    )
    by_hand = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert cached.divergence(*logits) == pytest.approx(by_hand)


def train_run(kit, url, folder, **changes):
    """Train on the walk: one model knows the state, the other is noise."""
    details: dict[str, Any] = {"hyperparameters": LEARNER, "network": NETWORK, **changes}
    config = make_offline(
        take_snapshot(open_store(url)), kit.GAME, [kit.key("lite0"), kit.key("vit")], "mean", 1,
        **details,
    )  # fmt: skip
    begin(folder, config)
    train_stored(folder, config)
    return TrainedRun(folder, config)


@pytest.fixture(scope="module")
def run(kit, walk_url, tmp_path_factory):
    return train_run(kit, walk_url, tmp_path_factory.mktemp("study") / "run")


def test_sets_without_the_informed_model_agree_less(run, monkeypatch):
    def no_model(*_, **__):
        raise AssertionError("a model was opened")

    monkeypatch.setattr("wsa.encode.registration.register.open_model", no_model)
    before, progress = Encoder.total_passes, []
    result = cached.measure(run, 50, on_set=lambda *counts: progress.append(counts))
    assert (result.passes, Encoder.total_passes) == (0, before)
    assert (result.states, result.held_out, result.loss) == (50, True, "regret")
    assert progress == [(n, 4) for n in (1, 2, 3, 4)]
    assert result.models == ("lite0", "vit") and len(result.sets) == 4
    empty, knows, noise, whole = result.sets
    assert (whole.agreement, whole.loss) == (1.0, 0.0)
    assert whole.weights and sum(whole.weights) == pytest.approx(1)
    assert empty.weights is None and knows.weights == (1.0, 0.0)
    assert sum(result.shapley) == pytest.approx(1 - empty.agreement)
    assert knows.agreement > noise.agreement and knows.loss < noise.loss
    assert result.shapley[0] > result.shapley[1]
    # The network itself gives the same values with one model.
    states = StoredStates(run, 50)
    network = states._network
    alone = states.decide((True, False))
    (stacks, _), *_ = states._states()
    with torch.no_grad():
        values, _ = network(stacks.clone(), (True, False))
    np.testing.assert_allclose(alone.values[: len(values)], values, rtol=1e-5)


def test_policies_are_compared_by_divergence(kit, walk_url, tmp_path):
    learner = BCConfig(updates=20, batch_size=8, log_frequency=10, validation_fraction=0.0)
    result = cached.measure(train_run(kit, walk_url, tmp_path / "run", hyperparameters=learner), 20)
    assert (result.loss, result.held_out) == ("KL", False)
    assert result.sets[-1].loss == 0 and all(one.loss > 0 for one in result.sets[:-1])


def make_online_run(kit, url, folder, recurrent):
    """An online run; its store may be empty."""
    config = OnlineRun(
        store=url, game=kit.GAME, protocol=kit.PROTOCOL, models=(kit.key("lite0"), kit.key("vit")),
        context="mean", network=NETWORK, seed=1, segments=(), shapes=((5,), (3,)), parameters=0,
        hyperparameters=PPOConfig(recurrent=recurrent).settled(),
    )  # fmt: skip
    begin(folder, config)
    torch.manual_seed(0)
    network = make_network(config, config.model_windows, config.shapes)
    checkpoint.save(folder / "checkpoints", 8, {"online": network})
    return TrainedRun(folder, config)


@pytest.mark.parametrize("recurrent", [False, True])
def test_online_runs_are_measured_on_the_stored_states(kit, walk_url, tmp_path, recurrent):
    run = make_online_run(kit, walk_url, tmp_path, recurrent)
    result = cached.measure(run, 300)
    assert (result.states, result.held_out, result.loss) == (300, True, "KL")
    assert result.sets[-1].loss == 0
    if recurrent:  # The memory continues from one chunk to the next.
        states = StoredStates(run, 300)
        network = states._network
        parts = [(stacks.clone(), first) for stacks, first in states._states()]
        stacks, first = (torch.cat(each) for each in zip(*parts, strict=True))
        with torch.no_grad():
            values, *_ = network(stacks, first, network.initial_state(1))
        np.testing.assert_allclose(states.decide((True, True)).values, values, atol=1e-5)
        assert 30 < first.sum() < 200


def add_play(kit, url, run):
    """Add a segment of a run, encoded by both models."""
    backend = open_store(url, create=True)
    meta, arrays = kit.fake_segment(run=run)
    commit_segment(backend, meta, arrays)
    for alias, width in (("lite0", 5), ("vit", 3)):
        array = np.ones((meta.frames, width), np.float16)
        about = (array.shape, "float16", meta.frames, 0, 1.0)
        record = EmbeddingMeta(meta.game, meta.segment, kit.key(alias), *about)
        commit_embedding(backend, record, array)
    return meta


def test_states_that_an_online_run_recorded_are_not_held_out(kit, tmp_path):
    url = str(tmp_path / "store")
    own = add_play(kit, url, "a" * 12)
    online = make_online_run(kit, url, tmp_path / "run", False)
    run = TrainedRun(online.folder, msgspec.structs.replace(online.config, record=own.run))
    assert StoredStates(online).held_out and not StoredStates(run).held_out
    other = add_play(kit, url, "b" * 12)
    states = StoredStates(run)
    assert states.held_out and [part.segment for part in states._flat.parts] == [other.segment]


def test_an_online_run_without_stored_states_is_an_error(kit, tmp_path):
    url = str(tmp_path / "store")
    open_store(url, create=True)
    run = make_online_run(kit, url, tmp_path / "run", False)
    with pytest.raises(MissingError, match=r"wsa encode --game Pong --models lite0,vit") as error:
        cached.measure(run)
    assert error.value.kind == "not-encoded"


def test_runs_that_cannot_leave_out_a_model_are_refused(kit, walk_url, tmp_path):
    config = make_offline(
        take_snapshot(open_store(walk_url)), kit.GAME, [kit.key("lite0"), kit.key("vit")], "mean", 1,
        LEARNER, network=msgspec.structs.replace(NETWORK, fusion=FusionConfig("lin")),
    )  # fmt: skip
    with pytest.raises(UsageError, match="--fusion lin, the length of the state vector depends on"):
        cached.check(TrainedRun(tmp_path, config))
    many = tuple(f"vit{i}-0123456789ab" for i in range(11))
    more = msgspec.structs.replace(config, models=many, network=NETWORK)
    with pytest.raises(UsageError, match="2,048 sets"):
        cached.check(TrainedRun(tmp_path, more))
    with pytest.raises(MissingError, match="has no checkpoint"):
        cached.check(TrainedRun(tmp_path, msgspec.structs.replace(config, network=NETWORK)))


def test_the_written_files(run, tmp_path):
    result = cached.measure(run, 50)
    text = cached_report.write(tmp_path, [result])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "index.html", "scale-cached.csv", "scale-cached.json", "scale-cached.md",
    ]  # fmt: skip
    rows = read_csv(tmp_path / "scale-cached.csv")
    assert [r["present"] for r in rows] == ["", "lite0", "vit", "lite0+vit"]
    assert [float(r["agreement"]) for r in rows] == [one.agreement for one in result.sets]
    assert {int(r["parameters"]) for r in rows} == {result.parameters}
    assert f"{result.parameters:,} trainable parameters" in text
    assert text == (tmp_path / "scale-cached.md").read_text()
    assert "| lite0+vit | 1.000" in text and "- command: " in text and "torch" in text
    page = (tmp_path / "index.html").read_text()
    assert page.count("<svg") == 2 and "held-out states" in page
    assert json.loads((tmp_path / "scale-cached.json").read_text())["name"] == "scale-cached"
