"""What the studies of trained runs share: the runs, and their games."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec

from wsa.learn.configs.algorithms import PPOConfig
from wsa.learn.configs.evaluation import EvaluationSettings
from wsa.learn.configs.network import pixel_network
from wsa.learn.configs.study import RunsOptions
from wsa.learn.envs import atari
from wsa.learn.envs.policies import RandomPolicy
from wsa.learn.envs.variants import parse_variant
from wsa.learn.evaluation.episodes import play
from wsa.learn.runs.config import MEAN_CONTEXT
from wsa.learn.runs.folder import begin
from wsa.learn.runs.network import parameters_of
from wsa.learn.runs.setup.make_run import make_online
from wsa.learn.study.games import Games, env_seeds, evaluation_note
from wsa.learn.study.trained_runs import TrainedRun, runs_of
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot


def online_run(folder):
    """The configuration of a run of pixels on an empty store."""
    snapshot = take_snapshot(open_store(str(folder / "store"), create=True))
    return make_online(
        snapshot, "Pong", [], MEAN_CONTEXT, pixel_network(4), atari.protocol("Pong", "classic"), 1,
        PPOConfig(),
    )  # fmt: skip


def test_an_online_run_is_counted_without_its_store(tmp_path):
    config = online_run(tmp_path)
    gone = msgspec.structs.replace(config, store=str(tmp_path / "gone"))
    assert TrainedRun(tmp_path, gone).parameters == parameters_of(config, (), ()).total


def test_a_run_that_is_named_in_several_ways_is_one_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin(tmp_path / "run", online_run(tmp_path))
    ways = ("run", "run/", "./run", "store/../run", str(tmp_path / "run"))
    assert len(runs_of(RunsOptions(runs=ways))) == 1


def test_one_game_is_noted_in_the_singular():
    note = evaluation_note(EvaluationSettings(1, 0.5, 40, 1))
    assert note.startswith("1 full game each (epsilon 0.5, 1 environment seeded from 40")


def test_a_random_policy_does_not_look(tmp_path):
    """Its games of a variant that changes only frames are those of the unchanged game."""
    config: Any = SimpleNamespace(game="Pong", protocol=atari.protocol("Pong", "classic"))
    run, played = TrainedRun(tmp_path, config), Games(tmp_path, EvaluationSettings(5, 0.5, 40, 2))
    unchanged, looks, rules = (
        played.random_path(run, parse_variant(spec, "Pong") if spec else None)
        for spec in ("", "look:gray", "look:gray+sticky=0.25")
    )
    assert looks == unchanged != rules


def test_planned_seeds_are_the_played_ones():
    settings = EvaluationSettings(5, 0.5, 40, 2)
    protocol = msgspec.structs.replace(atari.protocol("Pong", "classic"), max_steps=2)
    played = play("Pong", protocol, RandomPolicy(6, 0), settings)
    assert [e.seed for e in played] == env_seeds(settings) == [40, 40, 40, 41, 41]
