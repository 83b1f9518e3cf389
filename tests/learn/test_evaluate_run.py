"""`wsa eval` of a run: what it counts, records, and films, with models left out and under variants."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learn_kit import ALIASES, MAX_STEPS, plan_offline

from wsa.encode.inference import encoder as inference
from wsa.encode.live.live_encoder import LiveEncoder
from wsa.learn.configs.evaluation import EvaluationRequest, EvaluationSettings
from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs.policies import RandomPolicy
from wsa.learn.evaluation import attention_log, random_games
from wsa.learn.evaluation.episodes import play
from wsa.learn.evaluation.random_games import RandomGames
from wsa.learn.runs import data, evaluate, player
from wsa.learn.runs.config import read_config
from wsa.learn.runs.evaluate import evaluate_run
from wsa.learn.runs.folder import begin
from wsa.learn.runs.presence import mask_of
from wsa.store.common import hashing
from wsa.store.common.errors import ConflictError, MissingError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(trained, tmp_path):
    """A finished run that was never evaluated."""
    return Path(shutil.copytree(trained, tmp_path / "run", copy_function=os.link))


def read_table(run):
    return list(csv.DictReader((run / "eval.csv").read_text().splitlines()))


def read_weights(run):
    with np.load(run / attention_log.FILE) as log:
        return dict(log)


def test_a_variant_that_changes_nothing_gives_the_same_evaluation(run, breakout, monkeypatch):
    shown = []

    class Spy(LiveEncoder):
        def __call__(self, frames, *episodes, **details):
            shown.extend(hashing.frame_digest(frame) for frame in frames)
            return super().__call__(frames, *episodes, **details)

    with monkeypatch.context() as patch:
        patch.setattr(data, "LiveEncoder", Spy)
        # With the seed of the collection, the first frame is in the store.
        evaluation = evaluate_run(
            run, EvaluationRequest(episodes=2, epsilon=0.2, seed=1, num_envs=2)
        )
    assert evaluation.player.trained == 50 and evaluation.seconds > 0
    assert [e.steps for e in evaluation.episodes + evaluation.random] == [MAX_STEPS] * 4
    stored = {d.tobytes() for m in breakout.segments() for d in breakout.read_digests(m)}
    new = set(shown) - stored
    live = evaluation.live
    assert live.frames == len(shown) == 2 * MAX_STEPS
    assert live.found == sum(digest in stored for digest in shown) > 0
    assert live.passes == len(ALIASES) * len(new) > 0
    assert live.remembered == live.frames - live.found - len(new)
    assert live.hit_rate == pytest.approx(1 - len(new) / len(shown))

    summary, returns = evaluation.summary(), [e.returned for e in evaluation.episodes]
    assert summary["frames"] == live.frames and summary["backbone_passes"] == live.passes
    assert summary["hit_rate"] == pytest.approx(live.hit_rate, abs=1e-4)
    assert (summary["return_mean"], summary["return_std"]) == (np.mean(returns), np.std(returns))
    assert summary["return_low"] <= summary["return_mean"] <= summary["return_high"]
    random, human = 1.7, 30.5  # Published returns of Breakout.
    assert summary["human_normalized"] == pytest.approx(
        (np.mean(returns) - random) / (human - random)
    )
    of_random = np.mean([e.returned for e in evaluation.random])
    assert summary["random_human_normalized"] == pytest.approx(
        (of_random - random) / (human - random)
    )
    weights = read_weights(run)
    assert tuple(weights["models"]) == read_config(run).models
    assert weights["weights"].shape == (2 * MAX_STEPS, len(ALIASES))
    np.testing.assert_allclose(weights["weights"].sum(axis=1), 1, rtol=1e-5)
    assert weights["reward"].sum() == sum(returns)
    rows = read_table(run)
    assert [row["policy"] for row in rows] == ["run", "run", "random", "random"]
    assert [float(row["return"]) for row in rows[:2]] == returns
    newest = hashing.checksum((run / "checkpoints" / "000000050.safetensors").read_bytes())[:12]
    facts = ("trained", "epsilon", "steps", "checkpoint")
    assert {tuple(row[fact] for fact in facts) for row in rows} == {
        ("50", "0.2", str(MAX_STEPS), newest)
    }

    same = evaluate_run(
        run,
        EvaluationRequest(
            episodes=2, epsilon=0.2, seed=1, num_envs=2, variant="mode=0+difficulty=0+sticky=0"
        ),
    )
    assert (same.episodes, same.random) == (evaluation.episodes, evaluation.random)
    for name in ("frames", "found", "remembered", "passes"):
        assert getattr(same.live, name) == getattr(live, name)
    for name, array in read_weights(run).items():
        np.testing.assert_array_equal(array, weights[name])


@pytest.mark.slow
def test_games_side_by_side_are_played_as_each_by_itself(trained):
    opened = player.open_player(trained, EvaluationRequest(), threads=2)
    config = opened.config

    def play_games(count, policy, seed=77):
        settings = EvaluationSettings(count, seed=seed, num_envs=count)
        return play(config.game, config.protocol, policy, settings)

    together = play_games(4, opened.policy(4, 0.2, 77))
    policy = opened.policy(4, 0.2, 77)
    for i, episode in enumerate(together):

        def as_number(frames, first, envs, i=i):
            return policy(frames, first, envs + i)

        (alone,) = play_games(1, as_number, 77 + i)
        assert (alone.returned, alone.steps) == (episode.returned, episode.steps)


def test_a_model_that_is_left_out_is_not_run(run, monkeypatch):
    opened = []
    open_models = player.open_models

    def spy(snapshot, keys, **how):
        opened.extend(keys)
        return open_models(snapshot, keys, **how)

    monkeypatch.setattr(player, "open_models", spy)
    evaluation = evaluate_run(
        run, EvaluationRequest(episodes=1, seed=77, num_envs=1, without=(ALIASES[1],))
    )
    live = evaluation.live
    assert opened == [read_config(run).models[0]]
    assert live.engines == ["torch"]
    assert live.passes == live.frames - live.found - live.remembered > 0
    assert evaluation.summary()["present"] == (ALIASES[0],)
    assert [row["present"] for row in read_table(run)] == [ALIASES[0], ""]
    weights: Any = read_weights(run)["weights"]
    np.testing.assert_array_equal(weights, np.repeat([[1.0, 0.0]], MAX_STEPS, axis=0))
    # The other way to say it, with the name that the model was encoded by.
    names = ("timm:test_resnet.r160_in1k:random",)
    assert (
        evaluate_run(run, EvaluationRequest(episodes=1, seed=77, num_envs=1, only=names)).episodes
        == evaluation.episodes
    )


@pytest.mark.parametrize(
    ("fusion", "selection", "message"),
    [
        ("wsa", {"without": ["oops"]}, "--without oops: the run's models are test_resnet"),
        ("wsa", {"only": ["oops:random"]}, "there is no model|no such|the run's models are"),
        ("wsa", {"without": [ALIASES[0]]}, "which provides the context"),
        ("wsa", {"without": ALIASES}, "leaves no model"),
        ("wsa", {"without": ALIASES, "only": ALIASES}, "not both"),
        ("lin", {"without": [ALIASES[1]]}, "the length of the state vector depends on"),
        ("res", {"only": [ALIASES[1]]}, "can be left out with wsa, dpa, mean, uniform, unshared"),
        ("single", {"without": ALIASES[:1]}, "is the run's only model"),
    ],
)
def test_models_that_cannot_be_left_out(breakout, fusion, selection, message):
    config = plan_offline(
        breakout,
        models=ALIASES[:1] if fusion == "single" else ALIASES,
        network=NetworkConfig(FusionConfig(fusion, size=16)),
        context=ALIASES[0] if fusion == "wsa" else "mean",
    )
    with pytest.raises(UsageError, match=message):
        mask_of(config, breakout, **selection)


def test_all_models_are_present_unless_some_are_left_out(breakout):
    config = plan_offline(breakout)
    assert mask_of(config, breakout) is None
    assert mask_of(config, breakout, only=ALIASES) is None
    assert mask_of(config, breakout, only=[ALIASES[0]]) == (True, False)


def test_both_policies_play_the_variant_and_the_store_stays_as_it_is(run, breakout, monkeypatch):
    shown = {False: [], True: []}

    def spy(*args, **details):
        class Watcher:
            def see(self, moment):
                shown[isinstance(args[2], RandomPolicy)].append(moment.frames)

        watchers = [*details.pop("watchers", ()), Watcher()]
        return play(*args, **details, watchers=watchers)

    monkeypatch.setattr(evaluate, "play", spy)
    monkeypatch.setattr(random_games, "play", spy)
    monkeypatch.setattr(RandomGames, "find", lambda _: None)
    before = sorted(Path(breakout.backend.url).rglob("*"))
    variant = "look:dim=0.5+occlude=16"
    evaluation = evaluate_run(
        run, EvaluationRequest(episodes=1, seed=1, num_envs=1, variant=variant)
    )
    # The first frame of this seed is in the store, but in other colors.
    assert evaluation.live.found == 0 and evaluation.live.passes > 0
    for frames in shown.values():
        assert len(frames) == MAX_STEPS and np.max(frames) < 128
    assert evaluation.summary()["variant"] == variant
    rows = [(row["policy"], row["variant"]) for row in read_table(run)]
    assert rows == [("run", variant), ("random", variant)]
    assert sorted(Path(breakout.backend.url).rglob("*")) == before


@pytest.mark.parametrize("variant", ["look:invrt", "mode=1", "ram:pong-lazy"])
def test_a_variant_that_the_game_lacks_is_refused_at_once(trained, variant, monkeypatch):
    monkeypatch.setattr(evaluate, "open_player", pytest.fail)
    request = EvaluationRequest(episodes=1, variant=variant)
    with pytest.raises(UsageError):
        evaluate_run(trained, request)


@pytest.mark.parametrize("options", [{"episodes": 0}, {"epsilon": 1.5}, {"num_envs": 0}])
def test_a_request_has_no_impossible_numbers(options):
    with pytest.raises(UsageError):
        EvaluationRequest(**options)


def test_a_run_without_a_checkpoint_cannot_be_evaluated(breakout, tmp_path):
    begin(tmp_path, plan_offline(breakout))
    with pytest.raises(MissingError, match="has no checkpoint"):
        evaluate_run(tmp_path, EvaluationRequest(episodes=1))


def test_a_model_that_drifted_is_refused(run, monkeypatch):
    preprocess = inference.preprocess
    monkeypatch.setattr(inference, "preprocess", lambda *a: 1.3 * preprocess(*a))
    with pytest.raises(ConflictError, match="step to step") as error:
        evaluate_run(run, EvaluationRequest(episodes=1))
    assert error.value.kind == "model-drift"
    assert not (run / "eval.csv").exists()
